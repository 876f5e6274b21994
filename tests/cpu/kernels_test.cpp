// The vector kernels of every ISA level against the scalar definitions: conversions and quantisation bit for
// bit, activations against fp64 with derived bounds. (The GEMM: gemm_test.cpp.)
#include "cpu/kernels.hpp"

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>
#include <vector>

#include "weights/activation.hpp"
#include "weights/quantize.hpp"

namespace ramp::core {
namespace {

using namespace cpu_test;  // NOLINT(google-build-using-namespace)

class Kernels : public IsaTest {};
INSTANTIATE_TEST_SUITE_P(Isa, Kernels, isa_levels(), isa_name);

// Bit patterns of fp32 that conversions treat differently: every rounding boundary of the small types is hit
// by stepping through the upper bits with the lower ones just below, at and above one half.
std::vector<float> interesting_floats() {
  std::vector<float> v;
  for (uint32_t high = 0; high < 0x10000U; high += 1) {
    for (const uint32_t low : {0x0000U, 0x0001U, 0x7fffU, 0x8000U, 0x8001U, 0xffffU}) {
      v.push_back(std::bit_cast<float>((high << 16) | low));
    }
  }
  while (v.size() % 32 != 0) v.push_back(0.0F);
  return v;
}
// e4m3 and f16 boundaries lie deeper than the upper 16 bits of fp32: 20 and 13 dropped bits.
std::vector<float> rounding_floats() {
  std::vector<float> v;
  for (uint32_t exponent = 96; exponent < 160; ++exponent) {
    for (uint32_t mantissa = 0; mantissa < 2048; ++mantissa) {
      for (const uint32_t low : {0U, 1U, 0x7ffU, 0x800U, 0x801U, 0xfffU}) {
        v.push_back(std::bit_cast<float>((exponent << 23) | (mantissa << 12) | low));
        v.push_back(-v.back());
      }
    }
  }
  while (v.size() % 32 != 0) v.push_back(0.0F);
  return v;
}

TEST_P(Kernels, DecodesEveryCode) {
  std::vector<uint16_t> wide(65536);
  for (size_t i = 0; i < wide.size(); ++i) wide[i] = static_cast<uint16_t>(i);
  std::vector<uint8_t> codes(256);
  for (size_t i = 0; i < codes.size(); ++i) codes[i] = static_cast<uint8_t>(i);
  std::vector<float> out(65536);
  const auto load = [&](const void* src, ramp_dtype dtype, int64_t n) {
    const LoadArgs l{src, out.data(), n, dtype, RAMP_F32, kLoadPlain, kRowF32, 1.0F, 1.0F};
    k.load_row(&l);
  };
  load(wide.data(), RAMP_BF16, 65536);
  for (size_t i = 0; i < wide.size(); ++i) ASSERT_TRUE(same(out[i], bf16_to_f32(wide[i]))) << i;
  load(wide.data(), RAMP_F16, 65536);
  for (size_t i = 0; i < wide.size(); ++i) ASSERT_TRUE(same(out[i], f16_to_f32(wide[i]))) << i;
  load(codes.data(), RAMP_E4M3, 256);
  for (size_t i = 0; i < codes.size(); ++i) ASSERT_TRUE(same(out[i], e4m3_to_f32(codes[i]))) << i;
}

TEST_P(Kernels, EncodesAsTheScalarDefinition) {
  for (const std::vector<float>& v : {interesting_floats(), rounding_floats()}) {
    const auto n = static_cast<int64_t>(v.size());
    std::vector<uint16_t> wide(v.size());
    std::vector<uint8_t> codes(v.size());
    k.store_scaled(v.data(), n, 1.0F, nullptr, RAMP_BF16, wide.data());
    for (size_t i = 0; i < v.size(); ++i) {
      // A NaN's payload bits may change in the multiplication by one; sign and being NaN may not... payload
      // is nobody's contract.
      if (std::isnan(v[i])) {
        ASSERT_TRUE(std::isnan(bf16_to_f32(wide[i])));
      } else {
        ASSERT_EQ(wide[i], f32_to_bf16(v[i])) << v[i];
      }
    }
    k.store_scaled(v.data(), n, 1.0F, nullptr, RAMP_F16, wide.data());
    for (size_t i = 0; i < v.size(); ++i) ASSERT_EQ(wide[i], f32_to_f16(v[i])) << v[i];
    k.quantise(v.data(), RAMP_F32, n, 1.0F, codes.data());
    for (size_t i = 0; i < v.size(); ++i) ASSERT_EQ(codes[i], f32_to_e4m3(v[i])) << v[i];
    // Division by a scale that is no power of two, and the same values without a detour over codes.
    const float scale = 0.0137F;
    std::vector<float> values(v.size());
    k.quantise(v.data(), RAMP_F32, n, scale, codes.data());
    const LoadArgs l{v.data(), values.data(), n, RAMP_F32, RAMP_F32, kLoadQuantise, kRowF32, 1.5F, scale};
    k.load_row(&l);
    for (size_t i = 0; i < v.size(); ++i) {
      ASSERT_EQ(codes[i], f32_to_e4m3(v[i] / scale)) << v[i];
      ASSERT_TRUE(same(values[i], e4m3_to_f32(f32_to_e4m3(v[i] * 1.5F / scale)))) << v[i];
    }
  }
}

TEST_P(Kernels, LoadRoundsAndScales) {
  const std::vector<float> v = rounding_floats();
  const auto n = static_cast<int64_t>(v.size());
  std::vector<float> out(v.size());
  for (const auto round_to : {RAMP_F32, RAMP_F16, RAMP_BF16}) {
    const auto rounded = [&](float x) {
      if (round_to == RAMP_F16) return f16_to_f32(f32_to_f16(x));
      return round_to == RAMP_BF16 ? bf16_to_f32(f32_to_bf16(x)) : x;
    };
    LoadArgs l{v.data(), out.data(), n, RAMP_F32, round_to, kLoadPlain, kRowF32, 1.0F, 1.0F};
    k.load_row(&l);
    for (size_t i = 0; i < v.size(); ++i) ASSERT_TRUE(same(out[i], rounded(v[i]))) << v[i];
    l.op = kLoadScaled;
    l.factor = -0.3F;
    k.load_row(&l);
    for (size_t i = 0; i < v.size(); ++i) ASSERT_TRUE(same(out[i], rounded(v[i] * -0.3F))) << v[i];
  }
}

TEST_P(Kernels, AmaxIgnoresNaN) {
  std::vector<float> v(128, 0.5F);
  EXPECT_EQ(k.amax(v.data(), RAMP_F32, 128), 0.5F);
  v[77] = -3.25F;
  v[0] = v[90] = std::numeric_limits<float>::quiet_NaN();
  EXPECT_EQ(k.amax(v.data(), RAMP_F32, 128), 3.25F);
  v[5] = -std::numeric_limits<float>::infinity();
  EXPECT_EQ(k.amax(v.data(), RAMP_F32, 128), std::numeric_limits<float>::infinity());
  std::vector<uint16_t> b(64, f32_to_bf16(-7.0F));
  EXPECT_EQ(k.amax(b.data(), RAMP_BF16, 64), 7.0F);
  std::vector<uint16_t> h(32, f32_to_f16(-0.125F));
  EXPECT_EQ(k.amax(h.data(), RAMP_F16, 32), 0.125F);
  std::vector<float> none(32, std::numeric_limits<float>::quiet_NaN());
  EXPECT_EQ(k.amax(none.data(), RAMP_F32, 32), 0.0F);
}

TEST_P(Kernels, DecodeRowsTransposes) {
  constexpr int64_t kDepth = 64;
  constexpr int64_t kStride = 80;
  for (const ramp_dtype dtype : {RAMP_F32, RAMP_F16, RAMP_BF16, RAMP_E4M3}) {
    const std::vector<uint8_t> w = random_weights(dtype, 48 * kStride, 4);
    const uint8_t* second = w.data() + 30 * kStride * dtype_bytes(dtype);
    std::vector<float> out(static_cast<size_t>(kDepth * kPanelRows));
    k.decode_rows(w.data(), second, kStride, dtype, kDepth, 0, out.data());
    for (int64_t d = 0; d < kDepth; ++d) {
      for (int64_t lane = 0; lane < kPanelRows; ++lane) {
        const int64_t row = lane < 16 ? lane : 30 + lane - 16;
        ASSERT_EQ(out[static_cast<size_t>(d * kPanelRows + lane)],
                  load_f32(w.data(), dtype, row * kStride + d));
      }
    }
  }
}

// Bound: a few units relative (exponential 2, one division, one or two products), and for the arguments' own
// rounding |argument of exp| units more; gelu's erfc likewise.
TEST_P(Kernels, ActivationsMatchFp64) {
  std::vector<float> gates;
  for (double g = -100.0; g < 100.0; g += 0.0371) gates.push_back(static_cast<float>(g));
  for (const float g : {0.0F, -0.0F, 1e-30F, -1e-30F, 88.0F, 89.5F, -88.0F, -87.5F, -89.5F, 3e38F})
    gates.push_back(g);
  while (gates.size() % 16 != 0) gates.push_back(1.0F);
  const auto panels = static_cast<int32_t>(gates.size() / 16);
  std::vector<float> c(gates.size() * 2);
  for (size_t i = 0; i < gates.size(); ++i) {
    c[i / 16 * 32 + i % 16] = gates[i];
    c[i / 16 * 32 + 16 + i % 16] = 1.5F;
  }
  std::vector<float> out(c.size());
  for (const auto activation : {RAMP_ACTIVATION_SILU_AND_MUL, RAMP_ACTIVATION_GELU_AND_MUL,
                                RAMP_ACTIVATION_GELU_TANH_AND_MUL, RAMP_ACTIVATION_RELU2}) {
    const ActivateArgs args{c.data(), out.data(), nullptr, 1.0F, panels, activation};
    k.activate(&args);
    const bool gated = activation != RAMP_ACTIVATION_RELU2;
    const size_t n = gated ? gates.size() : c.size();
    for (size_t i = 0; i < n; ++i) {
      const double gate = gated ? gates[i] : c[i];
      const double expected = activate<double>(activation, gate, 1.5);
      if (!std::isfinite(static_cast<float>(expected))) continue;
      const double argument = activation == RAMP_ACTIVATION_GELU_TANH_AND_MUL
                                  ? std::fabs(1.6 * (gate + 0.0447 * gate * gate * gate))
                              : activation == RAMP_ACTIVATION_GELU_AND_MUL ? gate * gate
                                                                           : 0.0;
      const double bound = std::fabs(expected) * kUnit * (8 + 6 * argument) + 0x1p-120;
      ASSERT_NEAR(out[i], expected, bound) << activation_name(activation) << " " << gate;
    }
  }
}

TEST_P(Kernels, ActivationsPropagateNaN) {
  std::vector<float> c(32, 1.0F);
  c[3] = c[20] = std::numeric_limits<float>::quiet_NaN();
  std::vector<float> out(32);
  for (const auto activation : {RAMP_ACTIVATION_SILU_AND_MUL, RAMP_ACTIVATION_GELU_AND_MUL,
                                RAMP_ACTIVATION_GELU_TANH_AND_MUL, RAMP_ACTIVATION_RELU2}) {
    const ActivateArgs args{c.data(), out.data(), nullptr, 1.0F, 1, activation};
    k.activate(&args);
    const bool gated = activation != RAMP_ACTIVATION_RELU2;
    for (size_t i = 0; i < (gated ? 16U : 32U); ++i) {
      EXPECT_EQ(std::isnan(out[i]), i == 3 || i == (gated ? 4U : 20U)) << activation_name(activation) << i;
    }
  }
}

TEST_P(Kernels, ScalesPerLane) {
  std::vector<float> c(64);
  std::vector<float> lanes(64);
  for (size_t i = 0; i < c.size(); ++i) {
    c[i] = static_cast<float>(i) - 20.0F;
    lanes[i] = 1.0F + static_cast<float>(i) / 7.0F;
  }
  std::vector<float> out(64);
  k.store_scaled(c.data(), 64, 0.3F, lanes.data(), RAMP_F32, out.data());
  for (size_t i = 0; i < c.size(); ++i) EXPECT_EQ(out[i], c[i] * (0.3F * lanes[i]));
  const ActivateArgs args{c.data(), out.data(), lanes.data(), 0.3F, 2, RAMP_ACTIVATION_RELU2};
  k.activate(&args);
  for (size_t i = 0; i < c.size(); ++i) EXPECT_EQ(out[i], relu2(c[i] * (0.3F * lanes[i])));
}

TEST_P(Kernels, CombineAddsInOrder) {
  constexpr int64_t kN = 64;
  std::vector<std::vector<float>> rows(5, std::vector<float>(kN));
  std::vector<const float*> pointers;
  std::vector<float> weights;
  for (size_t j = 0; j < rows.size(); ++j) {
    for (size_t i = 0; i < rows[j].size(); ++i) rows[j][i] = static_cast<float>(random_normal(j, i));
    pointers.push_back(rows[j].data());
    weights.push_back(0.2F * static_cast<float>(j) - 0.3F);
  }
  const std::vector<uint16_t> addend(kN, f32_to_bf16(2.5F));
  std::vector<float> y(kN);
  for (const int count : {0, 1, 2, 5}) {
    const CombineArgs args{pointers.data(), weights.data(), addend.data(), y.data(), kN,
                           count,           RAMP_BF16,      RAMP_F32};
    k.combine(&args);
    for (size_t i = 0; i < y.size(); ++i) {
      double sum = 2.5;
      double magnitude = 2.5;
      for (size_t j = 0; j < static_cast<size_t>(count); ++j) {
        sum += double{weights[j]} * rows[j][i];
        magnitude += std::fabs(double{weights[j]} * rows[j][i]);
      }
      EXPECT_NEAR(y[i], sum, (count + 2) * 2 * kUnit * magnitude);
    }
  }
}

TEST_P(Kernels, DotBlocks) {
  constexpr int64_t kN = 96;
  for (const ramp_dtype xt : {RAMP_F32, RAMP_F16, RAMP_BF16}) {
    for (const ramp_dtype wt : {RAMP_F32, RAMP_F16, RAMP_BF16}) {
      const std::vector<uint8_t> x = random_weights(xt, 4 * kN, 1);
      const std::vector<uint8_t> w = random_weights(wt, 4 * kN, 2);
      std::vector<float> out(4 * 7, -1.0F);
      DotArgs d{};
      for (int i = 0; i < 4; ++i) {
        d.x[i] = x.data() + i * kN * dtype_bytes(xt);
        d.w[i] = w.data() + i * kN * dtype_bytes(wt);
      }
      d.out = out.data();
      d.n = kN;
      d.out_stride = 7;
      d.x_rows = 3;
      d.w_rows = 2;
      d.x_dtype = xt;
      d.w_dtype = wt;
      k.dot(&d);
      for (int64_t i = 0; i < 4; ++i) {
        for (int64_t j = 0; j < 7; ++j) {
          const float got = out[static_cast<size_t>(i * 7 + j)];
          if (i >= 3 || j >= 2) {
            EXPECT_EQ(got, -1.0F);
            continue;
          }
          double sum = 0;
          double magnitude = 0;
          for (int64_t c = 0; c < kN; ++c) {
            const double term =
                double{load_f32(x.data(), xt, i * kN + c)} * load_f32(w.data(), wt, j * kN + c);
            sum += term;
            magnitude += std::fabs(term);
          }
          EXPECT_NEAR(got, sum, kN * kUnit * magnitude);
        }
      }
    }
  }
}

}  // namespace
}  // namespace ramp::core
