// Grid arithmetic against a tile-by-tile enumeration.
#include "geometry/grid.hpp"

#include <gtest/gtest.h>

#include <vector>

#include "base/rng.hpp"

namespace ramp::core {
namespace {

struct GridCase {
  int64_t experts, hidden, intermediate;
  int32_t tile_m, tile_n, split_k;
  ramp_activation activation;
};

class GridCases : public testing::TestWithParam<GridCase> {};
TEST_P(GridCases, EqualsEnumeration) {
  const GridCase& p = GetParam();
  for (uint64_t seed = 0; seed < 20; ++seed) {
    Rng rng(seed * 977 + static_cast<uint64_t>(p.tile_m));
    std::vector<int32_t> histogram(static_cast<size_t>(p.experts));
    for (int32_t& c : histogram)
      c = rng.below(3) == 0 ? 0 : static_cast<int32_t>(rng.below(1 + rng.below(700)));
    int64_t tiles = 0;
    int64_t m_tiles = 0;
    int64_t rows = 0;
    int64_t active = 0;
    int64_t padded = 0;
    int64_t max_tiles = 0;
    const int64_t n1 = w13_rows(p.intermediate, p.activation);
    for (const int32_t c : histogram) {
      int64_t mine = 0;
      for (int64_t row = 0; row < c; row += p.tile_m) {
        ++mine;
        padded += std::max<int64_t>(0, row + p.tile_m - c);
        for (int64_t n = 0; n < n1; n += p.tile_n) tiles += p.split_k;
      }
      m_tiles += mine;
      max_tiles = std::max(max_tiles, mine);
      rows += c;
      active += c > 0 ? 1 : 0;
    }
    KernelConfig config;
    config.tile_m = p.tile_m;
    config.tile_n = p.tile_n;
    config.split_k = p.split_k;
    const ModelShape model{"t", p.experts, 1, p.hidden, p.intermediate};
    const Grid g = make_grid(histogram, model, RAMP_FORMAT_FP8_BLOCK, p.activation, config, 132, 2);
    EXPECT_EQ(g.tiles, tiles);
    EXPECT_EQ(g.tokens.m_tiles, m_tiles);
    EXPECT_EQ(g.tokens.rows, rows);
    EXPECT_EQ(g.tokens.active, active);
    EXPECT_EQ(g.tokens.padded_rows, padded);
    EXPECT_EQ(g.tokens.max_m_tiles, max_tiles);
    EXPECT_EQ(g.slots, 264);
    EXPECT_EQ(g.full_waves * g.slots + g.tail, tiles);
    EXPECT_EQ(g.weight_bytes, active * expert_bytes(model, RAMP_FORMAT_FP8_BLOCK, p.activation));
    EXPECT_DOUBLE_EQ(g.waves, static_cast<double>(tiles) / 132.0);
  }
}
INSTANTIATE_TEST_SUITE_P(Shapes, GridCases,
                         testing::Values(GridCase{1, 128, 128, 8, 256, 1, RAMP_ACTIVATION_SILU_AND_MUL},
                                         GridCase{64, 2048, 1024, 16, 256, 1, RAMP_ACTIVATION_SILU_AND_MUL},
                                         GridCase{128, 2048, 768, 24, 256, 1, RAMP_ACTIVATION_SILU_AND_MUL},
                                         GridCase{256, 7168, 256, 128, 512, 4, RAMP_ACTIVATION_SILU_AND_MUL},
                                         GridCase{8, 6144, 16384, 64, 128, 2, RAMP_ACTIVATION_SILU_AND_MUL},
                                         GridCase{60, 96, 160, 1, 64, 1, RAMP_ACTIVATION_RELU2},
                                         GridCase{512, 2048, 512, 40, 256, 1, RAMP_ACTIVATION_SILU_AND_MUL}));

TEST(Grid, EmptyAndNegativeCountsAreNothing) {
  const std::vector<int32_t> histogram = {0, 0, -3, 0};
  const TokenTiling t = tile_tokens(histogram, 16);
  EXPECT_EQ(t.rows, 0);
  EXPECT_EQ(t.m_tiles, 0);
  EXPECT_EQ(t.active, 0);
  EXPECT_EQ(t.padded_rows, 0);
  EXPECT_EQ(tile_tokens({}, 16).m_tiles, 0);
}

TEST(Grid, CountsBeyond32Bits) {
  const std::vector<int32_t> histogram(4, INT32_MAX);
  const TokenTiling t = tile_tokens(histogram, 1);
  EXPECT_EQ(t.rows, int64_t{4} * INT32_MAX);
  EXPECT_EQ(t.m_tiles, int64_t{4} * INT32_MAX);
  EXPECT_EQ(tile_tokens(histogram, 128).padded_rows, 4);
}

}  // namespace
}  // namespace ramp::core
