// The portable expert block: prologue, two GEMMs on mma.sync (kernels/portable/gemm.cu), combine, on every
// GPU from sm_80 on, from weights in the checkpoint layout. It takes every format but f32 and every shape (H
// and I multiples of 32), and is what runs where the Hopper kernels do not apply.
#pragma once

#include <cuda.h>

#include <array>
#include <cstdint>
#include <memory>
#include <vector>

#include "backend/backend.hpp"
#include "backend/cuda/kernel_library.hpp"
#include "backend/cuda/plain_block.hpp"  // Combine
#include "backend/cuda/prologue.hpp"

namespace ramp::core::cuda {

// What a variant is for: kWide leaves out FP8 codes that are multiplied as they are, whose sums stand beside
// the promoted ones, or decoded by bit operations: no registers for the largest tiles. The others are for
// variants on trial: kBlock fp8_block alone, kWideBlock the same where kWide has it, kWideSome that and bf16,
// kBf16 that alone.
enum class PortableFormats { kAll, kWide, kBlock, kWideBlock, kWideSome, kBf16 };

// One compiled shape of the GEMMs, as kernels/portable/gemm.cu explains it.
struct PortableVariant {
  int32_t rows = 0, tokens = 0;                   // of a tile
  int32_t warps_k = 1, warps_r = 1, warps_t = 1;  // warps along depth, weight rows, tokens
  int32_t stages = 3, blocks = 1;                 // ring depth; blocks per SM that the registers allow
  PortableFormats formats = PortableFormats::kAll;
  // On trial: part of the space, not of what ships. The config names its warps along the weight rows; a
  // slice's tiles change places from wave to wave, and units go by tickets (kernels/params/portable.hpp).
  bool trial = false;
  bool carry = false;  // fragments are carried over from step to step (kernels/portable/depth.cuh)
  // fp8_block's GEMM 1 leaves codes and scales (kernels/portable/requantize.cuh); tile_n of the config is a
  // unit of work then.
  bool fused = false;
  // arch: compute capability as 80, 89, 90 ...
  [[nodiscard]] bool is_for(ramp_format format, int arch) const noexcept;
  // Whether the sums of this format are kept in units of block scales (kernels/portable/scales.cuh): other
  // bits.
  [[nodiscard]] bool sums_in_units(ramp_format format, int arch) const noexcept;
  [[nodiscard]] bool fuses(ramp_format format) const noexcept {
    return fused && format == RAMP_FORMAT_FP8_BLOCK;
  }
  // Columns of C in a unit of work.
  [[nodiscard]] int32_t unit_columns(ramp_format format, bool gated) const noexcept;
  [[nodiscard]] int32_t threads() const noexcept { return 32 * warps_k * warps_r * warps_t; }
  [[nodiscard]] uint32_t shared_bytes(ramp_format format, int arch) const noexcept;
  [[nodiscard]] KernelConfig config(ramp_format format) const noexcept;
};

int portable_arch(const GpuFacts& facts) noexcept;
// Whether the tensor cores take FP8 codes in mma.sync (kernels/portable/ptx.cuh: NATIVE_E4M3).
bool portable_multiplies_codes(int arch) noexcept;
KernelProgram portable_program(const PortableVariant& v, ramp_format format, bool gated);
// From few rows per expert to many: small tiles of deep rows, so that many blocks have many bytes in flight;
// then large ones that reuse what they load.
inline constexpr std::array<PortableVariant, 4> kPortableVariants = {{
    {32, 8, 4, 1, 1, 3, 3},
    {64, 32, 2, 2, 1, 3, 3},
    {128, 64, 1, 4, 1, 4, 2},
    {128, 128, 1, 2, 2, 3, 2, PortableFormats::kWide},
}};
// Not timed yet (docs/kernel-log.md: "What limits the points that miss"); loaded when a forced config asks
// for them.
inline constexpr std::array<PortableVariant, 7> kPortableTrials = {{
    {64, 32, 2, 2, 1, 3, 3, PortableFormats::kAll, true},
    {128, 64, 1, 4, 1, 4, 2, PortableFormats::kAll, true},
    {128, 128, 1, 2, 2, 3, 2, PortableFormats::kWideSome, true, true},
    {128, 64, 1, 4, 1, 4, 2, PortableFormats::kBlock, true, false, true},
    {128, 128, 1, 2, 2, 3, 2, PortableFormats::kWideBlock, true, true, true},
    {256, 128, 1, 4, 2, 4, 1, PortableFormats::kBf16, true, true},
    {128, 192, 1, 2, 4, 4, 1, PortableFormats::kWideSome, true, true, true},
}};
std::vector<KernelProgram> portable_programs(int arch);  // shipped and on trial

// Whether the portable kernels have this format: all but f32, which tensor cores have no products for.
bool portable_takes(ramp_format format) noexcept;
// ... and these weights: rows have to begin at multiples of 16 bytes. A handle's answer never changes.
bool portable_applies(const ExpertWeights& weights) noexcept;

class PortableBlock {
 public:
  PortableBlock(std::shared_ptr<const Gpu> gpu, KernelLibrary& library, Prologue& prologue, Combine& combine);
  // Every config of a format that this GPU has shared memory for, in each order of tiles.
  [[nodiscard]] std::vector<KernelConfig> configs(ramp_format format) const;
  // ... and, behind them, the variants on trial.
  [[nodiscard]] std::vector<KernelConfig> space(ramp_format format) const;
  void prepare(const ExpertWeights& weights, ramp_dtype x_dtype);  // loads every variant; thread-safe
  [[nodiscard]] std::vector<KernelProgram> programs(ramp_format format) const;
  [[nodiscard]] static uint64_t workspace(const ExpertWeights& weights, int64_t tokens, int64_t top_k);
  // The config that runs without a forced one. Batch-invariant calls stay with configs that sum in one order.
  [[nodiscard]] KernelConfig choose(const ExpertWeights& weights, int64_t tokens, int64_t top_k,
                                    ramp_determinism determinism) const;
  // FP8 products in the tensor cores' own precision (sm_89, sm_120) have another unit.
  [[nodiscard]] BlockArithmetic arithmetic(ramp_format format) const noexcept;
  void block(const BlockCall& call, const RouteCall* routing = nullptr);
  void batched(const BatchedCall& call);

 private:
  struct State;
  struct Run;
  void load(ramp_format format);
  void load_trial(ramp_format format, size_t number);
  void load_variant(ramp_format format, size_t number);
  [[nodiscard]] size_t number_of(const KernelConfig& config, ramp_format format) const;
  [[nodiscard]] bool fits(const PortableVariant& v, ramp_format format) const noexcept;
  std::shared_ptr<const Gpu> gpu_;
  KernelLibrary& library_;
  Prologue& prologue_;
  Combine& combine_;
  std::shared_ptr<State> state_;
};

}  // namespace ramp::core::cuda
