// The sort of kernels/prologue/sort.cuh for few slots in one block, where its time is latency alone: the same
// order, the same results.
//
//   sort_tiny  up to 64 slots, any number of experts: no barrier, no shared memory. Every warp holds all
//   slots and
//              turns the experts' bits into masks of slots by ballots; "slots with a lower expert" and "slots
//              with this expert" are then a few logical operations, and counts are population counts.
//   sort_few   up to 512 slots and 512 experts: a thread per slot and per expert, three barriers.
#pragma once

#include "prologue/sort.cuh"

constexpr u32 kTinySlots = 64;
constexpr u32 kFewSlots = kPrologueThreads;    // a thread per slot
constexpr u32 kFewExperts = kPrologueThreads;  // a thread per expert
constexpr u32 kExpertBits = 10;                // kPrologueMaxExperts = 2^10

// n / tile_m for n <= 2048 by a multiplication: with d <= 1024 and m = ceil(2^32 / d), n m / 2^32 exceeds n /
// d by n (m d - 2^32) / (2^32 d) < n / 2^32, less than 1 / d. Made before dependency_wait(), where a division
// is free.
struct TileDivider {
  u32 divisor, magic;
  __device__ __forceinline__ explicit TileDivider(u32 tile_m) {
    divisor = tile_m < 1024 ? tile_m : 1024;  // no expert has more rows: one tile either way
    magic = 0xffffffffu / divisor + 1;        // 0 for a divisor of 1
  }
  __device__ __forceinline__ u32 quotient(u32 n) const { return magic == 0 ? n : __umulhi(n, magic); }
};

__device__ __forceinline__ i32 expert_of_slot(const SortParams& p, u32 slot) {
  if (slot >= p.slots) return kNoSlot;
  return local_expert(load_id(slot, p), p);
}

// The slots of a warp, W per lane (slot 32 w + lane), as masks: those with a valid expert, and those whose
// expert has each bit.
template <u32 W>
struct SlotMasks {
  u32 valid[W], bit[W][kExpertBits];
};
template <u32 W>
struct Matches {
  u32 lower[W], same[W];  // slots with a lower expert, with this one
};
template <u32 W>
__device__ __forceinline__ Matches<W> match(const SlotMasks<W>& m, u32 expert) {
  Matches<W> r;
#pragma unroll
  for (u32 w = 0; w < W; ++w) {
    r.lower[w] = 0;
    r.same[w] = m.valid[w];
  }
#pragma unroll
  for (u32 b = kExpertBits; b-- > 0;) {
    const u32 mine = 0u - (expert >> b & 1u);
#pragma unroll
    for (u32 w = 0; w < W; ++w) {
      r.lower[w] |= r.same[w] & ~m.bit[w][b] & mine;
      r.same[w] &= ~(m.bit[w][b] ^ mine);
    }
  }
  return r;
}
template <u32 W>
__device__ __forceinline__ u32 count_bits(const u32 (&mask)[W]) {
  u32 n = 0;
#pragma unroll
  for (u32 w = 0; w < W; ++w) n += __popc(mask[w]);
  return n;
}

// All slots, in every warp: W per lane. What is told of a slot is of its expert, but for its rank in it.
template <u32 W>
struct TinySlots {
  i32 expert[W];
  SlotMasks<W> masks;
  Matches<W> at[W];
  u32 rank[W], first[W], count[W];
};
template <u32 W>
__device__ __forceinline__ void load_tiny(const SortParams& p, TinySlots<W>& s) {
#pragma unroll
  for (u32 w = 0; w < W; ++w) s.expert[w] = expert_of_slot(p, 32 * w + threadIdx.x % 32);
}
template <u32 W>
__device__ __forceinline__ void rank_tiny(TinySlots<W>& s) {
  const u32 lane = threadIdx.x % 32;
#pragma unroll
  for (u32 w = 0; w < W; ++w) {
    s.masks.valid[w] = __ballot_sync(kAllLanes, s.expert[w] >= 0);
#pragma unroll
    for (u32 b = 0; b < kExpertBits; ++b)
      s.masks.bit[w][b] = __ballot_sync(kAllLanes, ((u32)s.expert[w] >> b & 1u) != 0);
  }
  // Every warp ranks all slots, because the tiles before an expert are the slots with a lower one that begin
  // a tile.
#pragma unroll
  for (u32 w = 0; w < W; ++w) {
    s.at[w] = match<W>(s.masks, (u32)s.expert[w]);
    s.rank[w] = __popc(s.at[w].same[w] & ((1u << lane) - 1u));
#pragma unroll
    for (u32 v = 0; v < w; ++v) s.rank[w] += __popc(s.at[w].same[v]);
    s.first[w] = count_bits<W>(s.at[w].lower);
    s.count[w] = count_bits<W>(s.at[w].same);
  }
}
// What does not depend on tiles: the rows where experts `first`, `first` + `step`, ... begin (and, behind the
// last one, how many there are), and counters, by the first warp.
template <u32 W>
__device__ __forceinline__ void offsets_tiny(const SortParams& p, const SlotMasks<W>& m, u32 first, u32 step,
                                             i32* to) {
  for (u32 e = first; e <= p.experts; e += step) {
    const Matches<W> of = match<W>(m, e);
    to[e] = (i32)(e < p.experts ? count_bits<W>(of.lower) : count_bits<W>(m.valid));
  }
}
template <u32 W>
__device__ __forceinline__ void counters_tiny(const SortParams& p, const TinySlots<W>& s) {
  u32 masked = 0, out_of_range = 0;
#pragma unroll
  for (u32 w = 0; w < W; ++w) {
    masked += __popc(__ballot_sync(kAllLanes, s.expert[w] == kMasked));
    out_of_range += __popc(__ballot_sync(kAllLanes, s.expert[w] == kOutOfRange));
  }
  if (threadIdx.x == 0) add_counters(p, masked, out_of_range);
}
// A tiny sort's last step: rows, positions and the plan `tiles`, which has tile.quotient(n) whole tiles of
// n rows (and tile.divisor rows in each). Returns how many there are. For warps that have slots.
template <u32 W, typename Divider>
__device__ __forceinline__ u32 emit_tiny(const SortParams& p, const TinySlots<W>& s, const Divider& tile,
                                         u32 tile_m, i32* tiles) {
  const u32 lane = threadIdx.x % 32;
  const u32 warp = threadIdx.x / 32;
  u32 begins[W];
#pragma unroll
  for (u32 w = 0; w < W; ++w)
    begins[w] =
        __ballot_sync(kAllLanes, s.expert[w] >= 0 && tile.quotient(s.rank[w]) * tile.divisor == s.rank[w]);
#pragma unroll
  for (u32 w = 0; w < W; ++w) {
    const u32 slot = 32 * w + lane;
    if (warp != w || slot >= p.slots) continue;
    if (s.expert[w] < 0) {
      p.positions[slot] = -1;
      continue;
    }
    const u32 row = s.first[w] + s.rank[w];
    p.rows[row] = (i32)slot;
    p.positions[slot] = (i32)row;
    if ((begins[w] >> lane & 1u) == 0) continue;
    u32 number = tile.quotient(s.rank[w]);
#pragma unroll
    for (u32 v = 0; v < W; ++v) number += __popc(s.at[w].lower[v] & begins[v]);
    store_tile(tiles, number, (u32)s.expert[w], row, s.count[w] - s.rank[w], tile_m);
  }
  return count_bits<W>(begins);
}
template <u32 W>
__device__ __forceinline__ void sort_tiny(const SortParams& p, const TileDivider& tile) {
  const u32 lane = threadIdx.x % 32;
  const u32 warp = threadIdx.x / 32;
  if (warp >= W && 32 * warp > p.experts) return;  // neither slots nor experts
  TinySlots<W> s;
  load_tiny(p, s);
  rank_tiny(s);
  const u32 tiles = emit_tiny<W>(p, s, tile, p.tile_m, p.tiles);
  offsets_tiny<W>(p, s.masks, threadIdx.x, kPrologueThreads, p.offsets);
  if (warp != 0) return;
  counters_tiny(p, s);
  if (lane == 0) store_num_tiles(p.num_tiles, tiles);
}

// A slot of sort_few, by its thread.
struct FewSlot {
  i32 expert;
  u32 lower;   // slots of this expert in lower lanes of the warp
  u16* ranks;  // of the warp
};
// clear_sort() has been called; a barrier follows.
__device__ __forceinline__ FewSlot rank_few(const SortParams& p, const SortShared& s) {
  const u32 lane = threadIdx.x % 32;
  const u32 warp = threadIdx.x / 32;
  const i32 expert = expert_of_slot(p, threadIdx.x);
  const u32 peers = __match_any_sync(kAllLanes, expert);
  const u32 lower = __popc(peers & ((1u << lane) - 1u));
  u16* const ranks = s.ranks + warp * s.pitch;
  if (expert >= 0 && lower == 0) ranks[expert] = (u16)__popc(peers);
  if (lower == 0 && expert == kMasked) atomicAdd(&s.invalid[0], __popc(peers));
  if (lower == 0 && expert == kOutOfRange) atomicAdd(&s.invalid[1], __popc(peers));
  return {expert, lower, ranks};
}
// The last step: s.first holds rows in the low half and tiles in the high one, of a plan as in emit_tiny().
template <typename Divider>
__device__ __forceinline__ void emit_few(const SortParams& p, const SortShared& s, const FewSlot& at,
                                         const Divider& tile, u32 tile_m, i32* tiles) {
  const u32 slot = threadIdx.x;
  if (at.expert >= 0) {
    const u32 rank = at.lower + at.ranks[at.expert];
    const u32 first = s.first[at.expert];
    const u32 row = (first & 0xffffu) + rank;
    p.rows[row] = (i32)slot;
    p.positions[slot] = (i32)row;
    const u32 number = tile.quotient(rank);
    if (number * tile.divisor == rank) {
      const u32 left = (s.first[at.expert + 1] & 0xffffu) - row;
      store_tile(tiles, (first >> 16) + number, (u32)at.expert, row, left, tile_m);
    }
  } else if (at.expert != kNoSlot) {
    p.positions[slot] = -1;
  }
}

// clear_sort() has been called.
__device__ __forceinline__ void sort_few(const SortParams& p, const SortShared& s, const TileDivider& tile) {
  const u32 lane = threadIdx.x % 32;
  const u32 warp = threadIdx.x / 32;
  const u32 e = threadIdx.x;
  const FewSlot at = rank_few(p, s);
  __syncthreads();
  const u32 rows = e < p.experts ? prefix_counts(s, e) : 0;
  const u32 mine = rows | tile.quotient(rows + tile.divisor - 1) << 16;
  const u32 sum = scan_warp(mine, lane);
  u32* const sums = reinterpret_cast<u32*>(s.sums);
  if (lane == 31) sums[warp] = sum;
  __syncthreads();
  u32 before = 0, all = 0;
#pragma unroll
  for (u32 w = 0; w < kPrologueWarps; ++w) {
    const u32 v = sums[w];
    before += w < warp ? v : 0;
    all += v;
  }
  const u32 start = before + sum - mine;
  if (e < p.experts) s.first[e] = start;
  if (threadIdx.x == 0) s.first[p.experts] = all;
  __syncthreads();

  emit_few(p, s, at, tile, p.tile_m, p.tiles);
  if (e < p.experts) p.offsets[e] = (i32)(start & 0xffffu);
  if (threadIdx.x == 0) {
    p.offsets[p.experts] = (i32)(all & 0xffffu);
    store_num_tiles(p.num_tiles, all >> 16);
    add_counters(p, s.invalid[0], s.invalid[1]);
  }
}
