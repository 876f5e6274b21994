// What fitting needs from a table before any physics: who is whose neighbour, and whether there is anything
// to learn at all.
#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <limits>
#include <set>

#include "base/error.hpp"
#include "cost/wave_fit.hpp"

namespace ramp::core {

std::vector<int32_t> distinct_tile_m(const ConfigTable& t) {
  std::set<int32_t> m;
  for (const KernelConfig& c : t.configs) m.insert(c.tile_m);
  return {m.begin(), m.end()};
}

std::vector<double> neighbourhood(const ConfigTable& t, double width, double per_stage, double other) {
  const size_t n = t.size();
  // Every further column makes neighbours less alike where it differs: the parameters of geometry that the
  // file carries, and its own columns. Left out: tile_m and stages (graded above), threads (follows the
  // warps), what residency is made of, and columns that tell most configs apart (no neighbours would remain).
  std::vector<std::vector<double>> columns;
  const auto add = [&](const std::vector<double>& v) {
    if (std::set<double>(v.begin(), v.end()).size() <= std::max<size_t>(2, n / 2)) columns.push_back(v);
  };
  const std::pair<const char*, int32_t KernelConfig::*> known[] = {{"tile_n", &KernelConfig::tile_n},
                                                                   {"tile_k", &KernelConfig::tile_k},
                                                                   {"warps_n", &KernelConfig::warps_n},
                                                                   {"split_k", &KernelConfig::split_k},
                                                                   {"group_m", &KernelConfig::group_m}};
  for (const auto& [name, member] : known) {
    if (!t.has(name)) continue;
    std::vector<double> v;
    for (const KernelConfig& c : t.configs) v.push_back(c.*member);
    add(v);
  }
  for (size_t x = 0; x < t.extra_columns.size(); ++x) {
    const std::string& name = t.extra_columns[x];
    if (name == "residency" || name == "smem_bytes" || name == "regs") continue;
    std::vector<double> v;
    for (size_t c = 0; c < n; ++c) v.push_back(t.extra[c * t.extra_columns.size() + x]);
    add(v);
  }
  const bool stages = t.has("stages");
  std::vector<double> k(n * n);
  for (size_t a = 0; a < n; ++a) {
    double sum = 0;
    for (size_t b = 0; b < n; ++b) {
      const double distance =
          (std::log(t.configs[a].tile_m + 8.0) - std::log(t.configs[b].tile_m + 8.0)) / width;
      double v = std::exp(-0.5 * distance * distance);
      if (stages) v *= std::pow(per_stage, std::abs(t.configs[a].stages - t.configs[b].stages));
      for (const auto& column : columns) v *= column[a] == column[b] ? 1.0 : other;
      k[a * n + b] = v;
      sum += v;
    }
    for (size_t b = 0; b < n; ++b) k[a * n + b] /= sum;
  }
  return k;
}

void check_fittable(const Dataset& d, int32_t model, std::span<const size_t> points) {
  if (model < 0 || static_cast<size_t>(model) >= d.models.size()) {
    fail_argument("model", fmt::format("index {}", model), fmt::format("0..{}", d.models.size()));
  }
  const std::string name = printable(d.models[static_cast<size_t>(model)].name);
  if (d.configs.size() < 2) {
    fail_argument("configs.csv", fmt::format("{} config", d.configs.size()), "at least two to choose from",
                  {}, RAMP_ERROR_BAD_FILE);
  }
  if (points.size() < 2) {
    fail_argument(fmt::format("training points of model '{}'", name), fmt::format("{}", points.size()),
                  "at least two", "mark rows of points.csv as split=train, or profile more token counts",
                  RAMP_ERROR_BAD_FILE);
  }
  double low = std::numeric_limits<double>::infinity();
  double high = 0;
  for (const size_t p : points) {
    if (p >= d.points.size() || d.points[p].model != model) {
      fail_argument("points", fmt::format("index {}", p), fmt::format("a point of model '{}'", name));
    }
    bool any = false;
    for (size_t c = 0; c < d.configs.size(); ++c) {
      const double us = d.time(p, c);
      if (std::isnan(us)) continue;
      any = true;
      low = std::min(low, us);
      high = std::max(high, us);
    }
    if (!any) {
      fail_argument("timings.csv",
                    fmt::format("no timing for training point '{}'", printable(d.points[p].name)),
                    "at least one", {}, RAMP_ERROR_BAD_FILE);
    }
  }
  if (!(high > low)) {
    fail_argument("timings.csv", fmt::format("the same time, {} us, everywhere for model '{}'", low, name),
                  "timings that differ", "there is nothing to learn from; measure again",
                  RAMP_ERROR_BAD_FILE);
  }
}

}  // namespace ramp::core
