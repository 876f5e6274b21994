// See profile_sampling.hpp.
#include "cli/profile_sampling.hpp"

#include <fmt/format.h>

#include <algorithm>

namespace ramp::cli {

void watch_clock(core::ProfilerOptions& options, const std::vector<TimedPoint>& points,
                 const GraphTimer& graphs) {
  for (const TimedPoint& p : points) {
    options.cost.push_back(static_cast<double>(graphs.layers_at(p.work)));
    options.unsteady.push_back(graphs.unsteady_at(p.work));
  }
}

core::ProfilerOptions profile_sampling(double seconds, int64_t repeats, double quantile,
                                       const std::vector<TimedPoint>& points, const GraphTimer* graphs) {
  core::ProfilerOptions options;
  options.warmup = 1;
  options.repeats = static_cast<int32_t>(repeats);
  options.quantile = quantile;
  options.halves = true;
  options.budget_us = seconds * 1e6;
  if (graphs == nullptr) {
    options.settled_us = 5000;
    options.narrow_ratio = 1.25;
    options.narrow_after = 4;
    return options;
  }
  watch_clock(options, points, *graphs);
  options.skip_after = 0;   // a GPU's best at T = 1 are hopeless at 8192, and the other way round
  options.judge_after = 1;  // one replay tells who is out of the question
  options.least_repeats = std::min(options.repeats, 2);
  options.hopeless_ratio = 1.5;
  options.neighbour_ratio = 1.5;
  options.leave_behind = true;
  options.narrow_ratio = 1.15;
  options.narrow_after = 2;
  return options;
}

core::ProfilerOptions judge_sampling(double seconds, int64_t repeats, double quantile,
                                     const std::vector<TimedPoint>& points, const GraphTimer* graphs) {
  core::ProfilerOptions options = profile_sampling(seconds, repeats, quantile, points, graphs);
  options.everybody = true;
  options.skip_after = 0;
  options.narrow_ratio = 1.15;
  if (graphs == nullptr) {
    options.repeats = std::max(options.repeats, 4);
    options.judge_after = 2;
    return options;
  }
  // Three samples for everybody who is not out of the question, up to twenty for who is near the best, the
  // last twelve of them for who is very near: the error of a median of eight is below 1% (a sample's p99 is
  // 3.5 to 6% off).
  options.repeats = std::max(options.repeats, 20);
  options.least_repeats = options.narrow_after = 3;
  options.finalist_ratio = 1.04;
  options.finalist_after = 8;
  return options;
}

Json spent_json(const GraphTimer::Spent& now, const GraphTimer::Spent& before) {
  return {{"inputs", now.inputs - before.inputs},
          {"capture", now.capture - before.capture},
          {"replay", now.replay - before.replay},
          {"graphs", now.graphs - before.graphs},
          {"replays", now.replays - before.replays}};
}

std::string spent_text(const GraphTimer::Spent& spent) {
  return fmt::format(": inputs {:.1f} s, {} graphs {:.1f} s, {} replays {:.1f} s", spent.inputs, spent.graphs,
                     spent.capture, spent.replays, spent.replay);
}

}  // namespace ramp::cli
