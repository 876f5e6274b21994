// The formulas of the wave model, one function per term.
#include "cost/wave_physics.hpp"

#include <algorithm>
#include <cmath>

namespace ramp::core {

HistogramFacts histogram_facts(std::span<const int32_t> histogram) noexcept {
  HistogramFacts f;
  for (const int32_t c : histogram) {
    if (c <= 0) continue;
    f.rows += c;
    f.active += 1;
    f.max_load = std::max<int64_t>(f.max_load, c);
  }
  return f;
}

WorkClass work_class_of(const KernelConfig& c, const ModelShape& model) noexcept {
  const int64_t n1 = w13_rows(model.intermediate, RAMP_ACTIVATION_SILU_AND_MUL);
  return {c.tile_m, (n1 + c.tile_n - 1) / c.tile_n * std::max(c.split_k, 1)};
}

Work make_work(const HistogramFacts& h, int64_t m_tiles, const WorkClass& w, int32_t sm_count) noexcept {
  const double per_sm = static_cast<double>(w.blocks_per_tile) / sm_count;
  const auto tiles = static_cast<double>(std::max<int64_t>(m_tiles, 1));
  const auto rows = static_cast<double>(h.rows);
  Work x;
  x.tiles = std::max(static_cast<double>(m_tiles) * per_sm, kNoTiles);
  x.first_read = std::max(static_cast<double>(h.active) * per_sm, kNoTiles);
  x.output = rows * per_sm;
  x.fill = rows / tiles;
  x.fullest = static_cast<double>(std::clamp<int64_t>(h.max_load, 1, w.tile_m));
  x.padding = 1 - rows / (tiles * w.tile_m);
  return x;
}

double staircase_us(const WaveConfigParameters& p, const Work& w, const WaveHyper& h) noexcept {
  constexpr double kRounding = 1e-9;  // tiles per SM is a quotient: whole waves must stay whole
  const double full = std::floor(w.tiles / p.residency + kRounding);
  const double last =
      w.tiles <= kNoTiles ? 0 : std::max(0.0, std::ceil(w.tiles - full * p.residency - kRounding));
  const double alone =
      p.value[kLatency] * (1 + p.value[kFillSlope] * (w.padding - 0.5)) + p.value[kRow] * w.fill;
  const double together = alone * (1 + p.value[kSharing] * (p.residency - 1));
  const double partial = last > 0 ? alone * (1 + p.value[kSharing] * (last - 1)) : 0;
  return full * together + partial + h.tail_rows * p.value[kRow] * (w.fullest - w.fill);
}

double weights_us(const WaveConfigParameters& p, const Work& w) noexcept {
  return p.value[kFirstRead] * w.first_read + p.value[kReread] * (w.tiles - w.first_read);
}

double output_us(const WaveConfigParameters& p, const Work& w) noexcept {
  return p.value[kOutput] * w.output;
}

double combine_us(double launch, double latency, double weights, double output, const WaveHyper& h) noexcept {
  const double most = std::max({latency, weights, output});
  const auto power8 = [most](double v) {
    const double x = v / most;
    const double x2 = x * x;
    const double x4 = x2 * x2;
    return x4 * x4;
  };
  const double norm =
      most * std::sqrt(std::sqrt(std::sqrt(power8(latency) + power8(weights) + power8(output))));
  return launch + (1 - h.additive_share) * norm + h.additive_share * (latency + weights + output);
}

double physics_us(const WaveConfigParameters& p, const Work& w, const WaveHyper& h) noexcept {
  return combine_us(p.value[kLaunch], staircase_us(p, w, h), weights_us(p, w), output_us(p, w), h);
}

namespace {

WaveVector worker_constants(const KernelConfig& c, const ModelShape& model,
                            const HardwareConstants& hw) noexcept {
  const WorkerConstants k;
  const auto hidden = static_cast<double>(model.hidden);
  const double workers = hw.sm_count;
  const double values = 1.5 * c.tile_n * hidden / std::max(c.split_k, 1);  // of both GEMMs
  const double bytes_per_us = (hw.dram_gbps > 0 ? hw.dram_gbps : 50.0) * 1e3;
  WaveVector v{};
  v[kLatency] = k.tile_us + values / k.values_per_us;
  v[kSharing] = k.sharing;
  v[kFirstRead] = values * k.bytes_per_weight * workers / bytes_per_us;
  v[kReread] = k.reread_share * v[kFirstRead];
  v[kOutput] = hidden * k.output_bytes * workers / k.output_bytes_per_us * c.tile_n /
               static_cast<double>(w13_rows(model.intermediate, RAMP_ACTIVATION_SILU_AND_MUL));
  v[kLaunch] = k.launch_us;
  v[kRow] = values / k.row_values_per_us;
  v[kFillSlope] = 0;
  return v;
}

}  // namespace

bool runs_on_workers(const HardwareConstants& hw) noexcept {
  return hw.smem_per_sm <= 0 && hw.registers_per_sm <= 0;
}

WaveVector kernel_constants(const KernelConfig& c, const ModelShape& model, const HardwareConstants& hw,
                            const WaveKernelConstants& k) noexcept {
  if (runs_on_workers(hw)) return worker_constants(c, model, hw);
  const auto hidden = static_cast<double>(model.hidden);
  const double splits = std::max(c.split_k, 1);
  const double sms = hw.sm_count;
  const double dram_bytes_per_us = (hw.dram_gbps > 0 ? hw.dram_gbps : 4530.0) * 1e3;
  // W1: tile_n rows of H; W2: the tile_n/2 columns that these rows become, H rows. 1.5*tile_n*H values.
  const double tile_bytes = 1.5 * c.tile_n * hidden * k.bytes_per_weight / splits;
  WaveVector v{};
  v[kLatency] = hidden / k.depth * k.latency_us_per_step / splits;
  v[kSharing] = k.sharing;
  v[kFirstRead] = tile_bytes * sms / dram_bytes_per_us;
  v[kReread] = k.reread_share * v[kFirstRead];
  v[kOutput] = hidden * k.output_bytes * sms / k.output_bytes_per_us;
  v[kLaunch] = k.launch_us;
  v[kRow] = hidden * k.output_bytes / k.row_bytes_per_us;
  v[kFillSlope] = 0;
  return v;
}

WorkCoordinates coordinates(const Work& w, const WaveHyper& h) noexcept {
  return {std::log(w.tiles) / h.scale_waves, std::log(w.first_read) / h.scale_active,
          w.padding / h.scale_padding, std::log(w.fullest) / h.scale_tail};
}

double similarity(const WorkCoordinates& a, const WorkCoordinates& b) noexcept {
  double d2 = 0;
  for (size_t i = 0; i < a.size(); ++i) d2 += (a[i] - b[i]) * (a[i] - b[i]);
  const double s = 1 / (1 + 0.25 * d2);
  return s * s;
}

}  // namespace ramp::core
