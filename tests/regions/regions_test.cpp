// Reproduces the published region table (arXiv 2604.26039; DESIGN §4) to the digit, with its regimes and
// modes.
#include "regions/regions.hpp"

#include <gtest/gtest.h>

#include <cmath>

namespace ramp::core {
namespace {

TEST(Regions, ThresholdsDeriveFromTheHardware) {
  const RegionThresholds t = region_thresholds(h200());
  EXPECT_NEAR(t.rho_critical, 24.0 / 0.130, 1e-12);
  EXPECT_EQ(std::llround(t.rho_critical), 185);
  EXPECT_DOUBLE_EQ(t.group_m_lambda_kappa, 1440.0);
  // Twice the tile: half as many tiles fit the L2.
  EXPECT_DOUBLE_EQ(region_thresholds(h200(), 512).group_m_lambda_kappa, 720.0);
}

struct Row {
  const char* model;
  int64_t experts, n1, hidden, top_k;
  double rho;
  int64_t lambda;
  double kappa;
  char regime;
  const char* modes;
};

class PublishedTable : public testing::TestWithParam<Row> {};
TEST_P(PublishedTable, IsReproducedAtOneToken) {
  const Row& r = GetParam();
  const int64_t grid = even_grid(r.experts, r.top_k, 1, r.n1, 16, 256);
  EXPECT_EQ(grid, r.top_k * r.lambda);
  const RegionPoint p = region_of(r.model, r.experts, r.n1, r.hidden, grid, h200());
  EXPECT_DOUBLE_EQ(p.rho, r.rho);
  EXPECT_EQ(p.lambda, r.lambda);
  EXPECT_DOUBLE_EQ(p.kappa, r.kappa);
  EXPECT_EQ(p.regime, r.regime);
  EXPECT_EQ(predicted_modes(p, false), r.modes);
}
INSTANTIATE_TEST_SUITE_P(
    Models, PublishedTable,
    testing::Values(Row{"OLMoE", 64, 2048, 2048, 8, 128, 8, 16, 'A', "tile"},
                    Row{"Qwen3-30B-A3B", 128, 1536, 2048, 8, 96, 6, 16, 'A', "tile"},
                    Row{"DSv3-EP8 as printed", 32, 512, 7168, 8, 112, 2, 56, 'A', "tile + split-K"},
                    Row{"DSv3-TP8", 256, 512, 7168, 8, 112, 2, 56, 'A', "tile + split-K"},
                    Row{"Mixtral-8x22B", 8, 32768, 6144, 2, 6144, 128, 48, 'B', "tile + GROUP_M"},
                    Row{"Phi-3.5-MoE", 16, 12800, 4096, 2, 1600, 50, 32, 'B', "tile + GROUP_M"},
                    Row{"Jamba-1.5", 16, 16384, 4096, 2, 2048, 64, 32, 'B', "tile + GROUP_M"},
                    Row{"DBRX", 16, 21504, 6144, 4, 4032, 84, 48, 'B', "tile + GROUP_M"}));

TEST(Regions, ARealEp8ShardOfDeepSeekIsInRegimeBWithoutGroupM) {
  const RegionPoint p = region_of("dsv3-ep8", 32, 4096, 7168, even_grid(32, 8, 1, 4096, 16, 256), h200());
  EXPECT_DOUBLE_EQ(p.rho, 896);
  EXPECT_EQ(p.regime, 'B');
  EXPECT_FALSE(p.group_m);
}

TEST(Regions, ColumnsFollowTheWaves) {
  const auto column = [](int64_t grid) { return region_name(region_of("x", 64, 2048, 2048, grid, h200())); };
  EXPECT_EQ(column(131), "A1");
  EXPECT_EQ(column(132), "A2");
  EXPECT_EQ(column(8 * 132), "A2");
  EXPECT_EQ(column(8 * 132 + 1), "A3");
  EXPECT_EQ(region_name(region_of("x", 8, 32768, 6144, 256, h200())), "B2");
}

TEST(Regions, WideTilesFromMoreThanOneWave) {
  EXPECT_FALSE(region_of("x", 64, 2048, 2048, 132, h200()).wide_tile);
  EXPECT_TRUE(region_of("x", 64, 2048, 2048, 133, h200()).wide_tile);
  EXPECT_EQ(predicted_modes(region_of("m", 8, 32768, 6144, 256, h200())), "tile + ttn=512 + GROUP_M");
}

TEST(Regions, EvenGridSpreadsRows) {
  EXPECT_EQ(even_grid(64, 8, 0, 2048, 16, 256), 0);
  EXPECT_EQ(even_grid(64, 8, 8, 2048, 16, 256), 64 * 8);        // 64 rows: one each
  EXPECT_EQ(even_grid(64, 8, 136, 2048, 16, 256), 64 * 2 * 8);  // 1088 rows = 17 each: two tiles each
  EXPECT_EQ(even_grid(6, 2, 4, 100, 16, 64), 6 * 2);            // 8 rows over 6 experts: all active
}

}  // namespace
}  // namespace ramp::core
