// Checking results against the fp64 reference: which tokens, how far, and what the verdict looks like.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "backend/reference/check.hpp"
#include "cli/output.hpp"
#include "geometry/model.hpp"

namespace ramp::cli {

// Tokens to check: all where that costs at most `budget` multiply-adds of fp64 reference work, else a sample,
// evenly spread, the first and the last among them (at least one).
std::vector<int64_t> sample_tokens(int64_t tokens, int64_t top_k, const core::ModelShape& model,
                                   ramp_activation activation, double budget);
inline constexpr double kQuickBudget = 3e8;  // about a second of one core
inline constexpr double kFullBudget = 3e9;

// Routing against the fp64 oracle for these tokens.
struct RouterCheck {
  int64_t tokens = 0;
  int64_t near_ties = 0;    // tokens whose choice differs where the scores do not decide (docs/numerics.md)
  int64_t wrong = 0;        // tokens with another choice
  double weight_error = 0;  // largest difference of a weight, over tokens with the oracle's choice
  [[nodiscard]] bool ok() const noexcept { return wrong == 0 && weight_error <= kWeightTolerance; }
  // Weights are fp32 values of at most the scaling factor (checked relative to it): softmax over up to a few
  // hundred terms plus a division, each a few units in the last place of 2^-24.
  static constexpr double kWeightTolerance = 1e-5;
};
// Exactly one of logits and (x, router_weight) is present. Not applicable with a capacity: no tokens then.
RouterCheck check_router_choice(const ramp_router_config& router, const ramp_tensor& logits,
                                const ramp_tensor& x, const ramp_tensor& router_weight,
                                const ramp_tensor& ids, const ramp_tensor& weights,
                                const std::vector<int64_t>& tokens);
Json to_json(const RouterCheck& r);

// The larger of the two ratios to their bounds: at most 1 when the result is right.
double bound_ratio(const core::CheckResult& r);
Json to_json(const core::CheckResult& r);

}  // namespace ramp::cli
