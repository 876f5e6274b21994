// The portable kernels' compiled shapes: which format and architecture each is for, its shared memory, its
// program.
#include <fmt/format.h>

#include <algorithm>
#include <array>

#include "backend/cuda/launch.hpp"
#include "backend/cuda/portable_block.hpp"
#include "backend/cuda/weights.hpp"
#include "base/tensor.hpp"
#include "weights/quantize.hpp"

namespace ramp::core::cuda {
namespace {

constexpr uint32_t kRowBytes = 128;  // kernels/portable/gemm.cu
constexpr size_t kKinds = 2;         // GATED of the kernel
constexpr std::array kFormats = {RAMP_FORMAT_FP8_BLOCK, RAMP_FORMAT_BF16, RAMP_FORMAT_F16,
                                 RAMP_FORMAT_FP8_TENSOR, RAMP_FORMAT_FP8_CHANNEL};

bool is_fp8_format(ramp_format format) noexcept {
  return weight_dtype(format) == RAMP_E4M3;
}

}  // namespace

bool PortableVariant::is_for(ramp_format format, int arch) const noexcept {
  const bool wide = !is_fp8_format(format) || (arch >= 90 && !portable_multiplies_codes(arch));
  const bool block = format == RAMP_FORMAT_FP8_BLOCK;
  switch (formats) {
    case PortableFormats::kAll:
      return true;
    case PortableFormats::kWide:
      return wide;
    case PortableFormats::kBlock:
      return block;
    case PortableFormats::kWideBlock:
      return wide && block;
    case PortableFormats::kWideSome:
      return wide && (block || format == RAMP_FORMAT_BF16);
    case PortableFormats::kBf16:
      return format == RAMP_FORMAT_BF16;
  }
  return false;
}
int32_t PortableVariant::unit_columns(ramp_format format, bool gated) const noexcept {
  if (gated && fuses(format)) return static_cast<int32_t>(kGroup);
  return gated ? rows / 2 : rows;
}
bool PortableVariant::sums_in_units(ramp_format format, int arch) const noexcept {
  return format == RAMP_FORMAT_FP8_BLOCK && tokens > 64 && !portable_multiplies_codes(arch);
}

uint32_t PortableVariant::shared_bytes(ramp_format format, int arch) const noexcept {
  const auto r = static_cast<uint32_t>(rows);
  const auto t = static_cast<uint32_t>(tokens);
  const auto k = static_cast<uint32_t>(warps_k);
  const auto depth = static_cast<uint32_t>(stages);
  const uint32_t ring = depth * k * kRowBytes * (r + t);  // the sums take its place in the end
  // kernels/portable/scales.cuh: a ring of scales; ratios, factors, units and marks.
  const uint32_t of_step = k * (t + 2) * 4;
  const uint32_t scales = format != RAMP_FORMAT_FP8_BLOCK ? 0
                          : sums_in_units(format, arch)   ? (depth + 5) * of_step + 8
                                                          : depth * of_step;
  return ring + scales + t * (fuses(format) ? 16 : 12) + 32;  // Kept of epilogue.cuh
}

KernelConfig PortableVariant::config(ramp_format format) const noexcept {
  KernelConfig c;
  c.tile_m = tokens;
  c.tile_n = rows;
  c.tile_k = static_cast<int32_t>(kRowBytes) * warps_k / (is_fp8_format(format) ? 1 : 2);
  c.stages = stages;
  c.threads = threads();
  c.split_k = warps_k;
  if (fuses(format)) c.tile_n = std::max(rows, 2 * static_cast<int32_t>(kGroup));
  if (trial) c.warps_n = warps_r;
  return c;
}

bool portable_multiplies_codes(int arch) noexcept {
  return arch == 89 || arch >= 120;
}
int portable_arch(const GpuFacts& facts) noexcept {
  return 10 * facts.major + facts.minor;
}

KernelProgram portable_program(const PortableVariant& v, ramp_format format, bool gated) {
  KernelProgram p{fmt::format("portable_{}_{}_m{}_n{}_t{}_s{}", format_name(format),
                              gated ? "gated" : "single", v.tokens, v.rows, v.threads(), v.stages),
                  "portable/gemm.cu",
                  {fmt::format("-DFORMAT={}", static_cast<int>(format)),
                   fmt::format("-DGATED={:d}", gated ? 1 : 0), fmt::format("-DROWS={}", v.rows),
                   fmt::format("-DTOKENS={}", v.tokens), fmt::format("-DKW={}", v.warps_k),
                   fmt::format("-DWR={}", v.warps_r), fmt::format("-DWT={}", v.warps_t),
                   fmt::format("-DSTAGES={}", v.stages), fmt::format("-DBLOCKS={}", v.blocks)},
                  {"gemm"},
                  80};
  const auto with = [&p](const char* name, const char* option) {
    p.name += name;
    p.options.emplace_back(option);
  };
  if (v.carry) with("_carry", "-DCARRY=1");
  if (gated && v.fuses(format)) with("_fused", "-DFUSED=1");
  return p;
}

std::vector<KernelProgram> portable_programs(int arch) {
  std::vector<KernelProgram> list;
  const auto add = [&](const PortableVariant& v, ramp_format f, bool gated) {
    KernelProgram p = portable_program(v, f, gated);
    const auto same = [&p](const KernelProgram& other) { return other.name == p.name; };
    if (v.is_for(f, arch) && std::none_of(list.begin(), list.end(), same)) list.push_back(std::move(p));
  };
  for (const ramp_format f : kFormats) {
    for (const PortableVariant& v : kPortableVariants)
      for (size_t kind = 0; kind < kKinds; ++kind) add(v, f, kind == 1);
    for (const PortableVariant& v : kPortableTrials)
      for (size_t kind = 0; kind < kKinds; ++kind) add(v, f, kind == 1);
  }
  return list;
}

bool portable_takes(ramp_format format) noexcept {
  return std::find(kFormats.begin(), kFormats.end(), format) != kFormats.end();
}

bool portable_applies(const ExpertWeights& weights) noexcept {
  if (!portable_takes(weights.format)) return false;
  const WeightViews views = weight_views(weights);
  const int64_t bytes = dtype_bytes(weight_dtype(weights.format));
  constexpr int64_t kReachRow = int64_t{1} << 32;  // the kernels multiply row strides in 32 bits
  if (views.w13.stride[1] * bytes >= kReachRow || views.w2.stride[1] * bytes >= kReachRow) return false;
  return rows_aligned(views.w13.data, bytes, {views.w13.stride[0], views.w13.stride[1]}) &&
         rows_aligned(views.w2.data, bytes, {views.w2.stride[0], views.w2.stride[1]});
}

}  // namespace ramp::core::cuda
