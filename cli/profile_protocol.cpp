// See profile_protocol.hpp.
#include "cli/profile_protocol.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>

#include "base/error.hpp"
#include "geometry/hardware.hpp"
#include "weights/synthetic.hpp"

namespace ramp::cli {

LayerPlan plan_gpu_layers(const GpuLayerLimits& l, int64_t wanted) noexcept {
  constexpr int64_t kMostLayers = 24;                                          // as on a CPU
  const int64_t read = std::max<int64_t>(1, l.least_active * l.expert_bytes);  // by a layer
  int64_t layers = wanted;
  if (layers <= 0) {
    const int64_t beyond = std::min(kMostLayers, (2 * l.l2_bytes + read - 1) / read);
    layers = std::min(std::max(l.protocol > 0 ? l.protocol : kGpuLayers, beyond), l.fit);
  }
  return {layers, layers * l.experts * l.expert_bytes, l.l2_bytes > 0 && layers * read > l.l2_bytes};
}

LayerFloor layer_floor(std::span<const int32_t> histogram, const core::ModelShape& shape, ramp_format format,
                       ramp_activation activation) noexcept {
  const core::HardwareConstants& hw = core::h200();
  double active = 0, rows = 0;
  for (const int32_t count : histogram) {
    active += count > 0 ? 1 : 0;
    rows += count;
  }
  const bool fp8 = format == RAMP_FORMAT_FP8_BLOCK || format == RAMP_FORMAT_FP8_TENSOR ||
                   format == RAMP_FORMAT_FP8_CHANNEL;
  const double flops =
      2.0 * static_cast<double>(shape.hidden) *
      static_cast<double>(core::w13_rows(shape.intermediate, activation) + shape.intermediate);
  return {active * static_cast<double>(core::expert_bytes(shape, format, activation)) / hw.dram_gbps / 1e3,
          rows * flops / (fp8 ? hw.fp8_tflops : hw.bf16_tflops) / 1e6};
}

int64_t layers_of_replay(const LayerFloor& floor, int64_t l2_bytes, int64_t most) noexcept {
  constexpr double kReplayUs = 500, kCaches = 2, kManyCaches = 16;
  const double pass = std::max(floor.read_us, floor.compute_us);
  if (pass <= 0) return std::min<int64_t>(most, 2);
  const double cache_us = static_cast<double>(l2_bytes) / core::h200().dram_gbps / 1e3;
  const bool long_one = pass >= 2 * kReplayUs && floor.read_us >= kManyCaches * cache_us;
  const double beyond = floor.read_us > 0 ? kCaches * cache_us / floor.read_us : 0;
  const double wanted = std::max({long_one ? 1.0 : 2.0, kReplayUs / pass, beyond});
  return std::min(most, static_cast<int64_t>(std::ceil(std::min(wanted, 1e6))));
}

std::string protocol_text(int64_t layers, const std::string& clock, double quantile,
                          const std::string& determinism) {
  return fmt::format("{} layers, {} clock, quantile {:g}{}", layers, clock, quantile,
                     determinism == "repeatable" ? "" : ", " + determinism);
}

void check_protocol(const core::Metadata& theirs, const core::Metadata& here, const std::string& file) {
  std::string got = theirs.protocol;
  std::string expected = here.protocol;
  if (got.empty()) {  // of a version that did not record it: the source names the layers
    got = theirs.source.substr(0, theirs.source.rfind(','));
    expected = here.source.substr(0, here.source.rfind(','));
    if (!got.starts_with("ramp profile, ")) return;
  }
  if (got == expected) return;
  core::fail_argument(file, fmt::format("timings of '{}'", core::printable(got, 120)),
                      fmt::format("'{}', as this command takes them", expected),
                      "give --layers, --clock, --quantile and --determinism as they were, --fresh to start "
                      "over, or another -o");
}

}  // namespace ramp::cli
