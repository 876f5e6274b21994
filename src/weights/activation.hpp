// The activations between the two GEMMs, as templates over float (what backends compute) and double (the
// reference). Formulas:
//   silu(g)      = g / (1 + exp(-g))
//   gelu(g)      = g * Phi(g) = g/2 * (1 + erf(g / sqrt 2))
//   gelu_tanh(g) = g/2 * (1 + tanh(sqrt(2/pi) * (g + 0.044715 g^3)))   (Hendrycks & Gimpel, arXiv 1606.08415)
//   relu2(v)     = max(v, 0)^2                                         (So et al., arXiv 2109.08668)
// The gated ones return act(gate) * up. NaN propagates through all of them.
#pragma once

#include <cmath>
#include <numbers>

#include "ramp/ramp.h"

namespace ramp::core {

template <typename F>
F silu(F g) noexcept {
  return g / (F(1) + std::exp(-g));
}

// In double the tail is evaluated through erfc, which has no cancellation there; in float the formula stands
// as written (absolute error up to |g| units of 2^-24, as in every framework).
template <typename F>
F gelu(F g) noexcept {
  constexpr F kInvSqrt2 = F(1) / std::numbers::sqrt2_v<F>;
  if constexpr (sizeof(F) == sizeof(double)) return F(0.5) * g * std::erfc(-g * kInvSqrt2);
  return F(0.5) * g * (F(1) + std::erf(g * kInvSqrt2));
}

inline constexpr double kGeluTanhScale = 0.7978845608028654;  // sqrt(2/pi)
inline constexpr double kGeluTanhCubic = 0.044715;

template <typename F>
F gelu_tanh(F g) noexcept {
  const F z = F(kGeluTanhScale) * (g + F(kGeluTanhCubic) * g * g * g);
  // (1 + tanh z)/2 = 1/(1 + exp(-2z)): without cancellation for negative z.
  if constexpr (sizeof(F) == sizeof(double)) return g / (F(1) + std::exp(F(-2) * z));
  return F(0.5) * g * (F(1) + std::tanh(z));
}

template <typename F>
F relu2(F v) noexcept {
  return v <= F(0) ? F(0) : v * v;  // written so that NaN takes the second branch
}

// act(gate) * up, or relu2(gate) (up is then ignored).
template <ramp_activation A, typename F>
F activate(F gate, F up) noexcept {
  if constexpr (A == RAMP_ACTIVATION_SILU_AND_MUL) return silu(gate) * up;
  if constexpr (A == RAMP_ACTIVATION_GELU_AND_MUL) return gelu(gate) * up;
  if constexpr (A == RAMP_ACTIVATION_GELU_TANH_AND_MUL) return gelu_tanh(gate) * up;
  if constexpr (A == RAMP_ACTIVATION_RELU2) return relu2(gate);
}

template <typename F>
F activate(ramp_activation a, F gate, F up) noexcept {
  switch (a) {
    case RAMP_ACTIVATION_SILU_AND_MUL:
      return activate<RAMP_ACTIVATION_SILU_AND_MUL>(gate, up);
    case RAMP_ACTIVATION_GELU_AND_MUL:
      return activate<RAMP_ACTIVATION_GELU_AND_MUL>(gate, up);
    case RAMP_ACTIVATION_GELU_TANH_AND_MUL:
      return activate<RAMP_ACTIVATION_GELU_TANH_AND_MUL>(gate, up);
    case RAMP_ACTIVATION_RELU2:
      return activate<RAMP_ACTIVATION_RELU2>(gate, up);
  }
  return gate;
}

}  // namespace ramp::core
