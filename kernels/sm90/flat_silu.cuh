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
