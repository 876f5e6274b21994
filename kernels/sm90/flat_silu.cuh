// The activation between the GEMMs of formats without scales along the depth: one function, so that the
// stream and the prefill kernels give the same bits. Wants ACTIVATION (stream.cu).
#pragma once

#include "common/types.cuh"

#if ACTIVATION == 0
// g / (1 + e^-g) * u by the approximate exponential and reciprocal: within 5.6u of f(g), measured for every g
// (docs/numerics.md allows 8u). The exponent -g * log2(e) is rounded to fp32; what that loses is put back as
// a factor. Bounds keep e^-g finite and that factor near 1; below g = -87.4 the reciprocal is 0, and so is
// the result, whose magnitude would be 1e-36.
__device__ __forceinline__ float gated(float g, float u) {
  const float x = fminf(fmaxf(g, -88.5f), 88.5f);
  const float t = __fmul_rn(x, -1.44269502f);
  const float lost = __fmaf_rn(x, -1.92596303e-8f, __fmaf_rn(x, -1.44269502f, -t));
  float e, r;
  asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(e) : "f"(t));
  e = __fmaf_rn(e, __fmul_rn(lost, 0.693147181f), e);
  asm("rcp.approx.ftz.f32 %0, %1;" : "=f"(r) : "f"(__fadd_rn(1.0f, e)));
  return __fmul_rn(__fmul_rn(g, r), u);
}
#elif ACTIVATION == 1
// No products and sums that one kernel's compiler might fuse and the other's not.
__device__ __forceinline__ float gated(float g, float u) {
  const float tail = __fadd_rn(1.0f, erff(__fmul_rn(g, 0.70710678f)));
  return __fmul_rn(__fmul_rn(__fmul_rn(0.5f, g), tail), u);
}
#else
__device__ __forceinline__ float gated(float g, float u) {
  const float cube = __fmul_rn(__fmul_rn(__fmul_rn(0.044715f, g), g), g);
  const float tail = __fadd_rn(1.0f, tanhf(__fmul_rn(0.79788456f, __fadd_rn(g, cube))));
  return __fmul_rn(__fmul_rn(__fmul_rn(0.5f, g), tail), u);
}
#endif
