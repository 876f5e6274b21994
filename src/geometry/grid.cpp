// The grid of a config: counting, nothing else. Integers throughout.
#include "geometry/grid.hpp"

#include <algorithm>

namespace ramp::core {

TokenTiling tile_tokens(std::span<const int32_t> histogram, int32_t tile_m) noexcept {
  TokenTiling t;
  t.tile_m = tile_m;
  for (const int32_t c : histogram) {
    if (c <= 0) continue;
    const int64_t tiles = (static_cast<int64_t>(c) + tile_m - 1) / tile_m;
    t.rows += c;
    t.m_tiles += tiles;
    t.active += 1;
    t.max_m_tiles = std::max(t.max_m_tiles, tiles);
    t.max_load = std::max<int64_t>(t.max_load, c);
  }
  t.padded_rows = t.m_tiles * tile_m - t.rows;
  return t;
}

Grid make_grid(std::span<const int32_t> histogram, const ModelShape& model, ramp_format format,
               ramp_activation activation, const KernelConfig& config, int64_t parallel,
               int64_t residency) noexcept {
  Grid g;
  g.tokens = tile_tokens(histogram, config.tile_m);
  const int64_t n1 = w13_rows(model.intermediate, activation);
  g.n_tiles = (n1 + config.tile_n - 1) / config.tile_n;
  g.tiles = g.tokens.m_tiles * g.n_tiles * config.split_k;
  g.slots = parallel * residency;
  g.full_waves = g.slots > 0 ? g.tiles / g.slots : 0;
  g.tail = g.slots > 0 ? g.tiles % g.slots : 0;
  g.waves = parallel > 0 ? static_cast<double>(g.tiles) / static_cast<double>(parallel) : 0.0;
  g.weight_bytes = g.tokens.active * expert_bytes(model, format, activation);
  return g;
}

}  // namespace ramp::core
