// Fast mode of the prefill blocks, where the config asks for it (KernelConfig::sums): GEMM 2 adds expert rows
// to their tokens' fp32 sums (kernels/sm90/prefill_fast.cuh), which are zeroed here beforehand and converted
// by Combine::convert() behind it.
#pragma once

#include <cuda.h>

#include <cstdint>

#include "backend/backend.hpp"
#include "backend/cuda/gpu.hpp"
#include "backend/cuda/kernel_library.hpp"

namespace ramp::core::cuda {

// Whether a call may be added up in any order and has anything to add. With two slots per token or more the
// sums need no more memory than bf16 rows would, so the workspace is the same in all modes.
[[nodiscard]] inline bool adds_up(const BlockCall& call) noexcept {
  return call.determinism == RAMP_FAST && call.output == RAMP_OUTPUT_COMBINED && call.top_k > 1;
}

KernelProgram prefill_zero_program();
// In front of everything else of a call. values: a multiple of four; sums: aligned to 16 bytes.
void zero_sums(const Gpu& gpu, CUfunction zero, float* sums, int64_t values, CUstream stream);

}  // namespace ramp::core::cuda
