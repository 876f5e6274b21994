// The copying warps' side of the prefill kernel (prefill.cu): they find the items, announce them in the ring
// and bring what they need.
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
__device__ __forceinline__ void announce_item(const Shared& s, const Place& at, const Item& item) {
  store_words(s.items + 16 * at.slot, (u32)item.tile, (u32)item.first, (u32)item.rows, (u32)item.pair);
}

// GEMM 1, 128 threads: thread t brings 16 bytes of rows t/8, t/8 + 16, ...
__device__ __forceinline__ void gather(const PrefillParams& p, const Shared& s) {
  const u32 units = units_of(p);
  const u32 pairs = pairs_of(p);
  const u32 t = threadIdx.x - kMathThreads;
  const u32 place = t / 8 * 128 + ((t % 8) ^ (t / 8 % 8)) * 16;
  Place at;
  u32 before = 0;  // the full barrier of the step whose copies have not been signalled yet
  for (Walk walk; walk.unit() < units; walk.next()) {
    const Item item = find_item(p, walk.unit(), pairs, s.rank);
    const u32 rows = (u32)item.rows;
    barrier_wait(s.empty + 8 * at.slot, at.round ^ 1);
    if (t == 0) announce_item(s, at, item);
    if (rows == 0) {
      if (before != 0) {
        copy_wait<0>();
        proxy_fence();
        barrier_arrive(before);
        before = 0;
      }
      for (int k = p.steps; k > 0; --k, at.next()) {
        barrier_wait(s.empty + 8 * at.slot, at.round ^ 1);
        barrier_arrive(s.full + 8 * at.slot);
        if (t == 0) barrier_arrive(s.full + 8 * at.slot);
      }
      continue;
    }
    u32 row[8];
#pragma unroll
    for (int i = 0; i < 8; ++i) {
      const u32 r = t / 8 + 16 * i;
      row[i] = source_row(p.x_source, p, item.first + (r < rows ? (int)r : 0));
    }
    const float* token_scale =
        p.x_scale +
        (i64)source_row(p.x_scale_source, p, item.first + (t < rows ? (int)t : 0)) * p.x_scale_stride;
    const float* weight_scale = weight_scales(p, item, t % 2);
    const u8* tile = weight_tiles(p, item, s.rank);
    const u8* x = p.x + t % 8 * 16;
    for (int k = p.steps; k > 0; --k) {
      const u32 stage = s.ring + at.slot * kStage;
      const u32 full = s.full + 8 * at.slot;
      barrier_wait(s.empty + 8 * at.slot, at.round ^ 1);
      if (t == 0) {
        barrier_expect(full, weight_bytes(p, item));
        bring_weights(p, item, s.rank, stage, full, tile);
        tile += kTile;
      }
#pragma unroll
      for (int i = 0; i < 8; ++i)
        if (t / 8 + 16 * i < rows) copy16(stage + place + i * 2048, x + (i64)row[i] * p.x_stride);
      x += 128;
      if (t < rows) copy4(s.scales + at.slot * kScales + 4 * t, token_scale);
      if (t < 2) copy4(s.weight_scales + at.slot * kWeightScales + 4 * t, weight_scale);
      ++token_scale;
      ++weight_scale;
      copy_commit();
      // Signalled one step late, so that the copies' latency is hidden.
      if (before != 0) {
        copy_wait<1>();
        proxy_fence();
        barrier_arrive(before);
      }
      before = full;
      at.next();
    }
  }
  copy_wait<0>();
  proxy_fence();
  if (before != 0) barrier_arrive(before);
}

// GEMM 2, one warp: everything by bulk copies but the weight scales.
__device__ __forceinline__ void bring(const PrefillParams& p, const Shared& s) {
  const u32 units = units_of(p);
  const u32 pairs = pairs_of(p);
  const u32 lane = threadIdx.x % 32;
  Place at;
  for (Walk walk; walk.unit() < units; walk.next()) {
    const Item item = find_item(p, walk.unit(), pairs, s.rank);
    const float* weight_scale = weight_scales(p, item, lane % 2);
    const u8* tile = weight_tiles(p, item, s.rank);
    const u32 rows = h_rows(item);
    u64 h = h_row(item) * (u32)p.steps;
    for (u32 k = 0; k < (u32)p.steps; ++k, at.next()) {
      const u32 full = s.full + 8 * at.slot;
      const u32 stage = s.ring + at.slot * kStage;
      barrier_wait(s.empty + 8 * at.slot, at.round ^ 1);
      if (k == 0 && lane == 0) announce_item(s, at, item);
      if (item.rows == 0) {
        if (lane < 3) barrier_arrive(full);
        continue;
      }
      if (lane < 2) {
        copy4(s.weight_scales + at.slot * kWeightScales + 4 * lane, weight_scale + k);
        copy_arrive(full);
      }
      if (lane == 0) {
        barrier_expect(full, weight_bytes(p, item) + rows * (128 + 4));
        bring_weights(p, item, s.rank, stage, full, tile + (u64)k * kTile);
        bulk_copy(stage, p.h + h * 128, rows * 128, full);
        bulk_copy(s.scales + at.slot * kScales, p.h_scale + h, rows * 4, full);
      }
      h += rows;
      __syncwarp();
    }
  }
}
