// Residency from explicit columns or from the fused kernel's descriptor.
#include "cost/residency.hpp"

#include <algorithm>
#include <cmath>

namespace ramp::core {
namespace {

double round_up(double n, double to) noexcept {
  return std::ceil(n / to) * to;
}

// Index of an extra column, -1 if absent.
int extra_column(const ConfigTable& t, const char* name) noexcept {
  const auto at = std::find(t.extra_columns.begin(), t.extra_columns.end(), name);
  return at == t.extra_columns.end() ? -1 : static_cast<int>(at - t.extra_columns.begin());
}

double extra_value(const ConfigTable& t, size_t config, int column) noexcept {
  return t.extra[config * t.extra_columns.size() + static_cast<size_t>(column)];
}

bool describes_fused_kernel(const ConfigTable& t) noexcept {
  return t.has("tile_m") && t.has("tile_n") && t.has("warps_n") && t.has("stages") && t.has("threads") &&
         std::all_of(t.configs.begin(), t.configs.end(),
                     [](const KernelConfig& c) { return c.warps_n > 0 && c.stages > 0 && c.threads > 0; });
}

}  // namespace

FusedBlock fused_block(const KernelConfig& c, const HardwareConstants& hw) noexcept {
  constexpr double kAtom = 1024;      // alignment of swizzled shared-memory buffers, bytes
  constexpr double kOutputRow = 264;  // bf16 columns of one staged output row, 8 of them padding
  const double depth = c.tile_k;
  const double m = c.tile_m;
  const double n = c.tile_n;
  const double stages = c.stages;
  const double weights = round_up(stages * depth * n, kAtom);
  const double up = weights + round_up(stages * depth * m, kAtom) + 8 * stages + 4 * stages * m;
  const double down = weights + round_up(m * n / 2, kAtom) + m * kOutputRow * 2 + 16 * stages;
  FusedBlock b;
  b.threads = c.threads;
  b.smem_bytes = round_up(std::max(up, down), kAtom) + 16 * stages + 4 * m;
  const double accumulators = m * n / (32.0 * c.warps_n);
  const double wanted = round_up(1.5 * accumulators + 24, 8);
  const double allowed = std::min(std::floor(hw.registers_per_sm / b.threads / 8) * 8,
                                  static_cast<double>(hw.registers_per_thread));
  b.registers = std::min(wanted, allowed);
  return b;
}

double blocks_per_sm(const FusedBlock& b, const HardwareConstants& hw) noexcept {
  double blocks = hw.blocks_per_sm > 0 ? hw.blocks_per_sm : 32;
  if (b.smem_bytes > 0) blocks = std::min(blocks, hw.smem_per_sm / (b.smem_bytes + hw.smem_reserved));
  if (b.threads > 0) blocks = std::min(blocks, hw.threads_per_sm / b.threads);
  if (b.registers > 0 && b.threads > 0) {
    blocks = std::min(blocks, hw.registers_per_sm / (b.registers * b.threads));
  }
  return std::max(1.0, std::floor(blocks));
}

Residency residency_of(const ConfigTable& t, const HardwareConstants& hw) {
  Residency r;
  const int column = extra_column(t, "residency");
  const int smem = extra_column(t, "smem_bytes");
  const int regs = extra_column(t, "regs");
  if (column >= 0) {
    r.source = ResidencySource::kColumn;
    for (size_t c = 0; c < t.size(); ++c) {
      r.tiles.push_back(std::clamp(std::floor(extra_value(t, c, column)), 1.0, 1024.0));
    }
  } else if (hw.smem_per_sm <= 0 || hw.registers_per_sm <= 0 || hw.threads_per_sm <= 0) {
    r.source = ResidencySource::kNoSharing;
    r.tiles.assign(t.size(), 1.0);
  } else if (smem >= 0 || (regs >= 0 && t.has("threads"))) {
    r.source = ResidencySource::kResources;
    for (size_t c = 0; c < t.size(); ++c) {
      FusedBlock b;
      b.smem_bytes = smem >= 0 ? extra_value(t, c, smem) : 0;
      b.registers = regs >= 0 ? extra_value(t, c, regs) : 0;
      b.threads = t.configs[c].threads;
      r.tiles.push_back(blocks_per_sm(b, hw));
    }
  } else if (describes_fused_kernel(t)) {
    r.source = ResidencySource::kDescriptor;
    for (const KernelConfig& c : t.configs) r.tiles.push_back(blocks_per_sm(fused_block(c, hw), hw));
  }
  return r;
}

const char* residency_source_name(ResidencySource s) noexcept {
  switch (s) {
    case ResidencySource::kColumn:
      return "the table's residency column";
    case ResidencySource::kResources:
      return "the table's smem_bytes and regs columns";
    case ResidencySource::kDescriptor:
      return "the fused kernel's descriptor";
    case ResidencySource::kNoSharing:
      return "one tile per worker";
    case ResidencySource::kUnknown:
      break;
  }
  return "unknown";
}

}  // namespace ramp::core
