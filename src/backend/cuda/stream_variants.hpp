// The compiled shapes of the stream kernels (kernels/sm90/stream.cu): those that ship, the space they are out
// of, and for which weights there are any.
#pragma once

#include <array>
#include <cstdint>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "backend/backend.hpp"
#include "backend/cuda/kernel_library.hpp"

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
inline constexpr int32_t kStreamStep = 8;  // widths of tiles are multiples of it
// Those that ship. choose() knows when which is best. Each is better than the others by at least 2% somewhere
// in the profiles of twelve models (profiles/, docs/kernel-log.md); 16 rows with rings of 4 x 3, 32 rows with
// 5 x 2 and 64 rows with 4 x 2 were nowhere, and are in the space like the rest.
inline constexpr std::array<StreamVariant, 4> kStreamVariants = {
    {{8, 6, 2, 8, 3, 64}, {8, 6, 2}, {16, 6, 2}, {32, 3, 3}}};
// Those that ship: loaded with the weights and compiled by CI.
std::span<const StreamVariant> stream_variants() noexcept;
// Every candidate of the whole space, legal or not; legal ones run by a forced config and are loaded when
// they are first used.
std::vector<StreamVariant> stream_space();
// The legal variant that a config stands for.
std::optional<StreamVariant> stream_variant(const KernelConfig& config);

KernelProgram stream_program(const StreamVariant& variant, int gemm, ramp_activation activation);
std::vector<KernelProgram> stream_programs(int arch);
// Of those that ship: what one activation needs.
std::vector<KernelProgram> stream_block_programs(ramp_activation activation);
std::vector<KernelProgram> stream_programs_of(const StreamVariant& variant, ramp_activation activation);

// Whether weights of this shape can be packed into tiles and run by the stream kernels: H and I multiples of
// 128 (the block scales), a gated activation. Says why not in *reason.
bool stream_applies(ramp_format format, ramp_activation activation, int64_t hidden, int64_t intermediate,
                    std::string* reason = nullptr);

}  // namespace ramp::core::cuda
