// The reference backend: plain loops over dequantised values, every format and every option, the yardstick of
// all other backends. One config, one thread, and (unlike the others) it allocates while it runs. Its
// accumulator type is a parameter: double for the yardstick, float to see what fp32 alone costs. "Ideal"
// leaves out the quantisation of activations, so that a backend's result minus the ideal one is the total
// error of its format.
#pragma once

#include <cstdint>
#include <memory>
#include <span>
#include <vector>

#include "backend/backend.hpp"

namespace ramp::core {

enum class ReferenceMode : int32_t {
  kF64 = 0,    // the quantisation points of docs/numerics.md, sums and activation in fp64
  kF32 = 1,    // the same in fp32
  kIdeal = 2,  // fp64, activations never quantised or rounded; weights dequantised as always
};

std::unique_ptr<Backend> make_reference_backend(const BackendOptions& options,
                                                ReferenceMode mode = ReferenceMode::kF64);

// The same rows as numbers, not rounded to the dtype of y (call.y is not touched, call.counters neither).
// tokens: which tokens to compute, in this order; empty: all. Result: [n, H], or [n, k, H] with
// RAMP_OUTPUT_PER_SLOT. Weights must be in checkpoint layout, or packed by the reference backend.
std::vector<double> reference_rows(const BlockCall& call, std::span<const int64_t> tokens,
                                   ReferenceMode mode);

// ||y - r|| / ||r|| (Frobenius) over these tokens (empty: all), where r are the reference rows in this mode
// and y is call.y. With kIdeal this is the total error of the result, format included.
double relative_error(const BlockCall& call, std::span<const int64_t> tokens, ReferenceMode mode);

}  // namespace ramp::core
