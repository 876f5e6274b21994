// The stream expert block of weights without scales along the depth (sm_90a; bf16, fp16, fp8_tensor,
// fp8_channel; packed): prologue, two stream GEMMs (kernels/sm90/stream_flat.cu), for fp8_channel
// requantisation between them, combine. As stream_block.hpp.
#pragma once

#include <cuda.h>

#include <cstdint>
#include <memory>
#include <vector>

#include "backend/backend.hpp"
#include "backend/cuda/flat_variants.hpp"
#include "backend/cuda/kernel_library.hpp"
#include "backend/cuda/plain_block.hpp"
#include "backend/cuda/prologue.hpp"

namespace ramp::core::cuda {

// What expert rows are stored as before they are combined.
ramp_dtype flat_rows(ramp_format format) noexcept;

class FlatBlock {
 public:
  FlatBlock(std::shared_ptr<const Gpu> gpu, KernelLibrary& library, Prologue& prologue, Combine& combine);
  void prepare(const ExpertWeights& weights, ramp_dtype x_dtype);  // loads every variant; thread-safe
  [[nodiscard]] static std::vector<KernelProgram> programs(ramp_format format, ramp_activation activation);
  [[nodiscard]] static uint64_t workspace(const ExpertWeights& weights, int64_t tokens, int64_t top_k);
  // The variant that runs without a forced config.
  [[nodiscard]] static FlatVariant choose(const ExpertWeights& weights, int64_t tokens,
                                          int64_t top_k) noexcept;
  void block(const BlockCall& call, const RouteCall* routing = nullptr);
  void batched(const BatchedCall& call);

 private:
  struct State;
  std::shared_ptr<const Gpu> gpu_;
  KernelLibrary& library_;
  Prologue& prologue_;
  Combine& combine_;
  std::shared_ptr<State> state_;
};

}  // namespace ramp::core::cuda
