// Zeros for the sums of the prefill blocks' fast mode: a launch whose grid depends on the shape alone.
#include "backend/cuda/prefill_sums.hpp"

#include <algorithm>

#include "backend/cuda/prologue_kernels.hpp"
#include "params/prefill.hpp"

namespace ramp::core::cuda {

KernelProgram prefill_zero_program() {
  return {"prefill_zero", "sm90/prefill_zero.cu", {}, {"prefill_zero"}, 90};
}

void zero_sums(const Gpu& gpu, CUfunction zero, float* sums, int64_t values, CUstream stream) {
  constexpr int64_t kThreads = 256, kBlocksPerSm = 8;
  const int64_t vectors = values / 4;
  if (vectors == 0) return;
  const int64_t blocks = std::min((vectors + kThreads - 1) / kThreads, kBlocksPerSm * gpu.facts().sm_count);
  Launch l;
  l.grid_x = static_cast<unsigned>(blocks);
  l.threads = kThreads;
  l.dependent = true;
  const PrefillZeroParams p{sums, vectors};
  launch_kernel(zero, l, stream, &p);
}

}  // namespace ramp::core::cuda
