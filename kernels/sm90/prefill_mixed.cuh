// An order of units for the prefill kernel (prefill.cu, MIXED 1) in which experts with many rows and with few
// take turns. In the order of experts the clusters all multiply while an expert with many rows passes, and
// all wait for memory behind it; in turns, in proportion to how many units there are of either kind, memory
// and tensor cores have work all the time. Inside a kind units keep the order of experts: what shares weights
// and rows runs at the same time.
//
// The warp that looks for units has what it takes in registers: each lane knows how many units of either kind
// the experts have that are its own, a 32nd of all, and those in front of them.
#pragma once

#include "sm90/prefill_items.cuh"

#ifndef MIXED
#define MIXED 0
#endif

__device__ __forceinline__ u32 sum_before(u32 v, u32& total) {
  u32 sum = v;
#pragma unroll
  for (u32 d = 1; d < 32; d *= 2) {
    const u32 other = __shfl_up_sync(0xffffffffu, sum, d);
    if (threadIdx.x % 32 >= d) sum += other;
  }
  total = __shfl_sync(0xffffffffu, sum, 31);
  return sum - v;
}

struct MixedOrder {
  u32 chunk = 0;           // experts of a lane
  u32 tiles = 0;           // row tiles in front of them
  u32 mine[2] = {0, 0};    // units: of experts with few rows, with many
  u32 before[2] = {0, 0};  // ... in front
  u64 share = 0;           // of units that are of experts with many rows, times 2^32, rounded up

  // With more rows than a tile has, an expert's weights are multiplied by several tiles for one way from
  // memory.
  static __device__ __forceinline__ u32 kind(int rows) { return rows > kRows ? 1 : 0; }
  static __device__ __forceinline__ u32 tiles_of(int rows) { return (u32)(rows + kRows - 1) / kRows; }

  // By a whole warp. per_tile: units for each row tile.
  __device__ __forceinline__ MixedOrder(const PrefillParams& p, u32 per_tile) {
    if (!MIXED) return;
    chunk = (u32)(p.experts + 31) / 32;
    u32 own = 0;
    for (u32 i = 0; i < chunk; ++i) {
      const int e = (int)(threadIdx.x % 32 * chunk + i);
      if (e >= p.experts) break;
      const int rows = p.offsets[e + 1] - p.offsets[e];
      own += tiles_of(rows);
      mine[0] += kind(rows) == 0 ? tiles_of(rows) * per_tile : 0;
      mine[1] += kind(rows) != 0 ? tiles_of(rows) * per_tile : 0;
    }
    __syncwarp();
    u32 few, many;
    tiles = sum_before(own, few);
    before[0] = sum_before(mine[0], few);
    before[1] = sum_before(mine[1], many);
    const u32 all = few + many;
    if (all != 0) share = (((u64)many << 32) + all - 1) / all;
  }

  // By the whole warp, of a unit that there is. Of the first n units n * share / 2^32, rounded down, are of
  // experts with many rows: with `share` rounded up that makes all of them in the end, as there are fewer
  // than 2^32 units.
  __device__ __forceinline__ Owner owner_of(const PrefillParams& p, u32 unit, u32 per_tile) const {
    const u32 many = (u32)((u64)unit * share >> 32);
    const u32 which = (u32)((u64)(unit + 1) * share >> 32) != many ? 1 : 0;
    const u32 number = which != 0 ? many : unit - many;
    const u32 front = which != 0 ? before[1] : before[0];
    const u32 own = which != 0 ? mine[1] : mine[0];
    const u32 lane = __ffs((int)__ballot_sync(0xffffffffu, number >= front && number - front < own)) - 1;
    const u32 left = number - __shfl_sync(0xffffffffu, front, (int)lane);
    // One of its experts, of which there are no more than lanes: weights have 1024 experts at most.
    const int e = (int)(lane * chunk + threadIdx.x % 32);
    const bool here = threadIdx.x % 32 < chunk && e < p.experts;
    const int begin = here ? p.offsets[e] : 0;
    const int rows = here ? p.offsets[e + 1] - begin : 0;
    const u32 units = kind(rows) == which ? tiles_of(rows) * per_tile : 0;
    u32 all;
    const u32 in_front = sum_before(units, all);
    const u32 tiles_in_front = sum_before(tiles_of(rows), all);
    const int at = __ffs((int)__ballot_sync(0xffffffffu, left >= in_front && left - in_front < units)) - 1;
    return Owner{__shfl_sync(0xffffffffu, e, at), __shfl_sync(0xffffffffu, begin, at),
                 __shfl_sync(0xffffffffu, rows, at),
                 __shfl_sync(0xffffffffu, tiles, (int)lane) + __shfl_sync(0xffffffffu, tiles_in_front, at),
                 left - __shfl_sync(0xffffffffu, in_front, at)};
  }
};
