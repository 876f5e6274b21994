// Regret and the policies without a model.
#include "cost/evaluate.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>

#include "base/error.hpp"

namespace ramp::core {
namespace {

size_t best_config(const Dataset& d, size_t point, bool on_repeat) {
  size_t best = d.configs.size();
  double best_us = std::numeric_limits<double>::infinity();
  for (size_t c = 0; c < d.configs.size(); ++c) {
    const double us = on_repeat ? d.repeat(point, c) : d.time(point, c);
    if (us < best_us) {
      best_us = us;
      best = c;
    }
  }
  if (best == d.configs.size()) {
    fail_argument("timings.csv", fmt::format("no timing for point '{}'", printable(d.points[point].name)),
                  "at least one", {}, RAMP_ERROR_BAD_FILE);
  }
  return best;
}

// Training points of the least (or most) skew; all of them when the data carries no skew column.
std::vector<size_t> by_skew(const Dataset& d, int32_t model, bool most) {
  std::vector<size_t> points = select_points(d, model, true);
  double wanted = most ? -1.0 : std::numeric_limits<double>::infinity();
  for (const size_t p : points) {
    const double z = d.points[p].zipf;
    if (!std::isnan(z)) wanted = most ? std::max(wanted, z) : std::min(wanted, z);
  }
  std::erase_if(points,
                [&](size_t p) { return !std::isnan(d.points[p].zipf) && d.points[p].zipf != wanted; });
  return points;
}

Chooser nearest_tokens(const Dataset& d, std::vector<size_t> points) {
  std::vector<size_t> best;
  best.reserve(points.size());
  for (const size_t p : points) best.push_back(best_config(d, p, false));
  return [&d, points = std::move(points), best = std::move(best)](size_t point) {
    size_t chosen = 0;
    double nearest = std::numeric_limits<double>::infinity();
    int64_t tokens = 0;
    for (size_t i = 0; i < points.size(); ++i) {
      const int64_t t = d.points[points[i]].tokens;
      const double distance =
          std::abs(std::log(static_cast<double>(std::max<int64_t>(t, 1)) /
                            static_cast<double>(std::max<int64_t>(d.points[point].tokens, 1))));
      if (distance < nearest || (distance == nearest && t < tokens)) {
        nearest = distance;
        tokens = t;
        chosen = best[i];
      }
    }
    return chosen;
  };
}

Chooser single_best(const Dataset& d, int32_t model) {
  const std::vector<size_t> points = select_points(d, model, true);
  size_t best = 0;
  double best_mean = std::numeric_limits<double>::infinity();
  for (size_t c = 0; c < d.configs.size(); ++c) {
    double sum = 0;  // NaN where the config was not measured everywhere: never chosen
    for (const size_t p : points) sum += std::log(d.time(p, c) / d.time(p, best_config(d, p, false)));
    if (sum < best_mean) {
      best_mean = sum;
      best = c;
    }
  }
  return [best](size_t) { return best; };
}

}  // namespace

const char* policy_name(Policy p) noexcept {
  switch (p) {
    case Policy::kStaticUniform:
      return "static_uniform";
    case Policy::kStaticSkewed:
      return "static_skewed";
    case Policy::kSingleBest:
      return "single_best";
    case Policy::kOracle:
      return "oracle";
  }
  return "unknown";
}

Chooser make_policy(const Dataset& d, int32_t model, Policy p) {
  if (p != Policy::kOracle && select_points(d, model, true).empty()) {
    fail_argument("points.csv",
                  fmt::format("no training points for model '{}'",
                              printable(d.models[static_cast<size_t>(model)].name)),
                  "at least one row with split=train", {}, RAMP_ERROR_BAD_FILE);
  }
  switch (p) {
    case Policy::kStaticUniform:
      return nearest_tokens(d, by_skew(d, model, false));
    case Policy::kStaticSkewed:
      return nearest_tokens(d, by_skew(d, model, true));
    case Policy::kSingleBest:
      return single_best(d, model);
    case Policy::kOracle:
      break;
  }
  return [&d](size_t point) { return best_config(d, point, false); };
}

double quantile(std::vector<double> values, double q) {
  if (values.empty()) return 0;
  std::sort(values.begin(), values.end());
  const double at = q * static_cast<double>(values.size() - 1);
  const auto low = static_cast<size_t>(at);
  const size_t high = std::min(low + 1, values.size() - 1);
  return values[low] + (at - static_cast<double>(low)) * (values[high] - values[low]);
}

RegretStats regret(const Dataset& d, std::span<const size_t> points, const Chooser& choose,
                   bool judge_on_repeat) {
  RegretStats r;
  std::vector<double> all;
  all.reserve(points.size());
  for (const size_t p : points) {
    const size_t best = best_config(d, p, judge_on_repeat);
    const size_t chosen = choose(p);
    const double us = judge_on_repeat ? d.repeat(p, chosen) : d.time(p, chosen);
    const double best_us = judge_on_repeat ? d.repeat(p, best) : d.time(p, best);
    if (std::isnan(us)) {
      fail_argument("timings.csv",
                    fmt::format("no timing for the chosen config '{}' at point '{}'",
                                printable(d.configs.names[chosen]), printable(d.points[p].name)),
                    "every choosable config measured at every test point", {}, RAMP_ERROR_BAD_FILE);
    }
    const double value = us / best_us - 1.0;
    if (all.empty() || value > r.max) {
      r.max = value;
      r.worst_point = p;
    }
    r.mean += value;
    all.push_back(value);
  }
  r.count = all.size();
  if (r.count > 0) r.mean /= static_cast<double>(r.count);
  r.p95 = quantile(std::move(all), 0.95);
  return r;
}

RegretStats noise_floor(const Dataset& d, std::span<const size_t> points) {
  std::vector<size_t> repeated;
  for (const size_t p : points) {
    bool complete = d.has_repeat;
    for (size_t c = 0; complete && c < d.configs.size(); ++c)
      complete = std::isnan(d.time(p, c)) == std::isnan(d.repeat(p, c));
    if (complete) repeated.push_back(p);
  }
  return regret(
      d, repeated, [&d](size_t p) { return best_config(d, p, false); }, true);
}

}  // namespace ramp::core
