// From a task number to a tile: pure integer arithmetic on the plan of a step (active experts and their token
// tiles), honouring the config's order. Tiles of one expert are adjacent, so that its weights and rows are
// still in cache for the next one.
#pragma once

#include <algorithm>
#include <cstdint>
#include <span>

#include "geometry/config.hpp"

namespace ramp::core {

// The token tiles of a step, expert by expert; empty experts do not appear.
struct TilePlan {
  std::span<const int32_t> experts;     // active experts, ascending
  std::span<const int32_t> first_tile;  // [active + 1]: token tiles of all experts before
  [[nodiscard]] int64_t m_tiles() const noexcept { return experts.empty() ? 0 : first_tile[experts.size()]; }
};

// Writes the plan for row offsets [E + 1] and tile_m into experts [E] and first_tile [E + 1].
inline TilePlan plan_tiles(std::span<const int32_t> offsets, int32_t tile_m, std::span<int32_t> experts,
                           std::span<int32_t> first_tile) noexcept {
  size_t active = 0;
  first_tile[0] = 0;
  for (size_t e = 0; e + 1 < offsets.size(); ++e) {
    const int32_t rows = offsets[e + 1] - offsets[e];
    if (rows <= 0) continue;
    experts[active] = static_cast<int32_t>(e);
    first_tile[active + 1] = first_tile[active] + (rows - 1) / tile_m + 1;
    ++active;
  }
  return {experts.first(active), first_tile.first(active + 1)};
}

struct Tile {
  int32_t expert = 0;
  int32_t m = 0;      // token tile of the expert
  int32_t slice = 0;  // slice of weight rows
  int32_t split = 0;  // part of the depth
};

// Task in [0, m_tiles * slices * splits).
inline Tile tile_of_task(const TilePlan& plan, const KernelConfig& c, int64_t slices, int64_t splits,
                         int64_t task) noexcept {
  const int64_t per_m_tile = slices * splits;
  // The expert whose tiles hold the task: the last one with first_tile <= task / per_m_tile.
  const auto tile = static_cast<int32_t>(task / per_m_tile);
  const auto* const after =
      std::upper_bound(plan.first_tile.data(), plan.first_tile.data() + plan.experts.size(), tile);
  const auto a = static_cast<size_t>(after - plan.first_tile.data() - 1);
  const int64_t m_tiles = plan.first_tile[a + 1] - plan.first_tile[a];
  int64_t local = task - plan.first_tile[a] * per_m_tile;
  Tile t;
  t.expert = plan.experts[a];
  if (c.order == TaskOrder::kRowMajor) {
    t.m = static_cast<int32_t>(local / per_m_tile);
    local %= per_m_tile;
    t.slice = static_cast<int32_t>(local / splits);
    t.split = static_cast<int32_t>(local % splits);
    return t;
  }
  // Column-major is grouped order with one group.
  const int64_t group_m = c.order == TaskOrder::kGrouped ? std::min<int64_t>(c.group_m, m_tiles) : m_tiles;
  const int64_t group = local / (group_m * per_m_tile);
  local -= group * group_m * per_m_tile;
  const int64_t in_group = std::min(group_m, m_tiles - group * group_m);
  t.m = static_cast<int32_t>(group * group_m + local % in_group);
  local /= in_group;
  t.slice = static_cast<int32_t>(local / splits);
  t.split = static_cast<int32_t>(local % splits);
  return t;
}

}  // namespace ramp::core
