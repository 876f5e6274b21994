// The emulated machine by itself: threads that meet in warps, warpgroups, barriers and clusters, blocks that
// wait for each other, and the faults that it finds.
#include <gtest/gtest.h>

#include <atomic>
#include <cstring>
#include <functional>
#include <numeric>
#include <vector>

#include "emulator/launch.hpp"

namespace {

using namespace emu;  // NOLINT(google-build-using-namespace)

// Runs `body` as a kernel.
std::string launch(Launch l, const std::function<void()>& body) {
  void* arguments[] = {const_cast<std::function<void()>*>(&body)};
  l.run = [](void** a) { (*static_cast<std::function<void()>*>(a[0]))(); };
  l.arguments = arguments;
  return run(l);
}

void sum_all(void** mines, u32 count) {
  u32 sum = 0;
  for (u32 i = 0; i < count; ++i)
    if (mines[i] != nullptr) sum += *static_cast<u32*>(mines[i]);
  for (u32 i = 0; i < count; ++i)
    if (mines[i] != nullptr) *static_cast<u32*>(mines[i]) = sum;
}
void max_all(void**, u32) {}

TEST(EmulatedMachine, EveryThreadOfEveryBlockRuns) {
  std::vector<std::atomic<int>> seen(3 * 2 * 5 * 64);
  Launch l;
  l.grid = {3, 2, 5};
  l.threads = {16, 4, 1};
  EXPECT_EQ(launch(l,
                   [&] {
                     const Block& b = block();
                     const Position& p = here();
                     EXPECT_EQ(p.thread, p.thread_index.x + 16 * p.thread_index.y);
                     ++seen[((b.index.z * 2 + b.index.y) * 3 + b.index.x) * 64 + p.thread];
                   }),
            "");
  for (const auto& n : seen) EXPECT_EQ(n, 1);
}

TEST(EmulatedMachine, WarpsAndHalvesOfThemMeet) {
  Launch l;
  l.threads = {96, 1, 1};
  EXPECT_EQ(launch(l,
                   [] {
                     u32 v = here().lane;
                     warp_collective(~0U, &v, sum_all);
                     EXPECT_EQ(v, 496U);
                     const bool low = here().lane < 16;
                     for (int round = 0; round < (low ? 7 : 3); ++round) {  // halves go their own ways
                       u32 w = here().lane;
                       warp_collective(low ? 0xffffU : 0xffff0000U, &w, sum_all);
                       EXPECT_EQ(w, low ? 120U : 376U);
                     }
                     warp_collective(~0U, &v, sum_all);
                   }),
            "");
}

TEST(EmulatedMachine, WarpgroupsMeet) {
  Launch l;
  l.threads = {384, 1, 1};
  EXPECT_EQ(launch(l,
                   [] {
                     if (here().warpgroup == 1) return;
                     u32 v = here().thread % 128;
                     warpgroup_collective(&v, sum_all);
                     EXPECT_EQ(v, 8128U);
                   }),
            "");
}

TEST(EmulatedMachine, BarriersOrderSharedMemory) {
  Launch l;
  l.grid = {9, 1, 1};
  l.threads = {256, 1, 1};
  l.dynamic_shared = 1024;
  EXPECT_EQ(launch(l,
                   [] {
                     const u32 t = here().thread;
                     for (u32 round = 0; round < 3; ++round) {
                       std::memcpy(shared(kDynamicShared + 4 * t, 4), &t, 4);
                       named_barrier(0, 0, true);
                       u32 v = 0;
                       std::memcpy(&v, shared(kDynamicShared + 4 * (255 - t), 4), 4);
                       EXPECT_EQ(v, 255 - t);
                       named_barrier(0, 0, true);
                     }
                     if (here().warp < 2)
                       named_barrier(3, 128, false);  // producers
                     else if (here().warp < 4)
                       named_barrier(3, 128, true);
                     if (here().warp == 7) return;  // who has left is not waited for
                     named_barrier(0, 0, true);
                   }),
            "");
}

TEST(EmulatedMachine, ClustersShareMemory) {
  Launch l;
  l.grid = {8, 1, 1};
  l.cluster = {4, 1, 1};
  l.threads = {64, 1, 1};
  l.dynamic_shared = 256;
  EXPECT_EQ(launch(l,
                   [] {
                     const u32 mine = block().index.x * 100 + here().thread;
                     std::memcpy(shared(kDynamicShared + 4 * here().thread, 4), &mine, 4);
                     cluster_arrive();
                     cluster_wait();
                     const u32 other = (cluster_rank() + 1) % 4;
                     const u32 address = map_to_rank(kDynamicShared + 4 * here().thread, other);
                     u32 got = 0;
                     std::memcpy(&got, shared(address, 4), 4);
                     EXPECT_EQ(got, (block().index.x / 4 * 4 + other) * 100 + here().thread);
                     EXPECT_EQ(shared_address(shared(address)), address);
                     cluster_arrive();
                     cluster_wait();
                   }),
            "");
}

TEST(EmulatedMachine, ResidentBlocksMayWaitForEachOther) {
  std::atomic<u32> arrived{0};
  Launch l;
  l.grid = {8, 1, 1};
  l.threads = {32, 1, 1};
  l.multiprocessors = 4;
  l.blocks_per_multiprocessor = 2;
  EXPECT_EQ(launch(l,
                   [&] {
                     if (here().lane == 0) ++arrived;
                     while (arrived < 8) yield();
                   }),
            "");
}

TEST(EmulatedMachine, FaultsEndTheKernel) {
  Launch l;
  l.grid = {6, 1, 1};
  l.threads = {64, 1, 1};
  l.dynamic_shared = 64;
  const auto expect = [&](const char* text, const std::function<void()>& body) {
    const std::string fault = launch(l, body);
    EXPECT_NE(fault.find(text), std::string::npos) << fault;
  };
  expect("outside of dynamic", [] { shared(kDynamicShared + 61, 4); });
  expect("behind its 64 bytes", [] { shared(kDynamicShared)[64 + here().lane] = 1; });
  expect("deadlock", [] {
    if (here().warp == 0) named_barrier(1, 64, true);
  });
  expect("deadlock", [] {
    u32 v = 0;
    if (here().lane < 31)
      warp_collective(~0U, &v, sum_all);
    else
      while (true) named_barrier(2, 64, true);
  });
  expect("have left", [] {
    u32 v = 0;
    if (here().lane == 0) return;
    for (int i = 0; i < 100; ++i) yield();
    warp_collective(~0U, &v, sum_all);
  });
  expect("wait at another one", [] {
    u32 v = 0;
    warp_collective(~0U, &v, here().lane < 4 ? sum_all : max_all);
  });
  expect("have left", [] {
    u32 v = 0;
    warp_collective(here().lane < 16 ? 0xffffU : ~0U, &v, sum_all);
  });
  expect("threads where others wait", [] { named_barrier(1, here().warp == 0 ? 64 : 32, true); });
#if defined(__x86_64__) && !defined(__SANITIZE_ADDRESS__)
  expect("outside of memory",
         [&] { *reinterpret_cast<volatile int*>(static_cast<uintptr_t>(l.threads.x) - 48) = 1; });
#endif
  EXPECT_EQ(launch(l, [] { named_barrier(0, 0, true); }), "") << "after faults all goes on";
}

}  // namespace
