// score_math over rows of a token: plain loops, compiled for the FMA instructions where the processor has
// them. Both builds give the same bits (an fma is an fma), so which one ran never shows.
#pragma once

#include <cstdint>

namespace ramp::core {

// Largest value that is not NaN; -inf if there is none.
float row_max(const float* x, int64_t n) noexcept;
// out[i] = softmax_term(x[i], m).
void softmax_terms(const float* x, int64_t n, float m, float* out) noexcept;
// out[i] = sigmoid_f32(x[i]), 0 for NaN.
void sigmoid_scores(const float* x, int64_t n, float* out) noexcept;
// warp_order_sum.
float row_sum(const float* v, int64_t n) noexcept;

}  // namespace ramp::core
