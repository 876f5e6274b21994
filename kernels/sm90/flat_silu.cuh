// The activation between the GEMMs of formats without scales along the depth: one function, so that the
// stream and the prefill kernels give the same bits. Wants ACTIVATION (stream.cu).
#pragma once

#include "common/types.cuh"

#if ACTIVATION == 0
// g / (1 + e^-g) * u by the approximate exponential and reciprocal: within 8u of f(g) as docs/numerics.md
// wants it. The exponent g * log2(e) is rounded to fp32; what that loses is put back as a factor. The
// exponent is bounded so that e^-g stays finite: below g = -88 the reciprocal is 0 then, and so is the
// result.
__device__ __forceinline__ float gated(float g, float u) {
  const float t = __fmul_rn(g, -1.44269502f);
  const float lost = __fmaf_rn(g, -1.92596303e-8f, __fmaf_rn(g, -1.44269502f, -t));
  float e, r;
  asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(e) : "f"(fminf(t, 127.9f)));
  e = __fmaf_rn(e, __fmul_rn(lost, 0.693147181f), e);
  asm("rcp.approx.ftz.f32 %0, %1;" : "=f"(r) : "f"(__fadd_rn(1.0f, e)));
  return __fmul_rn(__fmul_rn(g, r), u);
}
#elif ACTIVATION == 1
__device__ __forceinline__ float gated(float g, float u) {
  return 0.5f * g * (1.0f + erff(g * 0.70710678f)) * u;
}
#else
__device__ __forceinline__ float gated(float g, float u) {
  const float z = 0.79788456f * (g + 0.044715f * g * g * g);
  return 0.5f * g * (1.0f + tanhf(z)) * u;
}
#endif
