// The plain expert block on the GPU: row index -> GEMM1 + activation -> requantise -> GEMM2 -> combine, each
// a kernel of its own with fp32 (or fp64) sums on CUDA cores. It takes every format, shape and option, and is
// the yardstick for the fast kernels. For weights in the checkpoint layout it is also the front of the
// portable block (portable_block.hpp), which runs instead wherever it has been added and applies.
#pragma once

#include <cuda.h>

#include <cstdint>
#include <memory>
#include <span>
#include <vector>

#include "backend/backend.hpp"
#include "backend/cuda/combine.hpp"
#include "backend/cuda/kernel_library.hpp"
#include "backend/cuda/prologue.hpp"

namespace ramp::core::cuda {

// What values, products and sums are held in.
enum class PlainPrecision { kF32, kF64 };

std::vector<KernelProgram> plain_programs(int arch);

// The one config of the plain block: tiles of 64 rows x 64 columns (gate and up: 128), depth 32, 256 threads.
KernelConfig plain_config(ramp_activation activation) noexcept;

class PortableBlock;

class PlainBlock {
 public:
  PlainBlock(std::shared_ptr<const Gpu> gpu, KernelLibrary& library, Prologue& prologue, Combine& combine,
             PlainPrecision precision);
  // From now on the portable block runs what it can.
  void add_portable();
  [[nodiscard]] std::vector<KernelConfig> configs(ramp_format format, ramp_activation activation) const;
  // ... with those that do not ship behind them.
  [[nodiscard]] std::vector<KernelConfig> space(ramp_format format, ramp_activation activation) const;
  [[nodiscard]] KernelConfig choose(const ExpertWeights& weights, std::span<const int32_t> histogram,
                                    ramp_determinism determinism, int64_t top_k) const;
  [[nodiscard]] BlockArithmetic arithmetic(const ExpertWeights& weights) const noexcept;
  // Loads the kernels of a format, so that calls load nothing. Thread-safe.
  void prepare(const ExpertWeights& weights, ramp_dtype x_dtype);
  // What prepare() will ask the library for, of the block's own kernels.
  [[nodiscard]] std::vector<KernelProgram> programs(ramp_format format) const;
  // slots per token: k (batched: 1, with experts * max_tokens tokens). Enough for either block.
  [[nodiscard]] static uint64_t workspace(const ExpertWeights& weights, int64_t tokens, int64_t top_k);
  // routing: computed first (its outputs are the call's ids and weights); nullptr: they are given.
  void block(const BlockCall& call, const RouteCall* routing = nullptr);
  void batched(const BatchedCall& call);

 private:
  struct Kernels {
    CUfunction gemm1_gated = nullptr, gemm1_plain = nullptr, gemm2 = nullptr, gemm2_accumulate = nullptr;
  };
  const Kernels& kernels(ramp_format format);
  [[nodiscard]] bool portable(const ExpertWeights& weights) const noexcept;
  std::shared_ptr<const Gpu> gpu_;
  KernelLibrary& library_;
  Prologue& prologue_;
  Combine& combine_;
  PlainPrecision precision_;
  struct State;
  std::shared_ptr<State> state_;
  std::shared_ptr<PortableBlock> portable_;  // nullptr: not added
};

}  // namespace ramp::core::cuda
