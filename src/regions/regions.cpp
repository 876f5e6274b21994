// The region formulas, one line each.
#include "regions/regions.hpp"

#include <fmt/format.h>

#include <algorithm>

namespace ramp::core {

RegionThresholds region_thresholds(const HardwareConstants& hw, int32_t ttn, int32_t tile_k) noexcept {
  RegionThresholds t;
  t.rho_critical = hw.startup_us / hw.tile_us;
  t.group_m_lambda_kappa = 0.75 * static_cast<double>(hw.l2_bytes) / (static_cast<double>(ttn) * tile_k);
  return t;
}

RegionPoint region_of(const std::string& model, int64_t experts, int64_t n1, int64_t hidden, int64_t grid,
                      const HardwareConstants& hw, int32_t ttn, int32_t tile_k) noexcept {
  const RegionThresholds t = region_thresholds(hw, ttn, tile_k);
  RegionPoint p;
  p.model = model;
  p.experts = experts;
  p.n1 = n1;
  p.hidden = hidden;
  p.ttn = ttn;
  p.tile_k = tile_k;
  p.grid = grid;
  p.rho = static_cast<double>(n1) * static_cast<double>(hidden) / (static_cast<double>(ttn) * tile_k);
  p.lambda = (n1 + ttn - 1) / ttn;
  p.kappa = static_cast<double>(hidden) / tile_k;
  p.omega = static_cast<double>(grid) / hw.sm_count;
  p.regime = p.rho < t.rho_critical ? 'A' : 'B';
  p.column = p.omega < t.omega_full ? 1 : (p.omega <= t.omega_many ? 2 : 3);
  p.group_m = static_cast<double>(p.lambda) * p.kappa > t.group_m_lambda_kappa;
  p.split_k = p.kappa >= t.split_k_kappa && p.omega < t.split_k_omega;
  p.wide_tile = p.omega > t.wide_tile_omega;
  return p;
}

int64_t even_grid(int64_t experts, int64_t top_k, int64_t tokens, int64_t n1, int32_t tile_m,
                  int32_t ttn) noexcept {
  const int64_t rows = tokens * top_k;
  if (rows <= 0 || experts <= 0) return 0;
  // rows spread over the experts: `extra` experts hold one row more than the others.
  const int64_t base = rows / experts;
  const int64_t extra = rows % experts;
  const auto tiles = [&](int64_t c) { return (c + tile_m - 1) / tile_m; };
  return (extra * tiles(base + 1) + (experts - extra) * tiles(base)) * ((n1 + ttn - 1) / ttn);
}

std::string region_name(const RegionPoint& p) {
  return fmt::format("{}{}", p.regime, p.column);
}

std::string predicted_modes(const RegionPoint& p, bool wide) {
  std::string s = "tile";
  if (wide && p.wide_tile) s += " + ttn=512";
  if (p.split_k) s += " + split-K";
  if (p.group_m) s += " + GROUP_M";
  return s;
}

}  // namespace ramp::core
