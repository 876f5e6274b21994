// Performance regions (arXiv 2604.26039, section on regions; DESIGN §4): where a layer sits between fixed
// cost and tile work, and which kernel modes the published thresholds predict for it. Thresholds are derived
// from hardware constants. Whether the predictions hold on our kernels is a measurement, not something this
// room claims.
#pragma once

#include <cstdint>
#include <string>

#include "geometry/hardware.hpp"
#include "geometry/model.hpp"

namespace ramp::core {

// Derived from hardware; every threshold with its formula.
struct RegionThresholds {
  double rho_critical =
      0;  // startup_us / tile_us: tiles per slice below which fixed cost dominates (24/0.130 = 184.6)
  double group_m_lambda_kappa =
      0;  // 0.75 * L2 / (ttn * tile_k * 1 byte): weight tiles of one expert that stay in L2
  double split_k_kappa = 48;   // depth steps from which splitting pays (published; no derivation given)
  double split_k_omega = 0.2;  // ... when fewer than this many waves run (published)
  double wide_tile_omega = 1;  // ttn = 512 pays from more than one wave (published)
  double omega_full = 1;       // region 1 | 2
  double omega_many = 8;       // region 2 | 3
};
RegionThresholds region_thresholds(const HardwareConstants& hw, int32_t ttn = 256,
                                   int32_t tile_k = 128) noexcept;

struct RegionPoint {
  // Inputs, kept for printing.
  std::string model;
  int64_t experts = 0, n1 = 0, hidden = 0;
  int32_t ttn = 0, tile_k = 0;
  // Coordinates.
  double rho = 0;      // compute density N1*H/(ttn*tile_k)
  int64_t lambda = 0;  // weight slices ceil(N1/ttn)
  double kappa = 0;    // depth steps H/tile_k
  double omega = 0;    // waves g/SM
  int64_t grid = 0;    // g
  // Conclusions.
  char regime = 'A';   // A: rho < rho_critical (fixed cost matters), B: tile work dominates
  int32_t column = 1;  // 1: omega < 1, 2: 1..8, 3: > 8
  bool group_m = false, split_k = false, wide_tile = false;
};

// One layer at a given grid. n1: gate and up rows per expert on this shard.
RegionPoint region_of(const std::string& model, int64_t experts, int64_t n1, int64_t hidden, int64_t grid,
                      const HardwareConstants& hw, int32_t ttn = 256, int32_t tile_k = 128) noexcept;

// Grid of `tokens` tokens routed as evenly as k distinct experts allow, with token tiles of tile_m rows: the
// published table's T = 1 case has k active experts of one tile each.
int64_t even_grid(int64_t experts, int64_t top_k, int64_t tokens, int64_t n1, int32_t tile_m,
                  int32_t ttn) noexcept;

std::string region_name(const RegionPoint& p);  // "A1".."B3"
// "tile", then "+ split-K", "+ GROUP_M", and with wide = true "+ ttn=512".
std::string predicted_modes(const RegionPoint& p, bool wide = true);

}  // namespace ramp::core
