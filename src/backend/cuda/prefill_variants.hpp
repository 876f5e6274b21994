// The compiled shapes of the prefill kernels (kernels/sm90/prefill.cu) and their programs.
#pragma once

#include <compare>
#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "backend/backend.hpp"
#include "backend/cuda/kernel_library.hpp"

namespace ramp::core::cuda {

// GEMM 1 gathers x itself, or reads rows that prefill_pack has put in order. kPrefillZero: of variants with
// sums.
enum PrefillKernel : size_t {
  kPrefillGemm1,
  kPrefillGemm1Packed,
  kPrefillGemm2,
  kPrefillPack,
  kPrefillZero,
  kPrefillKernels
};

// One compiled shape of the prefill kernels.
struct PrefillVariant {
  int32_t stages = 4;   // ring depth, 48 KB each (tall: 40)
  int32_t couples = 8;  // couples of row tiles that pass a pair of slices before the next pair: GROUP_M / 2
  bool sums = false;    // KernelConfig::sums
  bool tall = false;    // row tiles of 192 rows, a slice per block: kernels/sm90/prefill_tall.cuh
  bool mixed = false;   // experts with many rows and with few by turns: kernels/sm90/prefill_mixed.cuh
  friend auto operator<=>(const PrefillVariant&, const PrefillVariant&) = default;
  [[nodiscard]] bool needs(PrefillKernel kernel) const noexcept;
  [[nodiscard]] int32_t rows() const noexcept;  // of a row tile
  [[nodiscard]] unsigned threads() const noexcept;
  [[nodiscard]] uint32_t shared_bytes() const noexcept;
  [[nodiscard]] KernelConfig config() const noexcept;  // couples other than 8 as group_m row tiles
  [[nodiscard]] std::string rejection() const;         // "" where it can be run
};
inline constexpr PrefillVariant kPrefillShipped{};
// Every candidate of the whole space, tall ones, mixed orders and those with sums last. many_groups: with all
// group sizes (where the regions predict GROUP_M).
std::vector<PrefillVariant> prefill_space(bool many_groups);
std::optional<PrefillVariant> prefill_variant(const KernelConfig& config);  // the legal one it stands for

std::vector<KernelProgram> prefill_programs(int arch);
std::vector<KernelProgram> prefill_programs_of(const PrefillVariant& variant, ramp_activation activation);
KernelConfig prefill_config() noexcept;  // what ships
// activation: of GEMM 1 alone.
KernelProgram prefill_program(const PrefillVariant& variant, PrefillKernel kernel,
                              ramp_activation activation);
const char* prefill_entry(PrefillKernel kernel) noexcept;  // its entry point

}  // namespace ramp::core::cuda
