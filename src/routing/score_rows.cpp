// Row loops over score_math; see score_rows.hpp. The loop bodies are inlined once into a build for FMA and
// once into a portable one.
#include "routing/score_rows.hpp"

#include "routing/score_math.hpp"

#if defined(__x86_64__)
#define RAMP_FMA_BUILD __attribute__((target("avx2,fma")))
#endif

namespace ramp::core {
namespace {

RAMP_SCORE_FN void softmax_terms_body(const float* x, int64_t n, float m, float* out) noexcept {
  for (int64_t i = 0; i < n; ++i) out[i] = softmax_term(x[i], m);
}
RAMP_SCORE_FN void sigmoid_scores_body(const float* x, int64_t n, float* out) noexcept {
  for (int64_t i = 0; i < n; ++i) {
    const float s = sigmoid_f32(x[i]);
    out[i] = s >= 0.0F ? s : 0.0F;  // false for NaN
  }
}

#if defined(RAMP_FMA_BUILD)
RAMP_FMA_BUILD void softmax_terms_fma(const float* x, int64_t n, float m, float* out) noexcept {
  softmax_terms_body(x, n, m, out);
}
RAMP_FMA_BUILD void sigmoid_scores_fma(const float* x, int64_t n, float* out) noexcept {
  sigmoid_scores_body(x, n, out);
}
bool has_fma() noexcept {
  return __builtin_cpu_supports("avx2") != 0 && __builtin_cpu_supports("fma") != 0;
}
#endif

}  // namespace

float row_max(const float* x, int64_t n) noexcept {
  float m = -__builtin_huge_valf();
  for (int64_t i = 0; i < n; ++i) m = x[i] > m ? x[i] : m;
  return m;
}

void softmax_terms(const float* x, int64_t n, float m, float* out) noexcept {
#if defined(RAMP_FMA_BUILD)
  if (has_fma()) return softmax_terms_fma(x, n, m, out);
#endif
  softmax_terms_body(x, n, m, out);
}

void sigmoid_scores(const float* x, int64_t n, float* out) noexcept {
#if defined(RAMP_FMA_BUILD)
  if (has_fma()) return sigmoid_scores_fma(x, n, out);
#endif
  sigmoid_scores_body(x, n, out);
}

float row_sum(const float* v, int64_t n) noexcept {
  return warp_order_sum(v, n);
}

}  // namespace ramp::core
