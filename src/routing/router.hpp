// Routers: from logits to expert ids and weights (DESIGN: softmax, top-k softmax, sigmoid; bias; groups;
// scaling; shared experts; capacity).
//
// What is computed for a token with logits x[E], in these words: score s = softmax(x) or sigmoid(x)
// (TOPK_SOFTMAX: s = x); key = s + selection_bias.
//   1. Groups (num_groups > 1): the topk_groups groups of largest group score stay; the score of a group is
//   its
//      largest key (MAX) or the sum of its two largest (TOP2_SUM; of one, where a group has one expert).
//   2. The top_k experts of largest key among them, best first: that is the order of the slots.
//   3. Weights of the chosen from their unbiased scores. SOFTMAX: their softmax over all E, or with
//   renormalize
//      over the chosen. TOPK_SOFTMAX: softmax over the chosen (renormalize changes nothing). SIGMOID: s, with
//      renormalize divided by their sum. Then times routed_scaling_factor.
//   4. Slots top_k..top_k+n-1: the shared experts E..E+n-1 with weight 1.
// Where the score is monotone in the logit (step 1 with MAX, step 2 without bias) the logits themselves are
// compared, exactly: neither saturation nor rounding makes ties there. Elsewhere keys are fp32 and keys
// closer than their rounding errors may come in either order (tests/routing derives the bound).
//
// Ties go to the lower id, of groups too; -0 and +0 tie. Special values:
//   * A NaN logit has score and weight 0 and its key sorts after every other, -inf included, bias or not; it
//   is
//     chosen only when nothing else is left. Groups of NaN alone sort last; in a top-2 sum a NaN adds
//     nothing.
//   * +inf logits share a softmax equally. -inf logits have score 0. A group whose best key is +inf has score
//     +inf.
//   * A row without any logit above -inf (all NaN or -inf) gets ids like any other and weights 0: the token
//     contributes nothing, whereas equal weights would let experts that the router ruled out into the output.
//     Weights are therefore always finite, >= 0, and after a softmax over the chosen or a renormalisation sum
//     to routed_scaling_factor or 0.
//   * Renormalised sigmoids whose largest chosen logit is below -64 are computed as a softmax over the
//   chosen,
//     which they equal to fp32 there (1 + e^-64 rounds to 1), so that they do not underflow to 0/0.
// Arithmetic: score_math.hpp, sums in warp order.
#pragma once

#include <cstdint>
#include <span>

#include "ramp/ramp.h"

namespace ramp::core {

// Validates a public config against the number of logits (throws Error) and fills defaults (scaling 0 -> 1,
// num_groups 0 -> 1 with topk_groups 1, strides of the bias).
ramp_router_config check_router(const ramp_router_config& router, int64_t num_logits);

// Slots per token: top_k + num_shared_experts.
inline int64_t router_slots(const ramp_router_config& r) noexcept {
  return int64_t{r.top_k} + r.num_shared_experts;
}

// Bytes of scratch that route_tokens needs per call of it (independent of the number of tokens). Any
// alignment will do. Grows with num_logits and top_k alone.
int64_t route_scratch_bytes(const ramp_router_config& router, int64_t num_logits) noexcept;

// Routes tokens [begin, end). logits: f32/f16/bf16 [T,E] with strides; ids: i32 or i64 [T,slots]; weights:
// f32 [T,slots]. `router` has gone through check_router. Capacity is NOT applied here (it needs all tokens):
// see apply_capacity. No allocation. Pure: each token's result depends on its own row alone.
void route_tokens(const ramp_router_config& router, const ramp_tensor& logits, const ramp_tensor& ids,
                  const ramp_tensor& weights, int64_t begin, int64_t end, void* scratch) noexcept;

// Keeps each expert's first `capacity` slots in (token, slot) order; later ones get id -1 and weight 0.
// Shared experts (ids >= num_logits) are exempt. counts: scratch of num_logits int64; holds the number of
// slots that each expert kept afterwards. capacity >= 1 (0, no capacity, means: do not call).
void apply_capacity(int64_t capacity, int64_t num_logits, const ramp_tensor& ids, const ramp_tensor& weights,
                    std::span<int64_t> counts) noexcept;

// fp64 oracle for one token, written independently of route_tokens and as plainly as possible (tests,
// --check). ids_out/weights_out: `slots` entries. gap_out (optional): smallest difference between a selected
// and a rejected selection score (of experts, and of groups), to tell documented near-ties from errors; 0 at
// an exact tie, infinite where nothing was rejected or only NaN was.
void route_token_f64(const ramp_router_config& router, std::span<const double> logits,
                     std::span<int64_t> ids_out, std::span<double> weights_out, double* gap_out = nullptr);

}  // namespace ramp::core
