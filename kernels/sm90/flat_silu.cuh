// The activation between the GEMMs of formats without scales along the depth: one function, so that the
// stream and the prefill kernels give the same bits. Wants ACTIVATION (stream.cu).
#pragma once

#include "common/types.cuh"
#include "sm90/silu.cuh"

#if ACTIVATION == 0
__device__ __forceinline__ float gated(float g, float u) {
  return __fmul_rn(silu(g), u);
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
