// Integer names and the storage types' conversions for device code. NVRTC brings no headers of its own, and
// these are all that the kernels need. Twins of src/base/float_types.hpp: the same bits.
#pragma once

typedef unsigned char u8;
typedef unsigned short u16;
typedef unsigned int u32;
typedef unsigned long long u64;
typedef int i32;
typedef long long i64;

// bf16 -> fp32: exact.
__device__ __forceinline__ float bf16_to_f32(u16 v) {
  return __uint_as_float((u32)v << 16);
}
// fp32 -> bf16, round to nearest even; NaN stays NaN, made quiet with its sign and upper bits, as on the
// host.
__device__ __forceinline__ u16 f32_to_bf16(float v) {
  const u32 u = __float_as_uint(v);
  if ((u & 0x7fffffffu) > 0x7f800000u) return (u16)((u >> 16) | 0x40u);
  return (u16)((u + 0x7fffu + ((u >> 16) & 1u)) >> 16);
}
__device__ __forceinline__ float f16_to_f32(u16 v) {
  float r;
  asm("cvt.f32.f16 %0, %1;" : "=f"(r) : "h"(v));
  return r;
}
__device__ __forceinline__ u16 f32_to_f16(float v) {
  u16 r;
  asm("cvt.rn.f16.f32 %0, %1;" : "=h"(r) : "f"(v));
  const u32 u = __float_as_uint(v);
  return (u & 0x7fffffffu) > 0x7f800000u ? (u16)(((u >> 16) & 0x8000u) | 0x7e00u) : r;
}
// e4m3fn -> fp32: exact, by way of f16: the code's bits shifted into place are the value times 2^-8.
__device__ __forceinline__ float e4m3_to_f32(u8 v) {
  const u16 h = (u16)(((v & 0x80u) << 8) | ((v & 0x7fu) << 7));
  const float r = f16_to_f32(h) * 256.0f;
  return (v & 0x7fu) == 0x7fu ? __uint_as_float(0x7fc00000u | ((u32)(v & 0x80u) << 24)) : r;
}
// fp32 -> e4m3fn: saturating, round to nearest even, NaN keeps its sign. The bit arithmetic of f32_to_e4m3 on
// the host where there is no instruction (below sm_89).
__device__ __forceinline__ u8 f32_to_e4m3(float v) {
  const u32 u = __float_as_uint(v);
  const u32 sign = (u >> 24) & 0x80u;
  const u32 a = u & 0x7fffffffu;
#if __CUDA_ARCH__ >= 890
  u16 pair;
  asm("cvt.rn.satfinite.e4m3x2.f32 %0, %1, %2;" : "=h"(pair) : "f"(0.0f), "f"(v));
  return a > 0x7f800000u ? (u8)(sign | 0x7fu) : (u8)pair;
#else
  if (a > 0x7f800000u) return (u8)(sign | 0x7fu);
  if (a >= 0x43e00000u) return (u8)(sign | 0x7eu);
  if (a < 0x3c800000u) {
    if (a <= 0x3a800000u) return (u8)sign;
    const u32 shift = 141u - (a >> 23);
    const u32 m = (a & 0x7fffffu) | 0x800000u;
    const u32 q = m >> shift;
    const u32 rest = m & ((1u << shift) - 1u);
    const u32 half = 1u << (shift - 1u);
    return (u8)(sign | (q + ((rest > half || (rest == half && (q & 1u))) ? 1u : 0u)));
  }
  const u32 r = a + 0x7ffffu + ((a >> 20) & 1u);
  const u32 code = (r - 0x3c000000u) >> 20;
  return (u8)(sign | (code > 0x7eu ? 0x7eu : code));
#endif
}
// max(amax, 1e-10) / 448, true division (compile without -use_fast_math and -prec-div=false).
__device__ __forceinline__ float amax_scale(float amax) {
  return __fdiv_rn(fmaxf(amax, 1e-10f), 448.0f);
}
