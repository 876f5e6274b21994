// Programs of kernels with the gated activations compiled in, one program each: their number, options and
// names.
#pragma once

#include <fmt/format.h>

#include <cstddef>

#include "backend/cuda/kernel_library.hpp"

namespace ramp::core::cuda {

inline constexpr size_t kGatedActivations = 3;  // ramp_activation 0 to 2

inline void add_activation(KernelProgram& p, ramp_activation activation) {
  p.options.push_back(fmt::format("-DACTIVATION={}", static_cast<int>(activation)));
  if (activation == RAMP_ACTIVATION_GELU_AND_MUL) p.name += "_gelu";
  if (activation == RAMP_ACTIVATION_GELU_TANH_AND_MUL) p.name += "_gelu_tanh";
}

}  // namespace ramp::core::cuda
