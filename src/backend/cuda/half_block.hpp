// The stream expert block of 16-bit weights (sm_90a, bf16 and fp16, packed): prologue, two stream GEMMs
// (kernels/sm90/stream_half.cu), combine. As stream_block.hpp, without scales and requantisation.
#pragma once

#include <cuda.h>

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "backend/backend.hpp"
#include "backend/cuda/kernel_library.hpp"
#include "backend/cuda/plain_block.hpp"
#include "backend/cuda/prologue.hpp"

namespace ramp::core::cuda {

// One compiled shape of the kernels.
struct HalfVariant {
  int32_t width = 8;   // token rows per tile at most
  int32_t rows = 128;  // weight rows per tile: 64, 128 or 256
  int32_t stages = 6;  // ring depth in 16 KB tiles
  int32_t blocks = 2;  // per SM: as many as shared memory holds
  friend bool operator==(const HalfVariant&, const HalfVariant&) = default;
  [[nodiscard]] uint32_t shared_bytes() const noexcept;
  [[nodiscard]] KernelConfig config() const noexcept;
};
// Those that run this shape: items of 256 weight rows want them in W13 and W2.
std::vector<HalfVariant> half_variants(int64_t hidden, int64_t intermediate);

std::vector<KernelProgram> half_programs(int arch);

// Whether weights of this shape can be packed into tiles of 128 rows x 64 columns and run by these kernels: H
// a multiple of 128, I of 64, a gated activation. Says why not in *reason.
bool half_applies(ramp_format format, ramp_activation activation, int64_t hidden, int64_t intermediate,
                  std::string* reason = nullptr);
// What expert rows are stored as before they are combined.
ramp_dtype half_rows(ramp_format format) noexcept;

class HalfBlock {
 public:
  HalfBlock(std::shared_ptr<const Gpu> gpu, KernelLibrary& library, Prologue& prologue, Combine& combine);
  void prepare(const ExpertWeights& weights, ramp_dtype x_dtype);  // loads every variant; thread-safe
  [[nodiscard]] static std::vector<KernelProgram> programs(ramp_format format, ramp_activation activation);
  [[nodiscard]] static uint64_t workspace(const ExpertWeights& weights, int64_t tokens, int64_t top_k);
  // The variant that runs without a forced config.
  [[nodiscard]] static HalfVariant choose(const ExpertWeights& weights, int64_t tokens,
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
