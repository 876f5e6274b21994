// The two GEMMs of the expert block over one plan, as the blocks that launch them need them described. A step
// may have several such pairs, each for other experts (step_block.hpp).
#pragma once

#include <cuda.h>

#include <cstdint>

#include "backend/cuda/prologue.hpp"

namespace ramp::core::cuda {

struct GemmPair {
  const ExpertWeights* weights = nullptr;
  RowIndex index;  // with the tiles of this plan
  // What the first GEMM leaves for the second, as that one reads it: rows of I codes and their scales.
  uint8_t* h = nullptr;
  float* h_scale = nullptr;
  uint16_t* rows = nullptr;  // bf16 [T*k, H]
  int64_t top_k = 1;
  CUstream stream = nullptr;
  // GEMM 1 has GEMM 1 of another plan in front of it: it need not wait for it to begin, since that one lets
  // it begin only after it has itself waited for what both read; only to end.
  bool beside = false;
};

}  // namespace ramp::core::cuda
