// Decision time: histogram in, config out, one core. 268 configs (134 of the measured kernel's, each with and
// without GROUP_M as in the published set-up), 256 experts; the histograms are the measured workloads of a
// 256-expert model, so token counts from 1 to 4096 and four degrees of skew all appear.
// Times are per decision. Reads tests/data of the source tree.
#include <benchmark/benchmark.h>

#include <memory>
#include <vector>

#include "base/aligned_buffer.hpp"
#include "cost/cost_model.hpp"
#include "cost/decide.hpp"
#include "cost/wave.hpp"

namespace {

using namespace ramp::core;  // NOLINT(google-build-using-namespace)

constexpr size_t kConfigs = 268;

struct Setup {
  Dataset data;
  int32_t model = 0;
  std::vector<std::vector<int32_t>> histograms;
};

const Setup& setup() {
  static const Setup s = [] {
    const Dataset measured = read_dataset(RAMP_SOURCE_DIR "/tests/data/alpha_moe_h200");
    Setup out;
    Dataset& d = out.data;
    d.models = measured.models;
    d.points = measured.points;
    d.configs.known_columns = measured.configs.known_columns;
    d.configs.known_columns.emplace_back("group_m");
    for (size_t c = 0; c < kConfigs; ++c) {
      KernelConfig k = measured.configs.configs[c / 2];
      if (c % 2 == 1) {
        k.group_m = 8;
        k.order = TaskOrder::kGrouped;
      }
      d.configs.configs.push_back(k);
      d.configs.names.push_back(measured.configs.names[c / 2] + (c % 2 == 1 ? "_g8" : ""));
    }
    for (size_t p = 0; p < d.points.size(); ++p) {
      for (size_t c = 0; c < kConfigs; ++c) d.us.push_back(measured.time(p, c / 2));
    }
    for (size_t m = 0; m < d.models.size(); ++m) {
      if (d.models[m].experts == 256) out.model = static_cast<int32_t>(m);
    }
    for (const WorkPoint& p : d.points) {
      if (p.model == out.model) out.histograms.push_back(p.histogram);
    }
    return out;
  }();
  return s;
}

std::unique_ptr<Predictor> fitted(const char* name) {
  const Setup& s = setup();
  FitReport report;
  return find_cost_model(name).fit(s.data, s.model, select_points(s.data, s.model, true), h200(), report);
}

void decide(benchmark::State& state, const char* name) {
  const auto& histograms = setup().histograms;
  const std::unique_ptr<Predictor> p = fitted(name);
  const AlignedBuffer scratch(p->scratch_bytes());
  const std::span<std::byte> bytes(scratch.as<std::byte>(), scratch.size());
  size_t i = 0;
  for (auto _ : state) {
    benchmark::DoNotOptimize(p->choose(histograms[i], bytes));
    i = i + 1 == histograms.size() ? 0 : i + 1;
  }
  state.counters["configs"] = static_cast<double>(p->configs().size());
  state.counters["experts"] = static_cast<double>(p->model().experts);
}

// The same decision on every build of the lane code.
void decide_on(benchmark::State& state) {
  const auto kernels = decide_kernels();
  if (static_cast<size_t>(state.range(0)) >= kernels.size()) {
    state.SkipWithError("not on this machine");
    return;
  }
  const DecideKernels& k = *kernels[static_cast<size_t>(state.range(0))];
  const auto& histograms = setup().histograms;
  const std::unique_ptr<Predictor> p = fitted("wave");
  const DecisionTable& table = dynamic_cast<const WavePredictor&>(*p).table();
  const AlignedBuffer scratch(p->scratch_bytes());
  const std::span<std::byte> bytes(scratch.as<std::byte>(), scratch.size());
  size_t i = 0;
  for (auto _ : state) {
    benchmark::DoNotOptimize(table.choose(histograms[i], bytes, k));
    i = i + 1 == histograms.size() ? 0 : i + 1;
  }
  state.SetLabel(k.name);
}

}  // namespace

BENCHMARK_CAPTURE(decide, wave, "wave")->Unit(benchmark::kMicrosecond);
BENCHMARK_CAPTURE(decide, analytic, "analytic")->Unit(benchmark::kMicrosecond);
BENCHMARK_CAPTURE(decide, ramp4, "ramp4")->Unit(benchmark::kMicrosecond);
BENCHMARK(decide_on)->DenseRange(0, 2)->Unit(benchmark::kMicrosecond);
BENCHMARK_MAIN();
