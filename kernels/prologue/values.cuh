// Single values on their way into an activation type, as the host converts them (src/weights/quantize.cpp),
// NaN and infinity included.
#pragma once

#include "common/types.cuh"

// f16 -> fp32 with the NaN bits of the host's conversion (the instruction's NaN has no sign).
__device__ __forceinline__ float f16_value(u16 v) {
  const float r = f16_to_f32(v);
  const u32 nan = ((u32)(v & 0x8000u) << 16) | 0x7f800000u | ((u32)(v & 0x3ffu) << 13);
  return (v & 0x7fffu) > 0x7c00u ? __uint_as_float(nan) : r;
}
__device__ __forceinline__ bool is_nan(float v) {
  return (__float_as_uint(v) & 0x7fffffffu) > 0x7f800000u;
}
// a * b with the NaN that the host's multiplication gives.
__device__ __forceinline__ float product(float a, float b) {
  const float r = __fmul_rn(a, b);
  if (!is_nan(r)) return r;
  if (is_nan(a)) return __uint_as_float(__float_as_uint(a) | 0x400000u);
  if (is_nan(b)) return __uint_as_float(__float_as_uint(b) | 0x400000u);
  return __uint_as_float(0xffc00000u);
}
// One e4m3 code by the plain definition.
__device__ __forceinline__ u32 plain_code(float v, float scale) {
  const u32 sign = (__float_as_uint(v) >> 24) & 0x80u;
  if (is_nan(v)) return sign | 0x7fu;
  if (is_nan(scale)) return ((__float_as_uint(scale) >> 24) & 0x80u) | 0x7fu;
  const float q = __fdiv_rn(v, scale);
  return is_nan(q) ? 0xffu : (u32)f32_to_e4m3(q);
}
