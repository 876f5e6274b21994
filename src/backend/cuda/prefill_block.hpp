// The prefill expert block (sm_90a, fp8_block, packed weights): prologue, two prefill GEMMs
// (kernels/sm90/prefill.cu), combine. For steps in which experts have many rows it keeps the tensor cores
// busy. It takes what the stream block takes and gives the same bits.
#pragma once

#include <cuda.h>

#include <cstdint>
#include <memory>
#include <vector>

#include "backend/backend.hpp"
#include "backend/cuda/gemm_pair.hpp"
#include "backend/cuda/kernel_library.hpp"
#include "backend/cuda/plain_block.hpp"
#include "backend/cuda/prefill_variants.hpp"
#include "backend/cuda/prologue.hpp"
#include "backend/cuda/workspace.hpp"

namespace ramp::core::cuda {

class PrefillBlock {
 public:
  PrefillBlock(std::shared_ptr<const Gpu> gpu, KernelLibrary& library, Prologue& prologue, Combine& combine);
  void prepare(const ExpertWeights& weights, ramp_dtype x_dtype);  // loads both GEMMs; thread-safe
  [[nodiscard]] static std::vector<KernelProgram> programs(ramp_activation activation);
  [[nodiscard]] static uint64_t workspace(const ExpertWeights& weights, int64_t tokens, int64_t top_k);
  // Whether this block runs such a step rather than the stream block. config: the caller's choice or nullptr.
  [[nodiscard]] static bool takes(const KernelConfig* config, const ExpertWeights& weights, int64_t tokens,
                                  int64_t top_k) noexcept;
  // The same for the batched entry, whose row counts only the device knows.
  [[nodiscard]] static bool takes_batched(const KernelConfig* config, int64_t max_tokens) noexcept;
  void block(const BlockCall& call, const RouteCall* routing = nullptr);
  void batched(const BatchedCall& call);
  // One after the other, on a plan of row tiles of kPrefillRows. h as carve_h() lays it out.
  void gemm1(const GemmPair& pair, const GemmInput& x) const;
  void gemm2(const GemmPair& pair, const ramp_tensor& router_weights) const;
  static void carve_h(const ExpertWeights& weights, int64_t slots, WorkspaceLayout& layout, GemmPair& pair);

 private:
  struct State;
  std::shared_ptr<const Gpu> gpu_;
  KernelLibrary& library_;
  Prologue& prologue_;
  Combine& combine_;
  std::shared_ptr<State> state_;
};

}  // namespace ramp::core::cuda
