// Scalar conversions of the storage types bf16, f16 and e4m3fn from and to fp32: exact decoding,
// round-to-nearest-even encoding. Plain bit arithmetic, the same on every machine; vector versions must agree
// with these bit for bit.
#pragma once

#include <bit>
#include <cmath>
#include <cstdint>

#include "ramp/ramp.h"

namespace ramp::core {

constexpr float bf16_to_f32(uint16_t v) noexcept {
  return std::bit_cast<float>(static_cast<uint32_t>(v) << 16);
}

constexpr uint16_t f32_to_bf16(float v) noexcept {
  const uint32_t u = std::bit_cast<uint32_t>(v);
  if ((u & 0x7fffffffU) > 0x7f800000U)
    return static_cast<uint16_t>((u >> 16) | 0x40U);  // NaN stays NaN, made quiet
  return static_cast<uint16_t>((u + 0x7fffU + ((u >> 16) & 1U)) >> 16);
}

constexpr float f16_to_f32(uint16_t v) noexcept {
  const uint32_t sign = static_cast<uint32_t>(v & 0x8000U) << 16;
  const uint32_t exponent = (v >> 10) & 0x1fU;
  const uint32_t mantissa = v & 0x3ffU;
  if (exponent == 0x1fU) return std::bit_cast<float>(sign | 0x7f800000U | (mantissa << 13));
  if (exponent != 0) return std::bit_cast<float>(sign | ((exponent + 112U) << 23) | (mantissa << 13));
  const float magnitude = static_cast<float>(mantissa) * 0x1p-24F;  // subnormal: exact in fp32
  return sign != 0 ? -magnitude : magnitude;
}

constexpr uint16_t f32_to_f16(float v) noexcept {
  const uint32_t u = std::bit_cast<uint32_t>(v);
  const uint16_t sign = static_cast<uint16_t>((u >> 16) & 0x8000U);
  const uint32_t a = u & 0x7fffffffU;
  if (a > 0x7f800000U) return static_cast<uint16_t>(sign | 0x7e00U);
  if (a >= 0x477ff000U) return static_cast<uint16_t>(sign | 0x7c00U);  // >= 65520 rounds to infinity
  if (a < 0x38800000U) {                                               // below 2^-14: subnormal or zero
    if (a < 0x33000000U) return sign;         // < 2^-25 rounds to zero (2^-25 ties to even 0)
    const uint32_t shift = 126U - (a >> 23);  // value = m * 2^(e-150), in units of 2^-24: m >> (126 - e)
    const uint32_t m = (a & 0x7fffffU) | 0x800000U;
    const uint32_t q = m >> shift;
    const uint32_t rest = m & ((1U << shift) - 1U);
    const uint32_t half = 1U << (shift - 1U);
    return static_cast<uint16_t>(sign | (q + ((rest > half || (rest == half && (q & 1U))) ? 1U : 0U)));
  }
  const uint32_t r = a + 0xfffU + ((a >> 13) & 1U);
  return static_cast<uint16_t>(sign | ((r - 0x38000000U) >> 13));
}

// e4m3fn: sign, 4 exponent bits (bias 7), 3 mantissa bits; no infinities; 0x7f and 0xff are NaN; largest 448.
inline constexpr float kE4m3Max = 448.0F;

constexpr float e4m3_to_f32(uint8_t v) noexcept {
  const uint32_t sign = static_cast<uint32_t>(v & 0x80U) << 24;
  const uint32_t exponent = (v >> 3) & 0xfU;
  const uint32_t mantissa = v & 7U;
  if (exponent == 15U && mantissa == 7U) return std::bit_cast<float>(sign | 0x7fc00000U);
  if (exponent != 0) return std::bit_cast<float>(sign | ((exponent + 120U) << 23) | (mantissa << 20));
  const float magnitude = static_cast<float>(mantissa) * 0x1p-9F;
  return sign != 0 ? -magnitude : magnitude;
}

// Saturating (|v| > 448, infinities included, become +-448), NaN stays NaN.
constexpr uint8_t f32_to_e4m3(float v) noexcept {
  const uint32_t u = std::bit_cast<uint32_t>(v);
  const uint8_t sign = static_cast<uint8_t>((u >> 24) & 0x80U);
  const uint32_t a = u & 0x7fffffffU;
  if (a > 0x7f800000U) return static_cast<uint8_t>(sign | 0x7fU);
  if (a >= 0x43e00000U) return static_cast<uint8_t>(sign | 0x7eU);  // >= 448
  if (a < 0x3c800000U) {                                            // below 2^-6: subnormal, units of 2^-9
    if (a <= 0x3a800000U) return sign;                              // <= 2^-10: the tie goes to even 0
    const uint32_t shift = 141U - (a >> 23);
    const uint32_t m = (a & 0x7fffffU) | 0x800000U;
    const uint32_t q = m >> shift;
    const uint32_t rest = m & ((1U << shift) - 1U);
    const uint32_t half = 1U << (shift - 1U);
    return static_cast<uint8_t>(sign | (q + ((rest > half || (rest == half && (q & 1U))) ? 1U : 0U)));
  }
  const uint32_t r = a + 0x7ffffU + ((a >> 20) & 1U);
  const uint32_t code = (r - 0x3c000000U) >> 20;
  return static_cast<uint8_t>(sign | (code > 0x7eU ? 0x7eU : code));
}

constexpr int64_t dtype_bytes(ramp_dtype dtype) noexcept {
  switch (dtype) {
    case RAMP_F64:
    case RAMP_I64:
      return 8;
    case RAMP_F32:
    case RAMP_I32:
      return 4;
    case RAMP_F16:
    case RAMP_BF16:
      return 2;
    case RAMP_E4M3:
    case RAMP_U8:
      return 1;
    case RAMP_DTYPE_NONE:
      return 0;
  }
  return 0;
}

// One element of a floating tensor as fp32 (f64 is narrowed).
inline float load_f32(const void* data, ramp_dtype dtype, int64_t index) noexcept {
  switch (dtype) {
    case RAMP_F32:
      return static_cast<const float*>(data)[index];
    case RAMP_F16:
      return f16_to_f32(static_cast<const uint16_t*>(data)[index]);
    case RAMP_BF16:
      return bf16_to_f32(static_cast<const uint16_t*>(data)[index]);
    case RAMP_E4M3:
      return e4m3_to_f32(static_cast<const uint8_t*>(data)[index]);
    case RAMP_F64:
      return static_cast<float>(static_cast<const double*>(data)[index]);
    default:
      return std::nanf("");
  }
}

inline void store_f32(void* data, ramp_dtype dtype, int64_t index, float value) noexcept {
  switch (dtype) {
    case RAMP_F32:
      static_cast<float*>(data)[index] = value;
      return;
    case RAMP_F16:
      static_cast<uint16_t*>(data)[index] = f32_to_f16(value);
      return;
    case RAMP_BF16:
      static_cast<uint16_t*>(data)[index] = f32_to_bf16(value);
      return;
    case RAMP_E4M3:
      static_cast<uint8_t*>(data)[index] = f32_to_e4m3(value);
      return;
    case RAMP_F64:
      static_cast<double*>(data)[index] = value;
      return;
    default:
      return;
  }
}

}  // namespace ramp::core
