// Legality: the limits of the hardware are met by every legal config, every rejection has a reason with
// numbers, and the residency is what the limits allow.
#include "geometry/legality.hpp"

#include <gtest/gtest.h>

#include <set>

#include "base/error.hpp"

namespace ramp::core {
namespace {

class LegalityOfModels : public testing::TestWithParam<std::tuple<const char*, ramp_format, Orientation>> {};
TEST_P(LegalityOfModels, LegalConfigsRespectEveryLimit) {
  const auto& [name, format, orientation] = GetParam();
  const ModelShape model = parse_model(name);
  const HardwareConstants& hw = h200();
  size_t legal = 0;
  std::set<std::string> names;
  for (const EnumeratedConfig& e : enumerate_wgmma(model, format, orientation, hw)) {
    EXPECT_TRUE(names.insert(config_name(e.config)).second);
    if (!e.rejection.empty()) continue;
    ++legal;
    const BlockResources r = block_resources(e.config, format, orientation);
    const int32_t blocks = residency(r, hw);
    ASSERT_GE(blocks, 1) << config_name(e.config);
    EXPECT_LE(blocks * (r.smem_bytes + hw.smem_reserved), hw.smem_per_sm);
    EXPECT_LE(int64_t{blocks} * r.threads * r.registers_per_thread, hw.registers_per_sm);
    EXPECT_LE(r.registers_per_thread, 255);
    EXPECT_EQ(e.config.tile_m % 8, 0);
  }
  // The published search has 134 configs per model; ours must not be poorer where packed tiles apply.
  const bool packable = model.hidden % 128 == 0 && model.intermediate % 128 == 0;
  if (packable && format != RAMP_FORMAT_F32 && orientation == Orientation::kSwapAB) {
    EXPECT_GE(legal, 134U);
  } else if (!packable || format == RAMP_FORMAT_F32) {
    EXPECT_EQ(legal, 0U);
  }
}
INSTANTIATE_TEST_SUITE_P(
    All, LegalityOfModels,
    testing::Combine(testing::Values("olmoe", "qwen3-30b", "mixtral-8x22b", "dsv3", "gpt-oss-120b"),
                     testing::Values(RAMP_FORMAT_FP8_BLOCK, RAMP_FORMAT_BF16, RAMP_FORMAT_F32),
                     testing::Values(Orientation::kSwapAB, Orientation::kStandard)));

struct Refusal {
  const char* config;
  const char* model;
  ramp_format format;
  const char* expected;  // part of the reason
};
class Refusals : public testing::TestWithParam<Refusal> {};
TEST_P(Refusals, NameTheLimit) {
  const Refusal& r = GetParam();
  const std::string why =
      rejection(parse_config(r.config), parse_model(r.model), r.format, Orientation::kSwapAB, h200());
  EXPECT_NE(why.find(r.expected), std::string::npos) << "'" << why << "'";
}
INSTANTIATE_TEST_SUITE_P(
    Limits, Refusals,
    testing::Values(Refusal{"m12_n256_k128", "olmoe", RAMP_FORMAT_FP8_BLOCK, "tile_m 12"},
                    Refusal{"m16_n96_k128", "olmoe", RAMP_FORMAT_FP8_BLOCK, "tile_n 96"},
                    Refusal{"m16_n256_k64", "olmoe", RAMP_FORMAT_FP8_BLOCK, "scale block"},
                    Refusal{"m16_n256_k24", "olmoe", RAMP_FORMAT_BF16, "wgmma's k = 16"},
                    Refusal{"m128_n256_k128_s8", "olmoe", RAMP_FORMAT_FP8_BLOCK, "shared memory"},
                    Refusal{"m256_n256_k128_s2", "olmoe", RAMP_FORMAT_FP8_BLOCK, "registers per thread"},
                    Refusal{"m16_n256_k128_sk3", "olmoe", RAMP_FORMAT_FP8_BLOCK, "split_k 3"},
                    Refusal{"m8_n128_k128_s8_sk4", "olmoe", RAMP_FORMAT_FP8_BLOCK, "8 stages"},
                    Refusal{"m8_n512_k128", "256,8,7168,128", RAMP_FORMAT_FP8_BLOCK, "tile_n 512"},
                    Refusal{"m8_n256_k128", "128,4,2880,2880", RAMP_FORMAT_BF16, "multiple of 128"},
                    Refusal{"m8_n256_k128", "olmoe", RAMP_FORMAT_F32, "fp32"},
                    Refusal{"m8_n256_k128", "olmoe", RAMP_FORMAT_NONE, "no weight format"}));

// By hand: 128 threads x 64 registers = 8192 -> 8 blocks by registers; smem 20 KB + 1 KB -> 10; threads 16.
TEST(Residency, IsTheTightestLimit) {
  EXPECT_EQ(residency({20 << 10, 64, 128}, h200()), 8);
  EXPECT_EQ(residency({100 << 10, 64, 128}, h200()), 2);
  EXPECT_EQ(residency({1 << 10, 16, 1024}, h200()), 2);
  EXPECT_EQ(residency({1 << 10, 16, 32}, h200()), 32);
  EXPECT_EQ(residency({228 << 10, 16, 32}, h200()), 0);
}

TEST(Hardware, UnknownNameListsTheKnown) {
  EXPECT_EQ(find_hardware("h200").sm_count, 132);
  try {
    (void)find_hardware("b9000");
    FAIL();
  } catch (const Error& e) {
    EXPECT_NE(std::string(e.what()).find("h200"), std::string::npos);
  }
}

}  // namespace
}  // namespace ramp::core
