// Who does which unit of the prefill kernel (prefill.cu), and when GEMM 2 may read what GEMM 1 has written.
// Units differ in length, so a cluster takes the next one when it is about to run out of work (a ticket: an
// atomic counter per GEMM). A warp of its own does that and finds the item while the copying warps are still
// busy with the one before: what it costs (an atomic, three loads that wait for one another) is hidden.
//
// GEMM 2's blocks start on SMs that GEMM 1's last units leave free: GEMM 1 counts what is done of every row
// tile, GEMM 2 waits for its own tile alone. A block that waits holds nothing that GEMM 1 needs: all of GEMM
// 1's blocks run before the first of GEMM 2's starts.
//
// Counters: PrefillParams.tickets and the `reserved` words of the plan's tiles, all zeroed by the prologue.
#pragma once

#include "sm90/prefill_items.cuh"
#include "sm90/prefill_mixed.cuh"
#include "sm90/prefill_tall.cuh"

// Numbers under way between the blocks: more than units that a ring can hold, which at one step each are
// STAGES, and the two that are looked for on either side.
constexpr u32 kTickets = 8;
static_assert(STAGES + 2 < kTickets, "a block may be that many units ahead of its partner");
constexpr u32 kAhead = 6;  // steps before the end of a unit at which the next one is taken
constexpr u32 kMathWarps = kMathThreads / 32;

// In shared memory: a barrier per number and the numbers; two entries, by turns: a barrier each, when it is
// there; a barrier for the next one may be made; the entries.
constexpr u32 kEntry = 32 + (GATHER != 0 ? 4 * kPrefillRows : 0);  // item, slots of its rows
constexpr u32 kQueueEntries = 12 * kTickets + 32;
constexpr u32 kQueue = kQueueEntries + 2 * kEntry;
__device__ __forceinline__ u32 entry_full(const Shared& s, u32 n) {
  return s.queue + 12 * kTickets + 8 * (n % 2);
}
__device__ __forceinline__ u32 entry_wanted(const Shared& s) {
  return s.queue + 12 * kTickets + 16;
}
__device__ __forceinline__ u32 entry(const Shared& s, u32 n) {
  return s.queue + kQueueEntries + kEntry * (n % 2);
}
// copying: threads that read entries.
__device__ __forceinline__ void init_queue(const Shared& s, u32 copying) {
  for (u32 i = 0; i < kTickets; ++i) barrier_init(s.queue + 8 * i, 1);
  for (u32 i = 0; i < 2; ++i) barrier_init(entry_full(s, i), 32);
  barrier_init(entry_wanted(s), copying);
}

// The n-th unit of this cluster, to one of its blocks: by one thread.
__device__ __forceinline__ void send_unit(const Shared& s, u32 n, u32 unit, u32 rank) {
  const u32 at = n % kTickets;
  store_remote(remote_address(s.queue + 8 * kTickets + 4 * at, rank), __uint_as_float(unit),
               remote_address(s.queue + 8 * at, rank));
}
__device__ __forceinline__ u32 receive_unit(const Shared& s, u32 n) {
  const u32 at = n % kTickets;
  if (threadIdx.x % 32 == 0) barrier_expect(s.queue + 8 * at, 4);
  barrier_wait(s.queue + 8 * at, n / kTickets % 2);
  return __float_as_uint(load_float(s.queue + 8 * kTickets + 4 * at));
}

// Until all columns of a row tile of h are there. Who says so: the math warps that store some.
__device__ __forceinline__ void wait_for_rows(const PrefillParams& p, const Item& item) {
  const int all = (kTall ? tall_tellers(item.rows) : (int)kMathWarps) * p.h_steps;
  while (load_acquire(&p.tiles[item.tile].reserved) < all) {
  }
}
// GEMM 1: this warp has stored its part of a tile's columns (tile < 0: nothing yet).
__device__ __forceinline__ void tell_rows(const PrefillParams& p, int tile) {
  bulk_wait();
  __syncwarp();
  if (threadIdx.x % 32 == 0 && tile >= 0) {
    proxy_fence_global();
    add_release(&p.tiles[tile].reserved, 1);
  }
}

__device__ __forceinline__ Item item_of(const PrefillParams& p, const MixedOrder& order, u32 unit, u32 pairs,
                                        u32 rank) {
  if (!MIXED && !kTall) return find_item(p, unit, pairs, rank);
  const u32 per_tile = kTall ? pairs : pairs / 2;
  const Owner owner =
      MIXED ? order.owner_of(p, unit, per_tile) : owner_of(p, unit, unit / per_tile, per_tile);
  return kTall ? find_tall_item(owner, pairs, rank) : find_item(owner, p, pairs, rank);
}

// The next one: n: units that this cluster has had. By one thread.
__device__ __forceinline__ u32 take_unit(const PrefillParams& p, u32 n) {
  if (GEMM == 2) return atomic_increment(p.tickets + 1);
  return n == 0 ? blockIdx.x / 2 : gridDim.x / 2 + atomic_increment(p.tickets);
}
// Nothing: the end.
__device__ __forceinline__ Item item_of_ticket(const PrefillParams& p, const MixedOrder& order, u32 unit,
                                               u32 units, u32 pairs, u32 rank) {
  if (unit >= units) return Item{0, 0, -1, 0, 0, false};
  return item_of(p, order, unit, pairs, rank);
}

// One warp: units to entries.
__device__ __forceinline__ void schedule(const PrefillParams& p, const Shared& s) {
  const u32 lane = threadIdx.x % 32;
  if (GEMM == 2) {  // GEMM 1's blocks have waited for the prologue
    if (lane == 0)
      while (load_acquire(p.tickets + 2) != 1) {
      }
    __syncwarp();
  }
  const u32 units = kTall ? tall_units_of(p) : units_of(p);
  const u32 pairs = kTall ? tall_pairs_of(p) : pairs_of(p);
  const MixedOrder order(p, kTall ? pairs : pairs / 2);
  const bool leader = lane == 0 && s.rank == 0;
  for (u32 n = 0;; ++n) {
    if (n > 0) barrier_wait(entry_wanted(s), (n - 1) % 2);
    u32 unit = 0;
    Item item;
    if (kTall && s.rank == 0) {
      // The partner does not hear of empty units, of which this cluster may happen to take any number in a
      // row while others take those in between: they would overrun it.
      u32 taken = n;
      do {
        if (leader) unit = take_unit(p, taken);
        ++taken;
        unit = (u32)uniform(unit);
        item = item_of_ticket(p, order, unit, units, pairs, 0);
      } while (item.rows == 0);
      if (leader) send_unit(s, n, unit, 1);
    } else {
      if (leader) {
        unit = take_unit(p, n);
        send_unit(s, n, unit, 0);
        send_unit(s, n, unit, 1);
      }
      unit = receive_unit(s, n);
      item = item_of_ticket(p, order, unit, units, pairs, s.rank);
    }
    const u32 to = entry(s, n);
    if (GATHER != 0 && item.rows > 0) {
#pragma unroll
      for (u32 i = 0; i < 4; ++i) {
        const u32 row = lane + 32 * i;
        store_float(to + 32 + 4 * row,
                    __int_as_float(p.slots[item.first + ((int)row < item.rows ? (int)row : 0)]));
      }
    }
    if (lane == 0) {
      if (GEMM == 2 && item.rows > 0) wait_for_rows(p, item);
      store_words(to, (u32)item.tile, (u32)item.first, (u32)item.rows, (u32)item.pair);
      store_words(to + 16, (u32)item.expert, item.shared ? 1u : 0u, 0, 0);
    }
    barrier_arrive(entry_full(s, n));
    if (unit >= units) break;
  }
}
// The copying warps: the n-th entry.
__device__ __forceinline__ Item next_item(const Shared& s, u32 n) {
  barrier_wait(entry_full(s, n), n / 2 % 2);
  const uint4 a = load_words(entry(s, n));
  const uint4 b = load_words(entry(s, n) + 16);
  return Item{(int)a.x, (int)a.y, (int)a.z, (int)a.w, (int)b.x, b.y != 0};
}
