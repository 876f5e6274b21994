// Quantisation to e4m3 against its definition: every code, every tie between neighbouring codes, saturation,
// NaN, and the scales of groups, rows, blocks and tensors.
#include "weights/quantize.hpp"

#include <gtest/gtest.h>

#include <cmath>
#include <limits>
#include <vector>

#include "base/float_types.hpp"
#include "base/rng.hpp"

namespace ramp::core::test {
namespace {

constexpr float kInf = std::numeric_limits<float>::infinity();

uint8_t one(float x, float scale) {
  uint8_t q = 0x55;
  quantize_row_static(&x, 1, scale, &q);
  return q;
}

// Scales that are powers of two, where x = value * scale is exact, and others, where only x/scale counts.
TEST(Quantize, EveryCodeComesBackAsItself) {
  for (const float scale : {1.0F, 0.125F, 0x1p-30F, 16.0F}) {
    for (int code = 0; code < 256; ++code) {
      if ((code & 0x7f) == 0x7f) continue;
      const float value = e4m3_to_f32(static_cast<uint8_t>(code));
      EXPECT_EQ(one(value * scale, scale), code) << scale;
    }
  }
}

// Exactly between two codes the even one wins; one fp32 step to either side decides.
TEST(Quantize, TiesGoToTheEvenCodeAndOneStepDecides) {
  for (int code = 0; code < 0x7e; ++code) {
    const float low = e4m3_to_f32(static_cast<uint8_t>(code));
    const float high = e4m3_to_f32(static_cast<uint8_t>(code + 1));
    const float middle = 0.5F * (low + high);  // exact: one bit more than a code has
    ASSERT_EQ(middle - low, high - middle);
    for (const float sign : {1.0F, -1.0F}) {
      const int bit = sign < 0 ? 0x80 : 0;
      for (const float scale : {1.0F, 0.25F}) {
        EXPECT_EQ(one(sign * middle * scale, scale), (code + code % 2) | bit);
        EXPECT_EQ(one(sign * std::nextafter(middle, 0.0F) * scale, scale), code | bit);
        EXPECT_EQ(one(sign * std::nextafter(middle, kInf) * scale, scale), (code + 1) | bit);
      }
    }
  }
}

TEST(Quantize, SaturatesAndKeepsNan) {
  EXPECT_EQ(one(448.0F, 1.0F), 0x7e);
  EXPECT_EQ(one(464.0F, 1.0F), 0x7e);  // would tie with 480, which e4m3fn has not
  EXPECT_EQ(one(1e30F, 1.0F), 0x7e);
  EXPECT_EQ(one(kInf, 1.0F), 0x7e);
  EXPECT_EQ(one(-kInf, 1.0F), 0xfe);
  EXPECT_EQ(one(std::nanf(""), 1.0F) & 0x7f, 0x7f);
  EXPECT_EQ(one(kInf, kInf) & 0x7f, 0x7f);
  EXPECT_EQ(one(-0.0F, 1.0F), 0x80);
}

// x / s, not x * (1/s): a quotient that one way rounds to a tie and the other way does not.
TEST(Quantize, DividesTruly) {
  int64_t differences = 0;
  Rng rng(3);
  for (int i = 0; i < 200000; ++i) {
    const auto scale = static_cast<float>(0.5 + rng.unit());
    const float middle = 0.5F * (e4m3_to_f32(0x50) + e4m3_to_f32(0x51));
    const float x = middle * scale;  // rounded: sometimes a hair beside the tie
    const uint8_t expected = f32_to_e4m3(x / scale);
    ASSERT_EQ(one(x, scale), expected);
    if (f32_to_e4m3(x * (1.0F / scale)) != expected) ++differences;
  }
  EXPECT_GT(differences, 0);  // the test can tell the two apart
}

TEST(Quantize, ScaleIsAmaxOver448) {
  EXPECT_EQ(amax_scale(448.0F), 1.0F);
  EXPECT_EQ(amax_scale(1.0F), 1.0F / 448.0F);
  EXPECT_EQ(amax_scale(0.0F), 1e-10F / 448.0F);
  EXPECT_EQ(amax_scale(1e-11F), 1e-10F / 448.0F);
  EXPECT_EQ(amax_scale(kInf), kInf);
}

TEST(Quantize, GroupsHaveTheirOwnScales) {
  const int64_t n = 300;  // two full groups and one of 44
  std::vector<float> x(n);
  Rng rng(5);
  for (auto& v : x) v = static_cast<float>(rng.normal());
  x[7] = -9.0F;
  x[200] = 11.0F;
  x[299] = 4.5F;
  std::vector<uint8_t> q(n, 0x55);
  std::vector<float> s(4, -1.0F);
  quantize_row_groups(x.data(), n, q.data(), s.data());
  EXPECT_EQ(s[0], 9.0F / 448.0F);
  EXPECT_EQ(s[1], 11.0F / 448.0F);
  EXPECT_EQ(s[2], 4.5F / 448.0F);
  EXPECT_EQ(s[3], -1.0F);
  EXPECT_EQ(q[7], 0xfe);
  EXPECT_EQ(q[200], 0x7e);
  EXPECT_EQ(q[299], 0x7e);
  for (size_t i = 0; i < x.size(); ++i) EXPECT_EQ(q[i], f32_to_e4m3(x[i] / s[i / 128])) << i;
}

// NaN stays where it is and does not spoil the scale; infinity makes the whole group NaN once dequantised.
TEST(Quantize, NanAndInfinityInAGroup) {
  std::vector<float> x(256, 2.0F);
  x[5] = std::nanf("");
  x[130] = kInf;
  std::vector<uint8_t> q(256);
  std::vector<float> s(2);
  quantize_row_groups(x.data(), 256, q.data(), s.data());
  EXPECT_EQ(s[0], 2.0F / 448.0F);
  EXPECT_EQ(q[5] & 0x7f, 0x7f);
  EXPECT_EQ(q[6], 0x7e);
  EXPECT_EQ(s[1], kInf);
  EXPECT_EQ(q[130] & 0x7f, 0x7f);
  for (size_t i = 128; i < 256; ++i) EXPECT_TRUE(std::isnan(e4m3_to_f32(q[i]) * s[1]));
}

TEST(Quantize, AllNanGroupHasTheSmallestScale) {
  std::vector<float> x(128, std::nanf(""));
  std::vector<uint8_t> q(128);
  float s = 0;
  quantize_row_groups(x.data(), 128, q.data(), &s);
  EXPECT_EQ(s, 1e-10F / 448.0F);
}

TEST(Quantize, DynamicRow) {
  std::vector<float> x(200);
  Rng rng(8);
  for (auto& v : x) v = static_cast<float>(rng.normal());
  x[150] = -7.0F;
  std::vector<uint8_t> q(200);
  const float s = quantize_row_dynamic(x.data(), 200, q.data());
  EXPECT_EQ(s, 7.0F / 448.0F);
  for (size_t i = 0; i < x.size(); ++i) EXPECT_EQ(q[i], f32_to_e4m3(x[i] / s));
}

TEST(Quantize, WeightBlocksWithRaggedEdges) {
  const int64_t rows = 160;
  const int64_t cols = 224;
  std::vector<float> w(rows * cols);
  Rng rng(9);
  for (auto& v : w) v = static_cast<float>(rng.normal());
  std::vector<uint8_t> q(w.size());
  std::vector<float> s(4);
  quantize_weight_block(w.data(), rows, cols, q.data(), s.data());
  for (int64_t br = 0; br < 2; ++br) {
    for (int64_t bc = 0; bc < 2; ++bc) {
      float amax = 0;
      for (int64_t r = br * 128; r < std::min<int64_t>(rows, br * 128 + 128); ++r) {
        for (int64_t c = bc * 128; c < std::min<int64_t>(cols, bc * 128 + 128); ++c)
          amax = std::max(amax, std::fabs(w[static_cast<size_t>(r * cols + c)]));
      }
      EXPECT_EQ(s[static_cast<size_t>(br * 2 + bc)], amax / 448.0F);
    }
  }
  for (int64_t r = 0; r < rows; ++r) {
    for (int64_t c = 0; c < cols; ++c) {
      const auto i = static_cast<size_t>(r * cols + c);
      ASSERT_EQ(q[i], f32_to_e4m3(w[i] / s[static_cast<size_t>(r / 128 * 2 + c / 128)]));
    }
  }
}

TEST(Quantize, WeightTensorAndChannel) {
  const std::vector<float> w = {1.0F, -2.0F, 3.0F, 0.5F, 0.25F, -8.0F};
  std::vector<uint8_t> q(6);
  EXPECT_EQ(quantize_weight_tensor(w.data(), 2, 3, q.data()), 8.0F / 448.0F);
  EXPECT_EQ(q[5], 0xfe);
  std::vector<float> s(2);
  quantize_weight_channel(w.data(), 2, 3, q.data(), s.data());
  EXPECT_EQ(s[0], 3.0F / 448.0F);
  EXPECT_EQ(s[1], 8.0F / 448.0F);
  EXPECT_EQ(q[2], 0x7e);
  EXPECT_EQ(q[5], 0xfe);
}

}  // namespace
}  // namespace ramp::core::test
