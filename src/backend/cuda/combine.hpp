// The last step of every expert block on the GPU: from expert rows in sorted order to y.
#pragma once

#include <cuda.h>

#include <cstdint>
#include <memory>
#include <vector>

#include "backend/backend.hpp"
#include "backend/cuda/kernel_library.hpp"
#include "backend/cuda/prologue.hpp"

namespace ramp::core::cuda {

std::vector<KernelProgram> combine_programs(int arch);
KernelProgram combine_program(ramp_dtype y_dtype);

// From expert rows to y (kernels/combine/combine.cu). rows: contiguous, f32 or bf16, already times the router
// weight.
class Combine {
 public:
  Combine(std::shared_ptr<const Gpu> gpu, KernelLibrary& library);
  // Loads the kernels for one dtype of y (all of them are small; one program per dtype). Thread-safe.
  void prepare(ramp_dtype y_dtype);
  // rows [*, H] in sorted order. COMBINED: y[t] = sum over slots, + addend; PER_SLOT: y[t,j].
  void block(const BlockCall& call, const void* rows, ramp_dtype rows_dtype, const RowIndex& index,
             CUstream stream);
  // sums f32 [T,H]: y[t] = sums[t] + addend.
  void convert(const BlockCall& call, const float* sums, CUstream stream);
  // y[e,r] of every row with r < counts[e]; others stay as they are.
  void batched(const BatchedCall& call, const void* rows, ramp_dtype rows_dtype, const RowIndex& index,
               CUstream stream);

 private:
  CUfunction function(bool per_slot, ramp_dtype rows, int32_t y, int64_t top_k);
  std::shared_ptr<const Gpu> gpu_;
  KernelLibrary& library_;
  struct State;
  std::shared_ptr<State> state_;
};

}  // namespace ramp::core::cuda
