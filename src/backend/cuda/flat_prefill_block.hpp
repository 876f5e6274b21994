// The prefill expert block of weights without scales along the depth (sm_90a; bf16, fp16, fp8_tensor,
// fp8_channel; packed): prologue, two prefill GEMMs (kernels/sm90/prefill_flat.cu), for fp8_channel
// requantisation between them, combine. For steps in which experts have many rows it keeps the tensor cores
// busy. It takes what the flat stream block takes and gives the same bits.
#pragma once

#include <cuda.h>

#include <cstdint>
#include <memory>
#include <vector>

#include "backend/backend.hpp"
#include "backend/cuda/kernel_library.hpp"
#include "backend/cuda/plain_block.hpp"
#include "backend/cuda/prologue.hpp"

namespace ramp::core::cuda {

std::vector<KernelProgram> flat_prefill_programs(int arch);
KernelConfig flat_prefill_config(ramp_format format, bool sums = false) noexcept;
// With or without sums.
[[nodiscard]] bool is_flat_prefill(const KernelConfig& config, ramp_format format) noexcept;

class FlatPrefillBlock {
 public:
  FlatPrefillBlock(std::shared_ptr<const Gpu> gpu, KernelLibrary& library, Prologue& prologue,
                   Combine& combine);
  void prepare(const ExpertWeights& weights, ramp_dtype x_dtype);  // loads both GEMMs; thread-safe
  [[nodiscard]] static std::vector<KernelProgram> programs(ramp_format format, ramp_activation activation,
                                                           bool sums = false);
  [[nodiscard]] static uint64_t workspace(const ExpertWeights& weights, int64_t tokens, int64_t top_k);
  // Whether this block runs such a step rather than the flat stream block. config: the caller's choice or
  // nullptr.
  [[nodiscard]] static bool takes(const KernelConfig* config, const ExpertWeights& weights, int64_t tokens,
                                  int64_t top_k) noexcept;
  [[nodiscard]] static bool takes(const BlockCall& call) noexcept;
  // The same for the batched entry, whose row counts only the device knows.
  [[nodiscard]] static bool takes_batched(const KernelConfig* config, const ExpertWeights& weights,
                                          int64_t max_tokens) noexcept;
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
