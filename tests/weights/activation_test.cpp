// Activations against independent formulas in long double, their limits, and the float versions against the
// double ones.
#include "weights/activation.hpp"

#include <gtest/gtest.h>

#include <cmath>
#include <limits>

namespace ramp::core::test {
namespace {

TEST(Activation, DoubleAgreesWithLongDoubleFormulas) {
  for (int step = -480; step <= 480; ++step) {
    const double g = step * 0.0625;
    const long double x = g;
    const long double tanh_argument = std::sqrt(2.0L / M_PIl) * (x + 0.044715L * x * x * x);
    const double tolerance =
        1e-15 * (1.0 + std::fabs(g));  // a few units of 2^-53, of |g| where 1 + erf cancels
    EXPECT_NEAR(silu(g), static_cast<double>(x / (1.0L + std::exp(-x))), tolerance);
    EXPECT_NEAR(gelu(g), static_cast<double>(0.5L * x * std::erfc(-x / std::sqrt(2.0L))), tolerance);
    EXPECT_NEAR(gelu_tanh(g), static_cast<double>(0.5L * x * (1.0L + std::tanh(tanh_argument))), tolerance);
    EXPECT_EQ(relu2(g), g > 0 ? g * g : 0.0);
  }
}

// Units of 2^-24: the function values carry a few of them, gelu's 1 + erf up to two times |g|.
TEST(Activation, FloatAgreesWithDouble) {
  for (int step = -2000; step <= 2000; ++step) {
    const float g = static_cast<float>(step) * 0.01F;
    const double u = 0x1p-24;
    EXPECT_NEAR(silu(g), silu(static_cast<double>(g)), 8 * u * std::fabs(silu(g)) + 1e-37);
    EXPECT_NEAR(gelu(g), gelu(static_cast<double>(g)), 4 * u * std::fabs(g));
    EXPECT_NEAR(gelu_tanh(g), gelu_tanh(static_cast<double>(g)), 4 * u * std::fabs(g));
    EXPECT_EQ(relu2(g), g > 0 ? g * g : 0.0F);
  }
}

TEST(Activation, Limits) {
  const double inf = std::numeric_limits<double>::infinity();
  EXPECT_EQ(silu(inf), inf);
  EXPECT_EQ(gelu(inf), inf);
  EXPECT_EQ(gelu_tanh(inf), inf);
  EXPECT_EQ(relu2(inf), inf);
  EXPECT_EQ(relu2(-inf), 0.0);
  EXPECT_EQ(silu(-1000.0F), 0.0F);
  EXPECT_EQ(silu(-1000.0), 0.0);
  EXPECT_EQ(gelu(-1000.0), 0.0);
  EXPECT_EQ(gelu_tanh(-1000.0), 0.0);
}

TEST(Activation, NanPropagates) {
  for (const ramp_activation a : {RAMP_ACTIVATION_SILU_AND_MUL, RAMP_ACTIVATION_GELU_AND_MUL,
                                  RAMP_ACTIVATION_GELU_TANH_AND_MUL, RAMP_ACTIVATION_RELU2}) {
    EXPECT_TRUE(std::isnan(activate(a, std::nan(""), 1.0)));
    EXPECT_TRUE(std::isnan(activate(a, std::nanf(""), 1.0F)));
    if (a != RAMP_ACTIVATION_RELU2) {
      EXPECT_TRUE(std::isnan(activate(a, 1.0F, std::nanf(""))));
    }
  }
}

TEST(Activation, GatedOnesMultiplyByUp) {
  EXPECT_EQ(activate(RAMP_ACTIVATION_SILU_AND_MUL, 0.7, 3.0), silu(0.7) * 3.0);
  EXPECT_EQ(activate(RAMP_ACTIVATION_GELU_AND_MUL, 0.7, 3.0), gelu(0.7) * 3.0);
  EXPECT_EQ(activate(RAMP_ACTIVATION_GELU_TANH_AND_MUL, 0.7, 3.0), gelu_tanh(0.7) * 3.0);
  EXPECT_EQ(activate(RAMP_ACTIVATION_RELU2, 0.7, 3.0), 0.7 * 0.7);
}

}  // namespace
}  // namespace ramp::core::test
