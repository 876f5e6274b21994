// See profile_protocol.hpp.
#include "cli/profile_protocol.hpp"

#include <fmt/format.h>

#include <algorithm>

#include "base/error.hpp"

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
