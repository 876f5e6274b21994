// The compiled shapes of the flat stream kernels (kernels/sm90/stream_flat.cu): those that ship, the space
// they are out of, and for which weights there are any.
#pragma once

#include <array>
#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "backend/backend.hpp"
#include "backend/cuda/kernel_library.hpp"

namespace ramp::core::cuda {

// One compiled shape of the kernels.
struct FlatVariant {
  int32_t width = 8;   // token rows per tile at most
  int32_t rows = 128;  // weight rows per tile: 64, 128 or 256
  int32_t stages = 6;  // ring depth in 16 KB tiles
  int32_t blocks = 2;  // per SM
  friend auto operator<=>(const FlatVariant&, const FlatVariant&) = default;
  [[nodiscard]] unsigned threads() const noexcept;
  [[nodiscard]] uint32_t shared_bytes() const noexcept;
  // Whether there are registers for it in this format; and tiles that divide this shape.
  [[nodiscard]] bool compiles(ramp_format format) const noexcept;
  [[nodiscard]] bool runs(ramp_format format, int64_t hidden, int64_t intermediate) const noexcept;
  // As many blocks as registers and shared memory hold are not in its name.
  [[nodiscard]] KernelConfig config(ramp_format format) const noexcept;
  // Why it cannot be run, with the numbers; "" where it can.
  [[nodiscard]] std::string rejection(ramp_format format, int64_t hidden, int64_t intermediate) const;
};
inline constexpr int32_t kFlatStep = 8;  // the width of a tile is a multiple of it

// Those that ship. Measured at T = 1, 32 and 128 over four models (docs/kernel-log.md).
inline constexpr std::array<FlatVariant, 4> kFlatVariants = {
    {{8, 64, 12, 2}, {32, 128, 5, 2}, {64, 128, 4, 2}, {96, 256, 5, 1}}};
// Every candidate of the whole space, legal or not (stream_block.hpp), and the variant that a config stands
// for.
std::vector<FlatVariant> flat_space();
std::optional<FlatVariant> flat_variant(const KernelConfig& config, ramp_format format);
std::vector<KernelProgram> flat_programs_of(const FlatVariant& variant, ramp_format format,
                                            ramp_activation activation);
// Those that run this format (FP8 has fewer registers to spare) and shape (items of 256 weight rows want them
// in W13 and W2).
std::vector<FlatVariant> flat_variants(ramp_format format, int64_t hidden, int64_t intermediate);

KernelProgram flat_program(const FlatVariant& variant, int gemm, ramp_format format,
                           ramp_activation activation);
std::vector<KernelProgram> flat_programs(int arch);
// Of those that ship: what one format and activation need.
std::vector<KernelProgram> flat_block_programs(ramp_format format, ramp_activation activation);

bool flat_format(ramp_format format) noexcept;
// Whether weights of this shape can be packed into tiles of 128 rows x 128 bytes and run by these kernels: H
// a multiple of 128, I of a tile's depth (64, fp8: 128), a gated activation. Says why not in *reason.
bool flat_applies(ramp_format format, ramp_activation activation, int64_t hidden, int64_t intermediate,
                  std::string* reason = nullptr);

}  // namespace ramp::core::cuda
