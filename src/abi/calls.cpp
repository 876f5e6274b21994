// Checks of activations and routers; see calls.hpp.
#include "abi/calls.hpp"

#include <fmt/format.h>

#include <algorithm>

#include "base/error.hpp"
#include "routing/router.hpp"
#include "weights/quantize.hpp"

namespace ramp::core {
namespace {

// Columns of x_scale for e4m3 x; 0: no x_scale belongs to this format.
int64_t scale_columns(ramp_format format, int64_t hidden) noexcept {
  if (format == RAMP_FORMAT_FP8_BLOCK) return (hidden + kGroup - 1) / kGroup;
  return format == RAMP_FORMAT_FP8_CHANNEL ? 1 : 0;
}

}  // namespace

Activations check_activations(const ramp_tensor& x, const ramp_tensor& x_scale, const ExpertWeights& weights,
                              int64_t slabs, ramp_device device) {
  Activations a;
  const int64_t hidden = weights.hidden;
  const bool fp8 = weight_dtype(weights.format) == RAMP_E4M3;
  if (slabs > 0) {
    a.x = fp8 ? check_tensor(x, "x", {RAMP_BF16, RAMP_F16, RAMP_F32, RAMP_E4M3}, {slabs, -1, hidden}, device)
              : check_tensor(x, "x", {RAMP_BF16, RAMP_F16, RAMP_F32}, {slabs, -1, hidden}, device);
  } else {
    a.x = fp8 ? check_tensor(x, "x", {RAMP_BF16, RAMP_F16, RAMP_F32, RAMP_E4M3}, {-1, hidden}, device)
              : check_tensor(x, "x", {RAMP_BF16, RAMP_F16, RAMP_F32}, {-1, hidden}, device);
  }
  const int64_t columns = a.x.dtype == RAMP_E4M3 ? scale_columns(weights.format, hidden) : 0;
  if (columns == 0) {
    if (present(x_scale)) {
      fail_argument("x_scale", shape_text(x_scale), "no tensor (data NULL)",
                    a.x.dtype == RAMP_E4M3
                        ? "fp8_tensor weights carry the static scale of x"
                        : fmt::format("x is {}: the library quantises it where the format needs it",
                                      dtype_name(a.x.dtype)));
    }
    return a;
  }
  a.scale = slabs > 0 ? check_tensor(x_scale, "x_scale", {RAMP_F32}, {slabs, a.x.shape[1], columns}, device)
                      : check_tensor(x_scale, "x_scale", {RAMP_F32}, {a.x.shape[0], columns}, device);
  return a;
}

ramp_router_config check_public_router(const ramp_router_config& router, int64_t num_logits,
                                       ramp_device device) {
  for (const int64_t r : router.reserved) check_reserved(r, "router.reserved");
  ramp_router_config checked = router;
  checked.selection_bias =
      check_optional(router.selection_bias, "router.selection_bias", {RAMP_F32}, {num_logits}, device);
  return check_router(checked, num_logits);
}

uint64_t route_workspace_bound(const ramp_context& context, int64_t num_logits, int64_t slots,
                               int64_t max_tokens) {
  // The backend sizes scratch for one router; the bound takes the ones that need most of everything: all
  // slots routed, a group per expert, a capacity, the scoring that keeps two scores per expert.
  uint64_t bound = 0;
  for (const int32_t scoring : {RAMP_SCORING_SOFTMAX, RAMP_SCORING_TOPK_SOFTMAX, RAMP_SCORING_SIGMOID}) {
    ramp_router_config r = ramp_router_config_init();
    r.scoring = scoring;
    r.top_k = static_cast<int32_t>(std::min(slots, num_logits));
    r.num_shared_experts = static_cast<int32_t>(slots) - r.top_k;
    r.num_groups = static_cast<int32_t>(num_logits);
    r.topk_groups = r.num_groups;
    r.routed_scaling_factor = 1.0F;
    r.capacity = 1;
    bound = std::max(bound, context.backend->route_workspace(r, num_logits, max_tokens));
    r.num_groups = 1;
    r.topk_groups = 1;
    bound = std::max(bound, context.backend->route_workspace(r, num_logits, max_tokens));
  }
  return bound;
}

}  // namespace ramp::core
