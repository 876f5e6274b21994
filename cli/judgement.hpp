// A fit's choices against exhaustive timing at points that it has not seen: regret, and how it is printed.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "cli/output.hpp"
#include "dispatch/dispatcher.hpp"

namespace ramp::cli {

// us = geometric mean of the two halves that the profiler keeps (ProfilerOptions::halves): what is fitted and
// judged. us_repeat stays, so that a guard's noise margin is that of the mean.
core::Dataset merge_halves(core::Dataset d);

// A fit's choices against exhaustive timing at points that it has not seen.
struct JudgedPoint {
  std::string name;
  int64_t tokens = 0;
  std::string chosen, best;  // configs
  double us = 0, best_us = 0, default_us = 0, single_us = 0;
  double live_us = 0;  // what a context with the fit runs by itself, its decision included; NaN: not timed
  double regret = 0;   // us / best_us - 1
  double noise = 0;    // the first half's best config judged on the second half
};
struct Judgement {
  std::vector<JudgedPoint> points;
  size_t unjudged = 0;      // points where the chosen config had been left out: they count nowhere
  std::string single_best;  // the one config that the profile would fix
  double mean_regret = 0, p95_regret = 0, max_regret = 0, mean_noise = 0;
  double over_single_best = 1, over_default = 1;  // geometric means of us(other) / us(chosen)
  // Of live_us / best_us - 1, over the points that have it.
  size_t live_points = 0;
  double mean_live_regret = 0, max_live_regret = 0;
};
// train: what was profiled (halves merged); test: exhaustive timings of the same configs and, after them, of
// one more: the analytic default, whatever that is at each point (halves not merged), and perhaps of another:
// what a context with the fit runs by itself. The best of a point is one with two samples or more, where
// anybody has them: one quick sample beats nobody.
Judgement judge(const core::Dataset& train, const core::Dataset& test, const core::Dispatcher& dispatcher);
std::string judgement_text(const Judgement& j);
Json judgement_json(const Judgement& j);
// Without the configs that were nowhere within 5% of the best, but for the first `always`: a hundred configs
// of which most are never best make a fit large and slow, and its choices no better.
core::Dataset contenders(core::Dataset d, size_t always);
// Both as one dataset for `ramp evaluate` (halves apart); test's configs beyond train's are left out.
core::Dataset join_datasets(const core::Dataset& train, const core::Dataset& test);

}  // namespace ramp::cli
