// Default workload points.
#include "dispatch/default_points.hpp"

#include <fmt/format.h>

#include <cmath>

#include "base/error.hpp"
#include "routing/workload.hpp"

namespace ramp::core {

std::vector<WorkPoint> default_points(const ModelShape& model, int64_t max_tokens, uint64_t seed) {
  if (max_tokens < 1 || max_tokens > (1 << 20))
    fail_argument("max_tokens", fmt::format("{}", max_tokens), fmt::format("1 to {}", 1 << 20));
  constexpr int kSteps = 6;
  std::vector<WorkPoint> points;
  int64_t last = 0;
  for (int i = 0; i < kSteps; ++i) {
    const auto tokens =
        static_cast<int64_t>(std::llround(std::pow(static_cast<double>(max_tokens), i / (kSteps - 1.0))));
    if (tokens == last) continue;
    last = tokens;
    for (const double zipf : {0.0, 1.2}) {
      const WorkloadSpec spec = zipf == 0 ? WorkloadSpec{WorkloadKind::kUniform, 0, {}}
                                          : WorkloadSpec{WorkloadKind::kZipf, zipf, {}};
      const Routing routing = make_routing(spec, model.experts, model.top_k, tokens, seed + points.size());
      WorkPoint p;
      p.name = fmt::format("t{}_z{:.1f}", tokens, zipf);
      p.tokens = tokens;
      p.zipf = zipf;
      p.train = true;
      p.histogram.assign(static_cast<size_t>(model.experts), 0);
      for (const int32_t id : routing.ids) ++p.histogram[static_cast<size_t>(id)];
      points.push_back(std::move(p));
    }
  }
  return points;
}

}  // namespace ramp::core
