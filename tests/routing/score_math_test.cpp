// exp, sigmoid and softmax terms against fp64, over the whole range of floats, under the bounds derived in
// score_math.hpp; and the two builds of the row loops against the plain functions, bit for bit.
#include "routing/score_math.hpp"

#include <gtest/gtest.h>

#include <bit>
#include <cmath>
#include <cstdint>
#include <cstdlib>
#include <vector>

#include "base/rng.hpp"
#include "routing/score_rows.hpp"

namespace ramp::core {
namespace {

constexpr float kInf = std::numeric_limits<float>::infinity();
constexpr float kNan = std::numeric_limits<float>::quiet_NaN();
constexpr double kU = 0x1p-24;
constexpr double kSubnormalUnit = 0x1p-149;

// One of the 512 floats-by-sign-and-exponent: every 2^k-th mantissa of it (k = 12, or 16 where the tests are
// thinned), from an offset that differs between exponents so that low bits vary too.
class ScoreRange : public testing::TestWithParam<int> {
 protected:
  template <typename Fn>
  static void for_each(Fn&& fn) {
    const uint32_t step =
        std::getenv("RAMP_TEST_REDUCED") != nullptr ? 1U << 16U : 1U << 12U;  // NOLINT(concurrency-mt-unsafe)
    // Sixteen slices of the 2^32 floats.
    const uint64_t begin = static_cast<uint64_t>(GetParam()) << 28U;
    const uint64_t end = begin + (uint64_t{1} << 28U);
    uint32_t wobble = 0;
    for (uint64_t bits = begin; bits < end; bits += step) {
      wobble = wobble * 1664525U + 1013904223U;
      const float x = std::bit_cast<float>(static_cast<uint32_t>(bits) | (wobble >> 20U));
      if (x == x) fn(x);
    }
  }
};

TEST_P(ScoreRange, ExpWithinBound) {
  double worst = 0.0;
  float worst_at = 0.0F;
  for_each([&](float x) {
    const double exact = std::exp(static_cast<double>(x));
    const float got = exp_f32(x);
    if (exact >= 0x1p-126 && exact < 0x1.ffffffp127) {
      const double error = std::fabs(got - exact) / exact / kU;
      if (error > worst) {
        worst = error;
        worst_at = x;
      }
    } else if (exact < 0x1p-126) {
      ASSERT_NEAR(got, exact, kSubnormalUnit) << std::hexfloat << x;
    } else {
      ASSERT_EQ(got, kInf) << std::hexfloat << x;
    }
  });
  EXPECT_LE(worst, double{kExpMaxError}) << "at " << std::hexfloat << worst_at;
}

TEST_P(ScoreRange, SigmoidWithinBound) {
  double worst = 0.0;
  float worst_at = 0.0F;
  for_each([&](float x) {
    const double exact = 1.0 / (1.0 + std::exp(-static_cast<double>(x)));
    const float got = sigmoid_f32(x);
    if (exact < 0x1p-126) {
      ASSERT_NEAR(got, exact, kSubnormalUnit) << std::hexfloat << x;
      return;
    }
    const double error = std::fabs(got - exact) / exact / kU;
    if (error > worst) {
      worst = error;
      worst_at = x;
    }
  });
  EXPECT_LE(worst, double{kSigmoidMaxError}) << "at " << std::hexfloat << worst_at;
}

INSTANTIATE_TEST_SUITE_P(AllFloats, ScoreRange, testing::Range(0, 16));

TEST(ScoreMath, ExpEdges) {
  EXPECT_EQ(exp_f32(0.0F), 1.0F);
  EXPECT_EQ(exp_f32(-0.0F), 1.0F);
  EXPECT_EQ(exp_f32(kInf), kInf);
  EXPECT_EQ(exp_f32(-kInf), 0.0F);
  EXPECT_TRUE(std::isnan(exp_f32(kNan)));
  EXPECT_TRUE(std::isnan(exp_f32(-kNan)));
  EXPECT_EQ(exp_f32(std::numeric_limits<float>::max()), kInf);
  EXPECT_EQ(exp_f32(-std::numeric_limits<float>::max()), 0.0F);
  EXPECT_EQ(exp_f32(0x1.62e43p+6F), kInf);              // the first float above ln(largest float)
  EXPECT_LT(exp_f32(0x1.62e42ep+6F), kInf);             // the last one below
  EXPECT_EQ(exp_f32(-104.0F), 0.0F);                    // below half the smallest subnormal
  EXPECT_EQ(exp_f32(-103.0F), std::ldexp(1.0F, -149));  // the smallest subnormal
  EXPECT_EQ(exp_f32(std::numeric_limits<float>::denorm_min()), 1.0F);
}

// Every float in the bands where the result changes its kind, and around the roundings of x log2 e.
TEST(ScoreMath, ExpDenselyAtTheBreaks) {
  for (const float centre : {88.72284F, -87.33655F, -103.27893F, -103.97208F, 0.34657359F, -0.34657359F,
                             1.0397208F, -1.0397208F, 64.0F, -64.0F}) {
    float x = centre;
    for (int i = 0; i < 2000; ++i) x = std::nextafter(x, -kInf);
    for (int i = 0; i < 4000; ++i, x = std::nextafter(x, kInf)) {
      const double exact = std::exp(static_cast<double>(x));
      const float got = exp_f32(x);
      if (exact >= 0x1.ffffffp127) {
        ASSERT_EQ(got, kInf) << std::hexfloat << x;
      } else {
        ASSERT_NEAR(got, exact, exact * double{kExpMaxError} * kU + (exact < 0x1p-126 ? kSubnormalUnit : 0.0))
            << std::hexfloat << x;
      }
    }
  }
}

TEST(ScoreMath, ExpIsMonotoneOnNeighbours) {
  float x = -20.0F;
  for (int i = 0; i < 200000; ++i) {
    const float next = std::nextafter(x, kInf);
    // Neighbours may share a value; they may not swap by more than the bound allows.
    ASSERT_GE(exp_f32(next), exp_f32(x) * (1.0F - static_cast<float>(2.0 * double{kExpMaxError} * kU)));
    x = next;
  }
}

TEST(ScoreMath, SigmoidEdges) {
  EXPECT_EQ(sigmoid_f32(0.0F), 0.5F);
  EXPECT_EQ(sigmoid_f32(-0.0F), 0.5F);
  EXPECT_EQ(sigmoid_f32(kInf), 1.0F);
  EXPECT_EQ(sigmoid_f32(-kInf), 0.0F);
  EXPECT_EQ(sigmoid_f32(100.0F), 1.0F);
  EXPECT_TRUE(std::isnan(sigmoid_f32(kNan)));
}

TEST(ScoreMath, SoftmaxTermEdges) {
  EXPECT_EQ(softmax_term(3.0F, 3.0F), 1.0F);
  EXPECT_EQ(softmax_term(kInf, kInf), 1.0F);
  EXPECT_EQ(softmax_term(5.0F, kInf), 0.0F);
  EXPECT_EQ(softmax_term(-kInf, 1.0F), 0.0F);
  EXPECT_EQ(softmax_term(-kInf, -kInf), 0.0F);
  EXPECT_EQ(softmax_term(-kInf, kInf), 0.0F);
  EXPECT_EQ(softmax_term(kNan, 1.0F), 0.0F);
  EXPECT_EQ(softmax_term(kNan, kInf), 0.0F);
  EXPECT_EQ(softmax_term(kNan, -kInf), 0.0F);
  EXPECT_EQ(softmax_term(-std::numeric_limits<float>::max(), std::numeric_limits<float>::max()), 0.0F);
}

TEST(ScoreMath, WarpOrderSum) {
  for (const int64_t n : {0, 1, 2, 8, 31, 32, 33, 63, 64, 65, 160, 512, 1000}) {
    std::vector<float> v(static_cast<size_t>(n));
    for (size_t i = 0; i < v.size(); ++i) v[i] = static_cast<float>(random_unit(7, i));
    // Written as a warp would do it: every lane on its own, then shuffles.
    std::vector<float> lane(32, 0.0F);
    for (int l = 0; l < 32; ++l) {
      for (int64_t i = l; i < n; i += 32) lane[static_cast<size_t>(l)] += v[static_cast<size_t>(i)];
    }
    for (const size_t distance : {16U, 8U, 4U, 2U, 1U}) {
      std::vector<float> other(32);
      for (size_t l = 0; l < 32; ++l) other[l] = lane[l ^ distance];
      for (size_t l = 0; l < 32; ++l) lane[l] += other[l];
    }
    for (size_t l = 0; l < 32; ++l) ASSERT_EQ(warp_order_sum(v.data(), n), lane[l]) << n << " lane " << l;
    EXPECT_EQ(row_sum(v.data(), n), lane[0]);
  }
}

// The row loops run with FMA instructions where there are any; this file is compiled without, so that the
// plain functions go through the C library's fma. Same bits either way.
class ScoreRows : public testing::TestWithParam<int> {};
TEST_P(ScoreRows, SameBitsAsThePlainFunctions) {
  const int n = GetParam();
  std::vector<float> x(static_cast<size_t>(n));
  for (size_t i = 0; i < x.size(); ++i) {
    x[i] = static_cast<float>(random_normal(11, i) * 30.0);
    if (random_u64(12, i) % 17 == 0) x[i] = kNan;
    if (random_u64(13, i) % 19 == 0) x[i] = -kInf;
    if (random_u64(14, i) % 97 == 0) x[i] = kInf;
  }
  float m = -kInf;
  for (const float v : x) m = v > m ? v : m;
  EXPECT_EQ(row_max(x.data(), n), m);
  std::vector<float> terms(x.size(), kNan), sigmoids(x.size(), kNan);
  for (const float largest : {m, 3.5F}) {
    softmax_terms(x.data(), n, largest, terms.data());
    for (size_t i = 0; i < x.size(); ++i) {
      if (x[i] > largest) continue;  // not a softmax term
      ASSERT_EQ(std::bit_cast<uint32_t>(terms[i]), std::bit_cast<uint32_t>(softmax_term(x[i], largest)))
          << x[i];
    }
  }
  sigmoid_scores(x.data(), n, sigmoids.data());
  for (size_t i = 0; i < x.size(); ++i) {
    const float s = x[i] == x[i] ? sigmoid_f32(x[i]) : 0.0F;
    ASSERT_EQ(std::bit_cast<uint32_t>(sigmoids[i]), std::bit_cast<uint32_t>(s)) << x[i];
  }
}
INSTANTIATE_TEST_SUITE_P(Lengths, ScoreRows,
                         testing::Values(0, 1, 2, 7, 8, 9, 31, 32, 33, 60, 160, 512, 100000));

}  // namespace
}  // namespace ramp::core
