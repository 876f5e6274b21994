// How `ramp profile` samples: how many replays or calls each config gets at a point, who is left out when,
// and where the clock is watched; and how it tells where the seconds went.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "cli/graph_profile.hpp"
#include "cli/output.hpp"
#include "cli/tick_source.hpp"
#include "dispatch/profiler.hpp"

namespace ramp::cli {

// Part of Metadata::protocol on a GPU: what was timed before samples were related is not gone on from.
inline constexpr const char* kRelated =
    ", replays of one layer and more, relative to a reference where the clock will not hold";

// graphs: the timer on a GPU, nullptr on a CPU. seconds: the budget, 0 = none.
core::ProfilerOptions profile_sampling(double seconds, int64_t repeats, double quantile,
                                       const std::vector<TimedPoint>& points, const GraphTimer* graphs);
// At the points that choices are judged at: everybody, and more of those that are near the best.
core::ProfilerOptions judge_sampling(double seconds, int64_t repeats, double quantile,
                                     const std::vector<TimedPoint>& points, const GraphTimer* graphs);
// What a replay costs at each point, and which points are unsteady.
void watch_clock(core::ProfilerOptions& options, const std::vector<TimedPoint>& points,
                 const GraphTimer& graphs);

// Since `before`.
Json spent_json(const GraphTimer::Spent& now, const GraphTimer::Spent& before = {});
std::string spent_text(const GraphTimer::Spent& spent);

}  // namespace ramp::cli
