// The portable GEMMs: from a tile's sums in shared memory to what leaves the kernel. A thread takes eight
// neighbouring columns of a token.
#pragma once

#include "portable/tile.cuh"

// The activations of src/weights/activation.hpp, in the same forms: the gated ones, times up.
__device__ __forceinline__ float activate(int kind, float g, float u) {
  switch (kind) {
    case 0:
      return g / (1.0f + expf(-g)) * u;
    case 1:
      return 0.5f * g * (1.0f + erff(g * 0.70710678f)) * u;
    default: {
      const float z = 0.79788456f * (g + 0.044715f * g * g * g);
      return 0.5f * g * (1.0f + tanhf(z)) * u;
    }
  }
}
__device__ __forceinline__ float relu2(float g) {
  return g <= 0.0f ? 0.0f : g * g;
}

struct Eight {
  float v[8];
};
// Eight neighbouring rows of a token's sums, over the KW warps in order.
__device__ __forceinline__ Eight staged(const float* sums, int token, int row) {
  Eight e;
#pragma unroll
  for (int k = 0; k < KW; ++k) {
    const float* const from = sums + (k * TOKENS + token) * kPitch + row;
    const float4 a = *(const float4*)from;
    const float4 b = *(const float4*)(from + 4);
    const float v[8] = {a.x, a.y, a.z, a.w, b.x, b.y, b.z, b.w};
#pragma unroll
    for (int i = 0; i < 8; ++i) e.v[i] = k == 0 ? v[i] : e.v[i] + v[i];
  }
  return e;
}

// The scales that fp8_channel and fp8_tensor apply at the end. row: of W; half: 1 for up.
__device__ __forceinline__ void scale_eight(const PortableParams& p, const Unit& unit, int token, int row,
                                            int half, Eight& e) {
#if FORMAT == 5 || FORMAT == 6
  const float x = p.x_scale == nullptr
                      ? p.x_static
                      : p.x_scale[source_row(p.x_scale_source, p, unit.first + token) * p.x_scale_stride];
  const float* const w = p.w_scale + (i64)unit.expert * p.ws_expert;
#pragma unroll
  for (int i = 0; i < 8; ++i) e.v[i] *= x * w[(i64)(FORMAT == 5 ? half : row + i) * p.ws_row];
#endif
}

__device__ __forceinline__ u32 pack16(float a, float b) {
  return FORMAT == 3 ? (u32)f32_to_f16(a) | ((u32)f32_to_f16(b) << 16)
                     : (u32)f32_to_bf16(a) | ((u32)f32_to_bf16(b) << 16);
}

// h in the type that it leaves in.
__device__ __forceinline__ void store_h(const PortableParams& p, i64 at, const Eight& h) {
#if FORMAT == 2 || FORMAT == 3
  *(uint4*)((u16*)p.out + at) = make_uint4(pack16(h.v[0], h.v[1]), pack16(h.v[2], h.v[3]),
                                           pack16(h.v[4], h.v[5]), pack16(h.v[6], h.v[7]));
#elif FORMAT == 5
  u32 w[2] = {0, 0};
#pragma unroll
  for (int i = 0; i < 8; ++i) w[i / 4] |= (u32)f32_to_e4m3(__fdiv_rn(h.v[i], p.out_scale)) << (i % 4 * 8);
  *(uint2*)((u8*)p.out + at) = make_uint2(w[0], w[1]);
#else
  float* const to = (float*)p.out + at;
  *(float4*)to = make_float4(h.v[0], h.v[1], h.v[2], h.v[3]);
  *(float4*)(to + 4) = make_float4(h.v[4], h.v[5], h.v[6], h.v[7]);
#endif
}

__device__ __forceinline__ void finish(const PortableParams& p, const Unit& unit, const float* sums) {
  constexpr int kColumns = GATED ? ROWS / 2 : ROWS;
  constexpr int kEights = kColumns / 8;
  for (int at = (int)threadIdx.x; at < unit.rows * kEights; at += kThreads) {
    const int token = at / kEights;
    const int column = at % kEights * 8;
    const int n = unit.n0 + column;
    if (n >= p.n) continue;
    const int row = unit.first + token;
    Eight v = staged(sums, token, GATED ? 2 * column : column);
    scale_eight(p, unit, token, n, 0, v);
    if (!GATED && p.second) {
      if (p.slot_weight != nullptr) {
        const int slot = p.slots[row];
        const int t = slot / p.top_k;
        const float weight =
            p.slot_weight[t * p.slot_weight_token + (slot - t * p.top_k) * p.slot_weight_slot];
#pragma unroll
        for (int i = 0; i < 8; ++i) v.v[i] *= weight;
      }
#if FORMAT == 3
      float* const to = (float*)p.out + (i64)row * p.out_stride + n;
      *(float4*)to = make_float4(v.v[0], v.v[1], v.v[2], v.v[3]);
      *(float4*)(to + 4) = make_float4(v.v[4], v.v[5], v.v[6], v.v[7]);
#else
      u32 w[4];
#pragma unroll
      for (int i = 0; i < 4; ++i)
        w[i] = (u32)f32_to_bf16(v.v[2 * i]) | ((u32)f32_to_bf16(v.v[2 * i + 1]) << 16);
      *(uint4*)((u16*)p.out + (i64)row * p.out_stride + n) = make_uint4(w[0], w[1], w[2], w[3]);
#endif
      continue;
    }
    Eight up = v;
    if (GATED) {
      up = staged(sums, token, 2 * column + 8);
      scale_eight(p, unit, token, p.up_row + n, 1, up);
    }
#pragma unroll
    for (int i = 0; i < 8; ++i) v.v[i] = GATED ? activate(p.activation, v.v[i], up.v[i]) : relu2(v.v[i]);
    store_h(p, (i64)row * p.out_stride + n, v);
  }
}
