// Building, storing and asking the measured guard.
#include "dispatch/guard.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <map>

#include "base/error.hpp"
#include "cost/evaluate.hpp"
#include "geometry/grid.hpp"

namespace ramp::core {
namespace {

// Share of all rows that the most loaded expert gets: how far a histogram is from balanced.
double hottest_share(const WorkPoint& p) {
  const TokenTiling t = tile_tokens(p.histogram, 1);
  return t.rows == 0 ? 0.0 : static_cast<double>(t.max_load) / static_cast<double>(t.rows);
}

// The config with the smallest sum of log times over the points at which every such config was measured;
// configs that miss a point are out. configs.size() when none is left.
size_t fastest(const Dataset& d, const std::vector<size_t>& points) {
  size_t best = d.configs.size();
  double best_sum = std::numeric_limits<double>::infinity();
  for (size_t c = 0; c < d.configs.size(); ++c) {
    double sum = 0;  // NaN where one timing is missing: never smaller
    for (const size_t p : points) sum += std::log(d.time(p, c));
    if (sum < best_sum) {
      best_sum = sum;
      best = c;
    }
  }
  return best;
}

std::vector<Guard::Default> balanced_defaults(const Dataset& d, std::span<const size_t> points) {
  const bool by_zipf =
      std::all_of(points.begin(), points.end(), [&](size_t p) { return !std::isnan(d.points[p].zipf); });
  double least = std::numeric_limits<double>::infinity();
  for (const size_t p : points) least = std::min(least, by_zipf ? d.points[p].zipf : 0.0);
  // With a skew column: the points of the least skew, as the policy static_uniform has it. Without: at every
  // token count its most balanced point.
  std::map<int64_t, std::vector<size_t>> at;
  for (const size_t p : points) {
    if (by_zipf) {
      if (d.points[p].zipf == least) at[d.points[p].tokens].push_back(p);
      continue;
    }
    std::vector<size_t>& kept = at[d.points[p].tokens];
    if (kept.empty() || hottest_share(d.points[p]) < hottest_share(d.points[kept[0]])) kept = {p};
  }
  std::vector<Guard::Default> defaults;
  for (const auto& [tokens, kept] : at) {
    const size_t c = fastest(d, kept);
    if (c < d.configs.size()) defaults.push_back({tokens, static_cast<int32_t>(c)});
  }
  return defaults;
}

double noise(const Dataset& d, std::span<const size_t> points) {
  std::vector<double> all;
  for (const size_t p : points) {
    for (size_t c = 0; d.has_repeat && c < d.configs.size(); ++c) {
      const double ratio = std::abs(std::log(d.repeat(p, c) / d.time(p, c)));
      if (!std::isnan(ratio)) all.push_back(ratio);
    }
  }
  return all.empty() ? kDefaultNoiseMargin : std::expm1(quantile(std::move(all), 0.9));
}

}  // namespace

const char* evidence_name(Evidence e) noexcept {
  switch (e) {
    case Evidence::kSlower:
      return "slower";
    case Evidence::kTied:
      return "tied";
    case Evidence::kFaster:
      break;
  }
  return "faster";
}

Guard::Guard(const Dataset& d, int32_t model, std::span<const size_t> points, int32_t declared_default)
    : configs_(d.configs.size()), top_k_(d.models[static_cast<size_t>(model)].top_k) {
  if (declared_default >= 0) {
    defaults_ = {{1, declared_default}};
  } else {
    defaults_ = balanced_defaults(d, points);
    if (defaults_.empty())
      fail_argument("profile", "no point with a timing", "at least one", "profile the kernel first");
  }
  margin_ = noise(d, points);
  std::vector<int32_t> distinct;
  for (const Default& row : defaults_) {
    if (std::find(distinct.begin(), distinct.end(), row.config) == distinct.end())
      distinct.push_back(row.config);
  }
  speedup_.assign(distinct.size() * configs_, 0.0);
  for (size_t i = 0; i < distinct.size(); ++i) {
    for (const size_t p : points) {
      const double base = d.time(p, static_cast<size_t>(distinct[i]));
      for (size_t c = 0; c < configs_; ++c) {
        const double ratio = base / d.time(p, c);
        double& best = speedup_[i * configs_ + c];
        if (ratio > best) best = ratio;  // false for NaN
      }
    }
  }
  finish();
}

Guard Guard::keep(size_t configs, int64_t top_k, int32_t declared_default) {
  Guard g;
  g.configs_ = configs;
  g.top_k_ = top_k;
  g.defaults_ = {{1, declared_default}};
  g.speedup_.assign(configs, 0.0);
  g.finish();
  return g;
}

void Guard::finish() {
  std::vector<int32_t> distinct;
  distinct_.clear();
  limits_.clear();
  for (const Default& row : defaults_) {
    const auto at = std::find(distinct.begin(), distinct.end(), row.config);
    distinct_.push_back(static_cast<size_t>(at - distinct.begin()));
    if (at == distinct.end()) distinct.push_back(row.config);
  }
  // T is nearer to the left neighbour as long as T <= sqrt(T_left * T_right). T = ceil(rows / top_k).
  for (size_t i = 0; i + 1 < defaults_.size(); ++i) {
    const double left = static_cast<double>(std::max<int64_t>(defaults_[i].tokens, 1));
    const auto right = static_cast<double>(defaults_[i + 1].tokens);
    limits_.push_back(std::floor(std::sqrt(left * right)) * static_cast<double>(top_k_));
  }
  evidence_.assign(distinct.size() * configs_, Evidence::kSlower);
  for (size_t i = 0; i < distinct.size(); ++i) {
    for (size_t c = 0; c < configs_; ++c) {
      const double ratio = speedup_[i * configs_ + c];
      Evidence& e = evidence_[i * configs_ + c];
      if (ratio >= 1.0 / (1.0 + margin_)) e = Evidence::kTied;
      if (ratio > 1.0 + margin_ || c == static_cast<size_t>(distinct[i])) e = Evidence::kFaster;
    }
  }
}

size_t Guard::row(int64_t rows) const noexcept {
  size_t i = 0;
  while (i < limits_.size() && static_cast<double>(rows) > limits_[i]) ++i;
  return i;
}

nlohmann::json Guard::to_json() const {
  nlohmann::json defaults = nlohmann::json::array();
  for (const Default& row : defaults_) defaults.push_back({{"tokens", row.tokens}, {"config", row.config}});
  nlohmann::json speedup = nlohmann::json::array();
  const size_t distinct = configs_ == 0 ? 0 : speedup_.size() / configs_;
  for (size_t i = 0; i < distinct; ++i) {
    speedup.push_back(
        std::vector<double>(speedup_.begin() + static_cast<std::ptrdiff_t>(i * configs_),
                            speedup_.begin() + static_cast<std::ptrdiff_t>((i + 1) * configs_)));
  }
  return {{"defaults", defaults},
          {"noise_margin_fraction", margin_},
          {"best_measured_speedup_over_default", speedup}};
}

Guard Guard::from_json(const JsonView& v, size_t configs, int64_t top_k) {
  Guard g;
  g.configs_ = configs;
  g.top_k_ = top_k;
  g.margin_ = v.at("noise_margin_fraction").number(0, 10);
  const JsonView rows = v.at("defaults");
  size_t distinct = 0;
  std::vector<bool> seen(configs);
  for (size_t i = 0, n = rows.size("defaults", 0, 1 << 16); i < n; ++i) {
    const JsonView row = rows.item(i);
    Default def;
    def.tokens = row.at("tokens").integer(i == 0 ? 0 : g.defaults_.back().tokens + 1, int64_t{1} << 31);
    def.config = static_cast<int32_t>(row.at("config").integer(0, static_cast<int64_t>(configs) - 1));
    g.defaults_.push_back(def);
    if (!seen[static_cast<size_t>(def.config)]) ++distinct;
    seen[static_cast<size_t>(def.config)] = true;
  }
  const JsonView speedup = v.at("best_measured_speedup_over_default");
  speedup.size("rows, one per distinct default", distinct, distinct);
  for (size_t i = 0; i < distinct; ++i) {
    const JsonView row = speedup.item(i);
    row.size("ratios, one per config", configs, configs);
    for (size_t c = 0; c < configs; ++c) g.speedup_.push_back(row.item(c).number(0, 1e12));
  }
  g.finish();
  return g;
}

}  // namespace ramp::core
