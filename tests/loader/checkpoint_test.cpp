// Checkpoints of every architecture, format and layout, made by the synthetic writer and read back: the
// loader must put each element where the ABI says it is. Expected values come from the generator's own
// definition (seed, name, index), not from the loader.
#include "loader/checkpoint.hpp"

#include <gtest/gtest.h>

#include <cmath>
#include <cstring>

#include "base/float_types.hpp"
#include "base/tensor.hpp"
#include "base/test_support.hpp"
#include "loader/synthetic_checkpoint.hpp"

namespace ramp::core {
namespace {

using test::TempDir;

constexpr uint64_t kSeed = 42;

struct Case {
  const char* architecture;
  ramp_format format;
  int64_t intermediate;
  int64_t shards;
  bool stacked, transposed;
  ramp_dtype scale_dtype;
};
std::string case_name(const ::testing::TestParamInfo<Case>& info) {
  const Case& c = info.param;
  return std::string(c.architecture) + "_" + format_name(c.format) + "_I" + std::to_string(c.intermediate) +
         "_s" + std::to_string(c.shards) + (c.stacked ? "_stacked" : "") +
         (c.transposed ? "_transposed" : "") + (c.scale_dtype == RAMP_BF16 ? "_bf16scale" : "");
}
SyntheticOptions options_of(const Case& c) {
  SyntheticOptions o;
  o.architecture = c.architecture;
  o.shape = {"", 8, 2, 192, c.intermediate};
  o.format = c.format;
  o.layers = 2;
  o.seed = kSeed;
  o.shards = c.shards;
  o.stacked = c.stacked;
  o.transposed = c.transposed;
  o.scale_dtype = c.scale_dtype;
  return o;
}

class Checkpoints : public ::testing::TestWithParam<Case> {};

// The generator's value of element (row, col) of one expert's matrix.
double made_up(const std::string& name, int64_t row, int64_t col, int64_t cols) {
  return static_cast<double>(synthetic_value(kSeed, name, row * cols + col) /
                             std::sqrt(static_cast<float>(cols)));
}

// |loaded - made up| allowed: half a unit of the storage type; for e4m3, of a code in the block's scale
// (relative 2^-4 for normal codes, 2^-10 steps for subnormal ones), plus a bf16 scale's own rounding (2^-8),
// plus fp32 division.
double tolerance(const Case& c, double value, double scale) {
  switch (c.format) {
    case RAMP_FORMAT_F32:
      return std::fabs(value) * 0x1p-22;  // the division by sqrt(cols) against the generator's multiplication
    case RAMP_FORMAT_BF16:
      return std::fabs(value) * (0x1p-8 + 0x1p-22);
    case RAMP_FORMAT_F16:
      return std::max(std::fabs(value) * (0x1p-11 + 0x1p-22), 0x1p-25);
    default:
      return std::max(std::fabs(value) * 0x1p-4, scale * 0x1p-10) * (1 + 0x1p-20) +
             (c.scale_dtype == RAMP_BF16 ? std::fabs(value) * 1.07 * 0x1p-8 : 0.0);
  }
}

TEST_P(Checkpoints, EveryElementIsInItsPlace) {
  const Case& c = GetParam();
  const TempDir dir;
  double last_progress = 0;
  write_demo_checkpoint(dir / "m", options_of(c), [&](double fraction) {
    EXPECT_GE(fraction, last_progress);
    last_progress = fraction;
  });
  EXPECT_EQ(last_progress, 1.0);
  const Checkpoint checkpoint(dir / "m");
  EXPECT_EQ(checkpoint.num_layers(), 2);
  EXPECT_EQ(checkpoint.first_moe_layer(), 0);

  const LayerInfo info = checkpoint.layer_info(1);
  EXPECT_STREQ(info.info.architecture, c.architecture);
  EXPECT_EQ(info.info.format, c.format);
  EXPECT_EQ(info.info.num_experts, 8);
  EXPECT_EQ(info.info.top_k, 2);
  EXPECT_EQ(info.info.hidden, 192);
  EXPECT_EQ(info.info.intermediate, c.intermediate);
  EXPECT_EQ(info.info.num_layers, 2);
  EXPECT_EQ(info.shared.intermediate, 0);
  const bool mixtral = std::string(c.architecture) == "mixtral";
  const std::string base = mixtral ? "model.layers.1.block_sparse_moe." : "model.layers.1.mlp.";
  const ramp_tensor& router = info.info.router_weight;
  ASSERT_EQ(shape_text(router), "bf16 [8, 192]");
  for (int64_t i = 0; i < 8 * 192; ++i) {
    const double expected = made_up(base + "gate.weight", i / 192, i % 192, 192);
    ASSERT_NEAR(load_f32(router.data, RAMP_BF16, i), expected, std::fabs(expected) * (0x1p-8 + 0x1p-22));
  }
  EXPECT_EQ(present(info.info.router.selection_bias), std::string(c.architecture) == "deepseek_v3");

  // Experts 3..6 of layer 1, as an expert-parallel rank would load them.
  const LoadedLayer layer = load_layer(checkpoint, 1, 3, 4);
  const ramp_weights_desc& d = layer.desc;
  const int64_t h = 192;
  const int64_t i = c.intermediate;
  EXPECT_EQ(d.struct_size, sizeof(ramp_weights_desc));
  EXPECT_EQ(d.format, c.format);
  EXPECT_EQ(d.activation, RAMP_ACTIVATION_SILU_AND_MUL);
  EXPECT_EQ(d.num_experts, 4);
  EXPECT_EQ(d.hidden, h);
  EXPECT_EQ(d.intermediate, i);
  EXPECT_EQ(d.w13.data, layer.w13.data());
  ASSERT_EQ(d.w13.shape[1], 2 * i);
  ASSERT_EQ(d.w2.shape[2], i);
  const bool fp8 = c.format == RAMP_FORMAT_FP8_BLOCK;
  EXPECT_EQ(present(d.w13_scale), fp8);
  const int64_t hb = (h + 127) / 128;
  const int64_t ib = (i + 127) / 128;
  if (fp8) {
    EXPECT_EQ(shape_text(d.w13_scale), "f32 [4, " + std::to_string(2 * ib) + ", " + std::to_string(hb) + "]");
    EXPECT_EQ(shape_text(d.w2_scale), "f32 [4, " + std::to_string(hb) + ", " + std::to_string(ib) + "]");
  }
  const char* names[3] = {mixtral ? "w1" : "gate_proj", mixtral ? "w3" : "up_proj",
                          mixtral ? "w2" : "down_proj"};
  const auto dtype = static_cast<ramp_dtype>(d.w13.dtype);
  for (int64_t e = 0; e < 4; ++e) {
    for (int kind = 0; kind < 3; ++kind) {
      const std::string name = base + "experts." + std::to_string(3 + e) + "." + names[kind] + ".weight";
      const int64_t rows = kind == 2 ? h : i;
      const int64_t cols = kind == 2 ? i : h;
      const int64_t row_blocks = kind == 2 ? hb : ib;
      const int64_t col_blocks = kind == 2 ? ib : hb;
      for (int64_t r = 0; r < rows; ++r) {
        for (int64_t k = 0; k < cols; ++k) {
          double scale = 1;
          if (fp8) {
            const int64_t block = (r / 128) * col_blocks + k / 128;
            scale = kind == 2 ? static_cast<double>(
                                    layer.w2_scale[static_cast<size_t>(e * row_blocks * col_blocks + block)])
                              : static_cast<double>(layer.w13_scale[static_cast<size_t>(
                                    (2 * e + kind) * row_blocks * col_blocks + block)]);
          }
          const int64_t at = kind == 2 ? (e * h + r) * i + k : ((2 * e + kind) * i + r) * h + k;
          const double got =
              static_cast<double>(load_f32(kind == 2 ? d.w2.data : d.w13.data, dtype, at)) * scale;
          const double expected = made_up(name, r, k, cols);
          ASSERT_NEAR(got, expected, tolerance(c, expected, scale)) << name << " " << r << " " << k;
        }
      }
    }
  }
}

constexpr Case kCases[] = {
    // Every architecture in bf16 and in block-fp8; I = 192 has short scale blocks (gate and up quantised
    // apart).
    {"olmoe", RAMP_FORMAT_BF16, 96, 1, false, false, RAMP_F32},
    {"olmoe", RAMP_FORMAT_FP8_BLOCK, 192, 1, false, false, RAMP_F32},
    {"mixtral", RAMP_FORMAT_BF16, 96, 1, false, false, RAMP_F32},
    {"mixtral", RAMP_FORMAT_FP8_BLOCK, 192, 3, false, false, RAMP_F32},
    {"qwen2_moe", RAMP_FORMAT_BF16, 64, 1, false, false, RAMP_F32},
    {"qwen3_moe", RAMP_FORMAT_BF16, 64, 2, false, false, RAMP_F32},
    {"qwen3_moe", RAMP_FORMAT_FP8_BLOCK, 128, 2, false, false, RAMP_BF16},
    {"deepseek_v2", RAMP_FORMAT_BF16, 64, 1, false, false, RAMP_F32},
    {"deepseek_v3", RAMP_FORMAT_BF16, 64, 1, false, false, RAMP_F32},
    {"deepseek_v3", RAMP_FORMAT_FP8_BLOCK, 256, 4, false, false, RAMP_F32},
    // Formats.
    {"olmoe", RAMP_FORMAT_F16, 64, 1, false, false, RAMP_F32},
    {"olmoe", RAMP_FORMAT_F32, 64, 1, false, false, RAMP_F32},
    // Stacked, both orientations; I = 96 makes gate_up square (2I = H), where only down_proj tells the
    // orientation.
    {"qwen3_moe", RAMP_FORMAT_BF16, 96, 1, true, false, RAMP_F32},
    {"qwen3_moe", RAMP_FORMAT_BF16, 96, 1, true, true, RAMP_F32},
    {"mixtral", RAMP_FORMAT_F32, 64, 1, true, true, RAMP_F32},
    {"olmoe", RAMP_FORMAT_BF16, 192, 2, true, true, RAMP_F32},
    {"deepseek_v3", RAMP_FORMAT_FP8_BLOCK, 128, 1, true, false, RAMP_F32},
    {"deepseek_v3", RAMP_FORMAT_FP8_BLOCK, 256, 1, true, true, RAMP_BF16},
};
INSTANTIATE_TEST_SUITE_P(All, Checkpoints, ::testing::ValuesIn(kCases), case_name);

TEST(Checkpoint, StackedHoldsTheSameExpertsAsSplit) {
  const TempDir dir;
  const Case split{"qwen3_moe", RAMP_FORMAT_FP8_BLOCK, 256, 1, false, false, RAMP_F32};
  write_demo_checkpoint(dir / "split", options_of(split));
  const LoadedLayer a = load_layer(Checkpoint(dir / "split"), 0);
  for (const bool transposed : {false, true}) {
    Case stacked = split;
    stacked.stacked = true;
    stacked.transposed = transposed;
    write_demo_checkpoint(dir / (transposed ? "t" : "s"), options_of(stacked));
    const LoadedLayer b = load_layer(Checkpoint(dir / (transposed ? "t" : "s")), 0);
    ASSERT_EQ(a.w13.size(), b.w13.size());
    EXPECT_EQ(std::memcmp(a.w13.data(), b.w13.data(), a.w13.size()), 0);
    EXPECT_EQ(std::memcmp(a.w2.data(), b.w2.data(), a.w2.size()), 0);
    EXPECT_EQ(a.w13_scale, b.w13_scale);
    EXPECT_EQ(a.w2_scale, b.w2_scale);
  }
}

TEST(Checkpoint, LayersAndExpertsDiffer) {
  const TempDir dir;
  write_demo_checkpoint(dir / "m", options_of(kCases[0]));
  const Checkpoint c(dir / "m");
  const LoadedLayer zero = load_layer(c, 0);
  const LoadedLayer one = load_layer(c, 1);
  EXPECT_NE(std::memcmp(zero.w13.data(), one.w13.data(), zero.w13.size()), 0);
  const LoadedLayer tail = load_layer(c, 1, 6);  // 0 experts: all that remain
  EXPECT_EQ(tail.desc.num_experts, 2);
  const size_t expert = one.w13.size() / 8;
  EXPECT_EQ(std::memcmp(tail.w13.data(), one.w13.as<std::byte>() + 6 * expert, 2 * expert), 0);
  EXPECT_NE(std::memcmp(one.w13.data(), one.w13.as<std::byte>() + expert, expert), 0);
}

TEST(Checkpoint, RoutersOfTheFamilies) {
  const TempDir dir;
  SyntheticOptions o = options_of(kCases[0]);
  o.architecture = "deepseek_v3";
  write_demo_checkpoint(dir / "v3", o);
  const Checkpoint v3(dir / "v3");
  const LayerInfo info = v3.layer_info(0);
  const ramp_router_config& r = info.info.router;
  EXPECT_EQ(r.scoring, RAMP_SCORING_SIGMOID);
  EXPECT_EQ(r.num_groups, 4);
  EXPECT_EQ(r.topk_groups, 2);
  EXPECT_EQ(r.group_score, RAMP_GROUP_SCORE_TOP2_SUM);
  EXPECT_EQ(r.routed_scaling_factor, 2.5F);
  ASSERT_EQ(shape_text(r.selection_bias), "f32 [8]");
  for (int64_t e = 0; e < 8; ++e)
    EXPECT_NEAR(load_f32(r.selection_bias.data, RAMP_F32, e),
                made_up("model.layers.0.mlp.gate.e_score_correction_bias", 0, e, 8), 1e-6);
  o.architecture = "mixtral";
  write_demo_checkpoint(dir / "mixtral", o);
  EXPECT_EQ(Checkpoint(dir / "mixtral").layer_info(0).info.router.renormalize, 1);
  o.architecture = "olmoe";
  write_demo_checkpoint(dir / "olmoe", o);
  EXPECT_EQ(Checkpoint(dir / "olmoe").layer_info(0).info.router.renormalize, 0);
}

TEST(Checkpoint, SharedExpertsAppendedAsExperts) {
  const TempDir dir;
  for (const ramp_format format : {RAMP_FORMAT_BF16, RAMP_FORMAT_FP8_BLOCK}) {
    SyntheticOptions o = options_of(kCases[0]);
    o.architecture = "deepseek_v3";
    o.format = format;
    o.shape.intermediate = 128;
    o.shared_experts = 2;
    const std::string path = dir / format_name(format);
    write_demo_checkpoint(path, o);
    const Checkpoint c(path);
    const LayerInfo info = c.layer_info(0);
    EXPECT_EQ(info.shared.experts, 2);
    EXPECT_EQ(info.shared.intermediate, 256);
    EXPECT_FALSE(info.shared.gated);
    EXPECT_EQ(info.info.router.num_shared_experts, 0);
    EXPECT_EQ(info.info.num_experts, 8);
    const LoadedLayer plain = load_layer(c, 0);
    EXPECT_EQ(plain.desc.num_experts, 8);
    EXPECT_EQ(plain.shared_experts, 0);
    const LoadedLayer fused = load_layer(c, 0, 0, 0, {.append_shared_experts = true});
    ASSERT_EQ(fused.desc.num_experts, 10);
    EXPECT_EQ(fused.shared_experts, 2);
    EXPECT_EQ(std::memcmp(fused.w13.data(), plain.w13.data(), plain.w13.size()), 0);
    EXPECT_EQ(std::memcmp(fused.w2.data(), plain.w2.data(), plain.w2.size()), 0);
    // Part p holds rows [128 p, ..) of gate and up, columns [128 p, ..) of down; each is one scale block wide
    // here.
    const auto dtype = static_cast<ramp_dtype>(fused.desc.w13.dtype);
    const bool fp8 = format == RAMP_FORMAT_FP8_BLOCK;
    const std::string base = "model.layers.0.mlp.shared_experts.";
    const Case tol{"", format, 0, 0, false, false, RAMP_F32};
    for (int64_t p = 0; p < 2; ++p) {
      for (int64_t r = 0; r < 128; ++r) {
        for (int64_t k = 0; k < 192; ++k) {
          for (int64_t kind = 0; kind < 2; ++kind) {
            const double scale =
                fp8 ? static_cast<double>(
                          fused.w13_scale[static_cast<size_t>(((8 + p) * 2 + kind) * 2 + k / 128)])
                    : 1.0;
            const double expected =
                made_up(base + (kind == 0 ? "gate_proj" : "up_proj") + ".weight", 128 * p + r, k, 192);
            const int64_t at = (((8 + p) * 2 + kind) * 128 + r) * 192 + k;
            ASSERT_NEAR(load_f32(fused.desc.w13.data, dtype, at) * scale, expected,
                        tolerance(tol, expected, scale));
          }
          const double scale =
              fp8 ? static_cast<double>(fused.w2_scale[static_cast<size_t>((8 + p) * 2 + k / 128)]) : 1.0;
          const double expected = made_up(base + "down_proj.weight", k, 128 * p + r, 256);
          ASSERT_NEAR(load_f32(fused.desc.w2.data, dtype, ((8 + p) * 192 + k) * 128 + r) * scale, expected,
                      tolerance(tol, expected, scale));
        }
      }
    }
  }
}

TEST(Checkpoint, DenseLayersAreSkipped) {
  const TempDir dir;
  SyntheticOptions o = options_of(kCases[0]);
  o.architecture = "deepseek_v3";
  o.dense_layers = 1;
  write_demo_checkpoint(dir / "m", o);
  const Checkpoint c(dir / "m");
  EXPECT_EQ(c.first_moe_layer(), 1);
  EXPECT_EQ(c.layer_info(1).info.num_experts, 8);
  test::expect_error(RAMP_ERROR_INVALID_ARGUMENT, {"layer: got 0, which is dense", "the first one is 1"},
                     [&] { static_cast<void>(c.layer_info(0)); });
}

TEST(Checkpoint, LoneSafetensorsFile) {
  const TempDir dir;
  const Case v3{"deepseek_v3", RAMP_FORMAT_BF16, 64, 1, false, false, RAMP_F32};
  write_demo_checkpoint(dir / "m", options_of(v3));
  const std::string file = dir / "m/model.safetensors";
  EXPECT_STREQ(Checkpoint(file).layer_info(0).info.architecture, "deepseek_v3");  // config.json beside it
  std::filesystem::rename(file, dir / "lone.safetensors");
  const Checkpoint c(dir / "lone.safetensors");
  const LayerInfo info = c.layer_info(1);
  EXPECT_STREQ(info.info.architecture, "unknown");
  EXPECT_EQ(info.info.num_experts, 8);
  EXPECT_EQ(info.info.top_k, 0);
  EXPECT_EQ(info.info.num_layers, 2);
  EXPECT_TRUE(present(info.info.router_weight));
  EXPECT_TRUE(present(info.info.router.selection_bias));
  EXPECT_EQ(load_layer(c, 1).desc.num_experts, 8);
}

TEST(Synthetic, ValuesAreReproducibleAndOfUnitVariance) {
  double sum = 0;
  double squares = 0;
  constexpr int kCount = 50000;
  for (int i = 0; i < kCount; ++i) {
    const double v = synthetic_value(1, "name", i);
    sum += v;
    squares += v * v;
  }
  EXPECT_LT(std::fabs(sum / kCount), 5.0 / std::sqrt(kCount));
  EXPECT_LT(std::fabs(squares / kCount - 1.0), 5.0 * std::sqrt(2.0 / kCount));
  EXPECT_NE(synthetic_value(1, "name", 0), synthetic_value(2, "name", 0));
  EXPECT_NE(synthetic_value(1, "name", 0), synthetic_value(1, "name2", 0));
  EXPECT_EQ(synthetic_value(1, "name", 0), synthetic_value(1, "name", 0));
}

}  // namespace
}  // namespace ramp::core
