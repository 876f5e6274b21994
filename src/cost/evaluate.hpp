// Judging a way of choosing configs: regret on measured points, against the policies that people use today.
#pragma once

#include <functional>
#include <map>
#include <span>
#include <string>
#include <vector>

#include "cost/dataset.hpp"

namespace ramp::core {

// Chooses a config index for one point of the dataset. Must not look at the point's own timings unless it is
// an oracle.
using Chooser = std::function<size_t(size_t point)>;

// Policies that need no model. Each is tuned on the model's training points alone.
enum class Policy {
  kStaticUniform,  // best config at the nearest token count among the least skewed training points
  kStaticSkewed,   // same among the most skewed ones (falls back to uniform where there are none)
  kSingleBest,     // the one config with the smallest geometric mean of its slowdown over all training points
  kOracle,         // the best measured config (regret 0 by definition)
};
const char* policy_name(Policy p) noexcept;
// Nearest token count: smallest |log(T'/T)|, the smaller T' on a tie.
Chooser make_policy(const Dataset& d, int32_t model, Policy p);

struct RegretStats {
  size_t count = 0;
  double mean = 0, p95 = 0, max = 0;  // fractions
  size_t worst_point = 0;
};
// Regret of `choose` over `points`: us(chosen)/us(best) - 1 (on `us`, or on us_repeat when judge_on_repeat).
// Configs that were not measured at a point can not be judged: choosing one throws.
RegretStats regret(const Dataset& d, std::span<const size_t> points, const Chooser& choose,
                   bool judge_on_repeat = false);

// Noise floor: the best config by `us` judged on us_repeat (count 0 where there is no repeat).
RegretStats noise_floor(const Dataset& d, std::span<const size_t> points);

// The q-quantile (0..1) by linear interpolation between order statistics; 0 for an empty list.
double quantile(std::vector<double> values, double q);

}  // namespace ramp::core
