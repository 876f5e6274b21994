// The work of the stream kernels: (tile, slice) items out of the plan, ordered by expert, then slice, then
// tile; where an item's token rows come from; the activation between the GEMMs. Of any format. Wants GEMM,
// WIDTH, STEP and (GEMM 1) ACTIVATION: stream.cu.
#pragma once

#include "common/types.cuh"
#include "params/block.hpp"
#include "params/stream.hpp"
#include "sm90/activate.cuh"

using namespace ramp::core::cuda;

struct Item {
  int expert, first, rows, slice;
  int number;  // of the tile
  bool alone;  // the expert's only tile: nobody else reads these weights
};

// All items: units = tiles * slices. A block takes every unit_stride()-th from first_unit() on.
struct Work {
  u32 units, slices;
  u32 own;  // address in shared memory of the block's own plan (stream_plan.cuh); 0: the prologue's is used
};

// Item `unit` of the `count` rows of an expert that begin at row `begin` and tile `first_tile`.
__device__ __forceinline__ Item item_of(int expert, int begin, int count, u32 first_tile, u32 unit,
                                        u32 slices) {
  const u32 tiles = (u32)(count + WIDTH - 1) / WIDTH;
  const u32 local = unit - first_tile * slices;
  const int first = begin + (int)(local % tiles) * WIDTH;
  const int left = begin + count - first;
  return {
      expert,    first, left < WIDTH ? left : WIDTH, (int)(local / tiles), (int)(first_tile + local % tiles),
      tiles == 1};
}

// An item out of the prologue's plan. An expert with one tile, which most have, is known by its neighbours,
// which are loaded with it: one load's latency instead of two.
__device__ __forceinline__ Item planned_item(const StreamParams& p, const Work& work, u32 unit) {
  const u32 number = unit / work.slices;
  const bool last = (number + 1) * work.slices == work.units;
  const StreamTile tile = p.tiles[number];
  const int before = number == 0 ? -1 : p.tiles[number - 1].expert;
  const int after = last ? -1 : p.tiles[number + 1].expert;
  if (before != tile.expert && after != tile.expert)
    return item_of(tile.expert, tile.first, tile.rows, number, unit, work.slices);
  const int begin = p.offsets[tile.expert];
  const int count = p.offsets[tile.expert + 1] - begin;
  return item_of(tile.expert, begin, count, number - (u32)(tile.first - begin) / WIDTH, unit, work.slices);
}

__device__ __forceinline__ u32 row_of_slot(int source, const StreamParams& p, int slot) {
  return (u32)(source == kRowSlot ? slot : slot / p.top_k);
}
__device__ __forceinline__ u32 source_row(int source, const StreamParams& p, int sorted) {
  return source == kRowSorted ? (u32)sorted : row_of_slot(source, p, p.slots[sorted]);
}

// First row of an item's tile where every tile's rows, rounded up to STEP, follow one another: GEMM 2's
// packed input. The tile before ends at or before it, since rounding its rows up adds less than STEP.
__device__ __forceinline__ u64 packed_row(const Item& item) {
  return (u64)(((u32)item.first + STEP - 1) / STEP + (u32)item.number) * STEP;
}
