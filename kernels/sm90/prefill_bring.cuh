// The copying warps of the prefill kernel (prefill.cu): they take items from the queue, announce them in the
// ring and bring what they need.
#pragma once

#include "sm90/prefill_copy.cuh"
#include "sm90/prefill_items.cuh"
#include "sm90/prefill_queue.cuh"
#include "sm90/prefill_tall.cuh"

constexpr bool kGather = GATHER != 0;
// Who says that a step is there: with a gather every thread that copies, and the announcement of bytes.
constexpr u32 kBringArrivals = kGather ? 33 : 3;
constexpr u32 kFullArrivals = kGather ? 33 + 64 : 3;
constexpr u32 kCopying = kGather ? 32 + 64 : 32;

__device__ __forceinline__ int entry_slot(const Shared& s, u32 n, u32 row) {
  return __float_as_int(load_float(entry(s, n) + 32 + 4 * row));
}

__device__ __forceinline__ void announce_item(const Shared& s, const Place& at, const Item& item) {
  store_words(s.items + 16 * at.slot, (u32)item.tile, (u32)item.first, (u32)item.rows, (u32)item.pair);
}

// The first copying warp: the items' announcement, weights, scales, GEMM 2: rows of h.
__device__ __forceinline__ void bring(const PrefillParams& p, const Shared& s) {
  const u32 lane = threadIdx.x % 32;
  Place at;
  for (u32 n = 0;; ++n) {
    const Item item = next_item(s, n);
    if (item.rows <= 0) {  // nothing to do, for as many steps as the partner has; the last time: the end
      for (int k = item.rows < 0 ? 1 : p.steps; k > 0; --k, at.next()) {
        barrier_wait(s.empty + 8 * at.slot, at.round ^ 1);
        if (lane == 0) announce_item(s, at, item);
        __syncwarp();
        if (lane < kBringArrivals) barrier_arrive(s.full + 8 * at.slot);
        if (kBringArrivals > 32 && lane == 0) barrier_arrive(s.full + 8 * at.slot);
      }
      if (item.rows < 0) break;
      barrier_arrive(entry_wanted(s));
      continue;
    }
    const float* weight_scale =
        kTall ? tall_weight_scales(p, item, s.rank, lane % 2) : weight_scales(p, item, lane % 2);
    const u8* tile = kTall ? tall_weight_tiles(p, item, s.rank) : weight_tiles(p, item, s.rank);
    const u32 rows = h_rows(item);
    u64 packed = h_row(item) * (u32)p.steps;  // GEMM 2: in rows of 128 bytes
    const float* token_scale[4];
    if (kGather) {
#pragma unroll
      for (u32 i = 0; i < 4; ++i)
        token_scale[i] = p.x_scale + (i64)slot_row(p.x_scale_source, p, entry_slot(s, n, lane + 32 * i)) *
                                         p.x_scale_stride;
    } else {
      proxy_fence_global();
    }
    for (int k = p.steps; k > 0; --k, at.next()) {
      const u32 full = s.full + 8 * at.slot;
      const u32 stage = s.ring + at.slot * kStage;
      if (k == ((int)kAhead < p.steps ? (int)kAhead : p.steps)) barrier_arrive(entry_wanted(s));
      barrier_wait(s.empty + 8 * at.slot, at.round ^ 1);
      if (lane == 0) {
        if (k == p.steps) announce_item(s, at, item);
        const u8* const from = (GEMM == 1 ? p.x : p.h) + packed * 128;
        barrier_expect(full, (kTall ? tall_slices(p, item, s.rank) * kTile : weight_bytes(p, item)) +
                                 (kGather ? 0 : rows * (128 + 4)));
        if (kTall)
          bring_tall(p, item, s.rank, stage, full, tile, from, rows);
        else
          bring_weights(p, item, s.rank, stage, full, tile);
        if (!kGather) {
          if (!kTall) bulk_copy(stage, from, rows * 128, full);
          bulk_copy(s.scales + at.slot * kScales, (GEMM == 1 ? p.x_scale : p.h_scale) + packed, rows * 4,
                    full);
        }
      }
      tile += kTile;
      packed += rows;
      if (lane < 2) copy4(s.weight_scales + at.slot * kWeightScales + 4 * lane, weight_scale);
      ++weight_scale;
      if (kGather) {
#pragma unroll
        for (u32 i = 0; i < 4; ++i) {
          if (lane + 32 * i < (u32)item.rows)
            copy4(s.scales + at.slot * kScales + 4 * (lane + 32 * i), token_scale[i]);
          ++token_scale[i];
        }
        copy_arrive(full);
      } else if (lane < 2) {
        copy_arrive(full);
      }
      __syncwarp();
    }
  }
}

// GEMM 1, two warps: rows of x by index; thread t brings 16 bytes of rows t/8, t/8 + 8, ...
__device__ __forceinline__ void gather(const PrefillParams& p, const Shared& s) {
  const u32 t = threadIdx.x - kMathThreads - 32;
  const u32 place = t / 8 * 128 + ((t % 8) ^ (t / 8)) * 16;
  Place at;
  for (u32 n = 0;; ++n) {
    const Item item = next_item(s, n);
    const u32 rows = (u32)item.rows;
    if (item.rows <= 0) {
      for (int k = item.rows < 0 ? 1 : p.steps; k > 0; --k, at.next()) {
        barrier_wait(s.empty + 8 * at.slot, at.round ^ 1);
        barrier_arrive(s.full + 8 * at.slot);
      }
      if (item.rows < 0) break;
      barrier_arrive(entry_wanted(s));
      continue;
    }
    u32 row[16];
#pragma unroll
    for (u32 i = 0; i < 16; ++i) row[i] = slot_row(p.x_source, p, entry_slot(s, n, t / 8 + 8 * i));
    const u8* x = p.x + t % 8 * 16;
    for (int k = p.steps; k > 0; --k, at.next()) {
      const u32 to = s.ring + at.slot * kStage + place;
      if (k == ((int)kAhead < p.steps ? (int)kAhead : p.steps)) barrier_arrive(entry_wanted(s));
      barrier_wait(s.empty + 8 * at.slot, at.round ^ 1);
#pragma unroll
      for (u32 i = 0; i < 16; ++i)
        if (t / 8 + 8 * i < rows) copy16(to + i * 1024, x + (i64)row[i] * p.x_stride);
      x += 128;
      copy_arrive(s.full + 8 * at.slot);
    }
  }
}
