// The few-token expert block (sm_90a, fp8_block, packed weights, T <= 16, T*k <= 128): one cooperative launch
// that makes its plan from the ids itself and does everything between x and y (kernels/sm90/few.cu, and
// few_direct.cu for the very fewest tokens). Calls that it does not take go to the stream block.
#pragma once

#include <cuda.h>

#include <array>
#include <atomic>
#include <cstdint>
#include <memory>
#include <mutex>
#include <unordered_map>
#include <vector>

#include "backend/backend.hpp"
#include "backend/cuda/kernel_library.hpp"
#include "backend/cuda/prologue.hpp"

namespace ramp::core::cuda {

struct FewParams;

std::vector<KernelProgram> few_programs(int arch);

class FewBlock {
 public:
  // everywhere: false: never, since the stream block is as fast or faster.
  FewBlock(std::shared_ptr<const Gpu> gpu, KernelLibrary& library, std::shared_ptr<const DeviceMemory> memory,
           Prologue& prologue, bool everywhere);
  void prepare();                                             // loads the kernels; thread-safe
  [[nodiscard]] std::vector<KernelProgram> programs() const;  // what prepare() asks for
  // Whether this call is one for here: few tokens, no forced config, combined output, router weights on the
  // output, rows aligned to 16 bytes, not batch-invariant (how a sum's depth is divided depends on all
  // tokens' experts).
  [[nodiscard]] bool applies(const BlockCall& call) const noexcept;
  // For any call of up to `tokens` that applies.
  [[nodiscard]] uint64_t workspace(const ExpertWeights& weights, int64_t tokens,
                                   int64_t top_k) const noexcept;
  // False: not done, since the grid does not fit the context, or a workspace that was never seen before comes
  // in a capture when there are no barriers left (every 4096 workspaces). routing: computed first (its
  // outputs are the call's ids and weights); nullptr: they are given.
  bool block(const BlockCall& call, const RouteCall* routing = nullptr);

 private:
  static constexpr size_t kPrograms = 3;
  // The kernel's barrier and counters are zero between calls, which workspaces are not. Calls that share a
  // workspace do not run at the same time, so each workspace has its own, here.
  static constexpr uint64_t kBarriers = 4096;
  [[nodiscard]] size_t programs_used() const noexcept;
  unsigned* barrier_of(const void* workspace, CUstream stream);
  void more_barriers();
  CUresult launch(size_t number, const FewParams& params, CUstream stream) const;

  std::shared_ptr<const Gpu> gpu_;
  KernelLibrary& library_;
  std::shared_ptr<const DeviceMemory> memory_;
  Prologue& prologue_;
  const bool everywhere_;
  std::mutex mutex_;
  std::atomic<bool> ready_{false};
  std::array<CUfunction, kPrograms> kernels_{};
  bool usable_ = false;
  std::vector<std::shared_ptr<void>> barriers_;
  std::unordered_map<const void*, uint64_t> barrier_numbers_;
};

}  // namespace ramp::core::cuda
