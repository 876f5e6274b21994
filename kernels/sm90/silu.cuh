// silu as the fp8_block kernels of this family compute it: one function, because results must not depend on
// which of them runs. Two approximations of the special function unit instead of the exact exponential and
// the exact division, whose 20 instructions per element the prefill kernel's epilogue waits for.
#pragma once

// g / (1 + e^-g), off by at most 6 units of 2^-24 of its value, from g = -87 on (below, less than 1e-36 of
// g). g infinite: NaN.
__device__ __forceinline__ float silu(float g) {
  const float t = __fmul_rn(g, -1.44269502f);
  // What rounding has taken from the product and from log2(e).
  const float low = __fmaf_rn(g, -1.92596303e-8f, __fmaf_rn(g, -1.44269502f, -t));
  float e, r;
  asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(e) : "f"(fminf(t, 127.9f)));
  e = __fmaf_rn(e, __fmul_rn(low, 0.693147181f), e);
  asm("rcp.approx.ftz.f32 %0, %1;" : "=f"(r) : "f"(__fadd_rn(1.0f, e)));
  return __fmul_rn(g, r);
}
