// Rung 2, tensor cores: wgmma in its standard orientation, tokens padded to 64 rows per expert. Everyone
// loads, everyone waits, everyone multiplies: memory is idle while the tensor cores work, and the other way
// round.
//
// Grid: x = slices of 128 weight rows, y = tiles of up to 64 token rows. One warpgroup.
#include "ladder/standard.cuh"

// 16-byte chunk c of row r, where wgmma looks for it: 128-byte rows, chunks swizzled by the row.
__device__ __forceinline__ uint4* chunk(u8* matrix, u32 r, u32 c) {
  return (uint4*)(matrix + r * kDepth + (c ^ r % 8) * 16);
}

extern "C" __global__ void __launch_bounds__(128) rung(const __grid_constant__ Params p) {
  __shared__ __align__(1024) u8 tokens[kTokens * kDepth];
  __shared__ __align__(1024) u8 weights[kTileBytes];
  const u32 slice = blockIdx.x;
  const Tile tile = p.tiles[blockIdx.y];
  const u32 steps = p.hidden / kDepth;
  const u32 c = threadIdx.x % 8;  // this thread's chunk of rows threadIdx.x/8, +16, ...
  const u8* const expert = p.weights + (u64)tile.expert * 2 * p.intermediate * p.hidden;

  // Rows past the last valid one repeat the first: their sums are thrown away.
  const u8* x[4];
#pragma unroll
  for (int i = 0; i < 4; ++i) {
    const u32 r = threadIdx.x / 8 + 16 * i;
    x[i] = p.x + (u64)p.token[tile.first + (r < (u32)tile.rows ? r : 0)] * p.hidden + c * 16;
  }
  const u32 row = threadIdx.x / 32 * 16 + threadIdx.x % 32 / 4;  // of the accumulators; the other is 8 below
  const float* const low = p.x_scale + (u64)p.token[tile.first + (row < (u32)tile.rows ? row : 0)] * steps;
  const float* const high =
      p.x_scale + (u64)p.token[tile.first + (row + 8 < (u32)tile.rows ? row + 8 : 0)] * steps;
  const WeightScales scale = weight_scales(p, tile.expert, slice);

  float sum[64] = {};
  for (u32 k = 0; k < steps; ++k) {
#pragma unroll
    for (int i = 0; i < 4; ++i)
      *chunk(tokens, threadIdx.x / 8 + 16 * i, c) = *(const uint4*)(x[i] + k * kDepth);
#pragma unroll
    for (int i = 0; i < 8; ++i) {
      const u32 r = threadIdx.x / 8 + 16 * i;
      const u8* const w = expert + (u64)weight_row(slice, r, p.intermediate) * p.hidden;
      *chunk(weights, r, c) = *(const uint4*)(w + k * kDepth + c * 16);
    }
    proxy_fence();  // these stores, before wgmma reads them
    __syncthreads();
    float part[64];
    multiply_step(part, shared_address(tokens), shared_address(weights));
    wgmma_wait<0>();
    promote(sum, part, low[k], high[k], scale.gate[k], scale.gate[k + scale.up]);
    __syncthreads();  // the tiles may be overwritten
  }
  store_rows(p, tile, slice, sum);
}
