// How `ramp profile` takes its timings: over how many layers, and which earlier timings may be gone on from.
// Nothing here runs anything.
#pragma once

#include <cstdint>
#include <string>

#include "dispatch/metadata.hpp"

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

// Metadata::protocol of a run.
std::string protocol_text(int64_t layers, const std::string& clock, double quantile,
                          const std::string& determinism = "repeatable");
// Throws INVALID_ARGUMENT where a profile that a run would go on from was taken in another way.
void check_protocol(const core::Metadata& theirs, const core::Metadata& here, const std::string& file);

}  // namespace ramp::cli
