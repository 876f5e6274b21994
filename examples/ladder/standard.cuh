// Tokens as wgmma's M side, weights as its N side: the accumulators of rungs 2 and 3. One warpgroup, 64 token
// rows by 128 weight rows. Thread (warp w, lane l) holds token rows 16w + l/4 (d[4j], d[4j+1]) and 8 below
// (d[4j+2], d[4j+3]), weight rows 8j + 2(l%4) and the next: gate where j is even, the same columns of up at
// j + 1.
#pragma once

#define WGMMA_E4M3
#include "ladder/common.cuh"
#include "sm90/ptx.cuh"
#include "sm90/wgmma.cuh"

constexpr u32 kTokens = 64;  // token rows per tile: wgmma's M, whatever the expert's count

// One step of depth from zero: four instructions of 32 columns.
__device__ __forceinline__ void multiply_step(float (&part)[64], u32 tokens, u32 weights) {
  const u64 a = descriptor(tokens);
  const u64 b = descriptor(weights);
  wgmma_fence();
#pragma unroll
  for (int j = 0; j < 4; ++j) wgmma<E4m3, 128>(part, a + 2 * j, b + 2 * j, j != 0);
  wgmma_commit();
}

// Adds a step's sums, scaled, to the fp32 sums: tokens' scales low and high (8 rows below), weights' gate and
// up.
__device__ __forceinline__ void promote(float (&sum)[64], const float (&part)[64], float low, float high,
                                        float gate, float up) {
#pragma unroll
  for (int j = 0; j < 16; ++j) {
    const float w = j % 2 == 0 ? gate : up;
    sum[4 * j] = fmaf(part[4 * j], low * w, sum[4 * j]);
    sum[4 * j + 1] = fmaf(part[4 * j + 1], low * w, sum[4 * j + 1]);
    sum[4 * j + 2] = fmaf(part[4 * j + 2], high * w, sum[4 * j + 2]);
    sum[4 * j + 3] = fmaf(part[4 * j + 3], high * w, sum[4 * j + 3]);
  }
}

// h of the tile's valid rows, two columns a store.
__device__ __forceinline__ void store_rows(const Params& p, const Tile& tile, u32 slice,
                                           const float (&sum)[64]) {
  const u32 lane = threadIdx.x % 32;
#pragma unroll
  for (int half = 0; half < 2; ++half) {
    const u32 row = threadIdx.x / 32 * 16 + lane / 4 + 8 * half;
    if (row >= (u32)tile.rows) continue;
    u16* const h = p.h + (u64)(tile.first + row) * p.intermediate + slice * kColumns + 2 * (lane % 4);
#pragma unroll
    for (int q = 0; q < 8; ++q) {
      const int at = 8 * q + 2 * half;
      const u32 first = f32_to_bf16(silu_times(sum[at], sum[at + 4]));
      const u32 second = f32_to_bf16(silu_times(sum[at + 1], sum[at + 5]));
      *(u32*)(h + 8 * q) = first | second << 16;
    }
  }
}
