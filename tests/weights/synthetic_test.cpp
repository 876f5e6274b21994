// The generator: valid descriptors for every format and activation, right magnitudes, full use of the e4m3
// range, independence of the order of tasks, calibrated static scales.
#include <gtest/gtest.h>

#include <cmath>
#include <cstring>
#include <set>

#include "base/float_types.hpp"
#include "weights/activation.hpp"
#include "weights/support.hpp"

namespace ramp::core::test {
namespace {

TEST(Synthetic, ValidForEveryFormatAndActivation) {
  for (const ramp_format f : kFormats) {
    for (int32_t a = 0; a < 4; ++a) {
      const SyntheticWeights s = values(f, static_cast<ramp_activation>(a));
      EXPECT_NO_THROW(make_expert_weights(s.desc, {})) << format_name(f);
    }
  }
}

// Standard deviation 1/sqrt(fan in), times the spread of the fp8 scales (mean square 1.17); the estimate from
// n values is off by less than 5/sqrt(2n), plus the spread of the few scales drawn.
TEST(Synthetic, Magnitudes) {
  for (const ramp_format f : kFormats) {
    const SyntheticWeights s = values(f, RAMP_ACTIVATION_SILU_AND_MUL, 16, 256, 160);
    const auto w = make_expert_weights(s.desc, {});
    const bool fp8 = weight_dtype(f) == RAMP_E4M3;
    double sum13 = 0;
    double square13 = 0;
    double square2 = 0;
    for (int64_t e = 0; e < 16; ++e) {
      for (int64_t r = 0; r < 320; ++r) {
        for (int64_t c = 0; c < 256; ++c) {
          const double v = w13_at(*w, e, r, c);
          sum13 += v;
          square13 += v * v;
        }
      }
      for (int64_t r = 0; r < 256; ++r) {
        for (int64_t c = 0; c < 160; ++c) square2 += std::pow(w2_at(*w, e, r, c), 2);
      }
    }
    const double n = 16 * 320 * 256;
    const double expected = fp8 ? 1.17 : 1.0;
    const double tolerance = fp8 ? 0.25 : 0.01;
    EXPECT_NEAR(square13 / n * 256, expected, tolerance) << format_name(f);
    EXPECT_NEAR(square2 / (n / 2) * 160, expected, tolerance) << format_name(f);
    EXPECT_NEAR(sum13 / n * 16, 0.0, 5 / std::sqrt(n) * 1.2) << format_name(f);
  }
}

TEST(Synthetic, Fp8BlocksReach448AndScalesDiffer) {
  const SyntheticWeights s = values(RAMP_FORMAT_FP8_BLOCK, RAMP_ACTIVATION_SILU_AND_MUL, 2, 512, 512);
  const std::set<float> distinct(s.w13_scale.begin(), s.w13_scale.end());
  EXPECT_EQ(distinct.size(), s.w13_scale.size());
  for (int64_t block = 0; block < 8 * 4; ++block) {  // of expert 1
    float largest = 0;
    for (int64_t r = 0; r < 128; ++r) {
      for (int64_t c = 0; c < 128; ++c) {
        const uint8_t code = s.w13.as<uint8_t>()[(1024 + block / 4 * 128 + r) * 512 + block % 4 * 128 + c];
        ASSERT_NE(code & 0x7f, 0x7f);
        largest = std::max(largest, std::fabs(e4m3_to_f32(code)));
      }
    }
    EXPECT_EQ(largest, 448.0F);
  }
}

TEST(Synthetic, AFunctionOfTheSeedAlone) {
  for (const ramp_format f : kFormats) {
    const SyntheticWeights a = values(f);
    SyntheticWeightsOptions backward;
    backward.seed = 1;
    backward.parallel = [](int64_t n, const std::function<void(int64_t)>& task) {
      for (int64_t i = n - 1; i >= 0; --i) task(i);
    };
    const SyntheticWeights b =
        make_synthetic_weights({"test", 3, 1, 160, 96}, f, RAMP_ACTIVATION_SILU_AND_MUL, backward);
    EXPECT_EQ(std::memcmp(a.w13.data(), b.w13.data(), a.w13.size()), 0);
    EXPECT_EQ(std::memcmp(a.w2.data(), b.w2.data(), a.w2.size()), 0);
    EXPECT_EQ(a.w13_scale, b.w13_scale);
    EXPECT_EQ(a.w2_input_scale, b.w2_input_scale);
    const SyntheticWeights c = values(f, RAMP_ACTIVATION_SILU_AND_MUL, 3, 160, 96, 2);
    EXPECT_NE(std::memcmp(a.w13.data(), c.w13.data(), a.w13.size()), 0);
    // Experts and rows differ from one another.
    const auto row = static_cast<size_t>(160 * dtype_bytes(weight_dtype(f)));
    EXPECT_NE(std::memcmp(a.w13.as<char>(), a.w13.as<char>() + row, row), 0);
    EXPECT_NE(std::memcmp(a.w13.as<char>(), a.w13.as<char>() + 192 * row, row), 0);
  }
}

TEST(Synthetic, StaticScalesCoverMostOfTheRange) {
  const SyntheticWeights s = values(RAMP_FORMAT_FP8_TENSOR, RAMP_ACTIVATION_SILU_AND_MUL, 4, 512, 256);
  std::vector<float> x(64 * 512);
  fill_activations(x.data(), RAMP_F32, 64, 512, 99);
  int64_t clipped = 0;
  float largest = 0;
  for (const float v : x) {
    largest = std::max(largest, std::fabs(v) / s.w13_input_scale[0]);
    if (std::fabs(v) > 448.0F * s.w13_input_scale[0]) ++clipped;
  }
  EXPECT_GT(largest, 224.0F);  // within a factor of two of full scale
  EXPECT_LT(clipped, static_cast<int64_t>(x.size()) / 1000);
  EXPECT_GT(s.w2_input_scale[0], 0.0F);
}

TEST(Synthetic, ActivationsHaveTheirRowsSpread) {
  const int64_t n = 4096;
  for (const ramp_dtype dtype : {RAMP_F32, RAMP_BF16, RAMP_F16}) {
    AlignedBuffer x(static_cast<uint64_t>(8 * n * dtype_bytes(dtype)));
    fill_activations(x.data(), dtype, 8, n, 4);
    for (int64_t r = 0; r < 8; ++r) {
      double square = 0;
      for (int64_t c = 0; c < n; ++c) square += std::pow(load_f32(x.data(), dtype, r * n + c), 2);
      const double s = activation_spread(4, r);
      EXPECT_GE(s, 0.5);
      EXPECT_LE(s, 2.0);
      EXPECT_NEAR(square / n / (s * s), 1.0, 5 * std::sqrt(2.0 / n)) << r;
    }
  }
  expect_parts(message_of([] { fill_activations(nullptr, RAMP_I32, 1, 32, 0); }), {"dtype", "i32"});
}

TEST(Synthetic, BadShapesAreRefused) {
  const auto make = [](int64_t e, int64_t h, int64_t i, ramp_format f = RAMP_FORMAT_BF16) {
    return message_of([=] { make_synthetic_weights({"x", e, 1, h, i}, f, RAMP_ACTIVATION_SILU_AND_MUL); });
  };
  expect_parts(make(0, 64, 64), {"experts"});
  expect_parts(make(1, 48, 64), {"hidden", "48"});
  expect_parts(make(1, 64, 8), {"intermediate", "8"});
  expect_parts(make(1, 64, 64, RAMP_FORMAT_NONE), {"format"});
}

}  // namespace
}  // namespace ramp::core::test
