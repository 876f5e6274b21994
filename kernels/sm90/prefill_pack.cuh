// GEMM 1's rows put in the order and the layout in which the prefill kernel (prefill.cu) reads them, by two
// warps of every block while the others compute: what the row index names, tile by tile, packed as h is
// (params/prefill.hpp). T*k rows are written and read once more than with a gather for every item, but a tile
// is then one bulk copy: 16-byte copies keep shared memory four times as long, which is what limits the math.
//
// A unit is a row tile x a group of 128 columns, in the order in which GEMM 1 takes the tiles: it is always a
// few behind. Whoever is free takes the next one, so nobody waits for a block that does not run yet. Rows
// that only fill up a tile's last eight are zero.
#pragma once

#include "sm90/prefill_items.cuh"
#include "sm90/prefill_queue.cuh"

__device__ __forceinline__ void pack_rows(const PrefillParams& p) {
  const u32 lane = threadIdx.x % 32;
  const u32 steps = (u32)p.steps;
  const u32 units = (u32)*p.num_tiles * steps;
  u32 ticket = lane == 0 ? atomic_increment(p.tickets + 3) : 0;
  for (;;) {
    const u32 unit = __shfl_sync(0xffffffffu, ticket, 0);
    if (unit >= units) break;
    if (lane == 0) ticket = atomic_increment(p.tickets + 3);  // in time for the next round
    const u32 number = unit / steps;
    const u32 group = unit % steps;
    const int first = p.tiles[number].first;
    const u32 rows = (u32)p.tiles[number].rows;
    const u32 all = (rows + 7) / 8 * 8;
    const u64 base = (u64)(((u32)first + 7 * number) / 8 * 8) * steps + group * all;  // in rows of 128 bytes
    const u8* const x = p.x + group * 128 + lane % 8 * 16;
    u8* const to = p.x_packed + base * 128 + lane / 8 * 128;
#pragma unroll 1
    for (u32 begin = 0; begin < all; begin += 32) {
      const u32 mine = begin + lane;
      const int slot = mine < rows ? p.slots[first + (int)mine] : -1;
      const int row_of_x = slot < 0 ? -1 : (int)slot_row(p.x_source, p, slot);
#pragma unroll
      for (u32 half = 0; half < 2; ++half) {
        uint4 v[4];
#pragma unroll
        for (u32 j = 0; j < 4; ++j) {
          const int from = __shfl_sync(0xffffffffu, row_of_x, (int)(16 * half + 4 * j + lane / 8));
          v[j] = make_uint4(0, 0, 0, 0);
          if (from >= 0) v[j] = load_global(x + from * p.x_stride);
        }
#pragma unroll
        for (u32 j = 0; j < 4; ++j) {
          const u32 row = begin + 16 * half + 4 * j;  // + lane / 8, which counts in `to`
          if (row + lane / 8 < all)
            store_global(to + row * 128 + ((lane % 8) ^ ((row + lane / 8) % 8)) * 16, v[j]);
        }
      }
      if (mine < all)
        p.x_packed_scale[base + mine] =
            slot < 0 ? 0.0f : p.x_scale[slot_row(p.x_scale_source, p, slot) * p.x_scale_stride + group];
    }
    __syncwarp();
    if (lane == 0) {
      proxy_fence_global();
      add_release(&p.tiles[number].reserved, kPackedGroup);
    }
  }
}
