// The division in front of every code: one function for all kernels that quantise.
#pragma once

// a / scale as far as its e4m3 code shows, for a >= 0 (and with a's sign for others), given inverse = 1/scale
// rounded correctly: the division's own Newton step, with the reciprocal taken out of the loop. One
// correction leaves an error below one unit, so that a code can only differ from the exact quotient's where
// that lies within one unit of a boundary between two codes, and there it does not: checked for all 2^23
// mantissas of scale, all 16 mantissas of a boundary and the 7 values of a around their product
// (tests/weights/quotient_test.cpp). Needs scale and inverse normal and a < 1025 scale. If a is below 2^-100
// the remainder may underflow; with scale >= 2^-60 the result is then still below 2^-39, whose code is 0 like
// the quotient's.
__device__ __forceinline__ float quotient(float a, float scale, float inverse) {
  const float q = __fmul_rn(a, inverse);
  return __fmaf_rn(__fmaf_rn(-scale, q, a), inverse, q);
}
