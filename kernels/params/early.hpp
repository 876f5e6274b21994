// What a prologue asks L2 for ahead of GEMM 1 (src/backend/cuda/early_weights.hpp says what and when).
#pragma once

namespace ramp::core::cuda {

// Weights that a prologue asks L2 for before anything else: `count` pieces of `bytes`, a multiple of 16.
struct EarlyWeights {
  const unsigned char* first;
  unsigned long long stride;  // from piece to piece, in bytes
  unsigned count;             // 0: none
  unsigned bytes;
};

}  // namespace ramp::core::cuda
