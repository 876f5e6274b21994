// The GEMM of one panel, on every ISA level, all ways that it has: fp32, bf16 dot products, the matrix unit;
// direct, decoded, scaled. Against fp64 with derived bounds, and bit for bit against itself.
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <cstring>
#include <vector>

#include "cpu/kernels.hpp"

namespace ramp::core {
namespace {

using namespace cpu_test;  // NOLINT(google-build-using-namespace)

class Gemm : public IsaTest {};
INSTANTIATE_TEST_SUITE_P(Isa, Gemm, isa_levels(), isa_name);

// A panel [depth][32] as kernels want it: see kernel_table.hpp.
std::vector<uint8_t> to_panel(const std::vector<uint8_t>& plain, ramp_dtype dtype, int depth) {
  const int width = static_cast<int>(dtype_bytes(dtype));
  const int pack = dtype == RAMP_E4M3 ? 4 : dtype == RAMP_BF16 ? 2 : 1;
  std::vector<uint8_t> panel(plain.size());
  for (int k = 0; k < depth; ++k) {
    for (int lane = 0; lane < kPanelRows; ++lane) {
      const int to = (k / pack * kPanelRows + lane) * pack + k % pack;
      std::memcpy(panel.data() + to * width, plain.data() + (k * kPanelRows + lane) * width,
                  static_cast<size_t>(width));
    }
  }
  return panel;
}

// One panel times up to 45 rows, all ways that a level has.
struct GemmCase {
  static constexpr int kDepth = 416;  // three whole scale groups and one of 32
  static constexpr int kGroups = 4;
  static constexpr int kRows = 45;
  ramp_dtype dtype;
  bool scaled = false;
  std::vector<uint8_t> plain, panel;
  std::vector<float> rows = std::vector<float>(size_t{kMaxTileM} * kRowStride);
  std::vector<float> scales = std::vector<float>(size_t{kGroups} * kMaxTileM);
  std::vector<float> w_scale[2];

  GemmCase(ramp_dtype type, bool with_scales) : dtype(type), scaled(with_scales) {
    plain = random_weights(dtype, int64_t{kDepth} * kPanelRows, 9);
    if (dtype == RAMP_E4M3) {
      // Subnormals and zeros of both signs.
      for (size_t i = 0; i < 64; ++i) plain[i * 7] = static_cast<uint8_t>((i % 8) | (i % 16 < 8 ? 0x80 : 0));
    }
    panel = to_panel(plain, dtype, kDepth);
    // Values of x as the formats have them: e4m3 codes, or bf16 (which f16 and f32 take as well).
    for (size_t i = 0; i < rows.size(); ++i) {
      const auto v = static_cast<float>(random_normal(3, i));
      rows[i] = dtype == RAMP_E4M3 ? e4m3_to_f32(f32_to_e4m3(v)) : bf16_to_f32(f32_to_bf16(v));
    }
    for (size_t i = 0; i < scales.size(); ++i) scales[i] = 0.5F + static_cast<float>(i % 37) / 16;
    for (int half = 0; half < 2; ++half) {
      for (int group = 0; group < kGroups; ++group) {
        w_scale[half].push_back(1.25F - 0.5F * static_cast<float>(half) + 0.125F * static_cast<float>(group));
      }
    }
  }

  struct Way {
    bool dot = false, nan_codes = false;
    int prefetch = 0;
    const void* w = nullptr;            // instead of the panel,
    ramp_dtype type = RAMP_DTYPE_NONE;  // of this type
  };
  std::vector<float> run(const CpuKernels& k, int first, int count, const Way& way) const {
    std::vector<float> c(size_t{kMaxTileM} * kPanelRows, 0.25F);
    std::vector<uint16_t> packed_rows(size_t{kMaxTileM} * kRowStride);
    std::vector<uint32_t> decoded(size_t{kScaleGroup} * kPanelRows);
    for (int i = 0; i < count && way.dot; ++i) {
      const LoadArgs l{rows.data() + (first + i) * kRowStride,
                       packed_rows.data() + i * kRowStride,
                       kDepth,
                       RAMP_F32,
                       RAMP_F32,
                       kLoadPlain,
                       dtype == RAMP_E4M3 ? kRowBf16Quads : kRowBf16,
                       1.0F,
                       1.0F};
      k.load_row(&l);
    }
    GemmArgs g{};
    g.w = way.w != nullptr ? way.w : panel.data();
    g.w_dtype = way.w != nullptr ? way.type : dtype;
    g.a = way.dot ? static_cast<const void*>(packed_rows.data()) : rows.data() + first * kRowStride;
    g.c = c.data();
    g.c_stride = kPanelRows;
    g.rows = count;
    g.depth = kDepth;
    g.dot = way.dot ? 1 : 0;
    g.nan_codes = way.nan_codes ? 1 : 0;
    g.prefetch = way.prefetch;
    g.decoded = decoded.data();
    g.scales = scaled ? scales.data() + first : nullptr;
    g.w_scale[0] = w_scale[0].data();
    g.w_scale[1] = w_scale[1].data();
    const bool set_up = way.dot && k.begin_dot != nullptr;
    if (set_up) k.begin_dot(count);
    k.gemm(&g);
    if (set_up) k.end_dot();
    return c;
  }

  // |error| <= (terms + a few) units of the magnitudes' sum, whatever the order of the additions.
  void expect_near(const std::vector<float>& c, int count) const {
    for (int i = 0; i < count; ++i) {
      for (int lane = 0; lane < kPanelRows; ++lane) {
        double sum = 0.25;
        double magnitude = 0.25;
        for (int d = 0; d < kDepth; ++d) {
          const auto group = static_cast<size_t>(d / kScaleGroup);
          const double scale = scaled ? double{scales[group * kMaxTileM + static_cast<size_t>(i)]} *
                                            double{w_scale[lane / 16][group]}
                                      : 1.0;
          const double term = double{rows[static_cast<size_t>(i * kRowStride + d)]} *
                              load_f32(plain.data(), dtype, d * kPanelRows + lane) * scale;
          sum += term;
          magnitude += std::fabs(term);
        }
        const double bound = (kDepth + kGroups + 4) * kUnit * magnitude;
        ASSERT_NEAR(c[static_cast<size_t>(i * kPanelRows + lane)], sum, bound) << i << " " << lane;
      }
    }
  }
  // The same bits for a row whatever rows it is computed with.
  void expect_independent(const CpuKernels& k, const Way& way) const {
    const std::vector<float> all = run(k, 0, kRows, way);
    expect_near(all, kRows);
    for (int count = 1; count <= 40; ++count) {
      const std::vector<float> part = run(k, 5, count, way);
      ASSERT_TRUE(std::equal(part.begin(), part.begin() + count * kPanelRows, all.begin() + 5 * kPanelRows))
          << count << " rows";
    }
    Way ahead = way;
    ahead.prefetch = 256;
    EXPECT_EQ(run(k, 0, kRows, ahead), all) << "with prefetch";
  }
};

TEST_P(Gemm, MatchesFp64AndIsIndependentOfItsNeighbours) {
  for (const ramp_dtype dtype : {RAMP_F32, RAMP_F16, RAMP_BF16, RAMP_E4M3}) {
    for (const bool scaled : {false, true}) {
      SCOPED_TRACE(std::to_string(dtype) + (scaled ? " scaled" : ""));
      const GemmCase c(dtype, scaled);
      c.expect_independent(k, {});
      if (dtype != RAMP_F16 && dtype != RAMP_E4M3) continue;
      std::vector<float> decoded(size_t{GemmCase::kDepth} * kPanelRows);
      k.decode_panel(c.panel.data(), dtype, GemmCase::kDepth, 0, decoded.data());
      for (size_t i = 0; i < decoded.size(); ++i) {
        ASSERT_EQ(decoded[i], load_f32(c.plain.data(), dtype, static_cast<int64_t>(i)));
      }
      GemmCase::Way way;
      way.w = decoded.data();
      way.type = RAMP_F32;
      EXPECT_EQ(c.run(k, 0, c.kRows, way), c.run(k, 0, c.kRows, {})) << "decoded first";
    }
  }
}

TEST_P(Gemm, DotProductsMatchFp64AndAreIndependentOfTheirNeighbours) {
  if (k.has_dot == 0) GTEST_SKIP() << k.isa << " has no bf16 dot products";
  for (const ramp_dtype dtype : {RAMP_BF16, RAMP_E4M3}) {
    for (const bool scaled : {false, true}) {
      SCOPED_TRACE(std::to_string(dtype) + (scaled ? " scaled" : ""));
      const GemmCase c(dtype, scaled);
      GemmCase::Way way;
      way.dot = true;
      c.expect_independent(k, way);
      const std::vector<float> expected = c.run(k, 0, c.kRows, way);
      way.nan_codes = true;
      EXPECT_EQ(c.run(k, 0, c.kRows, way), expected) << "with the decoder that knows NaN";
      // Checkpoint rows, decoded to pairs first.
      way.nan_codes = false;
      std::vector<uint8_t> rows(c.plain.size());
      const int width = static_cast<int>(dtype_bytes(dtype));
      for (int d = 0; d < c.kDepth; ++d) {
        for (int lane = 0; lane < kPanelRows; ++lane) {
          std::memcpy(rows.data() + (lane * c.kDepth + d) * width,
                      c.plain.data() + (d * kPanelRows + lane) * width, static_cast<size_t>(width));
        }
      }
      std::vector<uint32_t> pairs(size_t{GemmCase::kDepth} / 2 * kPanelRows);
      k.decode_rows(rows.data(), rows.data() + 16 * c.kDepth * width, c.kDepth, dtype, c.kDepth, 1,
                    pairs.data());
      way.w = pairs.data();
      way.type = RAMP_BF16;
      EXPECT_EQ(c.run(k, 0, c.kRows, way), expected) << "from rows";
    }
  }
}

// All 256 codes, one at a time, against x = 1: what the register decoders make of them.
TEST_P(Gemm, DotProductsDecodeEveryCode) {
  if (k.has_dot == 0) GTEST_SKIP() << k.isa << " has no bf16 dot products";
  GemmCase c(RAMP_E4M3, false);
  for (int code = 0; code < 256; ++code) {
    const bool nan = (code & 0x7f) == 0x7f;
    for (int at = 0; at < 4; ++at) {
      std::fill(c.panel.begin(), c.panel.end(), uint8_t{0});
      for (int lane = 0; lane < kPanelRows; ++lane) {
        c.panel[static_cast<size_t>(lane * 4 + at)] = static_cast<uint8_t>(code);
      }
      std::fill(c.rows.begin(), c.rows.end(), 1.0F);
      for (const bool with_nan : {false, true}) {
        if (nan && !with_nan) continue;  // promised not to occur
        GemmCase::Way way;
        way.dot = true;
        way.nan_codes = with_nan;
        const float got = c.run(k, 0, 1, way)[17];
        ASSERT_TRUE(same(got, 0.25F + e4m3_to_f32(static_cast<uint8_t>(code)))) << code << " at " << at;
      }
    }
  }
}

TEST_P(Gemm, LoadsRowsAsBf16) {
  if (k.has_dot == 0) GTEST_SKIP() << k.isa << " has no bf16 dot products";
  constexpr int64_t n = 544;
  std::vector<uint8_t> codes(n);
  std::vector<uint16_t> wide(n);
  for (size_t i = 0; i < codes.size(); ++i) {
    codes[i] = static_cast<uint8_t>(i * 5);
    wide[i] = f32_to_bf16(static_cast<float>(random_normal(8, i)));
  }
  std::vector<uint16_t> out(n);
  LoadArgs l{wide.data(), out.data(), n, RAMP_BF16, RAMP_F32, kLoadPlain, kRowBf16, 1.0F, 1.0F};
  k.load_row(&l);
  EXPECT_EQ(out, wide);
  l.op = kLoadScaled;
  l.round_to = RAMP_BF16;
  l.factor = 0.7F;
  k.load_row(&l);
  for (size_t i = 0; i < n; ++i) ASSERT_EQ(out[i], f32_to_bf16(bf16_to_f32(wide[i]) * 0.7F));
  l = {codes.data(), out.data(), n, RAMP_E4M3, RAMP_F32, kLoadPlain, kRowBf16Quads, 1.0F, 1.0F};
  k.load_row(&l);
  for (size_t i = 0; i < n; ++i) {
    const size_t from = i % 4 == 1 ? i + 1 : i % 4 == 2 ? i - 1 : i;
    ASSERT_TRUE(same(bf16_to_f32(out[i]), e4m3_to_f32(codes[from]) * kQuadScale)) << i;
  }
}

}  // namespace
}  // namespace ramp::core
