// Fitting `wave`: eight parameters per config, pooled over neighbouring configs, from a dozen training
// points; then a Gaussian process on what the physics misses. Least squares on relative (log) error
// throughout.
#pragma once

#include <array>
#include <span>
#include <string>
#include <vector>

#include "cost/cost_model.hpp"
#include "cost/residency.hpp"
#include "cost/wave_physics.hpp"

namespace ramp::core {

// Parts that an ablation leaves out (bench/ablation, docs/cost-model.md). All on in the product.
struct WaveSwitches {
  bool waves = true;      // quantised waves; off: latency proportional to tiles per SM
  bool residency = true;  // off: one tile per SM
  bool active = true;     // first reads apart from re-reads; off: every tile is a first read
  bool output = true;     // output bytes
  bool residual = true;   // Gaussian process
  bool guard = true;      // measured guard
};

// A fitted model in natural units: everything that predicting needs besides the shapes.
struct WaveFit {
  WaveHyper hyper;
  std::vector<WaveConfigParameters> configs;
  std::vector<uint8_t> measured;  // per config: has a training timing
  // Training points, for the residual and the guard.
  struct Point {
    HistogramFacts facts;
    std::vector<int64_t> m_tiles;  // per distinct tile_m, in the order of `tile_m`
    size_t best = 0;               // the config measured fastest there
  };
  std::vector<int32_t> tile_m;  // distinct, ascending
  std::vector<Point> points;
  std::vector<double> alpha;  // [config][point]: residual weights; empty without a residual
  int32_t sm_count = 0;
};

// The prediction in double precision with parts left out, microseconds: what an ablation judges. With all
// parts on it is what the decision path computes in float.
double ablated_us(const WaveFit& f, const KernelConfig& c, const ModelShape& model, size_t config,
                  std::span<const int32_t> histogram, const WaveSwitches& on);

// The distinct tile_m of a table, ascending.
std::vector<int32_t> distinct_tile_m(const ConfigTable& t);

// What decides how two configs are neighbours; also used by tests. Rows sum to 1.
std::vector<double> neighbourhood(const ConfigTable& t, double width, double per_stage, double other);

// Fits on `points` of `model`. Reads no other timing. Throws Error on degenerate data. `known` overrides the
// residency (tests, ablation).
WaveFit fit_wave(const Dataset& d, int32_t model, std::span<const size_t> points, const HardwareConstants& hw,
                 FitReport& report, const WaveHyper& hyper = {}, const WaveSwitches& on = {});

// Throws Error naming what is missing: two configs, two points, timings that differ, ... Shared by all models
// that learn from timings.
void check_fittable(const Dataset& d, int32_t model, std::span<const size_t> points);

}  // namespace ramp::core
