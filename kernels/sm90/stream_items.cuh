// The work of the stream kernels: (tile, slice) items out of the plan, ordered by expert, then slice, then
// tile; where an item's token rows come from; the activation between the GEMMs. Of any format. Wants GEMM,
// WIDTH, STEP and (GEMM 1) ACTIVATION: stream.cu.
#pragma once

#include "common/types.cuh"
#include "params/block.hpp"
#include "params/stream.hpp"
#include "sm90/silu.cuh"

using namespace ramp::core::cuda;

struct Item {
  int expert, first, rows, slice;
  int number;  // of the tile
  bool alone;  // the expert's only tile: nobody else reads these weights
};

// Item number `unit` of units = tiles * slices.
__device__ __forceinline__ Item find_item(const StreamParams& p, u32 unit, u32 slices) {
  const StreamTile base = p.tiles[unit / slices];
  const int begin = p.offsets[base.expert];
  const int count = p.offsets[base.expert + 1] - begin;
  const u32 tiles = (u32)(count + WIDTH - 1) / WIDTH;
  const u32 first_tile = unit / slices - (u32)(base.first - begin) / WIDTH;
  const u32 local = unit - first_tile * slices;
  const int first = begin + (int)(local % tiles) * WIDTH;
  const int left = begin + count - first;
  return {base.expert,
          first,
          left < WIDTH ? left : WIDTH,
          (int)(local / tiles),
          (int)(first_tile + local % tiles),
          tiles == 1};
}

__device__ __forceinline__ u32 source_row(int source, const StreamParams& p, int sorted) {
  if (source == kRowSorted) return (u32)sorted;
  const int slot = p.slots[sorted];
  return (u32)(source == kRowSlot ? slot : slot / p.top_k);
}

// First row of an item's tile where every tile's rows, rounded up to STEP, follow one another: GEMM 2's
// packed input. The tile before ends at or before it, since rounding its rows up adds less than STEP.
__device__ __forceinline__ u64 packed_row(const Item& item) {
  return (u64)(((u32)item.first + STEP - 1) / STEP + (u32)item.number) * STEP;
}

__device__ __forceinline__ float activate(float g, float u) {
#if ACTIVATION == 0
  return __fmul_rn(silu(g), u);
#elif ACTIVATION == 1
  return 0.5f * g * (1.0f + erff(g * 0.70710678f)) * u;
#else
  const float z = 0.79788456f * (g + 0.044715f * g * g * g);
  return 0.5f * g * (1.0f + tanhf(z)) * u;
#endif
}
