// Rung 1, the reference: CUDA cores, one column of h per thread, every operand straight from global memory.
// Nothing is shared and nothing overlaps on purpose; what speed there is comes from the caches.
//
// Grid: x = tiles of one row, y = 128 columns of h.
#include "ladder/common.cuh"

// Sum of 16 products of e4m3 codes.
__device__ __forceinline__ float dot16(const uint4& a, const uint4& b) {
  const u8* const x = (const u8*)&a;
  const u8* const y = (const u8*)&b;
  float sum = 0.0f;
#pragma unroll
  for (int i = 0; i < 16; ++i) sum = fmaf(e4m3_to_f32(x[i]), e4m3_to_f32(y[i]), sum);
  return sum;
}

extern "C" __global__ void __launch_bounds__(128) rung(const __grid_constant__ Params p) {
  const Tile tile = p.tiles[blockIdx.x];
  const u32 column = blockIdx.y * 128 + threadIdx.x;
  const u32 steps = p.hidden / kDepth;
  const int token = p.token[tile.first];
  const u8* const x = p.x + (u64)token * p.hidden;
  const float* const x_scale = p.x_scale + (u64)token * steps;
  const u8* const gate_row = p.weights + ((u64)tile.expert * 2 * p.intermediate + column) * p.hidden;
  const u8* const up_row = gate_row + (u64)p.intermediate * p.hidden;
  const WeightScales scale = weight_scales(p, tile.expert, column / kColumns);

  float gate = 0.0f;
  float up = 0.0f;
  for (u32 k = 0; k < steps; ++k) {  // a step has one scale on either side
    float g = 0.0f;
    float u = 0.0f;
    for (u32 c = k * kDepth; c < (k + 1) * kDepth; c += 16) {
      const uint4 v = *(const uint4*)(x + c);
      g += dot16(v, *(const uint4*)(gate_row + c));
      u += dot16(v, *(const uint4*)(up_row + c));
    }
    gate = fmaf(g, x_scale[k] * scale.gate[k], gate);
    up = fmaf(u, x_scale[k] * scale.gate[k + scale.up], up);
  }
  p.h[(u64)tile.first * p.intermediate + column] = f32_to_bf16(silu_times(gate, up));
}
