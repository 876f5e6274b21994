// Fuzzes the CSV readers and what is fitted on them: three texts (points, configs, timings) separated by byte
// 0x1e; a first byte of '?' allows missing timings. Whatever is accepted must keep the reader's promises, and
// every cost model either fits it and predicts finite, non-negative times, or throws.
#include <cmath>
#include <cstdint>
#include <cstdlib>
#include <string_view>
#include <vector>

#include "base/error.hpp"
#include "cost/cost_model.hpp"
#include "cost/dataset.hpp"

namespace {

using namespace ramp::core;

void check(bool ok) {
  if (!ok) std::abort();
}

std::string_view take(std::string_view& rest) {
  const size_t end = rest.find('\x1e');
  const std::string_view part = rest.substr(0, end);
  rest = end == std::string_view::npos ? std::string_view{} : rest.substr(end + 1);
  return part;
}

void fit_and_predict(const Dataset& d, int32_t model) {
  const ModelShape& shape = d.models[static_cast<size_t>(model)];
  if (shape.experts > 4096) return;  // time
  for (const std::string_view name : cost_model_names()) {
    try {
      FitReport report;
      const auto p = find_cost_model(name).fit(d, model, select_points(d, model, true), h200(), report);
      std::vector<std::byte> scratch(p->scratch_bytes() + 64);
      const size_t skip = (64 - reinterpret_cast<uintptr_t>(scratch.data()) % 64) % 64;
      const std::span<std::byte> bytes(scratch.data() + skip, p->scratch_bytes());
      std::vector<float> us(d.configs.size());
      for (const WorkPoint& point : d.points) {
        if (point.model != model) continue;
        p->predict(point.histogram, us, bytes);
        for (const float v : us) check(v >= 0);  // +infinity: never measured
        const size_t chosen = p->choose(point.histogram, bytes);
        check(chosen < us.size() && std::isfinite(us[chosen]));
      }
    } catch (const Error& e) {
      check(e.status() == RAMP_ERROR_BAD_FILE || e.status() == RAMP_ERROR_INVALID_ARGUMENT);
    }
  }
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  std::string_view rest(reinterpret_cast<const char*>(data), size);
  DatasetOptions options;
  if (!rest.empty() && rest.front() == '?') {
    options.allow_missing = true;
    rest.remove_prefix(1);
  }
  const std::string_view points = take(rest);
  const std::string_view configs = take(rest);
  try {
    const Dataset d = parse_dataset(points, configs, rest, options);
    check(d.configs.size() >= 1 && d.us.size() == d.points.size() * d.configs.size());
    for (const WorkPoint& p : d.points) {
      check(p.model >= 0 && static_cast<size_t>(p.model) < d.models.size());
      const ModelShape& m = d.models[static_cast<size_t>(p.model)];
      check(static_cast<int64_t>(p.histogram.size()) == m.experts);
      int64_t sum = 0;
      for (const int32_t c : p.histogram) {
        check(c >= 0);
        sum += c;
      }
      check(sum <= p.tokens * m.top_k);
    }
    for (const double us : d.us) check(us > 0 || (std::isnan(us) && options.allow_missing));
    if (d.configs.size() <= 64 && d.points.size() <= 64) {
      for (size_t m = 0; m < d.models.size(); ++m) fit_and_predict(d, static_cast<int32_t>(m));
    }
  } catch (const Error& e) {
    check(e.status() == RAMP_ERROR_BAD_FILE || e.status() == RAMP_ERROR_INVALID_ARGUMENT);
    for (const char* ch = e.what(); *ch != '\0'; ++ch) check(*ch >= 0x20 && *ch < 0x7f);
  }
  return 0;
}
