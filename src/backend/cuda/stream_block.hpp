// The stream expert block (sm_90a, fp8_block, packed weights): prologue, two stream GEMMs
// (kernels/sm90/stream.cu), combine. For steps in which experts have few rows it runs at the speed at which
// weights come out of memory. Of few slots GEMM 1's blocks make the plan themselves, while the prologue runs.
#pragma once

#include <cuda.h>

#include <cstdint>
#include <memory>
#include <optional>
#include <vector>

#include "backend/backend.hpp"
#include "backend/cuda/gemm_pair.hpp"
#include "backend/cuda/kernel_library.hpp"
#include "backend/cuda/plain_block.hpp"
#include "backend/cuda/prologue.hpp"
#include "backend/cuda/stream_variants.hpp"
#include "backend/cuda/workspace.hpp"

namespace ramp::core::cuda {

std::vector<KernelProgram> pack_programs(int arch);  // weights.cpp

class StreamBlock {
 public:
  StreamBlock(std::shared_ptr<const Gpu> gpu, KernelLibrary& library, Prologue& prologue, Combine& combine);
  void prepare(const ExpertWeights& weights, ramp_dtype x_dtype);  // loads every variant; thread-safe
  [[nodiscard]] std::vector<KernelProgram> programs(ramp_activation activation) const;
  [[nodiscard]] static uint64_t workspace(const ExpertWeights& weights, int64_t tokens, int64_t top_k);
  // The variant that runs without a forced config.
  [[nodiscard]] static StreamVariant choose(const ExpertWeights& weights, int64_t tokens,
                                            int64_t top_k) noexcept;
  void block(const BlockCall& call, const RouteCall* routing = nullptr);
  void batched(const BatchedCall& call);
  // Number of the variant that runs: the forced config's (throws if it is none of the space), else
  // choose()'s; nullopt: it is none of stream_variants().
  [[nodiscard]] static std::optional<size_t> number(const KernelConfig* forced, const ExpertWeights& weights,
                                                    int64_t tokens, int64_t top_k);
  // One after the other, on a plan of tiles of the variant's width. h as carve_h() lays it out.
  void gemm1(size_t variant, const GemmPair& pair, const GemmInput& x) const;
  void gemm2(size_t variant, const GemmPair& pair, const ramp_tensor& router_weights) const;
  static void carve_h(const ExpertWeights& weights, int64_t slots, int32_t tile_m, WorkspaceLayout& layout,
                      GemmPair& pair);

 private:
  struct State;
  std::shared_ptr<const Gpu> gpu_;
  KernelLibrary& library_;
  Prologue& prologue_;
  Combine& combine_;
  std::shared_ptr<State> state_;
};

}  // namespace ramp::core::cuda
