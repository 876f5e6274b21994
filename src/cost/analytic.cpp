// The zero-profile model: the wave physics with parameters from hardware constants, config columns and the
// kernel family's constants alone.
#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <map>
#include <vector>

#include "base/error.hpp"
#include "cost/residency.hpp"
#include "cost/wave.hpp"

namespace ramp::core {
namespace {

// Time of one tile alone on its SM. A depth step takes what its sums need (barriers, promotion, spills) or
// what its loads need (latency over the stages in flight), whichever is longer, softly.
double tile_us(const KernelConfig& c, const ModelShape& model, const HardwareConstants& hw,
               const WaveKernelConstants& k) {
  const auto hidden = static_cast<double>(model.hidden);
  // GEMM1 walks H in depth steps; GEMM2 writes H columns, 256 per step.
  const double steps = (hidden / k.depth + hidden / (2 * k.depth)) / std::max(c.split_k, 1);
  const double threads = c.threads > 0 ? c.threads : 32.0 * c.warps_n + 128;
  const double sums = static_cast<double>(c.tile_m) * c.tile_n / (32.0 * c.warps_n);
  double registers = hw.registers_per_thread > 0 ? hw.registers_per_thread : 255;
  if (hw.registers_per_sm > 0) registers = std::min(registers, hw.registers_per_sm / threads);
  const double spilled = std::max(0.0, k.registers_per_sum * sums + k.registers_fixed - registers);
  const double consume = k.step_us + k.row_step_us * c.tile_m * std::pow(8.0 / c.warps_n, k.warps_exponent) +
                         k.spill_us * spilled;
  const double load = k.load_us / std::max(c.stages, 1);
  return k.tile_us + steps * std::pow(std::pow(consume, 4) + std::pow(load, 4), 0.25);
}

// Configs whose known columns agree are ties for any model; rank them middle first.
std::vector<double> tie_factors(const ConfigTable& t, const WaveKernelConstants& k) {
  std::map<std::vector<double>, std::vector<size_t>> families;
  for (size_t c = 0; c < t.size(); ++c) {
    const KernelConfig& x = t.configs[c];
    std::vector<double> key = {double(x.tile_m), double(x.tile_n),  double(x.tile_k),  double(x.warps_n),
                               double(x.stages), double(x.split_k), double(x.group_m), double(x.threads)};
    for (size_t e = 0; e < t.extra_columns.size(); ++e) {
      key.push_back(t.extra[c * t.extra_columns.size() + e]);
    }
    families[key].push_back(c);
  }
  std::vector<double> factor(t.size(), 1.0);
  for (const auto& [key, members] : families) {
    const double middle = (static_cast<double>(members.size()) - 1) / 2;
    for (size_t i = 0; i < members.size(); ++i) {
      factor[members[i]] = 1 + k.tie_share * std::abs(static_cast<double>(i) - middle);
    }
  }
  return factor;
}

}  // namespace

std::unique_ptr<Predictor> make_analytic(const ConfigTable& configs, const ModelShape& model,
                                         const HardwareConstants& hw, FitReport& report,
                                         const WaveKernelConstants& k) {
  if (configs.size() == 0) fail_argument("configs", "none", "at least one");
  if (hw.sm_count <= 0) {
    fail_argument("hardware.sm_count", fmt::format("{}", hw.sm_count), "the number of SMs or workers");
  }
  // What the table lacks is filled with the documented priors, for this model's own use only.
  ConfigTable filled = configs;
  const auto fill = [&](const char* column, int32_t KernelConfig::*member, auto value) {
    bool used = false;
    for (KernelConfig& c : filled.configs) {
      if (configs.has(column) && c.*member > 0) continue;
      c.*member = static_cast<int32_t>(value(c));
      used = true;
    }
    if (!used) return;
    if (!filled.has(column)) filled.known_columns.emplace_back(column);
    report.warnings.push_back(fmt::format("no {}: {} assumed", column, value(filled.configs[0])));
  };
  fill("warps_n", &KernelConfig::warps_n, [&](const KernelConfig&) { return k.unknown_warps; });
  fill("stages", &KernelConfig::stages, [&](const KernelConfig&) { return k.unknown_stages; });
  fill("threads", &KernelConfig::threads, [](const KernelConfig& c) { return 32.0 * c.warps_n + 128; });

  WaveFit fit;
  fit.sm_count = hw.sm_count;
  fit.hyper.guard = -1;  // nothing was measured
  fit.tile_m = distinct_tile_m(configs);
  fit.measured.assign(configs.size(), 1);
  const Residency residency = residency_of(filled, hw);
  const std::vector<double> ties = tie_factors(configs, k);
  for (size_t c = 0; c < configs.size(); ++c) {
    WaveConfigParameters p;
    p.residency = residency.tiles.empty() ? 1.0 : residency.tiles[c];
    p.value = kernel_constants(filled.configs[c], model, hw, k);
    p.value[kLatency] = tile_us(filled.configs[c], model, hw, k);
    p.value[kSharing] = k.sharing_analytic;
    for (size_t i = 0; i < kWaveParameters; ++i) {
      if (i != kSharing && i != kFillSlope) p.value[i] *= ties[c];
    }
    fit.configs.push_back(p);
  }
  return std::make_unique<WavePredictor>("analytic", std::move(fit), configs, model, hw.name);
}

std::unique_ptr<Predictor> AnalyticModel::fit(const Dataset& d, int32_t model, std::span<const size_t>,
                                              const HardwareConstants& hw, FitReport& report) const {
  if (model < 0 || static_cast<size_t>(model) >= d.models.size()) {
    fail_argument("model", fmt::format("index {}", model), fmt::format("0..{}", d.models.size()));
  }
  return make_analytic(d.configs, d.models[static_cast<size_t>(model)], hw, report);
}

}  // namespace ramp::core
