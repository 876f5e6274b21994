// silu as the kernels of this family compute it: one function, because results must not depend on which of
// them runs. Two approximations of the special function unit instead of the exact exponential and the exact
// division, whose 20 instructions per element the prefill kernels' epilogues wait for. The exponent -g *
// log2(e) is rounded to fp32; what that loses is put back as a factor. Bounds keep e^-g finite and that
// factor near 1 (without them it loses all sense from g = -8e6 down, and the result with it); below g = -87.4
// the reciprocal is 0, and so is the result.
#pragma once

// g / (1 + e^-g), off by at most 5.6 units of 2^-24 of its value for every g from -87 on (measured over all
// of them; the exact functions 4.2, without the correction 65). Minus infinity: NaN.
__device__ __forceinline__ float silu(float g) {
  const float x = fminf(fmaxf(g, -88.5f), 88.5f);
  const float t = __fmul_rn(x, -1.44269502f);
  // What rounding has taken from the product and from log2(e).
  const float low = __fmaf_rn(x, -1.92596303e-8f, __fmaf_rn(x, -1.44269502f, -t));
  float e, r;
  asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(e) : "f"(t));
  e = __fmaf_rn(e, __fmul_rn(low, 0.693147181f), e);
  asm("rcp.approx.ftz.f32 %0, %1;" : "=f"(r) : "f"(__fadd_rn(1.0f, e)));
  return __fmul_rn(g, r);
}
