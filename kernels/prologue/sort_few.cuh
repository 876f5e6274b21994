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

template <u32 W>
__device__ __forceinline__ void sort_tiny(const SortParams& p, const TileDivider& tile) {
  const u32 lane = threadIdx.x % 32;
  const u32 warp = threadIdx.x / 32;
  if (warp >= W && 32 * warp > p.experts) return;  // neither slots nor experts
  i32 expert[W];
#pragma unroll
  for (u32 w = 0; w < W; ++w) expert[w] = expert_of_slot(p, 32 * w + lane);
  SlotMasks<W> m;
#pragma unroll
  for (u32 w = 0; w < W; ++w) {
    m.valid[w] = __ballot_sync(kAllLanes, expert[w] >= 0);
#pragma unroll
    for (u32 b = 0; b < kExpertBits; ++b)
      m.bit[w][b] = __ballot_sync(kAllLanes, ((u32)expert[w] >> b & 1u) != 0);
  }
  // Every warp ranks all slots, because the tiles before an expert are the slots with a lower one that begin
  // a tile.
  u32 rank[W], first[W], count[W], begins[W];
  Matches<W> at[W];
#pragma unroll
  for (u32 w = 0; w < W; ++w) {
    at[w] = match<W>(m, (u32)expert[w]);
    rank[w] = __popc(at[w].same[w] & ((1u << lane) - 1u));
#pragma unroll
    for (u32 v = 0; v < w; ++v) rank[w] += __popc(at[w].same[v]);
    first[w] = count_bits<W>(at[w].lower);
    count[w] = count_bits<W>(at[w].same);
    begins[w] = __ballot_sync(kAllLanes, expert[w] >= 0 && tile.quotient(rank[w]) * tile.divisor == rank[w]);
  }
#pragma unroll
  for (u32 w = 0; w < W; ++w) {
    const u32 slot = 32 * w + lane;
    if (warp != w || slot >= p.slots) continue;
    if (expert[w] < 0) {
      p.positions[slot] = -1;
      continue;
    }
    const u32 row = first[w] + rank[w];
    p.rows[row] = (i32)slot;
    p.positions[slot] = (i32)row;
    if ((begins[w] >> lane & 1u) == 0) continue;
    u32 number = tile.quotient(rank[w]);
#pragma unroll
    for (u32 v = 0; v < W; ++v) number += __popc(at[w].lower[v] & begins[v]);
    const u32 left = count[w] - rank[w];
    store_words(p.tiles + 4 * (i64)number, (u32)expert[w], row, left < p.tile_m ? left : p.tile_m, 0);
  }
  for (u32 e = threadIdx.x; e <= p.experts; e += kPrologueThreads) {
    const Matches<W> of = match<W>(m, e);
    p.offsets[e] = (i32)(e < p.experts ? count_bits<W>(of.lower) : count_bits<W>(m.valid));
  }
  if (warp != 0) return;
  u32 masked = 0, out_of_range = 0;
#pragma unroll
  for (u32 w = 0; w < W; ++w) {
    masked += __popc(__ballot_sync(kAllLanes, expert[w] == kMasked));
    out_of_range += __popc(__ballot_sync(kAllLanes, expert[w] == kOutOfRange));
  }
  if (lane != 0) return;
  store_num_tiles(p.num_tiles, count_bits<W>(begins));
  add_counters(p, masked, out_of_range);
}

// clear_sort() has been called. s.first holds rows in the low half and tiles in the high one.
__device__ __forceinline__ void sort_few(const SortParams& p, const SortShared& s, const TileDivider& tile) {
  constexpr u32 kBlockWarps = kPrologueWarps;
  const u32 lane = threadIdx.x % 32;
  const u32 warp = threadIdx.x / 32;
  const u32 slot = threadIdx.x;
  const i32 expert = expert_of_slot(p, slot);
  const u32 peers = __match_any_sync(kAllLanes, expert);
  const u32 lower = __popc(peers & ((1u << lane) - 1u));
  u16* const ranks = s.ranks + warp * s.pitch;
  if (expert >= 0 && lower == 0) ranks[expert] = (u16)__popc(peers);
  if (lower == 0 && expert == kMasked) atomicAdd(&s.invalid[0], __popc(peers));
  if (lower == 0 && expert == kOutOfRange) atomicAdd(&s.invalid[1], __popc(peers));
  __syncthreads();

  // Counts of the warps -> exclusive prefixes over them; the expert's rows and tiles.
  const u32 e = threadIdx.x;
  const u32 warps = (p.slots + 31) / 32;
  u32 rows = 0;
  if (e < p.experts) {
    u32 count[kBlockWarps];
#pragma unroll
    for (u32 w = 0; w < kBlockWarps; ++w) count[w] = w < warps ? s.ranks[w * s.pitch + e] : 0;
#pragma unroll
    for (u32 w = 0; w < kBlockWarps; ++w) {
      if (w < warps) s.ranks[w * s.pitch + e] = (u16)rows;
      rows += count[w];
    }
  }
  const u32 mine = rows | tile.quotient(rows + tile.divisor - 1) << 16;
  u32 sum = mine;
#pragma unroll
  for (u32 d = 1; d < 32; d *= 2) {
    const u32 left = __shfl_up_sync(kAllLanes, sum, d);
    if (lane >= d) sum += left;
  }
  u32* const sums = reinterpret_cast<u32*>(s.sums);
  if (lane == 31) sums[warp] = sum;
  __syncthreads();
  u32 before = 0, all = 0;
#pragma unroll
  for (u32 w = 0; w < kBlockWarps; ++w) {
    const u32 v = sums[w];
    before += w < warp ? v : 0;
    all += v;
  }
  const u32 start = before + sum - mine;
  if (e < p.experts) s.first[e] = start;
  if (threadIdx.x == 0) s.first[p.experts] = all;
  __syncthreads();

  if (expert >= 0) {
    const u32 rank = lower + ranks[expert];
    const u32 first = s.first[expert];
    const u32 row = (first & 0xffffu) + rank;
    p.rows[row] = (i32)slot;
    p.positions[slot] = (i32)row;
    const u32 number = tile.quotient(rank);
    if (number * tile.divisor == rank) {
      const u32 left = (s.first[expert + 1] & 0xffffu) - row;
      store_words(p.tiles + 4 * (i64)((first >> 16) + number), (u32)expert, row,
                  left < p.tile_m ? left : p.tile_m, 0);
    }
  } else if (expert != kNoSlot) {
    p.positions[slot] = -1;
  }
  if (e < p.experts) p.offsets[e] = (i32)(start & 0xffffu);
  if (threadIdx.x == 0) {
    p.offsets[p.experts] = (i32)(all & 0xffffu);
    store_num_tiles(p.num_tiles, all >> 16);
    add_counters(p, s.invalid[0], s.invalid[1]);
  }
}
