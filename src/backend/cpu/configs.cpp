// The CPU backend's configs: one list of rules, read with and without text; a candidate space; a default.
#include "backend/cpu/configs.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <array>

#include "backend/cpu/kernel_table.hpp"
#include "geometry/grid.hpp"

namespace ramp::core {
namespace {

// Splits help where an expert's few rows leave too few tiles; more than this many partial sums never paid.
constexpr int32_t kMaxSplit = 8;
constexpr int32_t kFewRows = 8;     // tile_m up to which a tile is bound by the weights it reads
constexpr int32_t kMaxStages = 64;  // 67 KiB ahead

enum class Rule : int32_t {
  kLegal,
  kTileM,
  kTileN,
  kTileNRows,
  kTileK,
  kTileKGroup,
  kTileKDepth,
  kSplit,
  kSplitRows,
  kSplitDepth,
  kStages,
  kOrder,
  kOrderRows,
  kGroup,
  kGpuOnly,
};

int64_t depth_steps(int64_t hidden, int32_t tile_k) noexcept {
  return (hidden + tile_k - 1) / tile_k;
}

// The largest power of two that is a legal depth step.
int32_t deepest_step(int64_t hidden) noexcept {
  int32_t k = kMaxTileK;
  while (k >= 2 * std::max<int64_t>(hidden, kScaleGroup)) k /= 2;
  return k;
}

// The first rule that a config breaks.
Rule broken_rule(const KernelConfig& c, int64_t hidden, int64_t intermediate, ramp_format format,
                 ramp_activation activation) noexcept {
  if (c.warps_n != 0 || c.threads != 0) return Rule::kGpuOnly;
  if (c.tile_m < 1 || c.tile_m > kMaxTileM) return Rule::kTileM;
  if (c.tile_n < kPanelRows || c.tile_n > kMaxTileN || c.tile_n % kPanelRows != 0) return Rule::kTileN;
  if (c.tile_n > w13_rows(intermediate, activation)) return Rule::kTileNRows;
  if (c.tile_k < 32 || c.tile_k > kMaxTileK || c.tile_k % 32 != 0) return Rule::kTileK;
  if (format == RAMP_FORMAT_FP8_BLOCK && c.tile_k % kScaleGroup != 0) return Rule::kTileKGroup;
  if (c.tile_k >= 2 * std::max<int64_t>(hidden, kScaleGroup)) return Rule::kTileKDepth;
  if (c.split_k < 1 || c.split_k > kMaxSplit) return Rule::kSplit;
  if (c.split_k > 1 && c.tile_m > kFewRows) return Rule::kSplitRows;
  if (c.split_k > depth_steps(hidden, c.tile_k)) return Rule::kSplitDepth;
  if (c.stages < 1 || c.stages > kMaxStages) return Rule::kStages;
  switch (c.order) {
    case TaskOrder::kColumnMajor:
      return Rule::kLegal;
    case TaskOrder::kRowMajor:
    case TaskOrder::kGrouped:
      if (c.tile_m <= kFewRows) return Rule::kOrderRows;
      if (c.order == TaskOrder::kGrouped && c.group_m < 2) return Rule::kGroup;
      return Rule::kLegal;
    case TaskOrder::kMixed:
      break;
  }
  return Rule::kOrder;
}

std::string rule_text(Rule rule, const KernelConfig& c, int64_t hidden, int64_t intermediate,
                      ramp_activation activation) {
  switch (rule) {
    case Rule::kLegal:
      return {};
    case Rule::kTileM:
      return fmt::format("tile_m {} is not in 1..{}", c.tile_m, kMaxTileM);
    case Rule::kTileN:
      return fmt::format("tile_n {} is not a multiple of {} (one panel) up to {}", c.tile_n, kPanelRows,
                         kMaxTileN);
    case Rule::kTileNRows:
      return fmt::format("tile_n {} exceeds the {} rows of w13", c.tile_n,
                         w13_rows(intermediate, activation));
    case Rule::kTileK:
      return fmt::format("tile_k {} is not a multiple of 32 up to {}", c.tile_k, kMaxTileK);
    case Rule::kTileKGroup:
      return fmt::format("tile_k {} is not a multiple of the {}-deep scale group", c.tile_k, kScaleGroup);
    case Rule::kTileKDepth:
      return fmt::format("tile_k {} is twice the depth H = {} or more", c.tile_k, hidden);
    case Rule::kSplit:
      return fmt::format("split_k {} is not in 1..{}", c.split_k, kMaxSplit);
    case Rule::kSplitRows:
      return fmt::format("split_k {} with tile_m {}: splits are for few rows (tile_m <= {})", c.split_k,
                         c.tile_m, kFewRows);
    case Rule::kSplitDepth:
      return fmt::format("split_k {} exceeds the {} depth steps of H = {}", c.split_k,
                         depth_steps(hidden, c.tile_k), hidden);
    case Rule::kStages:
      return fmt::format("stages {} is not in 1..{}", c.stages, kMaxStages);
    case Rule::kOrder:
      return "order is not column, row or grouped";
    case Rule::kOrderRows:
      return fmt::format(
          "{} order with tile_m {}: the order matters where an expert has many tiles (tile_m > {})",
          order_name(c.order), c.tile_m, kFewRows);
    case Rule::kGroup:
      return fmt::format("grouped order needs group_m >= 2, not {}", c.group_m);
    case Rule::kGpuOnly:
      return "warps_n and threads are parameters of GPU kernels";
  }
  return "unknown rule";
}

}  // namespace

std::string cpu_config_rejection(const KernelConfig& c, const ModelShape& model, ramp_format format,
                                 ramp_activation activation) {
  return rule_text(broken_rule(c, model.hidden, model.intermediate, format, activation), c, model.hidden,
                   model.intermediate, activation);
}

bool cpu_config_legal(const KernelConfig& c, int64_t hidden, int64_t intermediate, ramp_format format,
                      ramp_activation activation) noexcept {
  return broken_rule(c, hidden, intermediate, format, activation) == Rule::kLegal;
}

ConfigList cpu_configs(const ModelShape& model, ramp_format format, ramp_activation activation,
                       bool with_rejected) {
  // What is worth timing, not all that is legal: within a tile only the rows that are there are computed, so
  // neighbouring tile_m differ little; two distances of the prefetch decide most of what more would.
  constexpr std::array<int32_t, 4> kRows = {4, 16, 64, 128};
  constexpr std::array<int32_t, 4> kSlices = {32, 64, 256, 1024};
  constexpr std::array<int32_t, 5> kDepths = {128, 256, 512, 1024, 2048};
  const int32_t deepest = deepest_step(model.hidden);
  constexpr std::array<int32_t, 3> kSplits = {1, 2, 4};
  constexpr std::array<int32_t, 2> kStages = {1, 9};
  constexpr std::array<int32_t, 3> kGroups = {0, -1, 4};  // column, row, grouped by 4
  ConfigList list;
  const auto add = [&](const KernelConfig& c) {
    const Rule rule = broken_rule(c, model.hidden, model.intermediate, format, activation);
    if (rule == Rule::kLegal) {
      list.legal.push_back(c);
    } else if (with_rejected) {
      list.rejected.push_back({c, rule_text(rule, c, model.hidden, model.intermediate, activation)});
    }
  };
  for (const int32_t n : kSlices) {
    // One panel to a task pays where there is no more than that.
    if (n == kPanelRows && w13_rows(model.intermediate, activation) > n) continue;
    for (const int32_t m : kRows) {
      const bool many = m > 16;
      if (many && n == 64 && w13_rows(model.intermediate, activation) >= 256) continue;
      for (const int32_t k : kDepths) {
        // Whole panels where the scratch holds them, and one that leaves x rows in the caches (and splits).
        if (k != deepest && k != std::min(512, deepest / 2)) continue;
        for (const int32_t split : kSplits) {
          for (const int32_t stages : kStages) {
            for (const int32_t group : kGroups) {
              // With 16 rows to a tile, an expert with several of them is better served by longer ones.
              if (group != 0 && !many && m > kFewRows) continue;
              KernelConfig c;
              c.tile_m = m;
              c.tile_n = n;
              c.tile_k = k;
              c.split_k = split;
              c.stages = stages;
              c.group_m = std::max(group, 0);
              c.order = group == 0  ? TaskOrder::kColumnMajor
                        : group < 0 ? TaskOrder::kRowMajor
                                    : TaskOrder::kGrouped;
              add(c);
            }
          }
        }
      }
    }
  }
  return list;
}

KernelConfig cpu_default_config(std::span<const int32_t> histogram, int64_t hidden, int64_t intermediate,
                                ramp_format format, ramp_activation activation, ramp_determinism determinism,
                                int32_t workers) noexcept {
  constexpr std::array<int32_t, 4> kRows = {4, 16, 64, 128};
  // Tiles per worker below which the last ones leave workers idle for a noticeable part of the step.
  constexpr int64_t kTilesPerWorker = 6;
  KernelConfig c;
  const int64_t n1 = w13_rows(intermediate, activation);
  int32_t load = 1;
  for (const int32_t count : histogram) load = std::max(load, count);
  // No padding is computed, so the smallest tile that holds all rows of the busiest expert is never worse:
  // every weight is read once.
  c.tile_m = kRows.back();
  for (const int32_t m : kRows) {
    if (m >= load) {
      c.tile_m = m;
      break;
    }
  }
  const TokenTiling tokens = tile_tokens(histogram, c.tile_m);
  const int64_t wanted = kTilesPerWorker * workers;
  const auto tiles = [&] { return tokens.m_tiles * ((n1 + c.tile_n - 1) / c.tile_n) * c.split_k; };
  const bool few = c.tile_m <= kFewRows;
  // Wide slices: x rows are converted once for more weights, and memory is read in long runs. (Qwen3-30B-A3B,
  // T = 1, bf16, 2 cores: n64 33, n256 34 GB/s; OLMoE, T = 512: n256 53, n1024 49 ms.)
  c.tile_n = few ? 256 : kMaxTileN;
  while (c.tile_n > 64 && (c.tile_n > n1 || tiles() < wanted)) c.tile_n /= 4;
  if (c.tile_n > n1) c.tile_n = kPanelRows;
  // Whole panels, or long steps: sums pass through memory less often, and the prefetch runs along the panel.
  c.tile_k = deepest_step(hidden);
  c.stages = 9;
  // A split costs bits that depend on the config, hence never in batch-invariant mode.
  if (few && determinism != RAMP_BATCH_INVARIANT && tokens.m_tiles > 0) {
    while (c.split_k < kMaxSplit && tiles() < 2 * workers) {
      if (2 * c.split_k > depth_steps(hidden, c.tile_k)) {
        if (c.tile_k <= 256) break;
        c.tile_k /= 2;
        continue;
      }
      c.split_k *= 2;
    }
  }
  (void)format;
  return c;
}

}  // namespace ramp::core
