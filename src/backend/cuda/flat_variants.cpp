// The flat stream kernels' compiled shapes: which ship, which are legal and why not, their shared memory and
// registers, their programs.
#include "backend/cuda/flat_variants.hpp"

#include <fmt/format.h>

#include <algorithm>

#include "backend/cuda/flat_params.hpp"
#include "backend/cuda/gated_programs.hpp"
#include "base/tensor.hpp"

namespace ramp::core::cuda {
namespace {

// What an SM of sm_90 has.
constexpr uint32_t kSharedPerSm = 228 << 10, kSharedPerBlock = 227 << 10, kSharedReserved = 1 << 10;
constexpr int32_t kRegistersPerSm = 65536;

// Beside its sums (and FP8's of a step) a thread of the stream kernels gets by with 32 registers where there
// are no more (ptxas of CUDA 13.0).
int32_t blocks_by_registers(const FlatVariant& v, ramp_format format) noexcept {
  constexpr int32_t kWorking = 32, kGranule = 8;
  const int32_t sums = v.width / 2 * (element_bytes(format) == 2 ? 1 : 2);
  const int32_t each = (sums + kWorking + kGranule - 1) / kGranule * kGranule;
  return kRegistersPerSm / (each * static_cast<int32_t>(v.threads()));
}
// As many blocks as an SM holds, up to the most that are searched; 0: not even one.
constexpr int32_t kMostBlocks = 4;
int32_t natural_blocks(const FlatVariant& v, ramp_format format) noexcept {
  if (v.shared_bytes() > kSharedPerBlock) return 0;
  return std::min({kMostBlocks, blocks_by_registers(v, format),
                   static_cast<int32_t>(kSharedPerSm / (v.shared_bytes() + kSharedReserved))});
}

}  // namespace

// FP8 has a step's sums beside the promoted ones: no registers for 96 columns.
bool FlatVariant::compiles(ramp_format format) const noexcept {
  constexpr int32_t kWidestFp8 = 64;
  return element_bytes(format) == 2 || width <= kWidestFp8;
}

// activation: of GEMM 1 alone.
KernelProgram flat_program(const FlatVariant& v, int gemm, ramp_format format, ramp_activation activation) {
  KernelProgram p{
      fmt::format("stream_{}_gemm{}_w{}_r{}_s{}", format_name(format), gemm, v.width, v.rows, v.stages),
      "sm90/stream_flat.cu",
      {fmt::format("-DGEMM={}", gemm), fmt::format("-DFORMAT={}", static_cast<int>(format)),
       fmt::format("-DWIDTH={}", v.width),
       v.rows == 64 ? std::string("-DHALVES=1") : fmt::format("-DSLICES={}", v.rows / kFlatTileRows),
       fmt::format("-DSTEP={}", kFlatStep), fmt::format("-DSTAGES={}", v.stages),
       fmt::format("-DBLOCKS={}", v.blocks)},
      {"stream_flat"},
      90};
  if (v.config(format).blocks != 0) p.name += fmt::format("_b{}", v.blocks);
  if (gemm == 1) add_activation(p, activation);
  return p;
}

unsigned FlatVariant::threads() const noexcept {
  return static_cast<unsigned>(2 * rows + 64);
}

uint32_t FlatVariant::shared_bytes() const noexcept {
  const auto per_stage = static_cast<uint32_t>(width + rows) * 128;
  return static_cast<uint32_t>(stages) * (per_stage + 16);  // two barriers of 8 bytes each
}

KernelConfig FlatVariant::config(ramp_format format) const noexcept {
  KernelConfig c;
  c.tile_m = width;
  c.tile_n = rows;
  c.tile_k = static_cast<int32_t>(flat_depth(format));
  c.stages = stages;
  c.threads = static_cast<int32_t>(threads());
  if (blocks != natural_blocks(*this, format)) c.blocks = blocks;
  return c;
}

std::string FlatVariant::rejection(ramp_format format, int64_t hidden, int64_t intermediate) const {
  if (hidden % rows != 0 || 2 * intermediate % rows != 0)
    return fmt::format("{} weight rows per tile divide not both H = {} and 2I = {}", rows, hidden,
                       2 * intermediate);
  if (!compiles(format))
    return fmt::format("{} token rows per tile leave too few registers in {}", width, format_name(format));
  if (shared_bytes() > kSharedPerBlock)
    return fmt::format("shared memory {} bytes exceed {} ({} stages)", shared_bytes(), kSharedPerBlock,
                       stages);
  if (static_cast<uint32_t>(blocks) * (shared_bytes() + kSharedReserved) > kSharedPerSm)
    return fmt::format("{} blocks of {} bytes (and {} reserved) exceed an SM's {} bytes of shared memory",
                       blocks, shared_bytes(), kSharedReserved, kSharedPerSm);
  if (blocks > blocks_by_registers(*this, format))
    return fmt::format("{} blocks of {} threads leave too few registers for tiles of {} token rows", blocks,
                       threads(), width);
  return {};
}

std::vector<FlatVariant> flat_space() {
  std::vector<FlatVariant> all;
  for (const int32_t rows : {64, 128, 256})
    for (const int32_t width : {8, 16, 32, 48, 64, 96})
      for (int32_t blocks = 1; blocks <= kMostBlocks; ++blocks)
        for (const int32_t stages : {3, 4, 5, 6, 8, 12}) all.push_back({width, rows, stages, blocks});
  return all;
}

std::optional<FlatVariant> flat_variant(const KernelConfig& config, ramp_format format) {
  FlatVariant v{config.tile_m, config.tile_n, config.stages, config.blocks};
  const std::vector<FlatVariant> all = flat_space();
  const bool known = std::any_of(all.begin(), all.end(), [&](const FlatVariant& a) {
    return a.width == v.width && a.rows == v.rows && a.stages == v.stages;
  });
  if (!known) return std::nullopt;
  if (v.blocks == 0) v.blocks = natural_blocks(v, format);
  if (v.blocks < 1 || !(v.config(format) == config) || !v.rejection(format, v.rows, v.rows).empty())
    return std::nullopt;
  return v;
}

std::vector<KernelProgram> flat_programs_of(const FlatVariant& variant, ramp_format format,
                                            ramp_activation activation) {
  return {flat_program(variant, 1, format, activation), flat_program(variant, 2, format, activation)};
}

bool FlatVariant::runs(ramp_format format, int64_t hidden, int64_t intermediate) const noexcept {
  return compiles(format) && hidden % rows == 0 && 2 * intermediate % rows == 0;
}

std::vector<FlatVariant> flat_variants(ramp_format format, int64_t hidden, int64_t intermediate) {
  std::vector<FlatVariant> list;
  for (const FlatVariant& v : kFlatVariants)
    if (v.runs(format, hidden, intermediate)) list.push_back(v);
  return list;
}

std::vector<KernelProgram> flat_programs(int /*arch*/) {
  std::vector<KernelProgram> list;
  for (const ramp_format format : kFlatFormats) {
    for (size_t a = 0; a < kGatedActivations; ++a) {
      for (KernelProgram& p : flat_block_programs(format, static_cast<ramp_activation>(a)))
        if (a == 0 || p.name.find("_gemm1_") != std::string::npos) list.push_back(std::move(p));
    }
  }
  return list;
}

bool flat_applies(ramp_format format, ramp_activation activation, int64_t hidden, int64_t intermediate,
                  std::string* reason) {
  const auto no = [&](std::string text) {
    if (reason != nullptr) *reason = std::move(text);
    return false;
  };
  if (!flat_format(format))
    return no(fmt::format("format {} (these kernels take bf16, fp16, fp8_tensor and fp8_channel)",
                          format_name(format)));
  if (!is_gated(activation)) return no("relu2 is not gated (the stream kernels interleave gate and up rows)");
  if (hidden % kFlatTileRows != 0 || intermediate % flat_depth(format) != 0)
    return no(fmt::format("H = {} and I = {}, expected multiples of {} and {}", hidden, intermediate,
                          kFlatTileRows, flat_depth(format)));
  return true;
}

bool flat_format(ramp_format format) noexcept {
  return flat_number(format) < kFlatFormats.size();
}

std::vector<KernelProgram> flat_block_programs(ramp_format format, ramp_activation activation) {
  std::vector<KernelProgram> list;
  for (const FlatVariant& v : kFlatVariants) {
    if (!v.compiles(format)) continue;
    for (const int gemm : {1, 2}) list.push_back(flat_program(v, gemm, format, activation));
  }
  return list;
}

}  // namespace ramp::core::cuda
