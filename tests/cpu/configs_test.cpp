// The configs that the CPU backend offers: enough of them for every known model, all legal, each rejection
// with a reason; the default is always legal and follows the histogram.
#include "backend/cpu/configs.hpp"

#include <gtest/gtest.h>

#include <set>
#include <string>
#include <vector>

#include "base/error.hpp"

namespace ramp::core {
namespace {

constexpr ramp_format kFormats[] = {RAMP_FORMAT_FP8_BLOCK, RAMP_FORMAT_BF16,       RAMP_FORMAT_F16,
                                    RAMP_FORMAT_F32,       RAMP_FORMAT_FP8_TENSOR, RAMP_FORMAT_FP8_CHANNEL};

class Models : public testing::TestWithParam<ModelShape> {};
INSTANTIATE_TEST_SUITE_P(Known, Models, testing::ValuesIn(known_models().begin(), known_models().end()),
                         [](const auto& p) {
                           std::string n = p.param.name;
                           for (char& c : n)
                             if (std::isalnum(static_cast<unsigned char>(c)) == 0) c = '_';
                           return n;
                         });

TEST_P(Models, OfferAtLeast24DistinctLegalConfigs) {
  for (const ramp_format f : kFormats) {
    for (const auto a : {RAMP_ACTIVATION_SILU_AND_MUL, RAMP_ACTIVATION_RELU2}) {
      const ConfigList list = cpu_configs(GetParam(), f, a, true);
      EXPECT_GE(list.legal.size(), 24U);
      std::set<std::string> names;
      for (const KernelConfig& c : list.legal) {
        EXPECT_TRUE(names.insert(config_name(c)).second) << config_name(c);
        EXPECT_EQ(parse_config(config_name(c)), c);
        EXPECT_EQ(cpu_config_rejection(c, GetParam(), f, a), "");
        EXPECT_TRUE(cpu_config_legal(c, GetParam().hidden, GetParam().intermediate, f, a));
      }
      EXPECT_FALSE(list.rejected.empty());
      for (const RejectedConfig& r : list.rejected) {
        EXPECT_FALSE(r.reason.empty());
        EXPECT_FALSE(cpu_config_legal(r.config, GetParam().hidden, GetParam().intermediate, f, a));
      }
      EXPECT_TRUE(cpu_configs(GetParam(), f, a, false).rejected.empty());
    }
  }
}

TEST(Configs, EveryParameterVaries) {
  const ConfigList list =
      cpu_configs(parse_model("olmoe"), RAMP_FORMAT_BF16, RAMP_ACTIVATION_SILU_AND_MUL, false);
  std::set<int32_t> m;
  std::set<int32_t> n;
  std::set<int32_t> k;
  std::set<int32_t> split;
  std::set<int32_t> stages;
  std::set<TaskOrder> orders;
  for (const KernelConfig& c : list.legal) {
    m.insert(c.tile_m);
    n.insert(c.tile_n);
    k.insert(c.tile_k);
    split.insert(c.split_k);
    stages.insert(c.stages);
    orders.insert(c.order);
  }
  EXPECT_GE(m.size(), 4U);
  EXPECT_GE(n.size(), 3U);
  EXPECT_GE(k.size(), 2U);
  EXPECT_GE(split.size(), 2U);
  EXPECT_GE(stages.size(), 2U);
  EXPECT_EQ(orders.size(), 3U);
}

TEST(Configs, TinyShapesHaveSome) {
  for (const ramp_format f : kFormats) {
    for (const auto a : {RAMP_ACTIVATION_SILU_AND_MUL, RAMP_ACTIVATION_RELU2}) {
      const ModelShape tiny{"", 1, 1, 32, 32};
      EXPECT_FALSE(cpu_configs(tiny, f, a, false).legal.empty());
      const std::vector<int32_t> histogram = {100};
      const KernelConfig c = cpu_default_config(histogram, 32, 32, f, a, RAMP_REPEATABLE, 64);
      EXPECT_EQ(cpu_config_rejection(c, tiny, f, a), "") << config_name(c);
    }
  }
}

TEST(Configs, RejectionsNameTheNumbers) {
  const ModelShape model = parse_model("64,8,2048,1024");
  const auto reason = [&](const char* name, ramp_format f = RAMP_FORMAT_BF16) {
    return cpu_config_rejection(parse_config(name), model, f, RAMP_ACTIVATION_SILU_AND_MUL);
  };
  EXPECT_EQ(reason("m8_n64_k128"), "");
  EXPECT_NE(reason("m129_n64_k128").find("tile_m 129"), std::string::npos);
  EXPECT_NE(reason("m8_n48_k128").find("tile_n 48"), std::string::npos);
  EXPECT_NE(reason("m8_n2048_k128").find("tile_n 2048"), std::string::npos);
  EXPECT_NE(reason("m8_n64_k48").find("tile_k 48"), std::string::npos);
  EXPECT_EQ(reason("m8_n64_k64"), "");
  EXPECT_NE(reason("m8_n64_k64", RAMP_FORMAT_FP8_BLOCK).find("128-deep scale group"), std::string::npos);
  EXPECT_NE(reason("m8_n64_k128_sk16").find("split_k 16"), std::string::npos);
  EXPECT_NE(reason("m16_n64_k128_sk2").find("few rows"), std::string::npos);
  EXPECT_NE(reason("m8_n64_k512_sk8").find("4 depth steps"), std::string::npos);
  EXPECT_NE(reason("m16_n64_k128_s65").find("stages 65"), std::string::npos);
  EXPECT_NE(reason("m8_n64_k128_row").find("row order"), std::string::npos);
  EXPECT_NE(reason("m16_n64_k128_g1").find("group_m"), std::string::npos);
  EXPECT_NE(reason("m16_n64_k128_w4").find("GPU"), std::string::npos);
  const ModelShape narrow = parse_model("8,2,2048,32");
  EXPECT_NE(cpu_config_rejection(parse_config("m8_n128_k128"), narrow, RAMP_FORMAT_BF16,
                                 RAMP_ACTIVATION_SILU_AND_MUL)
                .find("64 rows of w13"),
            std::string::npos);
}

TEST(DefaultConfig, FollowsTheHistogram) {
  const auto pick = [](std::vector<int32_t> histogram, ramp_determinism d = RAMP_REPEATABLE,
                       int32_t workers = 2) {
    const KernelConfig c = cpu_default_config(histogram, 7168, 256, RAMP_FORMAT_FP8_BLOCK,
                                              RAMP_ACTIVATION_SILU_AND_MUL, d, workers);
    EXPECT_TRUE(cpu_config_legal(c, 7168, 256, RAMP_FORMAT_FP8_BLOCK, RAMP_ACTIVATION_SILU_AND_MUL));
    return c;
  };
  EXPECT_EQ(pick({1, 1, 0, 1}).tile_m, 4);
  EXPECT_EQ(pick({1, 3, 0, 1}).tile_m, 4);
  EXPECT_EQ(pick({1, 30, 0, 1}).tile_m, 64);
  EXPECT_EQ(pick({1, 3000, 0, 1}).tile_m, 128);
  EXPECT_GT(pick({1, 0, 0, 0}, RAMP_REPEATABLE, 64).split_k, 1)
      << "one expert cannot feed 64 workers otherwise";
  EXPECT_EQ(pick({1, 0, 0, 0}, RAMP_BATCH_INVARIANT, 64).split_k, 1);
  EXPECT_EQ(pick({0, 0, 0, 0}).split_k, 1);
}

}  // namespace
}  // namespace ramp::core
