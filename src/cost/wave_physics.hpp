// The physics of `wave` and `analytic` in double precision: features of a histogram, the three resources that
// a step uses, and how they combine. This is the readable form that fitting and explanation use; the decision
// path (decide.hpp) evaluates the same formulas in float over all configs.
//
//   T = launch + 0.75*(L^8 + M^8 + O^8)^(1/8) + 0.25*(L + M + O)        microseconds
//   L  latency and compute: waves of tiles, quantised by residency        (staircase)
//   M  weight bytes: first reads of active experts from DRAM, re-reads from L2
//   O  bytes of output rows
#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "cost/dataset.hpp"
#include "cost/wave_params.hpp"
#include "geometry/hardware.hpp"

namespace ramp::core {

// What the histogram is, before any config: exact integers.
struct HistogramFacts {
  int64_t rows = 0;      // sum of c_e
  int64_t active = 0;    // experts with c_e > 0
  int64_t max_load = 0;  // max c_e
};
HistogramFacts histogram_facts(std::span<const int32_t> histogram) noexcept;

// Configs that cut a histogram alike: same tile_m and same number of blocks per token tile.
struct WorkClass {
  int32_t tile_m = 0;
  int64_t blocks_per_tile = 0;  // ceil(N1/tile_n) * split_k
  friend bool operator==(const WorkClass&, const WorkClass&) = default;
};
WorkClass work_class_of(const KernelConfig& c, const ModelShape& model) noexcept;

// The features of one histogram for one work class. "per SM": divided by the machine's SMs (or workers).
// kNoTiles stands for none, so that logarithms stay finite; one tile on any machine is more.
inline constexpr double kNoTiles = 1e-7;
struct Work {
  double tiles = 0;       // q: tiles per SM, >= kNoTiles
  double first_read = 0;  // A: tiles per SM that read an expert's weights first, >= kNoTiles
  double output = 0;      // W: output rows x slices per SM
  double fill = 0;        // f: mean rows per tile
  double fullest = 0;     // rows of the fullest tile, >= 1
  double padding = 0;     // share of padded rows in the tiles, 0..1
};
Work make_work(const HistogramFacts& h, int64_t m_tiles, const WorkClass& w, int32_t sm_count) noexcept;

// Parameters of one config in natural units (kSharing and kFillSlope have none; the rest are us).
struct WaveConfigParameters {
  WaveVector value{};
  double residency = 1;  // tiles that share an SM
};

// L: full waves run `residency` tiles per SM, the last one what is left. A tile alone takes
// D = latency*(1 + slope*(padding - 1/2)) + row*fill, n of them together D*(1 + sharing*(n - 1)).
double staircase_us(const WaveConfigParameters& p, const Work& w, const WaveHyper& h) noexcept;
double weights_us(const WaveConfigParameters& p, const Work& w) noexcept;  // M
double output_us(const WaveConfigParameters& p, const Work& w) noexcept;   // O
// T from its parts.
double combine_us(double launch, double latency, double weights, double output, const WaveHyper& h) noexcept;
double physics_us(const WaveConfigParameters& p, const Work& w, const WaveHyper& h) noexcept;

// Whether tiles run on CPU workers, one at a time each: a machine without SM limits.
bool runs_on_workers(const HardwareConstants& hw) noexcept;

// Where the fit starts, and what `analytic` keeps for all but the latency.
WaveVector kernel_constants(const KernelConfig& c, const ModelShape& model, const HardwareConstants& hw,
                            const WaveKernelConstants& k) noexcept;

// The four coordinates in which the residual calls two workloads similar (already divided by their scales).
using WorkCoordinates = std::array<double, 4>;
WorkCoordinates coordinates(const Work& w, const WaveHyper& h) noexcept;
// Rational quadratic similarity (1 + d^2/4)^-2: 1 for equal coordinates, fading as distance^-4.
double similarity(const WorkCoordinates& a, const WorkCoordinates& b) noexcept;

}  // namespace ramp::core
