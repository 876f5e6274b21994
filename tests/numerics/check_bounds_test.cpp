// The pieces of the error analysis, each against brute force: fp32 sums in several orders, activations in
// fp32 from perturbed arguments, requantisation of perturbed rows, spacings.
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <limits>

#include "backend/reference/bounds.hpp"
#include "backend/reference/check.hpp"
#include "backend/reference/rows.hpp"
#include "base/float_types.hpp"
#include "base/rng.hpp"
#include "weights/activation.hpp"
#include "weights/quantize.hpp"

namespace ramp::core::reference {
namespace {

TEST(Bounds, HalfSpacingIsHalfTheDistanceToTheNextNumber) {
  for (const float v : {1.0F, 1.5F, 1.999F, 3e-5F, 1e-39F, 0.0F, 1234.5F, 6e4F}) {
    EXPECT_EQ(half_spacing(RAMP_F32, v),
              0.5 * (std::nextafter(v, std::numeric_limits<float>::infinity()) - static_cast<double>(v)));
    const uint16_t b = f32_to_bf16(v);
    EXPECT_EQ(half_spacing(RAMP_BF16, bf16_to_f32(b)),
              0.5 * (static_cast<double>(bf16_to_f32(b + 1)) - bf16_to_f32(b)));
    const uint16_t h = f32_to_f16(v);
    EXPECT_EQ(half_spacing(RAMP_F16, f16_to_f32(h)),
              0.5 * (static_cast<double>(f16_to_f32(h + 1)) - f16_to_f32(h)));
  }
  EXPECT_EQ(half_spacing(RAMP_BF16, -1.5), half_spacing(RAMP_BF16, 1.5));
}

// Sums of n products in index order, reversed, by pairs and in 16 lanes, with fp32 dequantisation of both
// factors: all within both bounds.
TEST(Bounds, DotProductsInAnyOrder) {
  for (const int64_t n : {32, 96, 512, 4096}) {
    for (uint64_t trial = 0; trial < 40; ++trial) {
      Rng rng(mix64(trial + static_cast<uint64_t>(n)));
      std::vector<float> a(static_cast<size_t>(n));
      std::vector<float> w(static_cast<size_t>(n));
      const auto sa = static_cast<float>(0.01 + rng.unit());
      const auto sw = static_cast<float>(0.01 + rng.unit());
      DotSums exact;
      std::vector<float> p(static_cast<size_t>(n));
      const bool positive = trial % 4 == 0;
      for (size_t k = 0; k < p.size(); ++k) {
        a[k] = e4m3_to_f32(f32_to_e4m3(static_cast<float>(100 * rng.normal())));
        w[k] = e4m3_to_f32(f32_to_e4m3(static_cast<float>(100 * rng.normal())));
        if (positive) a[k] = std::fabs(a[k]), w[k] = std::fabs(w[k]);
        p[k] = (a[k] * sa) * (w[k] * sw);
        const double term = static_cast<double>(a[k]) * sa * (static_cast<double>(w[k]) * sw);
        exact.sum += term;
        exact.absolute += std::fabs(term);
        exact.square += term * term;
      }
      const Uncertain u = fp32_dot(exact, static_cast<double>(n));
      const auto expect_within = [&](float got, const char* order) {
        EXPECT_LE(std::fabs(got - exact.sum), u.error) << order << " n " << n;
        EXPECT_LE(std::fabs(got - exact.sum), kCheckSigmas * u.sigma) << order << " n " << n;
      };
      float forward = 0;
      for (size_t k = 0; k < p.size(); ++k) forward += p[k];
      expect_within(forward, "forward");
      float backward = 0;
      for (size_t k = p.size(); k-- > 0;) backward += p[k];
      expect_within(backward, "backward");
      float lanes[16] = {};
      for (size_t k = 0; k < p.size(); ++k) lanes[k % 16] += p[k];
      float in_lanes = 0;
      for (const float l : lanes) in_lanes += l;
      expect_within(in_lanes, "lanes");
      std::sort(p.begin(), p.end());  // the worst order: only the rigorous bound has to hold
      float sorted = 0;
      for (const float v : p) sorted += v;
      EXPECT_LE(std::fabs(sorted - exact.sum), u.error) << "sorted n " << n;
    }
  }
}

// v cut towards zero to a multiple of 2^-13 of the power of two at or below `largest`.
double cut(double v, double largest) {
  const double unit = std::exp2(std::floor(std::log2(largest)) - 13);
  return std::trunc(v / unit) * unit;
}

// A model of sm_90's FP8 sums (docs/numerics.md 3.1): 32 products and the accumulator aligned to the largest
// of them, the result cut too; four instructions from zero per 128 terms, then fp32.
double fp8_tensor_sum(const std::vector<double>& p) {
  float total = 0;
  for (size_t step = 0; step < p.size(); step += 128) {
    double part = 0;
    for (size_t first = step; first < step + 128; first += 32) {
      double largest = std::fabs(part);
      for (size_t k = first; k < first + 32; ++k) largest = std::max(largest, std::fabs(p[k]));
      if (largest == 0) continue;
      double sum = cut(part, largest);
      for (size_t k = first; k < first + 32; ++k) sum += cut(p[k], largest);
      part = cut(sum, std::max(largest, std::fabs(sum)));
    }
    total += static_cast<float>(part);
  }
  return total;
}

TEST(Bounds, CoverTheCutsOfFp8TensorCoresAndNotMuchMore) {
  Rng rng(77);
  for (const int64_t n : {128, 768, 2048, 7168}) {
    double worst = 0;
    for (int trial = 0; trial < 200; ++trial) {
      std::vector<double> p(static_cast<size_t>(n));
      DotSums exact;
      for (double& v : p) {
        v = static_cast<double>(e4m3_to_f32(f32_to_e4m3(static_cast<float>(100 * rng.normal())))) *
            static_cast<double>(e4m3_to_f32(f32_to_e4m3(static_cast<float>(100 * rng.normal()))));
        exact.sum += v;
        exact.absolute += std::fabs(v);
        exact.square += v * v;
      }
      const Uncertain u = fp32_dot(exact, static_cast<double>(n), kFp8TensorUnit);
      const double off = std::fabs(fp8_tensor_sum(p) - exact.sum);
      EXPECT_LE(off, u.error) << n;
      EXPECT_LE(off, kCheckSigmas * u.sigma) << n;
      worst = std::max(worst, off / (kCheckSigmas * fp32_dot(exact, static_cast<double>(n)).sigma));
      // Sharp enough to see a term of the sum's own spread go wrong by a twentieth.
      EXPECT_LT(kCheckSigmas * u.sigma, 0.05 * (std::fabs(exact.sum) + std::sqrt(exact.square))) << n;
    }
    // The bound of fp32 sums would not do, or the unit would not be needed.
    EXPECT_GT(worst, 1.0) << n;
  }
}

// sm_90's bf16 and f16 wgmma: 16 products and the sum so far, cut to 25 bits behind the largest of them,
// their sum cut to fp32; all instructions in one chain.
double half_tensor_sum(const std::vector<double>& p) {
  double total = 0;
  for (size_t first = 0; first < p.size(); first += 16) {
    double largest = std::fabs(total);
    for (size_t k = first; k < first + 16; ++k) largest = std::max(largest, std::fabs(p[k]));
    if (largest == 0) continue;
    const double unit = std::exp2(std::floor(std::log2(largest)) - 25);
    double sum = std::trunc(total / unit) * unit;
    for (size_t k = first; k < first + 16; ++k) sum += std::trunc(p[k] / unit) * unit;
    float rounded = static_cast<float>(sum);
    if (std::fabs(static_cast<double>(rounded)) > std::fabs(sum)) rounded = std::nextafter(rounded, 0.0F);
    total = rounded;
  }
  return total;
}

TEST(Bounds, CoverTheCutsOfHalfTensorCoresAndNotMuchMore) {
  Rng rng(78);
  for (const int64_t n : {64, 768, 2048, 14336}) {
    for (const double drift : {0.0, 0.5}) {  // sums that walk, sums that grow
      for (int trial = 0; trial < 100; ++trial) {
        std::vector<double> p(static_cast<size_t>(n));
        DotSums exact;
        for (double& v : p) {
          v = static_cast<double>(bf16_to_f32(f32_to_bf16(static_cast<float>(rng.normal() + drift)))) *
              static_cast<double>(bf16_to_f32(f32_to_bf16(static_cast<float>(rng.normal() + drift))));
          exact.sum += v;
          exact.absolute += std::fabs(v);
          exact.square += v * v;
        }
        const Uncertain u = fp32_dot(exact, static_cast<double>(n), kHalfTensorUnit);
        const double off = std::fabs(half_tensor_sum(p) - exact.sum);
        EXPECT_LE(off, u.error) << n;
        EXPECT_LE(off, kCheckSigmas * u.sigma) << n;
        // Far below what bf16 keeps of the sum.
        EXPECT_LT(kCheckSigmas * u.sigma, 0x1p-10 * (std::fabs(exact.sum) + std::sqrt(exact.square))) << n;
      }
    }
  }
}

TEST(Bounds, OverflowingSumsAreUndetermined) {
  EXPECT_TRUE(std::isinf(fp32_dot({1.0, 4e38, 1.0}, 32).error));
  EXPECT_TRUE(std::isfinite(fp32_dot({1.0, 3e38, 1.0}, 32).error));
  EXPECT_TRUE(std::isinf(fp32_dot({std::nan(""), std::nan(""), std::nan("")}, 32).error));
}

class Activations : public ::testing::TestWithParam<ramp_activation> {};

// fp32 evaluation at arguments that are off by up to their error.
TEST_P(Activations, Fp32WithinBounds) {
  const ramp_activation a = GetParam();
  Rng rng(4);
  for (int trial = 0; trial < 200000; ++trial) {
    const double scale = std::exp2(8.0 * rng.unit() - 4.0);
    const double spread = std::exp2(-20.0 * rng.unit());
    Uncertain gate{scale * rng.normal(), 0, 0};
    Uncertain up{rng.normal(), 0, 0};
    gate.error = spread * std::fabs(rng.normal());
    up.error = spread * std::fabs(rng.normal());
    const auto g = static_cast<float>(gate.value + (2 * rng.unit() - 1) * gate.error);
    const auto u = static_cast<float>(up.value + (2 * rng.unit() - 1) * up.error);
    // float() of the perturbed argument is itself an error.
    gate.error += kUnit * (std::fabs(gate.value) + gate.error);
    up.error += kUnit * (std::fabs(up.value) + up.error);
    const Uncertain r = fp32_activation(a, gate, up);
    const float got = activate(a, g, u);
    ASSERT_LE(std::fabs(got - r.value), r.error) << "gate " << gate.value << " up " << up.value;
    ASSERT_EQ(r.value, activate(a, gate.value, up.value));
  }
}

// |f''| as a difference quotient of f', which is itself one of f.
TEST_P(Activations, CurvatureIsBounded) {
  const ramp_activation a = GetParam();
  for (int step = -1200; step < 1200; ++step) {
    const double g = step * 0.01;
    const double h = 1e-3;
    const double second =
        (activate(a, g + h, 1.0) - 2.0 * activate(a, g, 1.0) + activate(a, g - h, 1.0)) / (h * h);
    // A bound with an error of 1 leaves 0.5 * curvature for the second order.
    const Uncertain r = fp32_activation(a, {g, 1.0, 0}, {1.0, 0, 0});
    const double slope = (activate(a, g + h, 1.0) - activate(a, g - h, 1.0)) / (2 * h);
    ASSERT_LE(0.5 * std::fabs(second) + std::fabs(slope), r.error + 1e-5) << g;
  }
}

INSTANTIATE_TEST_SUITE_P(All, Activations,
                         ::testing::Values(RAMP_ACTIVATION_SILU_AND_MUL, RAMP_ACTIVATION_GELU_AND_MUL,
                                           RAMP_ACTIVATION_GELU_TANH_AND_MUL, RAMP_ACTIVATION_RELU2),
                         [](const auto& info) { return std::string(activation_name(info.param)); });

class Requantize : public ::testing::TestWithParam<ramp_format> {};

// A row whose values are moved by up to their error requantises to values within the promised distance, once
// the common factor of the group is taken out.
TEST_P(Requantize, PerturbedRowsStayWithinTheirIntervals) {
  ExpertWeights w;
  w.format = GetParam();
  w.intermediate = 160;
  w.w2_input_scale = 0.004F;
  int64_t flips_seen = 0;
  for (uint64_t trial = 0; trial < 300; ++trial) {
    Rng rng(trial);
    const double relative = std::exp2(-22.0 + 14.0 * rng.unit());
    std::vector<Uncertain> h(160);
    std::vector<double> moved(160);
    std::vector<double> plain(160);
    for (size_t j = 0; j < h.size(); ++j) {
      h[j].value = static_cast<float>(rng.normal());
      h[j].error = relative * (std::fabs(h[j].value) + 0.1);
      h[j].sigma = h[j].error;
      moved[j] = h[j].value + (2 * rng.unit() - 1) * 0.999 * h[j].error;
      plain[j] = h[j].value;
    }
    const Requantized r = requantize_uncertain(w, h);
    requantize(w, plain.data());
    requantize(w, moved.data());
    for (size_t j = 0; j < h.size(); ++j) {
      ASSERT_EQ(r.value[j], plain[j]) << j;
      const double factor = r.scale_error[j / 128];
      const double allowed = r.error[j] + factor * (std::fabs(plain[j]) + r.error[j]);
      ASSERT_LE(std::fabs(moved[j] - plain[j]),
                allowed * (1 + 1e-6) + (w.format == RAMP_FORMAT_F32 ? 2e-7 : 0))
          << j;
      const double steps = kCheckSigmas * r.scale_sigma[j / 128] * (std::fabs(plain[j]) + r.sigma[j]) +
                           (r.stepwise ? r.sigma[j] : kCheckSigmas * r.sigma[j]);
      ASSERT_LE(std::fabs(moved[j] - plain[j]),
                steps * (1 + 1e-6) + (w.format == RAMP_FORMAT_F32 ? 2e-7 : 0));
      if (std::fabs(moved[j] - plain[j]) > 0.02 * std::fabs(plain[j])) ++flips_seen;
    }
  }
  if (w.format == RAMP_FORMAT_FP8_BLOCK) {
    EXPECT_GT(flips_seen, 0);
  }
}

// A value in the middle between two boundaries has no freedom at all.
TEST(RequantizeExact, SettledValuesDoNotFlip) {
  ExpertWeights w;
  w.format = RAMP_FORMAT_FP8_TENSOR;
  w.w2_input_scale = 1.0F;
  std::vector<Uncertain> h(32, {16.0, 0.4, 0.05});  // codes near 16: 15, 16, 18; boundaries 15.5 and 17
  h[3] = {16.9, 0.2, 0.01};                         // straddles 17, not within 6 sigma
  const Requantized r = requantize_uncertain(w, h);
  EXPECT_EQ(r.error[0], 0.0);
  EXPECT_EQ(r.error[3], 2.0);
  EXPECT_EQ(r.sigma[3], 0.0);
  EXPECT_EQ(r.flips, 1);
}

INSTANTIATE_TEST_SUITE_P(Formats, Requantize,
                         ::testing::Values(RAMP_FORMAT_FP8_BLOCK, RAMP_FORMAT_FP8_TENSOR,
                                           RAMP_FORMAT_FP8_CHANNEL, RAMP_FORMAT_BF16, RAMP_FORMAT_F16,
                                           RAMP_FORMAT_F32),
                         [](const auto& info) { return std::string(format_name(info.param)); });

}  // namespace
}  // namespace ramp::core::reference
