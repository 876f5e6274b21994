// The fp64 oracle of the routers: one token, written from the definition in router.hpp as plainly as
// possible, sharing nothing with router.cpp. Slow on purpose (sorts everything, allocates).
#include <algorithm>
#include <cmath>
#include <limits>
#include <numeric>
#include <vector>

#include "routing/router.hpp"

namespace ramp::core {
namespace {

constexpr double kInf = std::numeric_limits<double>::infinity();

// Better first: larger key, NaN after everything. Equal keys are left to the caller's stable sort.
bool better(double a, double b) {
  if (std::isnan(a)) return false;
  if (std::isnan(b)) return true;
  return a > b;
}

// Indices of `among`, best key first, ties by lower index (they come in ascending order).
std::vector<int64_t> ranked(std::vector<int64_t> among, const std::vector<double>& keys) {
  std::stable_sort(among.begin(), among.end(), [&](int64_t a, int64_t b) {
    return better(keys[static_cast<size_t>(a)], keys[static_cast<size_t>(b)]);
  });
  return among;
}

// How far the last selected key is above the first rejected one.
double gap(const std::vector<int64_t>& ranking, size_t selected, const std::vector<double>& keys) {
  if (selected >= ranking.size()) return kInf;
  const double worst = keys[static_cast<size_t>(ranking[selected - 1])];
  const double next = keys[static_cast<size_t>(ranking[selected])];
  if (worst == next || (std::isnan(worst) && std::isnan(next))) return 0.0;
  if (std::isnan(next)) return kInf;
  return worst - next;
}

// Softmax; NaN counts as "no logit", +inf ones share everything, no logit above -inf gives zeros.
std::vector<double> softmax(const std::vector<double>& x) {
  std::vector<double> w(x.size(), 0.0);
  double largest = -kInf;
  for (const double v : x) largest = std::isnan(v) ? largest : std::max(largest, v);
  if (largest == -kInf) return w;
  double sum = 0.0;
  for (size_t i = 0; i < x.size(); ++i) {
    if (std::isnan(x[i])) continue;
    w[i] = largest == kInf ? (x[i] == kInf ? 1.0 : 0.0) : std::exp(x[i] - largest);
    sum += w[i];
  }
  for (double& v : w) v /= sum;
  return w;
}

double sigmoid(double x) {
  return std::isnan(x) ? 0.0 : 1.0 / (1.0 + std::exp(-x));
}
// log(sigmoid(x)) without underflow.
double log_sigmoid(double x) {
  return x < 0.0 ? x - std::log1p(std::exp(x)) : -std::log1p(std::exp(-x));
}

double group_score(const ramp_router_config& r, std::vector<double> keys) {
  std::stable_sort(keys.begin(), keys.end(), better);
  if (r.group_score == RAMP_GROUP_SCORE_MAX || keys.size() == 1 || keys[0] == kInf || std::isnan(keys[1]))
    return keys[0];
  return keys[0] + keys[1];
}

}  // namespace

void route_token_f64(const ramp_router_config& router, std::span<const double> logits,
                     std::span<int64_t> ids_out, std::span<double> weights_out, double* gap_out) {
  const size_t experts = logits.size();
  const auto top_k = static_cast<size_t>(router.top_k);
  const std::vector<double> x(logits.begin(), logits.end());
  const auto* const bias = static_cast<const float*>(router.selection_bias.data);
  const bool groups = router.num_groups > 1;
  double smallest_gap = kInf;

  // Scores of all experts, and what selection compares.
  std::vector<double> scores = x;
  if (router.scoring == RAMP_SCORING_SOFTMAX) scores = softmax(x);
  if (router.scoring == RAMP_SCORING_SIGMOID) {
    for (double& s : scores) s = sigmoid(s);
  }
  std::vector<double> keys = scores;
  for (size_t e = 0; e < experts; ++e) {
    if (bias != nullptr) keys[e] += bias[e];
    if (std::isnan(x[e])) keys[e] = x[e];
  }
  const std::vector<double>& expert_keys = bias == nullptr ? x : keys;  // scores are monotone in the logits

  std::vector<int64_t> eligible;
  if (groups) {
    const bool monotone = bias == nullptr && router.group_score == RAMP_GROUP_SCORE_MAX;
    const std::vector<double>& member_keys = monotone ? x : keys;
    const auto num_groups = static_cast<size_t>(router.num_groups);
    const auto kept = static_cast<size_t>(router.topk_groups);
    const size_t size = experts / num_groups;
    std::vector<double> group_keys;
    for (size_t g = 0; g < num_groups; ++g) {
      const auto first = member_keys.begin() + static_cast<ptrdiff_t>(g * size);
      group_keys.push_back(group_score(router, {first, first + static_cast<ptrdiff_t>(size)}));
    }
    std::vector<int64_t> all(num_groups);
    std::iota(all.begin(), all.end(), 0);
    std::vector<int64_t> order = ranked(all, group_keys);
    smallest_gap = std::min(smallest_gap, gap(order, kept, group_keys));
    order.resize(kept);
    std::sort(order.begin(), order.end());
    for (const int64_t g : order) {
      for (size_t i = 0; i < size; ++i)
        eligible.push_back(static_cast<int64_t>(static_cast<size_t>(g) * size + i));
    }
  } else {
    eligible.resize(experts);
    std::iota(eligible.begin(), eligible.end(), 0);
  }
  const std::vector<int64_t> order = ranked(eligible, expert_keys);
  smallest_gap = std::min(smallest_gap, gap(order, top_k, expert_keys));
  if (gap_out != nullptr) *gap_out = smallest_gap;

  // Weights of the chosen.
  std::vector<double> chosen(top_k);
  for (size_t j = 0; j < top_k; ++j) chosen[j] = x[static_cast<size_t>(order[j])];
  std::vector<double> w(top_k);
  if (router.scoring == RAMP_SCORING_SIGMOID) {
    if (router.renormalize == 1) {
      // s_i / sum(s) is the softmax of log s.
      for (double& v : chosen) v = log_sigmoid(v);
      w = softmax(chosen);
    } else {
      for (size_t j = 0; j < top_k; ++j) w[j] = sigmoid(chosen[j]);
    }
  } else if (router.scoring == RAMP_SCORING_TOPK_SOFTMAX || router.renormalize == 1) {
    w = softmax(chosen);
  } else {
    for (size_t j = 0; j < top_k; ++j) w[j] = scores[static_cast<size_t>(order[j])];
  }
  const double scale =
      router.routed_scaling_factor == 0.0F ? 1.0 : static_cast<double>(router.routed_scaling_factor);
  for (size_t j = 0; j < top_k; ++j) {
    ids_out[j] = order[j];
    weights_out[j] = w[j] * scale;
  }
  for (size_t n = 0; n < static_cast<size_t>(router.num_shared_experts); ++n) {
    ids_out[top_k + n] = static_cast<int64_t>(experts + n);
    weights_out[top_k + n] = 1.0;
  }
}

}  // namespace ramp::core
