// The decision path: histogram in, one time per config out, in a few microseconds and without allocating.
//
// Configs are sorted into *lanes*: first by work class (tile_m, blocks per token tile), then by residency;
// each such run is padded to a multiple of eight lanes. Everything that depends on the class alone (tile
// counts, waves, similarity to the training points) is computed once per class or run; what remains per lane
// is a dozen multiplications, one division and three square roots.
//
// The lane code (decide_kernel.inl) is compiled for several instruction sets from one source. No operation is
// contracted or reassociated and no libm function is called, so all of them give the same bits; counts are
// exact integers. A device twin can follow it literally.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <vector>

#include "cost/decide_kernels.hpp"
#include "cost/wave_fit.hpp"

namespace ramp::core {

// Those that this machine can run, slowest first. The last is what predictors use.
std::span<const DecideKernels* const> decide_kernels() noexcept;

// A natural logarithm that is the same on every machine (libm's is not): relative error below 2e-7 of
// max(1, |log x|). x must be positive, finite and normal.
float portable_log(float x) noexcept;

// Counts tiles of several tile sizes in one pass over the histogram. Exact for any counts.
class TileCounter {
 public:
  TileCounter() = default;
  explicit TileCounter(std::vector<int32_t> tile_m);
  [[nodiscard]] std::span<const int32_t> tile_m() const noexcept { return tile_m_; }
  [[nodiscard]] size_t scratch_bytes() const noexcept;  // whatever the number of experts
  // m_tiles[t] = sum of ceil(c_e / tile_m[t]). Negative counts are treated as 0.
  HistogramFacts count(std::span<const int32_t> histogram, const DecideKernels& k, std::span<int64_t> m_tiles,
                       std::byte* scratch) const noexcept;

 private:
  std::vector<int32_t> tile_m_;
  std::vector<float> inverse_;
};

// A fit laid out for deciding. Immutable; all methods are const, thread-safe and allocate nothing.
class DecisionTable {
 public:
  DecisionTable(const WaveFit& fit, const ConfigTable& configs, const ModelShape& model);
  DecisionTable(const DecisionTable&) = delete;  // view_ points into parameters_
  DecisionTable& operator=(const DecisionTable&) = delete;
  [[nodiscard]] size_t scratch_bytes() const noexcept;
  void predict(std::span<const int32_t> histogram, std::span<float> us, std::span<std::byte> scratch,
               const DecideKernels& k) const noexcept;
  [[nodiscard]] size_t choose(std::span<const int32_t> histogram, std::span<std::byte> scratch,
                              const DecideKernels& k) const noexcept;

 private:
  struct Class {
    WorkClass work;
    size_t tile = 0;      // index into the counter's tile sizes
    size_t train_at = 0;  // offset of its training coordinates
    size_t first_run = 0, last_run = 0;
  };
  struct Run {
    int32_t lane_begin = 0, lane_end = 0;
    int64_t residency = 1;
  };
  struct Scratch;
  void evaluate(std::span<const int32_t> histogram, const Scratch& s, const DecideKernels& k) const noexcept;
  [[nodiscard]] Scratch carve(std::span<std::byte> scratch) const noexcept;

  TileCounter counter_;
  WaveHyper hyper_;
  LaneConstants constants_;
  int32_t sm_count_ = 0;
  size_t experts_ = 0, configs_ = 0, lanes_ = 0;
  size_t points_ = 0, points_padded_ = 0;
  std::vector<Class> classes_;
  std::vector<Run> runs_;
  std::vector<int32_t> lane_config_;  // config of a lane, -1 for padding
  std::vector<int32_t> config_lane_;
  std::vector<size_t> config_class_;
  std::vector<size_t> best_at_;    // config measured fastest at each training point
  std::vector<float> train_;       // [class][4][points_padded]
  std::vector<float> parameters_;  // the arrays of LaneView, one after the other
  LaneView view_;
};

}  // namespace ramp::core
