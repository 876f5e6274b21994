// What the copying warps of the prefill kernels (prefill.cu, prefill_flat.cu) share: the weight tiles of an
// item and its scales.
#pragma once

#include "sm90/prefill_items.cuh"

// The first weight tile that this block brings of an item: that of its own slice where the partner brings the
// other's.
__device__ __forceinline__ const u8* weight_tiles(const PrefillParams& p, const Item& item, u32 rank) {
  const u32 slice = 2 * (u32)item.pair + (item.shared ? rank : 0);
  return p.weights + ((u64)item.expert * (u32)p.slices + slice) * (u32)p.steps * kTile;
}
// The weight tiles of a step. An odd number of slices: nothing for the last pair's second one, whose results
// are not stored either.
__device__ __forceinline__ void bring_weights(const PrefillParams& p, const Item& item, u32 rank, u32 stage,
                                              u32 full, const u8* tile) {
  if (item.shared) {
    if (2 * item.pair + (int)rank < p.slices) bulk_copy_both(stage + kTile + rank * kTile, tile, kTile, full);
  } else {
    bulk_copy(stage + kTile, tile, kTile, full);
    if (2 * item.pair + 1 < p.slices)
      bulk_copy(stage + 2 * kTile, tile + (u64)(u32)p.steps * kTile, kTile, full);
  }
}
__device__ __forceinline__ u32 weight_bytes(const PrefillParams& p, const Item& item) {
  return 2 * item.pair + 1 < p.slices ? 2 * kTile : kTile;
}
__device__ __forceinline__ const float* weight_scales(const PrefillParams& p, const Item& item, u32 which) {
  i64 row = item.pair + (which != 0 ? p.up_scale_row : 0);
  if (GEMM == 2) {
    row = 2 * item.pair + (int)which;
    if (row >= p.slices) row = p.slices - 1;
  }
  return p.weight_scale + (i64)item.expert * p.ws_expert + row * p.ws_row;
}
