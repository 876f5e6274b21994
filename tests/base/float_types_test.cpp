// Every code of bf16, f16 and e4m3 against a definition in doubles written from the formats' specifications,
// and every rounding boundary between neighbouring codes: the midpoint and its two fp32 neighbours. Since
// rounding is monotone, agreement at all boundaries and all codes is agreement everywhere; random fp32
// patterns are drawn on top.
#include "base/float_types.hpp"

#include <gtest/gtest.h>

#include <bit>
#include <cmath>
#include <limits>
#include <string>
#include <vector>

#include "base/rng.hpp"

namespace ramp::core {
namespace {

struct Format {
  std::string name;
  int bits, exponent_bits, mantissa_bits;
  bool has_infinity;  // else saturating, and only the all-ones code is NaN
  float (*decode)(uint32_t);
  uint32_t (*encode)(float);

  [[nodiscard]] uint32_t codes() const { return 1U << static_cast<uint32_t>(bits); }
  [[nodiscard]] uint32_t sign_bit() const { return codes() / 2; }
  [[nodiscard]] int bias() const { return (1 << (exponent_bits - 1)) - 1; }
  [[nodiscard]] bool is_nan(uint32_t code) const {
    const uint32_t magnitude = code & (sign_bit() - 1);
    const uint32_t infinity = ((1U << exponent_bits) - 1) << mantissa_bits;
    return has_infinity ? magnitude > infinity : magnitude == sign_bit() - 1;
  }
  // The value of a code that is not NaN.
  [[nodiscard]] double value(uint32_t code) const {
    const double sign = (code & sign_bit()) != 0 ? -1.0 : 1.0;
    const uint32_t magnitude = code & (sign_bit() - 1);
    const int e = static_cast<int>(magnitude >> mantissa_bits);
    const double m = static_cast<double>(magnitude & ((1U << mantissa_bits) - 1));
    if (has_infinity && e == (1 << exponent_bits) - 1) return sign * std::numeric_limits<double>::infinity();
    if (e == 0) return sign * std::ldexp(m, 1 - bias() - mantissa_bits);
    return sign * std::ldexp(m + std::ldexp(1.0, mantissa_bits), e - bias() - mantissa_bits);
  }
  [[nodiscard]] uint32_t largest_finite() const {
    const uint32_t top = has_infinity ? ((1U << exponent_bits) - 1) << mantissa_bits : sign_bit() - 1;
    return top - 1;
  }
  // Round to nearest, ties to even, from first principles. x is not NaN.
  [[nodiscard]] uint32_t nearest(double x) const {
    const uint32_t sign = std::signbit(x) ? sign_bit() : 0;
    const double a = std::fabs(x);
    const uint32_t last = largest_finite();
    const double max = value(last);
    if (a > max) {
      if (!has_infinity) return sign | last;
      // Infinity is where the next code would be, were the exponent range longer.
      const double half_step = (max - value(last - 1)) / 2;
      return sign | (a < max + half_step ? last : last + 1);
    }
    uint32_t low = 0;  // value(low) <= a
    uint32_t high = last;
    while (high - low > 1) {
      const uint32_t middle = (low + high) / 2;
      (value(middle) <= a ? low : high) = middle;
    }
    if (value(high) <= a) low = high;
    if (value(low) == a) return sign | low;
    const double down = a - value(low);
    const double up = value(low + 1) - a;
    if (down != up) return sign | (down < up ? low : low + 1);
    return sign | (low % 2 == 0 ? low : low + 1);
  }
};

const Format kFormats[] = {
    {"bf16", 16, 8, 7, true, [](uint32_t c) { return bf16_to_f32(static_cast<uint16_t>(c)); },
     [](float v) { return static_cast<uint32_t>(f32_to_bf16(v)); }},
    {"f16", 16, 5, 10, true, [](uint32_t c) { return f16_to_f32(static_cast<uint16_t>(c)); },
     [](float v) { return static_cast<uint32_t>(f32_to_f16(v)); }},
    {"e4m3", 8, 4, 3, false, [](uint32_t c) { return e4m3_to_f32(static_cast<uint8_t>(c)); },
     [](float v) { return static_cast<uint32_t>(f32_to_e4m3(v)); }},
};

class FloatTypes : public ::testing::TestWithParam<Format> {};

TEST_P(FloatTypes, DecodesEveryCode) {
  const Format& f = GetParam();
  for (uint32_t code = 0; code < f.codes(); ++code) {
    const float got = f.decode(code);
    if (f.is_nan(code)) {
      ASSERT_TRUE(std::isnan(got)) << code;
      ASSERT_EQ(std::signbit(got), (code & f.sign_bit()) != 0) << code;
      continue;
    }
    ASSERT_EQ(static_cast<double>(got), f.value(code)) << code;
    ASSERT_EQ(std::signbit(got), (code & f.sign_bit()) != 0) << code;  // -0 too
  }
}

TEST_P(FloatTypes, EncodesEveryCodeBack) {
  const Format& f = GetParam();
  for (uint32_t code = 0; code < f.codes(); ++code) {
    const uint32_t back = f.encode(f.decode(code));
    if (f.is_nan(code)) {
      ASSERT_TRUE(f.is_nan(back)) << code;
      ASSERT_EQ(back & f.sign_bit(), code & f.sign_bit()) << code;
    } else {
      ASSERT_EQ(back, code);
    }
  }
}

TEST_P(FloatTypes, RoundsEveryBoundaryToNearestEven) {
  const Format& f = GetParam();
  const float infinity = std::numeric_limits<float>::infinity();
  for (uint32_t code = 0; code <= f.largest_finite(); ++code) {
    const double here = f.value(code);
    // Past the largest code: where the next one would be.
    const double next = code == f.largest_finite() ? here + (here - f.value(code - 1)) : f.value(code + 1);
    const double middle = (here + next) / 2;
    const auto m = static_cast<float>(middle);
    ASSERT_EQ(static_cast<double>(m), middle) << "midpoints are exact in fp32";
    const auto h = static_cast<float>(here);
    for (const float v : {std::nextafter(h, -infinity), h, std::nextafter(h, infinity),
                          std::nextafter(m, 0.0F), m, std::nextafter(m, infinity)}) {
      ASSERT_EQ(f.encode(v), f.nearest(v)) << f.name << " " << v << " near code " << code;
      ASSERT_EQ(f.encode(-v), f.nearest(-v)) << f.name << " " << -v << " near code " << code;
    }
  }
}

TEST_P(FloatTypes, RandomPatternsMatchTheDefinition) {
  const Format& f = GetParam();
  Rng rng(7);
  for (int i = 0; i < 200000; ++i) {
    const float v = std::bit_cast<float>(static_cast<uint32_t>(rng.next()));
    if (std::isnan(v)) {
      ASSERT_TRUE(f.is_nan(f.encode(v)));
    } else {
      ASSERT_EQ(f.encode(v), f.nearest(v)) << f.name << " " << v;
    }
    const auto near_one = static_cast<float>(rng.normal());
    ASSERT_EQ(f.encode(near_one), f.nearest(near_one)) << f.name << " " << near_one;
  }
}

TEST_P(FloatTypes, ExtremesAndNaN) {
  const Format& f = GetParam();
  const float infinity = std::numeric_limits<float>::infinity();
  const uint32_t beyond = f.has_infinity ? f.largest_finite() + 1 : f.largest_finite();
  EXPECT_EQ(f.encode(infinity), beyond);
  EXPECT_EQ(f.encode(-infinity), beyond | f.sign_bit());
  EXPECT_EQ(f.encode(std::numeric_limits<float>::max()), beyond);
  EXPECT_EQ(f.encode(0.0F), 0U);
  EXPECT_EQ(f.encode(-0.0F), f.sign_bit());
  EXPECT_EQ(f.encode(std::numeric_limits<float>::denorm_min()),
            f.nearest(std::numeric_limits<float>::denorm_min()));
  // NaN whose payload lies only in bits that are cut off: it must not become infinity.
  for (const uint32_t bits : {0x7f800001U, 0xff800001U, 0x7fc00000U, 0x7fffffffU, 0xffffffffU}) {
    const uint32_t code = f.encode(std::bit_cast<float>(bits));
    EXPECT_TRUE(f.is_nan(code)) << bits;
    EXPECT_EQ((code & f.sign_bit()) != 0, bits >> 31U != 0) << bits;
  }
}

INSTANTIATE_TEST_SUITE_P(All, FloatTypes, ::testing::ValuesIn(kFormats),
                         [](const auto& info) { return info.param.name; });

TEST(FloatTypesConstants, E4m3) {
  EXPECT_EQ(e4m3_to_f32(0x7e), kE4m3Max);
  EXPECT_EQ(f32_to_e4m3(1e30F), 0x7e);
  EXPECT_EQ(f32_to_e4m3(464.0F), 0x7e);  // halfway to the missing 480: saturates, not NaN
  EXPECT_EQ(f32_to_e4m3(-449.0F), 0xfe);
  static_assert(f32_to_e4m3(1.0F) == 0x38);
  static_assert(f32_to_bf16(1.0F) == 0x3f80);
  static_assert(f32_to_f16(1.0F) == 0x3c00);
}

TEST(FloatTypesAccess, LoadAndStoreAgreeWithTheConversions) {
  const std::vector<float> values = {0.0F, -0.0F, 1.0F, -3.1415927F, 1e-8F, 447.0F, 70000.0F};
  struct Case {
    ramp_dtype dtype;
    float (*expected)(float);
  };
  const Case cases[] = {
      {RAMP_F32, [](float v) { return v; }},
      {RAMP_F64, [](float v) { return v; }},
      {RAMP_BF16, [](float v) { return bf16_to_f32(f32_to_bf16(v)); }},
      {RAMP_F16, [](float v) { return f16_to_f32(f32_to_f16(v)); }},
      {RAMP_E4M3, [](float v) { return e4m3_to_f32(f32_to_e4m3(v)); }},
  };
  for (const Case& c : cases) {
    std::vector<double> storage(values.size(), std::nan(""));  // aligned for every type
    for (size_t i = 0; i < values.size(); ++i)
      store_f32(storage.data(), c.dtype, static_cast<int64_t>(i), values[i]);
    for (size_t i = 0; i < values.size(); ++i) {
      const float got = load_f32(storage.data(), c.dtype, static_cast<int64_t>(i));
      EXPECT_EQ(std::bit_cast<uint32_t>(got), std::bit_cast<uint32_t>(c.expected(values[i])))
          << c.dtype << " " << i;
    }
  }
  const int32_t whole[2] = {5, 6};
  EXPECT_TRUE(std::isnan(load_f32(whole, RAMP_I32, 0)));  // not a floating type
}

TEST(FloatTypesAccess, Sizes) {
  EXPECT_EQ(dtype_bytes(RAMP_F64), 8);
  EXPECT_EQ(dtype_bytes(RAMP_I64), 8);
  EXPECT_EQ(dtype_bytes(RAMP_F32), 4);
  EXPECT_EQ(dtype_bytes(RAMP_I32), 4);
  EXPECT_EQ(dtype_bytes(RAMP_F16), 2);
  EXPECT_EQ(dtype_bytes(RAMP_BF16), 2);
  EXPECT_EQ(dtype_bytes(RAMP_E4M3), 1);
  EXPECT_EQ(dtype_bytes(RAMP_U8), 1);
  EXPECT_EQ(dtype_bytes(RAMP_DTYPE_NONE), 0);
  EXPECT_EQ(dtype_bytes(static_cast<ramp_dtype>(99)), 0);
}

}  // namespace
}  // namespace ramp::core
