// The workload points of a short profile: what is measured when the caller has no better idea.
#pragma once

#include <cstdint>
#include <vector>

#include "cost/dataset.hpp"

namespace ramp::core {

inline constexpr int64_t kDefaultMaxTokens = 2048;

// Six token counts from 1 to max_tokens in equal ratios, each with uniform and with Zipf 1.2 routing: twelve
// points (fewer where counts coincide). Token counts that differ by a factor of about 4.6 are what the
// measurements in tests/data interpolate well; both ends of skew are there because time depends on it.
std::vector<WorkPoint> default_points(const ModelShape& model, int64_t max_tokens, uint64_t seed);

}  // namespace ramp::core
