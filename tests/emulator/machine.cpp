// How the threads of a kernel meet and where their shared memory lies: machine.hpp's functions but for
// yield() and trap() (scheduler.cpp).
#include "emulator/machine.hpp"

#include <algorithm>
#include <atomic>
#include <chrono>

#include "emulator/scheduler.hpp"

namespace emu {
namespace {

std::atomic<MemoryCheck> g_memory_check{nullptr};

void end_meeting(Meeting& m) {
  for (Fiber* f : m.waiting) wake(f);
  m.waiting.clear();
  progress();
}

void release(NamedBarrier& b) {
  for (Fiber* f : b.waiting) wake(f);
  b = NamedBarrier{};
  progress();
}

void release_cluster_if_complete(ClusterState& c) {
  if (c.arrived < c.alive || c.arrived == 0) return;
  // Threads that have arrived and not yet waited find the flag down: their wait() returns at once.
  for (BlockState& b : c.blocks)
    for (Fiber& f : b.fibers) f.cluster_arrived = false;
  c.arrived = 0;
  for (Fiber* f : c.waiting) wake(f);
  c.waiting.clear();
  progress();
}

// Of [address, address + bytes) in a block with this much dynamic and static shared memory.
bool inside(u32 offset, u32 bytes, const Launch& l) {
  const u64 end = static_cast<u64>(offset) + bytes;
  return (offset >= kDynamicShared && end <= kDynamicShared + l.dynamic_shared) ||
         (offset >= kStaticShared && end <= kStaticShared + l.static_shared);
}

}  // namespace

void set_memory_check(MemoryCheck check) {
  g_memory_check = check;
}

const Position& here() {
  return current().position;
}
const Block& block() {
  return current().block->info;
}

u32 warp_alive() {
  const Fiber& me = current();
  const BlockState& b = *me.block;
  u32 mask = 0;
  for (u32 lane = 0; lane < 32; ++lane) {
    const u32 t = me.position.warp * 32 + lane;
    if (t < b.fibers.size() && !b.fibers[t].done) mask |= 1U << lane;
  }
  return mask;
}

void warp_collective(u32 mask, void* mine, void (*all)(void** mines, u32 count)) {
  Fiber& me = current();
  if ((mask >> me.position.lane & 1) == 0)
    trapf("a warp instruction with mask %#x by a lane that is not in it", mask);
  if ((mask & ~warp_alive()) != 0)
    trapf("a warp instruction with mask %#x, of which lanes %#x have left the kernel or never were", mask,
          mask & ~warp_alive());
  std::vector<Meeting>& meetings = me.block->warps[me.position.warp];
  auto m = std::find_if(meetings.begin(), meetings.end(), [&](const Meeting& a) { return a.mask == mask; });
  if (m == meetings.end()) {
    meetings.emplace_back();
    m = meetings.end() - 1;
    m->mask = mask;
    m->all = all;
    m->mines.assign(32, nullptr);
  } else if (m->all != all) {
    trapf("a warp instruction that other lanes of the mask %#x do not execute: they wait at another one",
          mask);
  }
  m->mines[me.position.lane] = mine;
  if (m->waiting.size() + 1 < static_cast<size_t>(__builtin_popcount(mask))) {
    m->waiting.push_back(&me);
    wait("a warp instruction with mask", mask);
    return;
  }
  Meeting complete = std::move(*m);
  meetings.erase(m);
  all(complete.mines.data(), 32);
  end_meeting(complete);
}

void warpgroup_collective(void* mine, void (*all)(void** mines, u32 count)) {
  Fiber& me = current();
  Meeting& m = me.block->warpgroups[me.position.warpgroup];
  if ((me.position.warpgroup + 1) * 128 > me.position.block_threads)
    trap("a warpgroup instruction in a block whose last warpgroup is not complete");
  if (m.waiting.empty()) {
    m.mines.assign(128, nullptr);
    m.all = all;
  } else if (m.all != all) {
    trap(
        "a warpgroup instruction that other threads of the warpgroup do not execute: they wait at another "
        "one");
  }
  m.mines[me.position.thread % 128] = mine;
  if (m.waiting.size() + 1 < 128) {
    m.waiting.push_back(&me);
    wait("a warpgroup instruction of group", me.position.warpgroup);
    return;
  }
  // Taken out first: `all` may end in a fault.
  std::vector<Fiber*> waiting = std::move(m.waiting);
  m.waiting.clear();
  all(m.mines.data(), 128);
  for (Fiber* f : waiting) wake(f);
  progress();
}

void named_barrier(u32 id, u32 threads, bool wait_there) {
  Fiber& me = current();
  if (id >= 16) trapf("barrier %u, expected 0 to 15", id);
  NamedBarrier& b = me.block->barriers[id];
  const bool whole = threads == 0;
  if (!whole && (threads % 32 != 0 || threads > (me.position.block_threads + 31) / 32 * 32))
    trapf("barrier %u for %u threads, expected a multiple of 32 up to the block's %u", id, threads,
          me.position.block_threads);
  const u32 expected = whole ? me.block->alive : threads;
  if (b.expected == 0) {
    b.expected = expected;
    b.whole_block = whole;
  } else if (b.whole_block != whole || (!whole && b.expected != threads)) {
    trapf("barrier %u for %u threads where others wait for %u", id, expected, b.expected);
  }
  ++b.arrived;
  if (b.arrived >= b.expected) {
    release(b);
    return;
  }
  if (!wait_there) return;
  b.waiting.push_back(&me);
  wait("barrier", id);
}

void thread_left(Fiber& f) {
  for (NamedBarrier& b : f.block->barriers)
    if (b.whole_block && b.expected > 0) {
      b.expected = f.block->alive;
      if (b.arrived >= b.expected) release(b);
    }
  ClusterState& c = *f.block->cluster;
  if (f.cluster_arrived) --c.arrived;
  f.cluster_arrived = false;
  release_cluster_if_complete(c);
}

u8* shared(u32 address, u32 bytes) {
  const Fiber& me = current();
  const u32 rank = address >> 24;
  const u32 offset = address & 0xffffff;
  const Launch& l = *worker().run->launch;
  if (!inside(offset, bytes, l))
    trapf("%u bytes at shared address %#x, outside of dynamic [%#x, %#x) and static [%#x, %#x)", bytes,
          address, kDynamicShared, kDynamicShared + l.dynamic_shared, kStaticShared,
          kStaticShared + l.static_shared);
  if (rank == 0) return me.block->arena + offset;
  std::vector<BlockState>& blocks = me.block->cluster->blocks;
  if (rank > blocks.size())
    trapf("shared address %#x of a rank beyond the cluster's %zu blocks", address, blocks.size());
  BlockState& other = blocks[rank - 1];
  if (other.alive == 0)
    trapf("shared memory of block rank %u of the cluster, which has left the kernel", rank - 1);
  return other.arena + offset;
}

u32 shared_address(const void* p) {
  const BlockState& mine = *current().block;
  const auto at = reinterpret_cast<uintptr_t>(p);
  const auto offset_in = [&](const BlockState& b) { return at - reinterpret_cast<uintptr_t>(b.arena); };
  if (offset_in(mine) < kArenaBytes) return static_cast<u32>(offset_in(mine));
  const std::vector<BlockState>& blocks = mine.cluster->blocks;
  for (u32 r = 0; r < blocks.size(); ++r)
    if (offset_in(blocks[r]) < kArenaBytes) return static_cast<u32>(offset_in(blocks[r])) | (r + 1) << 24;
  trapf("the shared address of %p, which is not in shared memory", p);
}

bool is_shared(const void* p) {
  const auto at = reinterpret_cast<uintptr_t>(p);
  const std::vector<BlockState>& blocks = current().block->cluster->blocks;
  return std::any_of(blocks.begin(), blocks.end(), [&](const BlockState& b) {
    return at - reinterpret_cast<uintptr_t>(b.arena) < kArenaBytes;
  });
}

u32 map_to_rank(u32 address, u32 rank) {
  if (rank >= block().cluster_blocks)
    trapf("mapa to rank %u of a cluster of %u blocks", rank, block().cluster_blocks);
  return (address & 0xffffff) | (rank + 1) << 24;
}

void cluster_arrive() {
  Fiber& me = current();
  ClusterState& c = *me.block->cluster;
  if (me.cluster_arrived) trap("barrier.cluster.arrive twice without a wait in between");
  me.cluster_arrived = true;
  ++c.arrived;
  release_cluster_if_complete(c);
}

void cluster_wait() {
  Fiber& me = current();
  if (!me.cluster_arrived) return;  // all have arrived
  me.block->cluster->waiting.push_back(&me);
  wait("the cluster's barrier", 0);
}

void check_memory(const void* p, u64 bytes, const char* what) {
  const MemoryCheck check = g_memory_check;
  if (check == nullptr || check(p, bytes)) return;
  const auto at = reinterpret_cast<uintptr_t>(p);
  const Fiber& me = current();
  const auto inside_of = [&](const void* low, u64 size) {
    const u64 offset = at - reinterpret_cast<uintptr_t>(low);
    return offset <= size && bytes <= size - offset;
  };
  if (inside_of(me.stack.low, Stack::kBytes)) return;
  for (const BlockState& b : me.block->cluster->blocks)
    if (inside_of(b.arena, kArenaBytes)) return;
  trapf("%s: %llu bytes at %p, outside of memory that was allocated", what,
        static_cast<unsigned long long>(bytes), p);
}

u64 clock_ns() {
  return static_cast<u64>(std::chrono::duration_cast<std::chrono::nanoseconds>(
                              std::chrono::steady_clock::now().time_since_epoch())
                              .count());
}

}  // namespace emu
