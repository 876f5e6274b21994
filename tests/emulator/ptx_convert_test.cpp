// Conversions and fp32 functions of the emulated PTX: every code, every tie between two codes and a walk over
// all of fp32, against src/base/float_types.hpp.
#include <gtest/gtest.h>

#include <cmath>

#include "base/float_types.hpp"
#include "emulator/ptx.hpp"

namespace {

using namespace emu;  // NOLINT(google-build-using-namespace)
using namespace ptx;  // NOLINT(google-build-using-namespace)
namespace core = ramp::core;

u32 bits(float v) {
  return std::bit_cast<u32>(v);
}
bool is_nan(u32 v) {
  return (v & 0x7fffffffU) > 0x7f800000U;
}

struct Narrow {
  u32 f16, bf16, e4m3;
};
Narrow narrow(float v) {
  u16 f16, bf16, pair;
  cvt_rn_f16_f32(f16, v);
  cvt_rn_bf16_f32(bf16, v);
  cvt_rn_satfinite_e4m3x2_f32(pair, v, 0.0F);
  EXPECT_EQ(pair & 0xff, 0);
  return {f16, bf16, static_cast<u32>(pair >> 8)};
}
// The instructions' and the library's rounding agree; NaN is the instructions' canonical one.
void expect_same(u32 u) {
  const float v = std::bit_cast<float>(u);
  const Narrow got = narrow(v);
  if (is_nan(u)) {
    ASSERT_EQ(got.f16, 0x7fffU);
    ASSERT_EQ(got.bf16, 0x7fffU);
    ASSERT_EQ(got.e4m3, 0x7fU);
    return;
  }
  ASSERT_EQ(got.f16, core::f32_to_f16(v)) << std::hex << u;
  ASSERT_EQ(got.bf16, core::f32_to_bf16(v)) << std::hex << u;
  ASSERT_EQ(got.e4m3, core::f32_to_e4m3(v)) << std::hex << u;
}

TEST(EmulatedPtxConvert, EveryCodeAndEveryTieRounds) {
  const auto around = [](float v) {
    for (const u32 sign : {0U, 0x80000000U})
      for (int off = -2; off <= 2; ++off) expect_same((bits(v) + static_cast<u32>(off)) ^ sign);
  };
  const auto codes = [&](u32 last, auto value) {
    for (u32 c = 1; c <= last; ++c) {
      const double a = value(c - 1), b = value(c);
      around(static_cast<float>(b));
      around(static_cast<float>((a + b) / 2));  // a type's tie is a number of fp32
    }
  };
  codes(0x7e, [](u32 c) { return core::e4m3_to_f32(static_cast<uint8_t>(c)); });
  codes(0x7bff, [](u32 c) { return core::f16_to_f32(static_cast<uint16_t>(c)); });
  codes(0x7f7f, [](u32 c) { return core::bf16_to_f32(static_cast<uint16_t>(c)); });
  for (const float v : {0.0F, 448.0F, 464.0F, 480.0F, 65504.0F, 65519.0F, 65520.0F, 65536.0F, INFINITY,
                        3.4e38F, 0x1p-10F, 0x1p-9F, 0x1p-25F, 0x1p-24F, 0x1p-149F, 0x1p-126F})
    around(v);
}

TEST(EmulatedPtxConvert, RoundingAgreesAllOverFp32) {
  for (u64 u = 0; u < u64{1} << 32; u += 1013) {
    expect_same(static_cast<u32>(u));
    if (HasFatalFailure()) return;
  }
}

TEST(EmulatedPtxConvert, PairsHaveTheFirstSourceAbove) {
  u32 r;
  cvt_rn_f16x2_f32(r, 1.0F, -2.0F);
  EXPECT_EQ(r, 0x3c00c000U);
  cvt_rn_bf16x2_f32(r, 1.0F, -2.0F);
  EXPECT_EQ(r, 0x3f80c000U);
  u16 h;
  cvt_rn_satfinite_e4m3x2_f32(h, 1.0F, -2.0F);
  EXPECT_EQ(h, 0x38c0);
  cvt_rn_satfinite_e4m3x2_f32(h, INFINITY, -1e9F);
  EXPECT_EQ(h, 0x7efe);
}

TEST(EmulatedPtxConvert, WideningIsExact) {
  for (u32 c = 0; c < 65536; ++c) {
    float v;
    cvt_f32_f16(v, static_cast<u16>(c));
    const float want = core::f16_to_f32(static_cast<uint16_t>(c));
    if (std::isnan(want))
      ASSERT_TRUE(std::isnan(v)) << c;
    else
      ASSERT_EQ(bits(v), bits(want)) << c;
    u32 pair;
    cvt_rn_f16x2_e4m3x2(pair, static_cast<u16>(c));
    for (int i = 0; i < 2; ++i) {
      const auto code = static_cast<uint8_t>(c >> 8 * i);
      const auto half = static_cast<uint16_t>(pair >> 16 * i);
      const float value = core::e4m3_to_f32(code);
      ASSERT_EQ(half, std::isnan(value) ? 0x7fff : core::f32_to_f16(value)) << c;
    }
  }
}

TEST(EmulatedPtxConvert, ProductsOfF16Pairs) {
  for (u32 x = 0; x < 65536; x += 7) {
    for (const u32 y : {0x3c00U, 0x5c00U, 0x0001U, 0x8400U, 0x7bffU, 0x3555U, 0x7c00U, 0x0000U}) {
      u32 r;
      mul_f16x2(r, x << 16 | y, y << 16 | x);
      ASSERT_EQ(r >> 16, r & 0xffff);
      const double product = double{core::f16_to_f32(static_cast<uint16_t>(x))} *
                             double{core::f16_to_f32(static_cast<uint16_t>(y))};
      ASSERT_EQ(r & 0xffff, std::isnan(product) ? 0x7fffU : core::f32_to_f16(static_cast<float>(product)))
          << x << " " << y;
    }
  }
}

TEST(EmulatedPtxConvert, ExponentialAndReciprocal) {
  const auto ex2 = [](float v) {
    float r;
    ex2_approx_ftz_f32(r, v);
    return r;
  };
  const auto rcp = [](float v) {
    float r;
    rcp_approx_ftz_f32(r, v);
    return r;
  };
  for (int e = -126; e <= 127; ++e) {
    EXPECT_EQ(ex2(static_cast<float>(e)), std::ldexp(1.0F, e));
    if (e < 127) {
      EXPECT_EQ(rcp(std::ldexp(1.0F, e)), std::ldexp(1.0F, -e));
    }
  }
  EXPECT_EQ(bits(ex2(-127.0F)), 0U);  // subnormal results are flushed
  EXPECT_EQ(ex2(-INFINITY), 0.0F);
  EXPECT_EQ(ex2(INFINITY), INFINITY);
  EXPECT_EQ(ex2(0x1p-140F), 1.0F);
  EXPECT_TRUE(std::isnan(ex2(NAN)));
  EXPECT_EQ(bits(rcp(0x1p127F)), 0U);
  EXPECT_EQ(bits(rcp(-INFINITY)), 0x80000000U);
  EXPECT_EQ(rcp(-0x1p-130F), -INFINITY);
  EXPECT_EQ(rcp(3.0F), 1.0F / 3.0F);
}

}  // namespace
