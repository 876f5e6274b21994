// What runs a launch: fibers of threads, blocks, clusters, and the OS threads (workers) that run them. Shared
// by scheduler.cpp (who runs when) and machine.cpp (how threads meet).
#pragma once

#include <atomic>
#include <chrono>
#include <deque>
#include <memory>
#include <mutex>
#include <random>
#include <vector>

#include "emulator/fiber.hpp"
#include "emulator/launch.hpp"

namespace emu {

struct BlockState;
struct ClusterState;
struct Worker;

struct Fiber {
  Place place;
  Stack stack;
  Position position{};
  BlockState* block = nullptr;
  const char* waits_for = nullptr;  // nullptr: can run
  u32 waits_id = 0;                 // mask or barrier, for reports
  bool done = false;
  bool cluster_arrived = false;
};

// Lanes of a warp, or the four warps of a warpgroup, on their way to one collective instruction.
struct Meeting {
  u32 mask = 0;
  void (*all)(void** mines, u32 count) = nullptr;
  std::vector<void*> mines;
  std::vector<Fiber*> waiting;
};

struct NamedBarrier {
  u32 expected = 0;  // 0: no barrier under way
  bool whole_block = false;
  u32 arrived = 0;
  std::vector<Fiber*> waiting;
};

struct BlockState {
  Block info{};
  ClusterState* cluster = nullptr;
  u8* arena = nullptr;
  std::vector<Fiber> fibers;
  u32 alive = 0;
  NamedBarrier barriers[16];
  std::vector<std::vector<Meeting>> warps;  // per warp; lanes that have parted may meet separately
  std::vector<Meeting> warpgroups;
};

struct ClusterState {
  std::vector<BlockState> blocks;
  Worker* worker = nullptr;
  u32 alive = 0;     // threads that have not left the kernel
  u32 runnable = 0;  // threads that do not wait
  u32 arrived = 0;   // at barrier.cluster
  std::vector<Fiber*> waiting;
};

// One launch under way.
struct Run {
  const Launch* launch = nullptr;
  u64 clusters = 0, capacity = 0;  // in clusters
  std::atomic<u64> next{0}, resident{0}, progress{0};
  std::atomic<bool> faulted{false};
  std::mutex mutex;
  std::string fault;
};

struct Worker {
  Run* run = nullptr;
  Place place;
  Fiber* current = nullptr;
  std::deque<Fiber*> ready;
  std::vector<std::unique_ptr<ClusterState>> clusters;
  std::vector<Stack> stacks;  // free ones
  std::vector<u8*> arenas;    // free ones
  std::mt19937 random;
  bool shuffled = false;
  u64 share = 1;    // most clusters here at once
  Stack emergency;  // where a fault of the host's processor is reported
};

Worker& worker();  // of the running fiber
inline Fiber& current() {
  return *worker().current;
}
void wait(const char* what, u32 id);  // the running fiber, until wake()
void wake(Fiber* f);
void progress();            // something has happened that is no polling
[[noreturn]] void leave();  // the running fiber, for ever
std::string describe_waits(const ClusterState& c);

// machine.cpp: a thread has left the kernel; barriers that waited for it alone go on.
void thread_left(Fiber& f);

}  // namespace emu
