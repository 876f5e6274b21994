// The stream expert block (sm_90a, fp8_block, packed weights): prologue, two stream GEMMs
// (kernels/sm90/stream.cu), combine. For steps in which experts have few rows it runs at the speed at which
// weights come out of memory. Of few slots GEMM 1's blocks make the plan themselves, while the prologue runs.
#pragma once

#include <cuda.h>

#include <cstdint>
#include <memory>
#include <optional>
#include <span>
#include <vector>

#include "backend/backend.hpp"
#include "backend/cuda/gemm_pair.hpp"
#include "backend/cuda/kernel_library.hpp"
#include "backend/cuda/plain_block.hpp"
#include "backend/cuda/prologue.hpp"
#include "backend/cuda/workspace.hpp"

namespace ramp::core::cuda {

// One compiled shape of the stream kernels.
struct StreamVariant {
  int32_t width = 8;   // token rows per tile at most
  int32_t stages = 4;  // ring depth in 16 KB tiles
  int32_t blocks = 3;  // per SM
  // GEMM 2: as GEMM 1 where 0; weight rows of an item, 64 or 128.
  int32_t stages2 = 0, blocks2 = 0, rows2 = 128;
  friend auto operator<=>(const StreamVariant&, const StreamVariant&) = default;
  [[nodiscard]] bool halves(int gemm) const noexcept { return gemm == 2 && rows2 == 64; }
  [[nodiscard]] int32_t stages_of(int gemm) const noexcept {
    return gemm == 2 && stages2 != 0 ? stages2 : stages;
  }
  [[nodiscard]] int32_t blocks_of(int gemm) const noexcept {
    return gemm == 2 && blocks2 != 0 ? blocks2 : blocks;
  }
  [[nodiscard]] bool own_plan() const noexcept;  // whether GEMM 1's blocks can make the plan
  [[nodiscard]] unsigned threads(int gemm) const noexcept;
  [[nodiscard]] uint32_t shared_bytes(int gemm) const noexcept;
  // As many blocks as registers and shared memory hold are not in its name.
  [[nodiscard]] KernelConfig config() const noexcept;
  // Why it cannot be run, with the numbers; "" where it can.
  [[nodiscard]] std::string rejection() const;
};
// Those that ship: loaded with the weights and compiled by CI.
std::span<const StreamVariant> stream_variants() noexcept;
// Every candidate of the whole space, legal or not; legal ones run by a forced config and are loaded when
// they are first used.
std::vector<StreamVariant> stream_space();
// The legal variant that a config stands for.
std::optional<StreamVariant> stream_variant(const KernelConfig& config);

std::vector<KernelProgram> stream_programs(int arch);
std::vector<KernelProgram> stream_programs_of(const StreamVariant& variant, ramp_activation activation);
std::vector<KernelProgram> pack_programs(int arch);

// Whether weights of this shape can be packed into tiles and run by the stream kernels: H and I multiples of
// 128 (the block scales), a gated activation. Says why not in *reason.
bool stream_applies(ramp_format format, ramp_activation activation, int64_t hidden, int64_t intermediate,
                    std::string* reason = nullptr);

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
