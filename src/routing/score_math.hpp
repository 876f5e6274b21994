// exp, sigmoid and softmax terms of the routers in fp32, bit for bit the same on every machine: no libm, only
// IEEE operations and explicit fma. The header is also the device twin: NVRTC compiles it as it stands (with
// -fmad=false and without -ftz=true or -prec-div=false), so that host and device route alike.
//
// exp_f32: relative error at most 1.81 u (u = 2^-24) where the result is a normal number. With n = x log2 e
// rounded to an integer, hi + lo = ln 2 and r = x - n hi - n lo, |r| <= 0.3466, in units of u:
//   * x - n hi is exact: for n = 0 trivially, else x is a multiple of 2^-25 and n hi one of 2^-15, and their
//     difference is below 1/2. The second fma rounds a value below 1/2: 2^-26 = 0.25 u. What hi + lo leaves
//     of ln 2 is below 2^-44; times |n| <= 151 that is nothing.
//   * The series stops at r^7/7!: the remainder, r^8/8! over e^r, is below 0.13 u; rounded coefficients 0.01
//   u.
//   * Horner's rounding: the last step 1 u, the one before (a value below 2, times |r|) 0.35 u, the earlier
//     ones together 0.07 u. (For r < 0 these are 0.71, 0.25 and 0.10 u.)
// Below the normal numbers one more rounding: half a unit of 2^-149. Measured over all floats: 1.33 u, 0.94
// units in the last place, 0.85 units of 2^-149.
// sigmoid_f32: 1/(1+e^-x) for x >= 0, else e^x/(1+e^x): that plus a sum and a quotient, at most 3.81 u
// (measured 2.97 u). Sums run in warp order (warp_order_sum): what 32 lanes and a butterfly give.
#pragma once

#if defined(__CUDACC_RTC__)
#define RAMP_SCORE_FN __device__ __forceinline__
#else
#define RAMP_SCORE_FN inline __attribute__((always_inline))
#endif

namespace ramp::core {

#if defined(__CUDACC_RTC__)
RAMP_SCORE_FN float score_from_bits(unsigned int bits) {
  return __uint_as_float(bits);
}
RAMP_SCORE_FN unsigned int score_bits(float x) {
  return __float_as_uint(x);
}
RAMP_SCORE_FN float score_fma(float a, float b, float c) {
  return __fmaf_rn(a, b, c);
}
#else
RAMP_SCORE_FN float score_from_bits(unsigned int bits) {
  return __builtin_bit_cast(float, bits);
}
RAMP_SCORE_FN unsigned int score_bits(float x) {
  return __builtin_bit_cast(unsigned int, x);
}
// One rounding: an instruction where the code is compiled for FMA, the C library's exact emulation elsewhere.
RAMP_SCORE_FN float score_fma(float a, float b, float c) {
  return __builtin_fmaf(a, b, c);
}
#endif

// Bounds on the relative error (derived above), in units of 2^-24.
constexpr float kExpMaxError = 1.81F;
constexpr float kSigmoidMaxError = 3.81F;

// e^x. NaN gives NaN, -inf 0, +inf and x > 88.72 +inf; subnormal results are rounded once.
RAMP_SCORE_FN float exp_f32(float x) {
  // Beyond these the result is 0 or +inf already. NaN passes both comparisons.
  x = x < -0x1.a2p+6F ? -0x1.a2p+6F : x;  // -104.5: e^x < 2^-150
  x = x > 0x1.64p+6F ? 0x1.64p+6F : x;    // 89: e^x > the largest float
  // Adding 1.5 * 2^23 rounds to an integer that the low bits of the sum hold.
  const float t = score_fma(x, 0x1.715476p+0F, 0x1.8p+23F);
  const float n = t - 0x1.8p+23F;
  float r = score_fma(n, -0x1.62e4p-1F, x);
  r = score_fma(n, -0x1.7f7d1cp-20F, r);
  float p = 0x1.a01a02p-13F;             // 1/7!
  p = score_fma(p, r, 0x1.6c16c2p-10F);  // 1/6!
  p = score_fma(p, r, 0x1.111112p-7F);   // 1/5!
  p = score_fma(p, r, 0x1.555556p-5F);   // 1/4!
  p = score_fma(p, r, 0x1.555556p-3F);   // 1/3!
  p = score_fma(p, r, 0.5F);
  p = score_fma(p, r, 1.0F);
  p = score_fma(p, r, 1.0F);
  // Times 2^n in two factors, both normal; only the second product can round (into the subnormals) or
  // overflow.
  const int i = static_cast<int>(score_bits(t) - 0x4b400000U);
  const int half = i >> 1;
  const float first = score_from_bits(static_cast<unsigned int>(half + 127) << 23U);
  const float second = score_from_bits(static_cast<unsigned int>(i - half + 127) << 23U);
  return p * first * second;
}

// 1/(1+e^-x). NaN gives NaN.
RAMP_SCORE_FN float sigmoid_f32(float x) {
  const float e = exp_f32(x > 0.0F ? -x : x);
  return (x > 0.0F ? 1.0F : e) / (1.0F + e);
}

// The unnormalised softmax term of a logit x when m is the largest logit that is not NaN: e^(x-m), where a
// NaN or -inf gives 0 and, if m is +inf, every +inf gives 1 and all else 0. A row of NaN and -inf gives all
// zeros.
RAMP_SCORE_FN float softmax_term(float x, float m) {
  const float e = exp_f32(x - m);               // m = +inf: 0 for every finite x
  const float term = x == m ? 1.0F : e;         // inf - inf is NaN, but the term is 1
  return x >= -0x1.fffffep+127F ? term : 0.0F;  // false for -inf and NaN
}

// The sum of v[0..n) in the order of a warp: lane l adds v[l], v[l+32], v[l+64], ... from 0 on, then lanes
// are added pairwise at distances 16, 8, 4, 2, 1 (a butterfly shuffle gives every lane these same bits).
RAMP_SCORE_FN float warp_order_sum(const float* v, long long n) {
  float lane[32];
  for (int l = 0; l < 32; ++l) lane[l] = 0.0F;
  long long i = 0;
  for (; i + 32 <= n; i += 32) {
    for (int l = 0; l < 32; ++l) lane[l] = lane[l] + v[i + l];
  }
  for (int l = 0; i + l < n; ++l) lane[l] = lane[l] + v[i + l];
  for (int distance = 16; distance > 0; distance /= 2) {
    for (int l = 0; l < distance; ++l) lane[l] = lane[l] + lane[l + distance];
  }
  return lane[0];
}

}  // namespace ramp::core
