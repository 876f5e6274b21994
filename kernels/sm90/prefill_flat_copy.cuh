// The copying warps' side of prefill_flat.cu: as prefill_copy.cuh without scales. GATHERED: token rows come
// by index (GEMM 1's input; GEMM 2's where h was requantised as a whole), else packed (GEMM 2).
#pragma once

#include "sm90/prefill_copy.cuh"

// What the math warps must know of an item. An item has at most 128 rows, so the expert fits beside them.
__device__ __forceinline__ void announce_flat(const Shared& s, const Place& at, const Item& item) {
  store_words(s.items + 16 * at.slot, (u32)item.tile, (u32)item.first, (u32)item.rows | (u32)item.expert << 8,
              (u32)item.pair);
}
__device__ __forceinline__ Item announced_flat(const Shared& s, const Place& at) {
  const uint4 v = load_words(s.items + 16 * at.slot);
  return {(int)v.x, (int)v.y, (int)(v.z & 255u), (int)v.w, (int)(v.z >> 8), false};
}

__device__ __forceinline__ u32 row_at(int source, const PrefillParams& p, int sorted) {
  return source == kRowSorted ? (u32)sorted : source_row(source, p, sorted);
}

#if GATHERED
// 128 threads: thread t brings 16 bytes of rows t/8, t/8 + 16, ... The full barrier counts the copies itself.
__device__ __forceinline__ void gather_flat(const PrefillParams& p, const Shared& s) {
  const u32 units = units_of(p);
  const u32 pairs = pairs_of(p);
  const u32 t = threadIdx.x - kMathThreads;
  const u32 place = t / 8 * 128 + ((t % 8) ^ (t / 8 % 8)) * 16;
  Place at;
  for (Walk walk; walk.unit() < units; walk.next()) {
    const Item item = find_item(p, walk.unit(), pairs, s.rank);
    const u32 rows = (u32)item.rows;
    u32 row[8];
#pragma unroll
    for (int i = 0; i < 8; ++i) {
      const u32 r = t / 8 + 16 * i;
      row[i] = rows == 0 ? 0 : row_at(p.x_source, p, item.first + (r < rows ? (int)r : 0));
    }
    const u8* tile = weight_tiles(p, item, s.rank);
    const u8* x = p.x + t % 8 * 16;
    for (int k = 0; k < p.steps; ++k, at.next()) {
      const u32 stage = s.ring + at.slot * kStage;
      const u32 full = s.full + 8 * at.slot;
      barrier_wait(s.empty + 8 * at.slot, at.round ^ 1);
      if (t == 0) {
        if (k == 0) announce_flat(s, at, item);
        if (rows == 0) {
          barrier_arrive(full);
        } else {
          barrier_expect(full, weight_bytes(p, item));
          bring_weights(p, item, s.rank, stage, full, tile);
          tile += kTile;
        }
      }
#pragma unroll
      for (int i = 0; i < 8; ++i)
        if (t / 8 + 16 * i < rows) copy16(stage + place + i * 2048, x + (i64)row[i] * p.x_stride);
      x += 128;
      copy_arrive(full);
    }
  }
  copy_wait<0>();
}
#else
// One lane: everything by bulk copies. (Asking for the first item's weights before GEMM 1 has ended wins
// nothing: docs/kernel-log.md.)
__device__ __forceinline__ void bring_flat(const PrefillParams& p, const Shared& s) {
  const u32 units = units_of(p);
  const u32 pairs = pairs_of(p);
  Place at;
  for (Walk walk; walk.unit() < units; walk.next()) {
    const Item item = find_item(p, walk.unit(), pairs, s.rank);
    const u8* tile = weight_tiles(p, item, s.rank);
    const u32 rows = h_rows(item);
    const u8* h = p.h + h_row(item) * (u32)p.steps * 128;
    for (u32 k = 0; k < (u32)p.steps; ++k, at.next()) {
      const u32 full = s.full + 8 * at.slot;
      const u32 stage = s.ring + at.slot * kStage;
      barrier_wait(s.empty + 8 * at.slot, at.round ^ 1);
      if (k == 0) announce_flat(s, at, item);
      if (item.rows == 0) {
        barrier_arrive(full);
        continue;
      }
      barrier_expect(full, weight_bytes(p, item) + rows * 128);
      bring_weights(p, item, s.rank, stage, full, tile);
      bulk_copy(stage, h, rows * 128, full);
      tile += kTile;
      h += rows * 128;
    }
  }
}
#endif
