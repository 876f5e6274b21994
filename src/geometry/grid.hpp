// The grid of a config for a histogram: how many tiles there are, how full they are and what bytes they pull.
// Exact integer arithmetic, O(E); pure functions on plain structs (device twins must agree exactly).
#pragma once

#include <cstdint>
#include <span>

#include "geometry/config.hpp"
#include "geometry/model.hpp"

namespace ramp::core {

// Depends on the histogram and tile_m alone: shared by all configs with that tile_m.
struct TokenTiling {
  int32_t tile_m = 0;
  int64_t rows = 0;         // sum of c_e
  int64_t m_tiles = 0;      // sum of ceil(c_e / tile_m)
  int64_t padded_rows = 0;  // m_tiles * tile_m - rows
  int64_t active = 0;       // experts with c_e > 0
  int64_t max_m_tiles = 0;  // of the most loaded expert
  int64_t max_load = 0;     // max c_e
};
TokenTiling tile_tokens(std::span<const int32_t> histogram, int32_t tile_m) noexcept;

struct Grid {
  TokenTiling tokens;
  int64_t n_tiles = 0;       // ceil(N1 / tile_n): lambda
  int64_t tiles = 0;         // g = m_tiles * n_tiles (times split_k)
  int64_t slots = 0;         // tiles that can run at once: SMs (or workers) * residency
  int64_t full_waves = 0;    // tiles / slots
  int64_t tail = 0;          // tiles % slots
  double waves = 0;          // omega = tiles / SMs
  int64_t weight_bytes = 0;  // active experts' weights and scales, each byte once
};
// parallel: SM count or CPU workers; residency: blocks per SM (1 on the CPU).
Grid make_grid(std::span<const int32_t> histogram, const ModelShape& model, ramp_format format,
               ramp_activation activation, const KernelConfig& config, int64_t parallel,
               int64_t residency) noexcept;

}  // namespace ramp::core
