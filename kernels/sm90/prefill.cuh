// What the prefill kernel needs besides ptx.cuh: shared-memory accesses, register shares of warpgroups, and
// the arithmetic of its epilogues (twins of the stream kernel's: the same bits).
#pragma once

#include "common/types.cuh"

__device__ __forceinline__ float load_float(u32 address) {
  float v;
  asm volatile("ld.shared.f32 %0, [%1];" : "=f"(v) : "r"(address) : "memory");
  return v;
}
__device__ __forceinline__ void load_pair(float& a, float& b, u32 address) {
  asm volatile("ld.shared.v2.f32 {%0,%1}, [%2];" : "=f"(a), "=f"(b) : "r"(address) : "memory");
}
__device__ __forceinline__ uint4 load_words(u32 address) {
  uint4 v;
  asm volatile("ld.shared.v4.u32 {%0,%1,%2,%3}, [%4];"
               : "=r"(v.x), "=r"(v.y), "=r"(v.z), "=r"(v.w)
               : "r"(address)
               : "memory");
  return v;
}
__device__ __forceinline__ void store_float(u32 address, float v) {
  asm volatile("st.shared.f32 [%0], %1;" ::"r"(address), "f"(v) : "memory");
}
__device__ __forceinline__ void store_u16(u32 address, u16 v) {
  asm volatile("st.shared.u16 [%0], %1;" ::"r"(address), "h"(v) : "memory");
}
__device__ __forceinline__ void store_u32(u32 address, u32 v) {
  asm volatile("st.shared.u32 [%0], %1;" ::"r"(address), "r"(v) : "memory");
}
__device__ __forceinline__ void store_words(u32 address, u32 a, u32 b, u32 c, u32 d) {
  asm volatile("st.shared.v4.u32 [%0], {%1,%2,%3,%4};" ::"r"(address), "r"(a), "r"(b), "r"(c), "r"(d)
               : "memory");
}

// Arrives once the small copies that this thread has issued so far have landed; counts like any other
// arrival.
__device__ __forceinline__ void barrier_arrive_copies(u32 bar) {
  asm volatile("cp.async.mbarrier.arrive.noinc.shared::cta.b64 [%0];" ::"r"(bar) : "memory");
}

__device__ __forceinline__ void named_arrive(u32 id, u32 threads) {
  asm volatile("bar.arrive %0, %1;" ::"r"(id), "r"(threads) : "memory");
}

// Registers per thread of this warpgroup from here on.
template <int COUNT>
__device__ __forceinline__ void registers_take() {
  asm volatile("setmaxnreg.inc.sync.aligned.u32 %0;" ::"n"(COUNT));
}
template <int COUNT>
__device__ __forceinline__ void registers_release() {
  asm volatile("setmaxnreg.dec.sync.aligned.u32 %0;" ::"n"(COUNT));
}

// Two values as bf16 or e4m3, the first in the low bits; round to nearest even, e4m3 saturating.
__device__ __forceinline__ u32 bf16_pair(float low, float high) {
  u32 r;
  asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(r) : "f"(high), "f"(low));
  return r;
}
__device__ __forceinline__ u16 e4m3_pair(float low, float high) {
  u16 r;
  asm("cvt.rn.satfinite.e4m3x2.f32 %0, %1, %2;" : "=h"(r) : "f"(high), "f"(low));
  return r;
}

__device__ __forceinline__ float reciprocal(float v) {
  float r;
  asm("rcp.approx.ftz.f32 %0, %1;" : "=f"(r) : "f"(v));
  return r;
}

// a / scale as far as its code shows, given inverse = 1/scale rounded correctly: prologue/quantize.cuh.
__device__ __forceinline__ float quotient(float a, float scale, float inverse) {
  const float q = __fmul_rn(a, inverse);
  return __fmaf_rn(__fmaf_rn(-scale, q, a), inverse, q);
}

// a / b, correctly rounded as the compiler's division is, but without its branches, which would run 64
// elements of an epilogue one after the other. b between 1 and 2^126. An infinite a stays what it is.
__device__ __forceinline__ float divide(float a, float b) {
  float r = reciprocal(b);
  r = __fmaf_rn(r, __fmaf_rn(-b, r, 1.0f), r);
  const float q = __fmul_rn(a, r);
  const float better = __fmaf_rn(r, __fmaf_rn(-b, q, a), q);
  return fabsf(a) <= 3.4028235e38f ? better : q;
}
__device__ __forceinline__ float activate(float g, float u) {
#if ACTIVATION == 0
  return divide(g, fminf(1.0f + expf(-g), 0x1p126f)) * u;
#elif ACTIVATION == 1
  return 0.5f * g * (1.0f + erff(g * 0.70710678f)) * u;
#else
  const float z = 0.79788456f * (g + 0.044715f * g * g * g);
  return 0.5f * g * (1.0f + tanhf(z)) * u;
#endif
}
