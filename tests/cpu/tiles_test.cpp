// Task numbers and tiles: every tile of every order exactly once, and the neighbours that each order
// promises.
#include "backend/cpu/tiles.hpp"

#include <gtest/gtest.h>

#include <map>
#include <set>
#include <tuple>
#include <vector>

namespace ramp::core {
namespace {

struct Shape {
  int32_t tile_m;
  TaskOrder order;
  int32_t group_m;
  int64_t slices, splits;
};

class Tiles : public testing::TestWithParam<Shape> {};
INSTANTIATE_TEST_SUITE_P(
    Orders, Tiles,
    testing::Values(Shape{1, TaskOrder::kColumnMajor, 0, 1, 1}, Shape{4, TaskOrder::kColumnMajor, 0, 3, 2},
                    Shape{16, TaskOrder::kRowMajor, 0, 5, 1}, Shape{4, TaskOrder::kRowMajor, 0, 2, 3},
                    Shape{4, TaskOrder::kGrouped, 2, 3, 1}, Shape{4, TaskOrder::kGrouped, 4, 3, 2},
                    Shape{1, TaskOrder::kGrouped, 100, 2, 1}));

TEST_P(Tiles, EveryTileOnceExpertsAdjacent) {
  const Shape s = GetParam();
  const std::vector<int32_t> histogram = {0, 5, 1, 0, 0, 16, 33, 4, 0};
  std::vector<int32_t> offsets = {0};
  for (const int32_t c : histogram) offsets.push_back(offsets.back() + c);
  std::vector<int32_t> experts(histogram.size());
  std::vector<int32_t> first(histogram.size() + 1);
  const TilePlan plan = plan_tiles(offsets, s.tile_m, experts, first);
  EXPECT_EQ(plan.experts.size(), 5U);
  KernelConfig c;
  c.tile_m = s.tile_m;
  c.order = s.order;
  c.group_m = s.group_m;
  std::set<std::tuple<int32_t, int32_t, int32_t, int32_t>> seen;
  std::map<int32_t, int64_t> of_expert;
  int32_t last_expert = -1;
  const int64_t tasks = plan.m_tiles() * s.slices * s.splits;
  for (int64_t task = 0; task < tasks; ++task) {
    const Tile t = tile_of_task(plan, c, s.slices, s.splits, task);
    EXPECT_TRUE(seen.insert({t.expert, t.m, t.slice, t.split}).second) << task;
    EXPECT_GE(t.expert, last_expert) << "an expert's tiles are adjacent";
    last_expert = t.expert;
    ++of_expert[t.expert];
    const int64_t m_tiles = (histogram[static_cast<size_t>(t.expert)] + s.tile_m - 1) / s.tile_m;
    EXPECT_TRUE(t.m >= 0 && t.m < m_tiles && t.slice >= 0 && t.slice < s.slices && t.split >= 0 &&
                t.split < s.splits);
  }
  for (const auto& [e, count] : of_expert) {
    EXPECT_EQ(count, (histogram[static_cast<size_t>(e)] + s.tile_m - 1) / s.tile_m * s.slices * s.splits);
  }
}

TEST(TileOrder, NeighboursShareWhatTheOrderSays) {
  const std::vector<int32_t> offsets = {0, 40};
  std::vector<int32_t> experts(1);
  std::vector<int32_t> first(2);
  const TilePlan plan = plan_tiles(offsets, 8, experts, first);  // 5 token tiles
  KernelConfig c;
  c.tile_m = 8;
  const auto tile = [&](int64_t task) { return tile_of_task(plan, c, 3, 1, task); };
  c.order = TaskOrder::kColumnMajor;
  EXPECT_EQ(tile(0).slice, tile(4).slice);
  EXPECT_NE(tile(4).slice, tile(5).slice);
  c.order = TaskOrder::kRowMajor;
  EXPECT_EQ(tile(0).m, tile(2).m);
  EXPECT_NE(tile(2).m, tile(3).m);
  c.order = TaskOrder::kGrouped;
  c.group_m = 2;  // groups of 2, 2 and 1 token tiles
  const std::vector<std::pair<int32_t, int32_t>> expected = {{0, 0}, {1, 0}, {0, 1}, {1, 1}, {0, 2},
                                                             {1, 2}, {2, 0}, {3, 0}, {2, 1}, {3, 1},
                                                             {2, 2}, {3, 2}, {4, 0}, {4, 1}, {4, 2}};
  for (size_t task = 0; task < expected.size(); ++task) {
    EXPECT_EQ(std::pair(tile(static_cast<int64_t>(task)).m, tile(static_cast<int64_t>(task)).slice),
              expected[task]);
  }
}

TEST(TilePlan, NoRowsNoTiles) {
  const std::vector<int32_t> offsets = {0, 0, 0};
  std::vector<int32_t> experts(2);
  std::vector<int32_t> first(3);
  EXPECT_EQ(plan_tiles(offsets, 8, experts, first).m_tiles(), 0);
}

}  // namespace
}  // namespace ramp::core
