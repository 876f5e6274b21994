// Statistics of histograms and of traces.
#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <limits>

#include "base/error.hpp"
#include "base/float_types.hpp"
#include "base/tensor.hpp"
#include "routing/sorted_rows.hpp"
#include "routing/workload.hpp"

namespace ramp::core {
namespace {

void add(MeanMax& m, double value, size_t steps) {
  m.mean += value / static_cast<double>(steps);
  m.max = std::max(m.max, value);
}

}  // namespace

HistogramStats describe(std::span<const int32_t> histogram) noexcept {
  HistogramStats s;
  s.experts = static_cast<int64_t>(histogram.size());
  for (const int32_t c : histogram) {
    s.rows += c;
    s.active += c > 0 ? 1 : 0;
    s.max_load = std::max<int64_t>(s.max_load, c);
  }
  if (s.rows == 0) return s;
  const auto rows = static_cast<double>(s.rows);
  s.max_over_mean = static_cast<double>(s.max_load) * static_cast<double>(s.experts) / rows;
  s.imbalance = static_cast<double>(s.max_load) * static_cast<double>(s.active) / rows;
  if (s.experts == 1) {
    s.normalised_entropy = 1.0;
    return s;
  }
  double entropy = 0.0;
  for (const int32_t c : histogram) {
    if (c > 0) entropy -= c / rows * std::log(c / rows);
  }
  s.normalised_entropy = std::clamp(entropy / std::log(static_cast<double>(s.experts)), 0.0, 1.0);
  return s;
}

TraceStats describe_trace(const ramp_tensor& ids, int64_t experts) {
  if (ids.ndim != 2 && ids.ndim != 3)
    fail_argument("trace", shape_text(ids), "ids [tokens, k] or [steps, tokens, k]");
  const ramp_tensor all = ids.ndim == 3
                              ? check_tensor(ids, "trace", {RAMP_I32, RAMP_I64}, {-1, -1, -1}, ids.device)
                              : check_tensor(ids, "trace", {RAMP_I32, RAMP_I64}, {-1, -1}, ids.device);
  constexpr int64_t kMax = std::numeric_limits<int32_t>::max();
  if (experts < 1 || experts > kMax)
    fail_argument("experts", fmt::format("{}", experts), fmt::format("1 to {}", kMax));
  if (numel(all) > kMax)
    fail_argument("trace", fmt::format("{} ids", numel(all)), fmt::format("at most {}", kMax));

  // One step as a 2-d view.
  ramp_tensor step = all;
  if (all.ndim == 3) {
    step.ndim = 2;
    for (int d = 0; d < 2; ++d) {
      step.shape[d] = all.shape[d + 1];
      step.stride[d] = all.stride[d + 1];
    }
  }
  TraceStats trace;
  trace.tokens = step.shape[0];
  trace.top_k = step.shape[1];
  const auto steps = static_cast<size_t>(all.ndim == 3 ? all.shape[0] : 1);
  const int64_t pitch = all.ndim == 3 ? all.stride[0] * dtype_bytes(static_cast<ramp_dtype>(all.dtype)) : 0;
  std::vector<int32_t> counts(static_cast<size_t>(experts));
  std::vector<int32_t> sum(counts.size(), 0);
  for (size_t i = 0; i < steps; ++i) {
    std::fill(counts.begin(), counts.end(), 0);
    StepStats s;
    if (all.data != nullptr) step.data = static_cast<std::byte*>(all.data) + static_cast<int64_t>(i) * pitch;
    const RowCounts invalid = count_rows(step, {}, 0, trace.tokens, counts);
    s.masked = invalid.masked;
    s.out_of_range = invalid.out_of_range;
    s.histogram = describe(counts);
    for (size_t e = 0; e < counts.size(); ++e) sum[e] += counts[e];
    trace.total.masked += s.masked;
    trace.total.out_of_range += s.out_of_range;
    add(trace.max_over_mean, s.histogram.max_over_mean, steps);
    add(trace.normalised_entropy, s.histogram.normalised_entropy, steps);
    add(trace.active, static_cast<double>(s.histogram.active), steps);
    trace.steps.push_back(s);
  }
  trace.total.histogram = describe(sum);
  return trace;
}

}  // namespace ramp::core
