// The device's side of params/decide.hpp, for a block that knows how many rows every expert has: it reads the
// candidates' curves from shared memory, adds up what every option costs and takes the cheapest. Every block
// that writes a part of the plan decides by itself, from the same numbers.
#pragma once

#include "params/decide.hpp"
#include "prologue/sort.cuh"

// Per option and candidate two sums: nanoseconds; active experts and tiles (kActiveShift). At most 1024
// experts and 2^21 - 1 tiles (the host sees to it).
constexpr u32 kActiveShift = 21;

struct DecideShared {
  u32* curves;  // [candidates][kCostPoints]
  u32* sums;    // [warps][kDecideSums]
};
// The curves, the sums, and a scan's.
static_assert(4 * kDecideWords >=
                  4 * (kMostCandidates * kCostPoints + 1 + kPrologueWarps * (kDecideSums + 2)),
              "decide_shared_words() counts these");

__device__ __forceinline__ DecideShared carve_decide(u32* shared) {
  return {shared, shared + (kMostCandidates * kCostPoints + 1) / 2 * 2};
}
// Before dependency_wait(); a barrier follows.
__device__ __forceinline__ void load_curves(const DecideParams& d, const DecideShared& s) {
#pragma unroll
  for (u32 c = 0; c < kMostCandidates; ++c)
    if (c < d.candidates && threadIdx.x < kCostPoints)
      s.curves[c * kCostPoints + threadIdx.x] = d.cost[c].ns[threadIdx.x];
}

// The number of the cheapest option, the same in every thread. Thread i brings the rows of experts 2i and
// 2i+1 (0 past the last one). Contains one barrier. time_ns: of that option.
__device__ __forceinline__ u32 decide(const DecideParams& d, const DecideShared& s, u32 experts, u32 rows0,
                                      u32 rows1, u32& time_ns) {
  const u32 lane = threadIdx.x % 32;
  const u32 warp = threadIdx.x / 32;
  const u32 warps = (experts + 63) / 64;  // that have experts
  if (warp < warps) {
    u32 ns[2][kMostCandidates], counts[2][kMostCandidates];
#pragma unroll
    for (u32 c = 0; c < kMostCandidates; ++c) {
      ns[0][c] = ns[1][c] = counts[0][c] = counts[1][c] = 0;
      if (c >= d.candidates) continue;
      ns[0][c] = curve_ns(s.curves + c * kCostPoints, rows0);
      ns[1][c] = curve_ns(s.curves + c * kCostPoints, rows1);
      counts[0][c] = rows0 == 0 ? 0 : tiles_of(rows0, d.plan[c].tile_m) + (1u << kActiveShift);
      counts[1][c] = rows1 == 0 ? 0 : tiles_of(rows1, d.plan[c].tile_m) + (1u << kActiveShift);
    }
#pragma unroll 1
    for (u32 o = 0; o < d.options; ++o) {
      const u32 to0 = candidate_of(d.option[o], rows0);
      const u32 to1 = candidate_of(d.option[o], rows1);
#pragma unroll
      for (u32 c = 0; c < kMostCandidates; ++c) {
        if (c >= d.candidates) continue;
        const u32 sum = __reduce_add_sync(kAllLanes, (to0 == c ? ns[0][c] : 0) + (to1 == c ? ns[1][c] : 0));
        const u32 count =
            __reduce_add_sync(kAllLanes, (to0 == c ? counts[0][c] : 0) + (to1 == c ? counts[1][c] : 0));
        if (lane == 0) {
          u32* const to = s.sums + warp * kDecideSums + 2 * (o * kMostCandidates + c);
          to[0] = sum;
          to[1] = count;
        }
      }
    }
  }
  __syncthreads();
  u32 total = 0xffffffffu;
  if (lane < d.options) {
    total = 0;
#pragma unroll
    for (u32 c = 0; c < kMostCandidates; ++c) {
      if (c >= d.candidates) continue;
      u32 sum = 0, count = 0;
      for (u32 w = 0; w < warps; ++w) {
        const u32* const from = s.sums + w * kDecideSums + 2 * (lane * kMostCandidates + c);
        sum = saturating_sum(sum, from[0]);
        count += from[1];
      }
      total = saturating_sum(
          total, candidate_ns(d.cost[c], sum, count >> kActiveShift, count & ((1u << kActiveShift) - 1u)));
    }
  }
  time_ns = __reduce_min_sync(kAllLanes, total);
  return (u32)__ffs((int)__ballot_sync(kAllLanes, total == time_ns)) - 1u;
}

// What is left of a sort once every expert's candidate is known: rows as in scan_experts(), and tiles of the
// candidates' plans. s.tile holds an expert's first tile in its plan, and its candidate in the upper bits.
// Returns the tiles of all plans. One barrier; another must follow before others read.
constexpr u32 kCandidateShift = 30;
struct PlanTiles {
  u32 of[kMostCandidates];
};
// Exclusive prefix of `mine` in its warp; the warp's sum goes to sums[warp].
__device__ __forceinline__ u64 scan_warp(u64* sums, u64 mine) {
  const u32 lane = threadIdx.x % 32;
  u64 sum = mine;
#pragma unroll
  for (u32 d = 1; d < 32; d *= 2) {
    const u64 left = __shfl_up_sync(kAllLanes, sum, d);
    if (lane >= d) sum += left;
  }
  if (lane == 31) sums[threadIdx.x / 32] = sum;
  return sum - mine;
}
__device__ __forceinline__ PlanTiles scan_plans(const DecideParams& d, const SortShared& s, u64* more_sums,
                                                u32 experts, u32 option, u32 count0, u32 count1, u32 before0,
                                                u32 before1) {
  const u32 lane = threadIdx.x % 32;
  const u32 warp = threadIdx.x / 32;
  const DecideOption o = d.option[option];
  const u32 count[2] = {count0, count1};
  u32 to[2], tiles[2];
  u64 mine[2] = {(u64)(count0 + count1), 0};  // rows and tiles of plan 0; tiles of plans 1 and 2
#pragma unroll
  for (u32 i = 0; i < 2; ++i) {
    to[i] = candidate_of(o, count[i]);
    tiles[i] = tiles_of(count[i], d.plan[to[i]].tile_m);
    if (to[i] == 0) mine[0] += (u64)tiles[i] << 32;
    if (to[i] == 1) mine[1] += (u64)tiles[i];
    if (to[i] == 2) mine[1] += (u64)tiles[i] << 32;
  }
  u64 before[2] = {scan_warp(s.sums, mine[0]), scan_warp(more_sums, mine[1])};
  u64 all[2];
  __syncthreads();
#pragma unroll
  for (u32 i = 0; i < 2; ++i) {
    const u64* const sums = i == 0 ? s.sums : more_sums;
    u64 warps = lane < kPrologueWarps ? sums[lane] : 0;
#pragma unroll
    for (u32 w = 1; w < kPrologueWarps; w *= 2) {
      const u64 left = __shfl_up_sync(kAllLanes, warps, w);
      if (lane >= w) warps += left;
    }
    all[i] = __shfl_sync(kAllLanes, warps, kPrologueWarps - 1);
    const u64 earlier = __shfl_sync(kAllLanes, warps, warp == 0 ? 0 : warp - 1);
    before[i] += warp == 0 ? 0 : earlier;
  }
  const u32 e = 2 * threadIdx.x;
  const u32 row = (u32)before[0];
  u32 tile[kMostCandidates] = {(u32)(before[0] >> 32), (u32)before[1], (u32)(before[1] >> 32)};
  const u32 rows[2] = {row, row + count0};
  const u32 earlier_blocks[2] = {before0, before1};
#pragma unroll
  for (u32 i = 0; i < 2; ++i) {
    if (e + i < experts) {
      s.first[e + i] = rows[i];
      s.base[e + i] = rows[i] + earlier_blocks[i];
      const u32 first = to[i] == 0 ? tile[0] : to[i] == 1 ? tile[1] : tile[2];
      s.tile[e + i] = first | to[i] << kCandidateShift;
    }
#pragma unroll
    for (u32 c = 0; c < kMostCandidates; ++c) tile[c] += to[i] == c ? tiles[i] : 0;
  }
  if (threadIdx.x == 0) s.first[experts] = (u32)all[0];
  return {{(u32)(all[0] >> 32), (u32)all[1], (u32)(all[1] >> 32)}};
}

// A trace: how many records have been written, and behind it a ring of them, d.trace_words words each: the
// header (kTraceHeader), then the rows of every expert.
__device__ __forceinline__ void write_record(const DecideParams& d, const SortShared& s, u32 experts,
                                             u32 option, u32 time_ns) {
  if (threadIdx.x == 0) s.sums[0] = atomicAdd(d.trace, 1ull);
  __syncthreads();
  const u64 number = s.sums[0];
  u32* const record =
      reinterpret_cast<u32*>(d.trace + 1) + (u64)(number % d.trace_records) * (u64)d.trace_words;
  for (u32 e = threadIdx.x; e < experts; e += kPrologueThreads)
    record[kTraceHeader + e] = s.first[e + 1] - s.first[e];
  if (threadIdx.x != 0) return;
  record[0] = (u32)number + 1;
  record[1] = d.trace_call;
  record[2] = option;
  record[3] = time_ns;
  record[4] = d.trace_tag;
}

// The plans of all candidates: what sort_block() and the batched entry ask of a plan (sort.cuh: OnePlan).
struct DecidedPlans {
  const DecideParams& d;
  const DecideShared& shared;
  u32 option, time_ns;
  PlanTiles tiles;
  __device__ __forceinline__ DecidedPlans(const DecideParams& params, const DecideShared& memory)
      : d(params), shared(memory), option(0), time_ns(0), tiles{{0, 0, 0}} {}
  __device__ __forceinline__ void scan(const SortParams& p, const SortShared& s, u32 count0, u32 count1,
                                       u32 before0, u32 before1) {
    option = decide(d, shared, p.experts, count0, count1, time_ns);
    // The sums have been read by whoever arrives at the scan's barrier; its own lie behind them.
    tiles = scan_plans(d, s, reinterpret_cast<u64*>(shared.sums + kPrologueWarps * kDecideSums), p.experts,
                       option, count0, count1, before0, before1);
  }
  __device__ __forceinline__ void store(const SortParams& p, const SortShared& s) const {
#pragma unroll
    for (u32 c = 0; c < kMostCandidates; ++c)
      if (c < d.candidates && threadIdx.x == c) store_num_tiles(d.plan[c].num_tiles, tiles.of[c]);
    if (d.trace != nullptr) write_record(d, s, p.experts, option, time_ns);
  }
  __device__ __forceinline__ void store_tile(const SortParams&, const SortShared& s, u32 e, u32 row) const {
    const u32 word = s.tile[e];
    const CandidatePlan& plan = d.plan[word >> kCandidateShift];
    const u32 tile_m = plan.tile_m;
    const u32 in_expert = row - s.first[e];
    const u32 tile = in_expert / tile_m;
    if (tile * tile_m == in_expert) {
      const u32 left = s.first[e + 1] - row;
      store_words(plan.tiles + 4 * (i64)((word & ((1u << kCandidateShift) - 1u)) + tile), e, row,
                  left < tile_m ? left : tile_m, 0);
    }
  }
};
