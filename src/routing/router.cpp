// The host router: one row at a time through plain stages (load, keys, select, weights, store), all scratch
// from the caller. What is computed: router.hpp; how scores are: score_math.hpp.
#include "routing/router.hpp"

#include <algorithm>
#include <limits>

#include "base/float_types.hpp"
#include "base/tensor.hpp"
#include "routing/score_rows.hpp"
#include "routing/select.hpp"

namespace ramp::core {
namespace {

constexpr float kInfinity = std::numeric_limits<float>::infinity();
constexpr float kNan = std::numeric_limits<float>::quiet_NaN();
// Renormalised sigmoids below this are a softmax (router.hpp): e^-64 = 1.6e-28 vanishes beside 1.
constexpr float kSigmoidIsExp = -64.0F;

// Where the pieces of one token live, all in the caller's scratch.
struct Scratch {
  uint64_t* best;         // [E] candidates: the k chosen experts
  uint64_t* best_groups;  // [E] candidates: the chosen groups
  float* logits;          // [E] the row as fp32
  float* terms;           // [E] softmax terms or sigmoids
  float* keys;            // [E] selection keys where they are not the logits
  float* chosen;          // [k] logits of the chosen
  float* weights;         // [k]
  unsigned char* keep;    // [E] one flag per group

  static int64_t bytes(int64_t experts, int64_t top_k) noexcept {
    constexpr int64_t per_expert = 2 * sizeof(uint64_t) + 3 * sizeof(float) + 1;
    return static_cast<int64_t>(alignof(uint64_t)) - 1 + experts * per_expert +
           top_k * static_cast<int64_t>(2 * sizeof(float));
  }
  Scratch(void* data, int64_t experts, int64_t top_k) noexcept {
    const auto address = reinterpret_cast<uintptr_t>(data);
    const uintptr_t pad = (alignof(uint64_t) - address % alignof(uint64_t)) % alignof(uint64_t);
    best = reinterpret_cast<uint64_t*>(static_cast<unsigned char*>(data) + pad);
    best_groups = best + experts;
    logits = reinterpret_cast<float*>(best_groups + experts);
    terms = logits + experts;
    keys = terms + experts;
    chosen = keys + experts;
    weights = chosen + top_k;
    keep = reinterpret_cast<unsigned char*>(weights + top_k);
  }
};

// The row of token t as fp32: f32 in place, the others converted (exactly) into `buffer`.
const float* load_row(const ramp_tensor& logits, int64_t t, int64_t experts, float* buffer) noexcept {
  const int64_t at = t * logits.stride[0];
  if (logits.dtype == RAMP_F32) return static_cast<const float*>(logits.data) + at;
  const auto* const from = static_cast<const uint16_t*>(logits.data) + at;
  if (logits.dtype == RAMP_BF16) {
    for (int64_t e = 0; e < experts; ++e) buffer[e] = bf16_to_f32(from[e]);
  } else {
    for (int64_t e = 0; e < experts; ++e) buffer[e] = f16_to_f32(from[e]);
  }
  return buffer;
}

void store_id(const ramp_tensor& ids, int64_t at, int64_t id) noexcept {
  if (ids.dtype == RAMP_I64) {
    static_cast<int64_t*>(ids.data)[at] = id;
  } else {
    static_cast<int32_t*>(ids.data)[at] = static_cast<int32_t>(id);
  }
}

int64_t load_id(const ramp_tensor& ids, int64_t at) noexcept {
  return ids.dtype == RAMP_I64 ? static_cast<const int64_t*>(ids.data)[at]
                               : static_cast<const int32_t*>(ids.data)[at];
}

// One row's router: the config with everything that does not depend on the token worked out once.
class RowRouter {
 public:
  RowRouter(const ramp_router_config& router, int64_t experts, const Scratch& scratch) noexcept
      : r_(router),
        experts_(experts),
        group_size_(experts / std::max(1, router.num_groups)),
        bias_(static_cast<const float*>(router.selection_bias.data)),
        s_(scratch) {}

  // Leaves the chosen ids in s_.best and their weights in s_.weights.
  void route(const float* x) noexcept {
    terms_ready_ = false;
    choose(x);
    for (int64_t j = 0; j < r_.top_k; ++j) s_.chosen[j] = x[candidate_id(s_.best[j])];
    weigh(x);
  }
  [[nodiscard]] int64_t id(int64_t j) const noexcept { return candidate_id(s_.best[j]); }
  [[nodiscard]] float weight(int64_t j) const noexcept { return s_.weights[j]; }

 private:
  // Softmax terms over all experts and their sum; sigmoids.
  void compute_terms(const float* x) noexcept {
    if (terms_ready_) return;
    terms_ready_ = true;
    if (r_.scoring == RAMP_SCORING_SIGMOID) {
      sigmoid_scores(x, experts_, s_.terms);
      return;
    }
    max_ = row_max(x, experts_);
    softmax_terms(x, experts_, max_, s_.terms);
    sum_ = row_sum(s_.terms, experts_);
  }

  // Selection keys: scores + bias; NaN where the logit is NaN.
  const float* biased_keys(const float* x) noexcept {
    if (r_.scoring == RAMP_SCORING_TOPK_SOFTMAX) {
      if (bias_ == nullptr) return x;
      for (int64_t e = 0; e < experts_; ++e) s_.keys[e] = x[e] + bias_[e];
      return s_.keys;
    }
    compute_terms(x);
    const float divisor = r_.scoring == RAMP_SCORING_SIGMOID || !(sum_ > 0.0F) ? 1.0F : sum_;
    for (int64_t e = 0; e < experts_; ++e) {
      const float score = s_.terms[e] / divisor;
      const float key = bias_ == nullptr ? score : score + bias_[e];
      s_.keys[e] = x[e] == x[e] ? key : kNan;
    }
    return s_.keys;
  }

  float group_score(const float* keys, int64_t g) const noexcept {
    float best = kNan;
    float second = kNan;
    for (int64_t e = g * group_size_; e < (g + 1) * group_size_; ++e) {
      const float key = keys[e];
      if (!(key <= best)) {  // larger, or best is still NaN
        if (key == key) {
          second = best;
          best = key;
        }
      } else if (!(key <= second)) {
        second = key;
      }
    }
    if (r_.group_score == RAMP_GROUP_SCORE_MAX || best == kInfinity || second != second) return best;
    return best + second;
  }

  void choose(const float* x) noexcept {
    const bool groups = r_.num_groups > 1;
    const float* const biased =
        bias_ != nullptr || (groups && r_.group_score == RAMP_GROUP_SCORE_TOP2_SUM) ? biased_keys(x) : x;
    const float* const keys = bias_ != nullptr ? biased : x;
    TopK experts(s_.best, r_.top_k);
    if (!groups) {
      experts.offer_range(keys, 0, experts_);
      experts.finish();
      return;
    }
    TopK kept(s_.best_groups, r_.topk_groups);
    for (int64_t g = 0; g < r_.num_groups; ++g) {
      s_.keep[g] = 0;
      kept.offer(candidate(group_score(biased, g), g));
    }
    kept.finish();
    for (int64_t i = 0; i < r_.topk_groups; ++i) s_.keep[candidate_id(s_.best_groups[i])] = 1;
    for (int64_t g = 0; g < r_.num_groups; ++g) {
      if (s_.keep[g] != 0) experts.offer_range(keys, g * group_size_, (g + 1) * group_size_);
    }
    experts.finish();
  }

  void divide(float sum) noexcept {
    for (int64_t j = 0; j < r_.top_k; ++j) s_.weights[j] = sum > 0.0F ? s_.weights[j] / sum : 0.0F;
  }
  void softmax_over_chosen() noexcept {
    softmax_terms(s_.chosen, r_.top_k, row_max(s_.chosen, r_.top_k), s_.weights);
    divide(row_sum(s_.weights, r_.top_k));
  }

  void weigh(const float* x) noexcept {
    if (r_.scoring == RAMP_SCORING_SIGMOID) {
      if (r_.renormalize != 0 && row_max(s_.chosen, r_.top_k) < kSigmoidIsExp) {
        softmax_over_chosen();
      } else {
        sigmoid_scores(s_.chosen, r_.top_k, s_.weights);
        if (r_.renormalize != 0) divide(row_sum(s_.weights, r_.top_k));
      }
    } else if (r_.scoring == RAMP_SCORING_TOPK_SOFTMAX || r_.renormalize != 0) {
      softmax_over_chosen();
    } else {
      compute_terms(x);
      for (int64_t j = 0; j < r_.top_k; ++j) s_.weights[j] = s_.terms[candidate_id(s_.best[j])];
      divide(sum_);
    }
    for (int64_t j = 0; j < r_.top_k; ++j) s_.weights[j] *= r_.routed_scaling_factor;
  }

  const ramp_router_config& r_;
  int64_t experts_, group_size_;
  const float* bias_;
  Scratch s_;
  float max_ = 0, sum_ = 0;
  bool terms_ready_ = false;
};

}  // namespace

int64_t route_scratch_bytes(const ramp_router_config& router, int64_t num_logits) noexcept {
  return Scratch::bytes(num_logits, router.top_k);
}

void route_tokens(const ramp_router_config& router, const ramp_tensor& logits, const ramp_tensor& ids,
                  const ramp_tensor& weights, int64_t begin, int64_t end, void* scratch) noexcept {
  const ramp_tensor from = with_strides(logits);
  const ramp_tensor to_ids = with_strides(ids);
  const ramp_tensor to_weights = with_strides(weights);
  const int64_t experts = logits.shape[1];
  const Scratch s(scratch, experts, router.top_k);
  RowRouter row(router, experts, s);
  for (int64_t t = begin; t < end; ++t) {
    row.route(load_row(from, t, experts, s.logits));
    const int64_t id_at = t * to_ids.stride[0];
    float* const w = static_cast<float*>(to_weights.data) + t * to_weights.stride[0];
    for (int64_t j = 0; j < router.top_k; ++j) {
      store_id(to_ids, id_at + j, row.id(j));
      w[j] = row.weight(j);
    }
    for (int64_t n = 0; n < router.num_shared_experts; ++n) {
      store_id(to_ids, id_at + router.top_k + n, experts + n);
      w[router.top_k + n] = 1.0F;
    }
  }
}

void apply_capacity(int64_t capacity, int64_t num_logits, const ramp_tensor& ids, const ramp_tensor& weights,
                    std::span<int64_t> counts) noexcept {
  const ramp_tensor to_ids = with_strides(ids);
  const ramp_tensor to_weights = with_strides(weights);
  std::fill_n(counts.begin(), num_logits, 0);
  for (int64_t t = 0; t < to_ids.shape[0]; ++t) {
    for (int64_t j = 0; j < to_ids.shape[1]; ++j) {
      const int64_t at = t * to_ids.stride[0] + j;
      const int64_t id = load_id(to_ids, at);
      if (id < 0 || id >= num_logits) continue;
      if (counts[static_cast<size_t>(id)] < capacity) {
        ++counts[static_cast<size_t>(id)];
        continue;
      }
      store_id(to_ids, at, -1);
      static_cast<float*>(to_weights.data)[t * to_weights.stride[0] + j] = 0.0F;
    }
  }
}

}  // namespace ramp::core
