// The portable GEMMs: GEMM 1 of fp8_block that leaves GEMM 2's input, codes and a scale per row and 128
// columns, in place of h. A block takes all tiles of weight rows of such a group one after the other
// (passes). h of all passes but the last waits in memory, where the thread that wrote it comes for it; of a
// row it knows the largest magnitude so far. Scales and codes are those of kernels/prologue/requantize.cu,
// bit for bit.
#pragma once

#include "common/quotient.cuh"
#include "prologue/values.cuh"

// Eight codes; scale > 2^126 (there are infinities in the row) has no usable inverse.
__device__ __forceinline__ void store_codes(u8* to, Eight h, float scale, float inverse) {
  u32 w[2] = {0, 0};
  if (scale > 0x1p126f) {
#pragma unroll 1
    for (int i = 0; i < 8; ++i) {  // rare, so one copy of the code
      to[i] = (u8)plain_code(h.v[0], scale);
#pragma unroll
      for (int j = 0; j < 7; ++j) h.v[j] = h.v[j + 1];
    }
    return;
  }
#pragma unroll
  for (int i = 0; i < 8; ++i) {
    // Magnitudes: a NaN's code takes the sign of the value.
    const u32 code = f32_to_e4m3(quotient(fabsf(h.v[i]), scale, inverse)) & 0x7fu;
    w[i / 4] |= (code | (__float_as_uint(h.v[i]) >> 24 & 0x80u)) << (i % 4 * 8);
  }
  *(uint2*)to = make_uint2(w[0], w[1]);
}

__device__ __forceinline__ void finish_codes(const PortableParams& p, const float* sums, Kept& kept,
                                             int pass) {
  static_assert(kEights <= 32 && 32 % kEights == 0, "lanes of one warp have a row's columns");
  const Unit unit = kept.unit;
  const int column = (int)threadIdx.x % kEights * 8;
  const int group = unit.n0 - pass * kColumns;
  const bool inside = unit.n0 + column < p.n;
  const bool last = pass + 1 == kPasses || unit.n0 + kColumns >= p.n;
#pragma unroll 1
  for (int begin = 0; begin < unit.rows; begin += kThreads / kEights) {  // the same for all lanes
    const int token = begin + (int)threadIdx.x / kEights;
    const bool present = token < unit.rows;
    Eight v = staged(sums, present ? token : 0, 2 * column);
    Eight up = staged(sums, present ? token : 0, 2 * column + 8);
    activate_eight(p, v, up);
    float amax = 0.0f;
#pragma unroll
    for (int i = 0; i < 8; ++i) amax = fmaxf(amax, fabsf(v.v[i]));  // passes over NaN
    if (!inside) amax = 0.0f;
#pragma unroll
    for (int d = 1; d < kEights; d *= 2) amax = fmaxf(amax, __shfl_xor_sync(0xffffffffu, amax, d));
    if (!present) continue;
    if (pass > 0) amax = fmaxf(amax, kept.amax[token]);
    const i64 row = unit.first + token;
    float* const h = p.h + row * p.out_stride + group + column;
    if (!last) {
      if (threadIdx.x % kEights == 0) kept.amax[token] = amax;  // which the next pass reads behind barriers
      if (!inside) continue;
      *(float4*)(h + pass * kColumns) = make_float4(v.v[0], v.v[1], v.v[2], v.v[3]);
      *(float4*)(h + pass * kColumns + 4) = make_float4(v.v[4], v.v[5], v.v[6], v.v[7]);
      continue;
    }
    const float scale = amax_scale(amax);
    const float inverse = __frcp_rn(scale);
    if (threadIdx.x % kEights == 0) p.out_scales[row * p.out_groups + group / 128] = scale;
    u8* const to = (u8*)p.out + row * p.out_stride + group + column;
#pragma unroll 1
    for (int before = 0; before < pass; ++before) {  // whole ones: the row goes on behind them
      const float4 a = *(const float4*)(h + before * kColumns);
      const float4 b = *(const float4*)(h + before * kColumns + 4);
      store_codes(to + before * kColumns, {{a.x, a.y, a.z, a.w, b.x, b.y, b.z, b.w}}, scale, inverse);
    }
    if (inside) store_codes(to + pass * kColumns, v, scale, inverse);
  }
}
