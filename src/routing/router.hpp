// Routers: from logits to expert ids and weights (DESIGN: softmax, top-k softmax, sigmoid; bias; groups;
// scaling; shared experts; capacity). Selection happens on raw logits wherever the score is monotone in them;
// ties go to the lower id.
#pragma once

#include <cstdint>
#include <span>

#include "ramp/ramp.h"

namespace ramp::core {

// Validates a public config against the number of logits (throws Error) and fills defaults (scaling 0 -> 1).
ramp_router_config check_router(const ramp_router_config& router, int64_t num_logits);

// Slots per token: top_k + num_shared_experts.
inline int64_t router_slots(const ramp_router_config& r) noexcept {
  return r.top_k + r.num_shared_experts;
}

// Bytes of scratch that route_tokens needs per call of it (independent of the number of tokens).
int64_t route_scratch_bytes(const ramp_router_config& router, int64_t num_logits) noexcept;

// Routes tokens [begin, end). logits: f32/f16/bf16 [T,E] with strides; ids: i32 or i64 [T,slots]; weights:
// f32 [T,slots]. `router` has gone through check_router. Capacity is NOT applied here (it needs all tokens):
// see apply_capacity. No allocation. Pure: each token's result depends on its own row alone.
void route_tokens(const ramp_router_config& router, const ramp_tensor& logits, const ramp_tensor& ids,
                  const ramp_tensor& weights, int64_t begin, int64_t end, void* scratch) noexcept;

// Keeps each expert's first `capacity` slots in (token, slot) order; later ones get id -1 and weight 0.
// Shared experts (ids >= num_logits) are exempt. counts: scratch of num_logits int64.
void apply_capacity(int64_t capacity, int64_t num_logits, const ramp_tensor& ids, const ramp_tensor& weights,
                    std::span<int64_t> counts) noexcept;

// fp64 oracle for one token, written independently of route_tokens and as plainly as possible (tests,
// --check). ids_out/weights_out: `slots` entries. gap_out (optional): smallest difference between a selected
// and a rejected selection score, to tell documented near-ties from errors.
void route_token_f64(const ramp_router_config& router, std::span<const double> logits,
                     std::span<int64_t> ids_out, std::span<double> weights_out, double* gap_out = nullptr);

}  // namespace ramp::core
