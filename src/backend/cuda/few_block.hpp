// The few-token expert block (sm_90a, fp8_block, packed weights, T*k <= 128): two GEMMs and a combine that
// overlap and make their plan from the ids themselves, with no prologue (kernels/sm90/few.cu). Calls that it
// does not take go to the stream block.
#pragma once

#include <cuda.h>

#include <array>
#include <atomic>
#include <cstdint>
#include <memory>
#include <mutex>
#include <vector>

#include "backend/backend.hpp"
#include "backend/cuda/kernel_library.hpp"
#include "backend/cuda/prologue.hpp"

namespace ramp::core::cuda {

std::vector<KernelProgram> few_programs(int arch);

class FewBlock {
 public:
  FewBlock(std::shared_ptr<const Gpu> gpu, KernelLibrary& library, Prologue& prologue);
  void prepare();  // loads the kernels; thread-safe
  // Whether this call is one for here: few tokens, no forced config, combined output, aligned rows, and not
  // batch-invariant (the depth of a sum is divided according to all tokens' experts).
  [[nodiscard]] static bool applies(const BlockCall& call) noexcept;
  // For any call of up to `tokens` that applies.
  [[nodiscard]] static uint64_t workspace(const ExpertWeights& weights, int64_t tokens,
                                          int64_t top_k) noexcept;
  // routing: computed first (its outputs are the call's ids and weights); nullptr: they are given.
  void block(const BlockCall& call, const RouteCall* routing = nullptr);

 private:
  static constexpr size_t kWidths = 2;
  struct Kernels {
    CUfunction gemm1 = nullptr, gemm2 = nullptr, combine = nullptr;
  };
  std::shared_ptr<const Gpu> gpu_;
  KernelLibrary& library_;
  Prologue& prologue_;
  std::mutex mutex_;
  std::atomic<bool> ready_{false};
  std::array<Kernels, kWidths> kernels_{};
};

}  // namespace ramp::core::cuda
