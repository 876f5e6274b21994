// The stream kernels' compiled shapes: which ship, which are legal and why not, their shared memory and
// registers, their programs.
#include "backend/cuda/stream_variants.hpp"

#include <fmt/format.h>

#include <algorithm>

#include "backend/cuda/gated_programs.hpp"
#include "base/tensor.hpp"
#include "params/stream.hpp"
#include "weights/quantize.hpp"

namespace ramp::core::cuda {
namespace {

// What an SM of sm_90 has.
constexpr uint32_t kSharedPerSm = 228 << 10, kSharedPerBlock = 227 << 10, kSharedReserved = 1 << 10;
constexpr int32_t kLeastStages = 2, kMostStages = 13, kWidest = 64, kMostBlocks = 4;

// Blocks per SM whose registers hold the sums without spilling (ptxas of CUDA 13.0, both GEMMs; four blocks
// leave a thread 48 registers, three 64).
int32_t blocks_by_registers(int32_t width) noexcept {
  return width <= 16 ? 4 : width <= 32 ? 3 : 2;
}
// As many blocks as an SM holds; 0: not even one.
int32_t natural_blocks(const StreamVariant& v) noexcept {
  const uint32_t bytes = v.shared_bytes(1);
  if (bytes > kSharedPerBlock) return 0;
  return std::min(blocks_by_registers(v.width),
                  static_cast<int32_t>(kSharedPerSm / (bytes + kSharedReserved)));
}

// Variants may share a GEMM's program.
void add_program(std::vector<KernelProgram>& list, KernelProgram program) {
  const auto same = [&](const KernelProgram& other) { return other.name == program.name; };
  if (std::none_of(list.begin(), list.end(), same)) list.push_back(std::move(program));
}

}  // namespace

// activation: of GEMM 1 alone.
KernelProgram stream_program(const StreamVariant& v, int gemm, ramp_activation activation) {
  const bool halves = v.halves(gemm);
  const int32_t stages = v.stages_of(gemm);
  const int32_t blocks = v.blocks_of(gemm);
  KernelProgram p{
      fmt::format("stream_gemm{}_w{}{}_s{}_b{}", gemm, v.width, halves ? "_r64" : "", stages, blocks),
      "sm90/stream.cu",
      {fmt::format("-DGEMM={}", gemm), fmt::format("-DWIDTH={}", v.width),
       fmt::format("-DSTEP={}", kStreamStep), fmt::format("-DSTAGES={}", stages),
       fmt::format("-DBLOCKS={}", blocks), fmt::format("-DHALVES={}", halves ? 1 : 0),
       fmt::format("-DOWN_PLAN={}", gemm == 1 && v.own_plan() ? 1 : 0)},
      {"stream"},
      90};
  if (gemm == 1) add_activation(p, activation);
  return p;
}

// As kernels/sm90/stream.cu lays it out: the ring; GEMM 1's amax per warp, scales with their inverses and the
// other block's amax of two items; barriers; the block's own plan.
uint32_t StreamVariant::shared_bytes(int gemm) const noexcept {
  const auto w = static_cast<uint32_t>(width);
  const auto s = static_cast<uint32_t>(stages_of(gemm));
  const uint32_t ring = s * ((halves(gemm) ? 8192 : 16384) + w * 128 + (w * 4 + 127) / 128 * 128);
  const uint32_t group = gemm == 1 ? 4 * w * (8 + 2 + 2) : 0;
  const uint32_t plan = gemm == 1 ? 12 * kStreamOwnSlots + 16 : 0;
  return ring + group + 16 * s + 16 + plan;
}

bool StreamVariant::own_plan() const noexcept {
  // The others have no registers for it, and more tokens.
  constexpr int32_t kMost = 64;
  return width * blocks <= kMost && blocks <= 3;
}
unsigned StreamVariant::threads(int gemm) const noexcept {
  return halves(gemm) ? 192 : 320;  // a warpgroup per 64 weight rows, two warps that copy
}

KernelConfig StreamVariant::config() const noexcept {
  KernelConfig c;
  c.tile_m = width;
  c.tile_n = rows2;
  c.tile_k = kGroup;
  c.stages = stages;
  c.threads = static_cast<int32_t>(threads(1));
  if (blocks != natural_blocks(*this)) c.blocks = blocks;
  return c;
}

std::string StreamVariant::rejection() const {
  if (width < kStreamStep || width > kWidest || width % kStreamStep != 0)
    return fmt::format("{} token rows per tile, expected {} to {} in steps of {}", width, kStreamStep,
                       kWidest, kStreamStep);
  if (stages < kLeastStages) return fmt::format("{} stages, expected at least {}", stages, kLeastStages);
  const uint32_t bytes = shared_bytes(1);
  if (bytes > kSharedPerBlock)
    return fmt::format("shared memory {} bytes exceed {} ({} stages)", bytes, kSharedPerBlock, stages);
  if (blocks < 1 || static_cast<uint32_t>(blocks) * (bytes + kSharedReserved) > kSharedPerSm)
    return fmt::format("{} blocks of {} bytes (and {} reserved) exceed an SM's {} bytes of shared memory",
                       blocks, bytes, kSharedReserved, kSharedPerSm);
  if (blocks > blocks_by_registers(width))
    return fmt::format(
        "{} blocks of {} threads leave too few registers for tiles of {} token rows (at most "
        "{} blocks)",
        blocks, threads(1), width, blocks_by_registers(width));
  return {};
}

std::span<const StreamVariant> stream_variants() noexcept {
  return kStreamVariants;
}

std::vector<StreamVariant> stream_space() {
  std::vector<StreamVariant> all;
  for (int32_t width = kStreamStep; width <= kWidest; width += kStreamStep)
    for (int32_t blocks = 1; blocks <= kMostBlocks; ++blocks)
      for (int32_t stages = kLeastStages; stages <= kMostStages; ++stages)
        all.push_back({width, stages, blocks});
  return all;
}

std::optional<StreamVariant> stream_variant(const KernelConfig& config) {
  for (const StreamVariant& v : kStreamVariants)
    if (v.config() == config) return v;
  StreamVariant v{config.tile_m, config.stages, config.blocks};
  if (v.width < 1 || v.stages < 1) return std::nullopt;
  if (v.blocks == 0) v.blocks = natural_blocks(v);
  if (!(v.config() == config) || !v.rejection().empty()) return std::nullopt;
  return v;
}

std::vector<KernelProgram> stream_programs_of(const StreamVariant& variant, ramp_activation activation) {
  return {stream_program(variant, 1, activation), stream_program(variant, 2, activation)};
}

std::vector<KernelProgram> stream_programs(int /*arch*/) {
  std::vector<KernelProgram> list;
  for (const StreamVariant& v : kStreamVariants) {
    for (size_t a = 0; a < kGatedActivations; ++a)
      add_program(list, stream_program(v, 1, static_cast<ramp_activation>(a)));
    add_program(list, stream_program(v, 2, RAMP_ACTIVATION_SILU_AND_MUL));
  }
  return list;
}

bool stream_applies(ramp_format format, ramp_activation activation, int64_t hidden, int64_t intermediate,
                    std::string* reason) {
  const auto no = [&](std::string text) {
    if (reason != nullptr) *reason = std::move(text);
    return false;
  };
  if (format != RAMP_FORMAT_FP8_BLOCK)
    return no(fmt::format("format {} (the stream kernels take fp8_block)", format_name(format)));
  if (!is_gated(activation)) return no("relu2 is not gated (the stream kernels interleave gate and up rows)");
  if (hidden % kGroup != 0 || intermediate % kGroup != 0)
    return no(fmt::format("H = {} and I = {}, expected multiples of {}", hidden, intermediate, kGroup));
  return true;
}

std::vector<KernelProgram> stream_block_programs(ramp_activation activation) {
  std::vector<KernelProgram> list;
  for (const StreamVariant& v : kStreamVariants)
    for (const int gemm : {1, 2}) add_program(list, stream_program(v, gemm, activation));
  return list;
}

}  // namespace ramp::core::cuda
