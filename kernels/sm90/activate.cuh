// The activation between the GEMMs of fp8_block: one function, so that the stream and the prefill kernels
// give the same bits. Wants ACTIVATION (stream.cu). flat_silu.cuh: the other formats'.
#pragma once

#include "sm90/silu.cuh"

__device__ __forceinline__ float activate(float g, float u) {
#if ACTIVATION == 0
  return __fmul_rn(silu(g), u);
#elif ACTIVATION == 1
  return 0.5f * g * (1.0f + erff(g * 0.70710678f)) * u;
#else
  const float z = 0.79788456f * (g + 0.044715f * g * g * g);
  return 0.5f * g * (1.0f + tanhf(z)) * u;
#endif
}
