// Samples and verdicts.
#include "cli/verify.hpp"

#include <algorithm>
#include <cmath>

#include "base/tensor.hpp"
#include "cli/tensors.hpp"
#include "routing/router.hpp"

namespace ramp::cli {
namespace {

// One row of logits in fp64, and how far fp32 logits may be from them.
struct Logits {
  std::vector<double> values;
  double error = 0;
};

Logits logits_of(const ramp_tensor& logits, const ramp_tensor& x, const ramp_tensor& w, int64_t token) {
  Logits row;
  if (core::present(logits)) {
    for (int64_t e = 0; e < logits.shape[1]; ++e)
      row.values.push_back(
          core::load_f32(logits.data, static_cast<ramp_dtype>(logits.dtype), token * logits.stride[0] + e));
    return row;
  }
  const int64_t hidden = x.shape[1];
  // Any order of fp32 additions: |error| <= gamma_n * sum |x w|, gamma_n = n u / (1 - n u), u = 2^-24.
  const double nu = static_cast<double>(hidden) * 0x1p-24;
  for (int64_t e = 0; e < w.shape[0]; ++e) {
    double sum = 0;
    double size = 0;
    for (int64_t h = 0; h < hidden; ++h) {
      const double p = static_cast<double>(core::load_f32(x.data, static_cast<ramp_dtype>(x.dtype),
                                                          token * x.stride[0] + h)) *
                       core::load_f32(w.data, static_cast<ramp_dtype>(w.dtype), e * w.stride[0] + h);
      sum += p;
      size += std::fabs(p);
    }
    row.values.push_back(sum);
    row.error = std::max(row.error, nu / (1 - nu) * size);
  }
  return row;
}

}  // namespace

RouterCheck check_router_choice(const ramp_router_config& router, const ramp_tensor& logits,
                                const ramp_tensor& x, const ramp_tensor& router_weight,
                                const ramp_tensor& ids, const ramp_tensor& weights,
                                const std::vector<int64_t>& tokens) {
  RouterCheck result;
  if (router.capacity != 0) return result;
  const auto slots = static_cast<size_t>(core::router_slots(router));
  std::vector<int64_t> want_ids(slots);
  std::vector<double> want_weights(slots);
  const double scale = router.routed_scaling_factor == 0 ? 1.0 : std::fabs(router.routed_scaling_factor);
  for (const int64_t token : tokens) {
    ++result.tokens;
    const Logits row = logits_of(logits, x, router_weight, token);
    double gap = 0;
    core::route_token_f64(router, row.values, want_ids, want_weights, &gap);
    bool same = true;
    for (size_t j = 0; j < slots; ++j)
      same = same &&
             integer_at(ids, token * static_cast<int64_t>(slots) + static_cast<int64_t>(j)) == want_ids[j];
    // Two scores may each be off by the logits' error, and by a rounding of the score itself (fp32, size <= 1
    // plus a bias).
    if (!same) {
      ++(gap <= 2 * row.error + 0x1p-20 ? result.near_ties : result.wrong);
      continue;
    }
    for (size_t j = 0; j < slots; ++j) {
      const double got = static_cast<const float*>(
          weights.data)[token * static_cast<int64_t>(slots) + static_cast<int64_t>(j)];
      // A logit's error moves a softmax or sigmoid weight by at most twice as much.
      const double difference = std::fabs(got - want_weights[j]) / scale - 2 * row.error;
      result.weight_error = std::max(result.weight_error, difference);
    }
  }
  return result;
}

Json to_json(const RouterCheck& r) {
  return {{"passed", r.ok()},
          {"tokens", r.tokens},
          {"wrong", r.wrong},
          {"near_ties", r.near_ties},
          {"weight_error", r.weight_error}};
}

std::vector<int64_t> sample_tokens(int64_t tokens, int64_t top_k, const core::ModelShape& model,
                                   ramp_activation activation, double budget) {
  const double per_row =
      static_cast<double>(model.hidden) *
      static_cast<double>(core::w13_rows(model.intermediate, activation) + model.intermediate);
  const double affordable = budget / (per_row * static_cast<double>(std::max<int64_t>(1, top_k)));
  const int64_t count = affordable >= static_cast<double>(tokens)
                            ? tokens
                            : std::max<int64_t>(1, static_cast<int64_t>(affordable));
  std::vector<int64_t> list;
  list.reserve(static_cast<size_t>(count));
  // i * (T-1) / (n-1): the first and the last, and steps of at least one in between.
  for (int64_t i = 0; i < count; ++i) list.push_back(count == 1 ? 0 : i * (tokens - 1) / (count - 1));
  return list;
}

double bound_ratio(const core::CheckResult& r) {
  return std::max(r.max_ratio, r.max_sigma_ratio);
}

Json to_json(const core::CheckResult& r) {
  return {{"passed", r.ok()},
          {"rows", r.rows},
          {"elements", r.elements},
          {"rel_error", r.relative_error},
          {"bound_ratio", bound_ratio(r)},
          {"rigorous_ratio", r.max_ratio},
          {"statistical_ratio", r.max_sigma_ratio},
          {"nan_mismatches", r.nan_mismatches},
          {"undetermined", r.undetermined},
          {"flips_allowed", r.flips_allowed},
          {"worst",
           {{"token", r.worst.token},
            {"slot", r.worst.slot},
            {"column", r.worst.column},
            {"got", r.worst.got},
            {"expected", r.worst.expected},
            {"bound", r.worst.bound}}}};
}

}  // namespace ramp::cli
