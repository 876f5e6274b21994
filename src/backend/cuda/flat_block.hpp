// The stream expert block of weights without scales along the depth (sm_90a; bf16, fp16, fp8_tensor,
// fp8_channel; packed): prologue, two stream GEMMs (kernels/sm90/stream_flat.cu), for fp8_channel
// requantisation between them, combine. As stream_block.hpp.
#pragma once

#include <cuda.h>

#include <cstdint>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "backend/backend.hpp"
#include "backend/cuda/kernel_library.hpp"
#include "backend/cuda/plain_block.hpp"
#include "backend/cuda/prologue.hpp"

namespace ramp::core::cuda {

// One compiled shape of the kernels.
struct FlatVariant {
  int32_t width = 8;   // token rows per tile at most
  int32_t rows = 128;  // weight rows per tile: 64, 128 or 256
  int32_t stages = 6;  // ring depth in 16 KB tiles
  int32_t blocks = 2;  // per SM
  friend auto operator<=>(const FlatVariant&, const FlatVariant&) = default;
  [[nodiscard]] uint32_t shared_bytes() const noexcept;
  [[nodiscard]] bool runs(ramp_format format, int64_t hidden, int64_t intermediate) const noexcept;
  // As many blocks as registers and shared memory hold are not in its name.
  [[nodiscard]] KernelConfig config(ramp_format format) const noexcept;
  // Why it cannot be run, with the numbers; "" where it can.
  [[nodiscard]] std::string rejection(ramp_format format, int64_t hidden, int64_t intermediate) const;
};
// Every candidate of the whole space, legal or not (stream_block.hpp), and the variant that a config stands
// for.
std::vector<FlatVariant> flat_space();
std::optional<FlatVariant> flat_variant(const KernelConfig& config, ramp_format format);
std::vector<KernelProgram> flat_programs_of(const FlatVariant& variant, ramp_format format,
                                            ramp_activation activation);
// Those that run this format (FP8 has fewer registers to spare) and shape (items of 256 weight rows want them
// in W13 and W2).
std::vector<FlatVariant> flat_variants(ramp_format format, int64_t hidden, int64_t intermediate);

std::vector<KernelProgram> flat_programs(int arch);

bool flat_format(ramp_format format) noexcept;
// Whether weights of this shape can be packed into tiles of 128 rows x 128 bytes and run by these kernels: H
// a multiple of 128, I of a tile's depth (64, fp8: 128), a gated activation. Says why not in *reason.
bool flat_applies(ramp_format format, ramp_activation activation, int64_t hidden, int64_t intermediate,
                  std::string* reason = nullptr);
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
