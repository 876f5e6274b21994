// Validation of router configs: every field against its range and against the number of logits.
#include <fmt/format.h>

#include <cmath>
#include <limits>

#include "base/error.hpp"
#include "base/tensor.hpp"
#include "routing/router.hpp"

namespace ramp::core {
namespace {

constexpr int64_t kMaxExperts = std::numeric_limits<int32_t>::max();

void check_groups(ramp_router_config& r, int64_t num_logits) {
  if (r.num_groups < 0 || (r.num_groups > 1 && num_logits % r.num_groups != 0)) {
    fail_argument("router.num_groups", fmt::format("{}", r.num_groups),
                  fmt::format("0 (no groups) or a divisor of the {} logits", num_logits));
  }
  if (r.num_groups <= 1) {
    if (r.topk_groups < 0 || r.topk_groups > 1) {
      fail_argument("router.topk_groups", fmt::format("{} without groups", r.topk_groups), "0 or 1",
                    "set num_groups as well");
    }
    r.num_groups = 1;
    r.topk_groups = 1;
    return;
  }
  if (r.topk_groups < 1 || r.topk_groups > r.num_groups) {
    fail_argument("router.topk_groups", fmt::format("{}", r.topk_groups),
                  fmt::format("1 to num_groups ({})", r.num_groups));
  }
  const int64_t eligible = num_logits / r.num_groups * r.topk_groups;
  if (r.top_k > eligible) {
    fail_argument("router.top_k", fmt::format("{}", r.top_k),
                  fmt::format("at most {}, the experts of {} groups of {}", eligible, r.topk_groups,
                              num_logits / r.num_groups),
                  "keep more groups or choose fewer experts");
  }
}

void check_enum(int32_t value, int32_t last, const char* name, const char* expected) {
  if (value < 0 || value > last) fail_argument(name, fmt::format("{}", value), expected);
}

}  // namespace

ramp_router_config check_router(const ramp_router_config& router, int64_t num_logits) {
  ramp_router_config r = router;
  if (num_logits < 1 || num_logits > kMaxExperts) {
    fail_argument("logits", fmt::format("{} experts", num_logits), fmt::format("1 to {}", kMaxExperts),
                  "logits are [tokens, experts]");
  }
  check_enum(r.scoring, RAMP_SCORING_SIGMOID, "router.scoring",
             "0 (softmax), 1 (top-k softmax) or 2 (sigmoid)");
  check_enum(r.renormalize, 1, "router.renormalize", "0 or 1");
  check_enum(r.group_score, RAMP_GROUP_SCORE_TOP2_SUM, "router.group_score", "0 (max) or 1 (top-2 sum)");
  if (r.top_k < 1 || r.top_k > num_logits) {
    fail_argument("router.top_k", fmt::format("{}", r.top_k),
                  fmt::format("1 to the number of logits ({})", num_logits));
  }
  check_groups(r, num_logits);
  if (!std::isfinite(r.routed_scaling_factor) || r.routed_scaling_factor < 0.0F) {
    fail_argument("router.routed_scaling_factor", fmt::format("{}", r.routed_scaling_factor),
                  "a finite factor > 0, or 0 for 1");
  }
  if (r.routed_scaling_factor == 0.0F) r.routed_scaling_factor = 1.0F;
  if (r.num_shared_experts < 0 || r.num_shared_experts > kMaxExperts - num_logits) {
    fail_argument("router.num_shared_experts", fmt::format("{}", r.num_shared_experts),
                  fmt::format("0 to {}", kMaxExperts - num_logits));
  }
  if (r.capacity < 0) {
    fail_argument("router.capacity", fmt::format("{}", r.capacity), "0 (none) or a number of slots >= 1");
  }
  if (present(r.selection_bias)) {
    r.selection_bias = check_tensor(r.selection_bias, "router.selection_bias", {RAMP_F32}, {num_logits},
                                    r.selection_bias.device);
  }
  return r;
}

}  // namespace ramp::core
