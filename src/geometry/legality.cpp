// Resource arithmetic and the legality rules, one rule per check, each naming its numbers.
#include "geometry/legality.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <array>

#include "base/float_types.hpp"

namespace ramp::core {
namespace {

constexpr int32_t kWarpgroup = 128;  // threads
constexpr int32_t kWorkingRegisters =
    40;  // addresses, scales, loop state: what the probe kernels show beyond accumulators
constexpr int32_t kBarrierBytes = 16;     // one full and one empty mbarrier per stage
constexpr int32_t kBulkAlignment = 1024;  // 128-byte swizzle atoms repeat every 1024 bytes

int32_t bytes_per_value(ramp_format format) noexcept {
  return static_cast<int32_t>(dtype_bytes(weight_dtype(format)));
}
bool promotes(ramp_format format) noexcept {
  return format == RAMP_FORMAT_FP8_BLOCK;
}
int32_t math_warpgroups(const KernelConfig& c) noexcept {
  if (c.threads > kWarpgroup) return c.threads / kWarpgroup - 1;
  return std::max(1, c.tile_n / 128);
}
int64_t round_up(int64_t n, int64_t to) noexcept {
  return (n + to - 1) / to * to;
}

}  // namespace

BlockResources block_resources(const KernelConfig& c, ramp_format format,
                               Orientation /*orientation*/) noexcept {
  BlockResources r;
  const int32_t groups = math_warpgroups(c);
  r.threads = c.threads != 0 ? c.threads : (groups + 1) * kWarpgroup;
  const int64_t width = bytes_per_value(format);
  const int64_t weights = static_cast<int64_t>(c.tile_n) * c.tile_k * width;
  const int64_t tokens = static_cast<int64_t>(c.tile_m) * c.tile_k * width;
  const int64_t scales = promotes(format) ? 4 * (static_cast<int64_t>(c.tile_m) + c.tile_n / 64) : 0;
  const int64_t stage =
      round_up(weights, kBulkAlignment) + round_up(tokens, kBulkAlignment) + scales + kBarrierBytes;
  r.smem_bytes = c.stages * stage;
  // The accumulator tile is tile_m x tile_n fp32 whichever side the tokens are on; promotion keeps a second
  // one.
  const int64_t accumulators =
      static_cast<int64_t>(c.tile_m) * c.tile_n / (static_cast<int64_t>(groups) * kWarpgroup);
  r.registers_per_thread =
      static_cast<int32_t>(accumulators * (promotes(format) ? 2 : 1) + kWorkingRegisters);
  return r;
}

int32_t residency(const BlockResources& r, const HardwareConstants& hw) noexcept {
  if (r.threads <= 0) return 0;
  const int64_t per_warp =
      round_up(static_cast<int64_t>(r.registers_per_thread) * 32, 256);  // allocation unit
  const int64_t registers = per_warp * ((r.threads + 31) / 32);
  int64_t blocks = hw.blocks_per_sm;
  blocks = std::min<int64_t>(blocks, hw.threads_per_sm / r.threads);
  blocks = std::min<int64_t>(blocks, hw.registers_per_sm / std::max<int64_t>(registers, 1));
  blocks = std::min<int64_t>(blocks, hw.smem_per_sm / (r.smem_bytes + hw.smem_reserved));
  return static_cast<int32_t>(blocks);
}

std::string rejection(const KernelConfig& c, const ModelShape& model, ramp_format format,
                      Orientation orientation, const HardwareConstants& hw) {
  if (!hw.has_wgmma) return fmt::format("{} has no wgmma", hw.name);
  if (c.tile_m <= 0 || c.tile_n <= 0 || c.tile_k <= 0 || c.stages <= 0 || c.split_k <= 0) {
    return "tile_m, tile_n, tile_k, stages and split_k must be positive";
  }
  if (format == RAMP_FORMAT_F32) return "wgmma has no fp32 inputs";
  const int32_t width = bytes_per_value(format);
  if (width <= 0) return "no weight format is given";
  const int32_t mma_k = 32 / width;
  if (c.tile_k % mma_k != 0)
    return fmt::format("tile_k {} is not a multiple of wgmma's k = {}", c.tile_k, mma_k);
  if (format == RAMP_FORMAT_FP8_BLOCK && c.tile_k != 128) {
    return fmt::format("tile_k {} differs from the 128-deep scale block", c.tile_k);
  }
  const bool swap = orientation == Orientation::kSwapAB;
  const int32_t m_side = swap ? c.tile_n : c.tile_m;
  const int32_t n_side = swap ? c.tile_m : c.tile_n;
  const char* m_name = swap ? "tile_n" : "tile_m";
  const char* n_name = swap ? "tile_m" : "tile_n";
  if (m_side % 64 != 0) return fmt::format("{} {} is not a multiple of wgmma's m = 64", m_name, m_side);
  if (n_side % 8 != 0) return fmt::format("{} {} is not a multiple of wgmma's n step 8", n_name, n_side);
  const int32_t groups = math_warpgroups(c);
  if ((m_side / 64) % groups != 0 && n_side % (8 * groups) != 0) {
    return fmt::format("{} math warpgroups divide neither {} {} in steps of 64 nor {} {} in steps of 8",
                       groups, m_name, m_side, n_name, n_side);
  }
  if (model.hidden % 128 != 0 || model.intermediate % 128 != 0) {
    return fmt::format("H = {} or I = {} is not a multiple of 128 (packed tiles)", model.hidden,
                       model.intermediate);
  }
  const BlockResources r = block_resources(c, format, orientation);
  if (r.threads > hw.threads_per_block)
    return fmt::format("{} threads exceed {}", r.threads, hw.threads_per_block);
  if (r.smem_bytes > hw.smem_per_block) {
    return fmt::format("shared memory {} bytes exceed {} ({} stages)", r.smem_bytes, hw.smem_per_block,
                       c.stages);
  }
  if (r.registers_per_thread > hw.registers_per_thread) {
    return fmt::format(
        "{} registers per thread exceed {} (accumulators of {} x {} over {} warpgroups would spill)",
        r.registers_per_thread, hw.registers_per_thread, c.tile_m, c.tile_n, groups);
  }
  if (residency(r, hw) == 0) {
    return fmt::format("{} threads x {} registers do not fit one SM ({} registers)", r.threads,
                       r.registers_per_thread, hw.registers_per_sm);
  }
  const int64_t depth = (model.hidden + c.tile_k - 1) / c.tile_k;
  if (depth % c.split_k != 0)
    return fmt::format("split_k {} does not divide the depth of {} steps", c.split_k, depth);
  if (c.stages > std::max<int64_t>(1, depth / c.split_k)) {
    return fmt::format("{} stages are more than the {} depth steps of a tile", c.stages, depth / c.split_k);
  }
  if (c.order == TaskOrder::kGrouped && c.group_m < 2) return "grouped order needs group_m >= 2";
  if (c.tile_n > 2 * model.intermediate) {
    return fmt::format("tile_n {} exceeds the {} gate and up rows", c.tile_n, 2 * model.intermediate);
  }
  return {};
}

std::vector<EnumeratedConfig> enumerate_wgmma(const ModelShape& model, ramp_format format,
                                              Orientation orientation, const HardwareConstants& hw) {
  constexpr std::array<int32_t, 20> kTokens = {8,  16, 24,  32,  40,  48,  56,  64,  72,  80,
                                               88, 96, 104, 112, 120, 128, 160, 192, 224, 256};
  constexpr std::array<int32_t, 3> kRows = {128, 256, 512};
  constexpr std::array<int32_t, 6> kStages = {1, 2, 3, 4, 6, 8};
  constexpr std::array<int32_t, 4> kSplits = {1, 2, 4, 8};
  constexpr std::array<int32_t, 2> kGroups = {0, 8};
  std::vector<EnumeratedConfig> all;
  all.reserve(kTokens.size() * kRows.size() * kStages.size() * kSplits.size() * kGroups.size());
  for (const int32_t n : kRows) {
    for (const int32_t m : kTokens) {
      for (const int32_t s : kStages) {
        for (const int32_t split : kSplits) {
          for (const int32_t group : kGroups) {
            KernelConfig c;
            c.tile_m = m;
            c.tile_n = n;
            c.stages = s;
            c.split_k = split;
            c.group_m = group;
            c.order = group == 0 ? TaskOrder::kColumnMajor : TaskOrder::kGrouped;
            all.push_back({c, rejection(c, model, format, orientation, hw)});
          }
        }
      }
    }
  }
  return all;
}

}  // namespace ramp::core
