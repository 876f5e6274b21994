// The random part of workloads: ids from a popularity law, and router weights. Counter-based random numbers
// and IEEE arithmetic only, so a seed means the same routing everywhere.
#pragma once

#include <cstdint>

#include "routing/workload.hpp"

namespace ramp::core {

// Fill routing.ids / routing.weights, which have their sizes already. Not for traces.
void draw_ids(const WorkloadSpec& spec, uint64_t seed, Routing& routing);
void draw_weights(uint64_t seed, Routing& routing);

}  // namespace ramp::core
