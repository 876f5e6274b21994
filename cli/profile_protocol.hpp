// How `ramp profile` takes its timings: over how many layers, and which earlier timings may be gone on from.
// Nothing here runs anything.
#pragma once

#include <cstdint>
#include <span>
#include <string>

#include "dispatch/metadata.hpp"
#include "geometry/model.hpp"
#include "ramp/ramp.h"

namespace ramp::cli {

// How many layers a profile makes, and what they weigh.
struct LayerPlan {
  int64_t layers = 1, bytes = 0;  // bytes: of all
  bool beyond_cache = false;      // what a tick finds of its weights in the last-level cache is of no use
};

inline constexpr int64_t kGpuLayers = 5;  // where the layers protocol of `ramp bench` does not know the model
// wanted 0: protocol's number, else kGpuLayers; more (24 at most, and what fits the memory) where a replay
// would otherwise read no more than twice the L2 cache.
struct GpuLayerLimits {
  int64_t experts = 0, expert_bytes = 0;
  int64_t least_active = 0;  // experts with rows at the point that has the fewest
  int64_t l2_bytes = 0;      // 0: not known
  int64_t fit = 0;           // layers that fit the memory
  int64_t protocol = 0;      // layers in the protocol of `ramp bench`; 0: it does not know the model
};
LayerPlan plan_gpu_layers(const GpuLayerLimits& limits, int64_t wanted) noexcept;

// What a layer's pass over a point takes at the least: to read the weights of the experts with rows, and to
// compute. At a GPU's measured rates; those of the H200 stand in for any.
struct LayerFloor {
  double read_us = 0, compute_us = 0;
  // Whether the clock will not hold: computing at full speed takes a GPU to its power limit, reading does
  // not. Measured (H200, OLMoE, fp8_block, replays without a pause): steady within 1% at compute/read = 0.06
  // (T = 64), 6% slower after 80 ms at 0.6 (T = 700), 11% at 2.5 and 41% for a while at 5 (T = 3000, 6000).
  static constexpr double kUnsteady = 0.25;
  [[nodiscard]] bool unsteady() const noexcept { return compute_us >= kUnsteady * read_us; }
};
LayerFloor layer_floor(std::span<const int32_t> histogram, const core::ModelShape& shape, ramp_format format,
                       ramp_activation activation) noexcept;
// Of the `most` layers there are, those that a replay runs at a point: as many as read twice the L2 cache and
// take half a millisecond, of which the gap between two replays (below 2 us) is nothing; two at least, or one
// where it takes twice that and reads sixteen times the cache.
int64_t layers_of_replay(const LayerFloor& floor, int64_t l2_bytes, int64_t most) noexcept;

// Metadata::protocol of a run.
std::string protocol_text(int64_t layers, const std::string& clock, double quantile,
                          const std::string& determinism = "repeatable");
// Throws INVALID_ARGUMENT where a profile that a run would go on from was taken in another way.
void check_protocol(const core::Metadata& theirs, const core::Metadata& here, const std::string& file);

}  // namespace ramp::cli
