// The judge.
#include "cli/judgement.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <limits>

#include "cost/evaluate.hpp"

namespace ramp::cli {
namespace {

// Among the first `count` configs; of those with a repeat, where there are any.
size_t fastest_repeated(const core::Dataset& d, size_t point, size_t count) {
  size_t best = count;
  for (size_t c = 0; c < count; ++c) {
    if (std::isnan(d.repeat(point, c)) || std::isnan(d.time(point, c))) continue;
    if (best == count || d.time(point, c) < d.time(point, best)) best = c;
  }
  return best;
}

// Among the first `count` configs.
size_t fastest(const core::Dataset& d, size_t point, size_t count, const std::vector<double>& us) {
  size_t best = 0;
  double best_us = std::numeric_limits<double>::infinity();
  for (size_t c = 0; c < count; ++c) {
    const double t = us[point * d.configs.size() + c];
    if (t < best_us) {
      best_us = t;
      best = c;
    }
  }
  return best;
}

double mean_of(const std::vector<double>& values) {
  double sum = 0;
  for (const double v : values) sum += v;
  return values.empty() ? 0 : sum / static_cast<double>(values.size());
}

}  // namespace

core::Dataset merge_halves(core::Dataset d) {
  for (size_t i = 0; i < d.us.size(); ++i) {
    if (!std::isnan(d.us_repeat[i])) d.us[i] = std::sqrt(d.us[i] * d.us_repeat[i]);
  }
  return d;
}

core::Dataset contenders(core::Dataset d, size_t always) {
  constexpr double kNear = 1.05;
  const size_t width = d.configs.size();
  std::vector<bool> keep(width);
  for (size_t c = 0; c < std::min(always, width); ++c) keep[c] = true;
  for (size_t p = 0; p < d.points.size(); ++p) {
    const double best = d.time(p, fastest(d, p, width, d.us));
    for (size_t c = 0; c < width; ++c)
      if (d.time(p, c) <= kNear * best) keep[c] = true;
  }
  core::Dataset out = d;
  out.configs.names.clear();
  out.configs.configs.clear();
  out.configs.extra.clear();
  out.us.clear();
  out.us_repeat.clear();
  const size_t extra = d.configs.extra_columns.size();
  for (size_t c = 0; c < width; ++c) {
    if (!keep[c]) continue;
    out.configs.names.push_back(d.configs.names[c]);
    out.configs.configs.push_back(d.configs.configs[c]);
    for (size_t x = 0; x < extra; ++x) out.configs.extra.push_back(d.configs.extra[c * extra + x]);
  }
  for (size_t i = 0; i < d.us.size(); ++i) {
    if (!keep[i % width]) continue;
    out.us.push_back(d.us[i]);
    out.us_repeat.push_back(d.us_repeat[i]);
  }
  return out;
}

core::Dataset join_datasets(const core::Dataset& train, const core::Dataset& test) {
  core::Dataset d = train;
  const size_t width = train.configs.size();
  for (size_t p = 0; p < test.points.size(); ++p) {
    d.points.push_back(test.points[p]);
    d.points.back().train = false;
    for (size_t c = 0; c < width; ++c) {
      d.us.push_back(test.time(p, c));
      d.us_repeat.push_back(test.repeat(p, c));
    }
  }
  d.has_repeat = train.has_repeat || test.has_repeat;
  return d;
}

Judgement judge(const core::Dataset& train, const core::Dataset& test, const core::Dispatcher& dispatcher) {
  const size_t extra = train.configs.size();  // the analytic default's place in test
  const core::Dataset merged = merge_halves(test);
  const core::Dataset all = join_datasets(train, merged);
  const size_t offset = train.points.size();
  const core::Chooser single = core::make_policy(all, 0, core::Policy::kSingleBest);
  Judgement j;
  std::vector<double> regrets;
  std::vector<double> noise;
  std::vector<double> log_single;
  std::vector<double> log_default;
  for (size_t p = 0; p < test.points.size(); ++p) {
    // The fit may have fewer configs than were timed.
    const std::string& name =
        dispatcher.predictor().configs().names[dispatcher.choose(test.points[p].histogram)];
    const auto place = std::find(test.configs.names.begin(), test.configs.names.end(), name);
    const auto chosen = static_cast<size_t>(place - test.configs.names.begin());
    if (place == test.configs.names.end() || std::isnan(merged.time(p, chosen))) {
      ++j.unjudged;
      continue;
    }
    const size_t repeated = fastest_repeated(merged, p, extra);
    const size_t best = repeated < extra ? repeated : fastest(merged, p, extra, merged.us);
    const size_t one = single(p + offset);
    const size_t first = fastest(test, p, extra, test.us);
    const size_t second = fastest(test, p, extra, test.us_repeat);
    JudgedPoint r;
    r.name = test.points[p].name;
    r.tokens = test.points[p].tokens;
    r.chosen = test.configs.names[chosen];
    r.best = test.configs.names[best];
    r.us = merged.time(p, chosen);
    r.best_us = merged.time(p, best);
    r.default_us = merged.time(p, extra);
    r.single_us = merged.time(p, one);
    r.live_us = extra + 1 < test.configs.size() ? merged.time(p, extra + 1)
                                                : std::numeric_limits<double>::quiet_NaN();
    if (!std::isnan(r.live_us)) {
      const double regret = r.live_us / r.best_us - 1;
      j.mean_live_regret += regret;
      j.max_live_regret = j.live_points == 0 ? regret : std::max(j.max_live_regret, regret);
      ++j.live_points;
    }
    r.regret = r.us / r.best_us - 1;
    r.noise = test.repeat(p, first) / test.repeat(p, second) - 1;
    j.single_best = test.configs.names[one];
    regrets.push_back(r.regret);
    if (std::isfinite(r.noise)) noise.push_back(r.noise);
    if (!std::isnan(r.single_us)) log_single.push_back(std::log(r.single_us / r.us));
    if (!std::isnan(r.default_us)) log_default.push_back(std::log(r.default_us / r.us));
    j.points.push_back(std::move(r));
  }
  const auto n = static_cast<double>(std::max<size_t>(regrets.size(), 1));
  for (const double r : regrets) {
    j.mean_regret += r / n;
    j.max_regret = std::max(j.max_regret, r);
  }
  j.mean_live_regret /= static_cast<double>(std::max<size_t>(j.live_points, 1));
  j.mean_noise = mean_of(noise);
  j.p95_regret = core::quantile(regrets, 0.95);
  j.over_single_best = std::exp(mean_of(log_single));
  j.over_default = std::exp(mean_of(log_default));
  return j;
}

std::string judgement_text(const Judgement& j) {
  Table table({{"unseen point", Table::Align::kLeft},
               {"chosen", Table::Align::kLeft},
               {"us"},
               {"best", Table::Align::kLeft},
               {"us"},
               {"regret %"},
               {"noise %"},
               {"single best us"},
               {"default us"}});
  for (const JudgedPoint& p : j.points) {
    table.add({p.name, p.chosen, number(p.us), p.best, number(p.best_us),
               fmt::format("{:.1f}", 100 * p.regret), fmt::format("{:.1f}", 100 * p.noise),
               number(p.single_us), number(p.default_us)});
  }
  const std::string live =
      j.live_points == 0 ? std::string()
                         : fmt::format(
                               "as a context with the fit runs, its decision included: mean {:.1f}%, max "
                               "{:.1f}% on {} points\n",
                               100 * j.mean_live_regret, 100 * j.max_live_regret, j.live_points);
  return table.text() +
         fmt::format(
             "regret on {} unseen points: mean {:.1f}%, p95 {:.1f}%, max {:.1f}%; noise floor "
             "{:.1f}%; {:.3f}x "
             "as fast as the single best config ({}), {:.3f}x as the default\n",
             j.points.size(), 100 * j.mean_regret, 100 * j.p95_regret, 100 * j.max_regret, 100 * j.mean_noise,
             j.over_single_best, j.single_best, j.over_default) +
         live;
}

Json judgement_json(const Judgement& j) {
  Json list = Json::array();
  for (const JudgedPoint& p : j.points) {
    list.push_back({{"point", p.name},
                    {"tokens", p.tokens},
                    {"config", p.chosen},
                    {"us", p.us},
                    {"best", p.best},
                    {"best_us", p.best_us},
                    {"default_us", p.default_us},
                    {"single_best_us", p.single_us},
                    {"live_us", p.live_us},
                    {"regret", p.regret},
                    {"live_regret", p.live_us / p.best_us - 1},
                    {"noise", p.noise}});
  }
  return {{"mean_regret", j.mean_regret},
          {"p95_regret", j.p95_regret},
          {"max_regret", j.max_regret},
          {"live_points", j.live_points},
          {"mean_live_regret", j.live_points > 0 ? Json(j.mean_live_regret) : Json()},
          {"max_live_regret", j.live_points > 0 ? Json(j.max_live_regret) : Json()},
          {"noise_floor", j.mean_noise},
          {"single_best", j.single_best},
          {"unjudged", j.unjudged},
          {"speedup_over_single_best", j.over_single_best},
          {"speedup_over_default", j.over_default},
          {"points", list}};
}

}  // namespace ramp::cli
