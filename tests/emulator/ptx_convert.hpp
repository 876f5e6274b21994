// Conversions and fp32 functions of the emulated PTX instructions (ptx.hpp). Written from the ISA and not by
// way of src/base/float_types.hpp: the two are compared in ptx_test.cpp. Narrowing rounds to nearest even;
// NaN becomes the type's canonical one (e4m3 0x7f, f16 and bf16 0x7fff), which has no sign and no payload.
#pragma once

#include <cmath>

#include "emulator/ptx_operands.hpp"

namespace ptx {
namespace detail {

// The magnitude bits `a` of an fp32 as a type with MANTISSA bits below the point and the given bias, to
// nearest even. What does not fit has a code above the largest exponent's: the caller's to cap.
template <int MANTISSA, int BIAS>
u32 narrow(u32 a) {
  const int stored = static_cast<int>(a >> 23);
  const int exponent = (stored == 0 ? 1 : stored) - 127;
  const u32 m = (a & 0x7fffffU) | (stored == 0 ? 0U : 0x800000U);
  const bool below = exponent < 1 - BIAS;  // below the smallest normal number: a fixed unit
  const int shift = 23 - MANTISSA + (below ? 1 - BIAS - exponent : 0);
  if (shift > 24) return 0;  // less than half of the smallest number
  const u32 unit = 1U << shift;
  const u32 rest = m & (unit - 1U);
  u32 q = m >> shift;
  if (rest > unit / 2 || (rest == unit / 2 && (q & 1U) != 0)) q++;
  // The hidden bit of q carries into the exponent; so does rounding up to the next power of two.
  return below || stored == 0 ? q : q + (static_cast<u32>(exponent + BIAS - 1) << MANTISSA);
}

inline u16 f16_from(float v) {
  const u32 u = std::bit_cast<u32>(v), a = u & 0x7fffffffU;
  if (a > 0x7f800000U) return 0x7fff;
  const u32 code = narrow<10, 15>(a);
  return static_cast<u16>((u >> 16 & 0x8000U) | (code > 0x7c00U ? 0x7c00U : code));
}
inline u16 bf16_from(float v) {
  const u32 u = std::bit_cast<u32>(v), a = u & 0x7fffffffU;
  if (a > 0x7f800000U) return 0x7fff;
  return static_cast<u16>((u >> 16 & 0x8000U) | narrow<7, 127>(a));
}
inline u8 e4m3_from(float v) {
  const u32 u = std::bit_cast<u32>(v), a = u & 0x7fffffffU;
  if (a > 0x7f800000U) return 0x7f;
  const u32 code = narrow<3, 7>(a);
  return static_cast<u8>((u >> 24 & 0x80U) | (code > 0x7eU ? 0x7eU : code));
}

inline float f16_value(u16 h) {
  const u32 sign = static_cast<u32>(h & 0x8000U) << 16, a = h & 0x7fffU;
  if (a >= 0x7c00U)  // infinity; NaN keeps its payload and becomes quiet
    return std::bit_cast<float>(sign | 0x7f800000U | (a & 0x3ffU) << 13 | (a > 0x7c00U ? 0x400000U : 0U));
  return std::bit_cast<float>(sign | std::bit_cast<u32>(std::bit_cast<float>(a << 13) * 0x1p112F));
}
inline float bf16_value(u16 h) {
  return std::bit_cast<float>(static_cast<u32>(h) << 16);
}
inline float e4m3_value(u8 c) {
  const u32 sign = static_cast<u32>(c & 0x80U) << 24, a = c & 0x7fU;
  if (a == 0x7fU) return std::bit_cast<float>(0x7fffffffU);
  return std::bit_cast<float>(sign | std::bit_cast<u32>(std::bit_cast<float>(a << 20) * 0x1p120F));
}

inline float flush(float v) {
  return std::fabs(v) < 0x1p-126F ? std::copysign(0.0F, v) : v;
}
inline u16 multiply_f16(u16 a, u16 b) {
  return f16_from(f16_value(a) * f16_value(b));  // the product of two f16 is exact in fp32
}

}  // namespace detail

template <typename D, typename S>
void cvt_f32_f16(D& d, const S& s) {
  put(d, detail::f16_value(get<u16>(s)));
}
template <typename D>
void cvt_rn_f16_f32(D& d, float v) {
  put(d, detail::f16_from(v));
}
template <typename D>
void cvt_rn_bf16_f32(D& d, float v) {
  put(d, detail::bf16_from(v));
}
// Pairs: the first source into the upper half.
template <typename D>
void cvt_rn_f16x2_f32(D& d, float high, float low) {
  put(d, static_cast<u32>(detail::f16_from(high)) << 16 | detail::f16_from(low));
}
template <typename D>
void cvt_rn_bf16x2_f32(D& d, float high, float low) {
  put(d, static_cast<u32>(detail::bf16_from(high)) << 16 | detail::bf16_from(low));
}
template <typename D>
void cvt_rn_satfinite_e4m3x2_f32(D& d, float high, float low) {
  put(d, static_cast<u16>(detail::e4m3_from(high) << 8 | detail::e4m3_from(low)));
}
template <typename D, typename S>
void cvt_rn_f16x2_e4m3x2(D& d, const S& s) {
  const u16 v = get<u16>(s);
  const u32 low = detail::f16_from(detail::e4m3_value(static_cast<u8>(v)));
  const u32 high = detail::f16_from(detail::e4m3_value(static_cast<u8>(v >> 8)));
  put(d, high << 16 | low);
}
template <typename D, typename A, typename B>
void mul_f16x2(D& d, const A& a, const B& b) {
  const u32 x = get<u32>(a), y = get<u32>(b);
  const u32 low = detail::multiply_f16(static_cast<u16>(x), static_cast<u16>(y));
  const u32 high = detail::multiply_f16(static_cast<u16>(x >> 16), static_cast<u16>(y >> 16));
  put(d, high << 16 | low);
}

// Correctly rounded, where hardware approximates (to 2 and to 1 units in the last place). Subnormal inputs
// and results become zeros of their sign.
template <typename D>
void ex2_approx_ftz_f32(D& d, float v) {
  put(d, detail::flush(static_cast<float>(std::exp2(static_cast<double>(detail::flush(v))))));
}
template <typename D>
void rcp_approx_ftz_f32(D& d, float v) {
  put(d, detail::flush(1.0F / detail::flush(v)));
}

}  // namespace ptx
