// What the panels show: from a fit, its guard and measured data to axes and series.
#include "cli/plot/figure.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <map>
#include <numeric>
#include <set>

#include "base/error.hpp"
#include "cli/explanation.hpp"
#include "cli/options.hpp"
#include "cost/evaluate.hpp"
#include "regions/regions.hpp"

namespace ramp::cli::plot {
namespace {

constexpr double kGap = std::numeric_limits<double>::quiet_NaN();

std::vector<size_t> points_of(const Source& s) {
  std::vector<size_t> out;
  for (size_t p = 0; s.data && p < s.data->points.size(); ++p) {
    if (s.data->points[p].model == s.data_model) out.push_back(p);
  }
  return out;
}

std::vector<float> predict(const Source& s, std::span<const int32_t> histogram) {
  std::vector<float> us(s.predictor().configs().size());
  s.dispatcher->predict(histogram, us);
  return us;
}

std::vector<int32_t> uniform(const core::ModelShape& m, int64_t tokens) {
  const core::Routing r =
      core::make_routing({core::WorkloadKind::kUniform, 0, {}}, m.experts, m.top_k, tokens, 0);
  std::vector<int32_t> h(static_cast<size_t>(m.experts));
  for (const int32_t id : r.ids) ++h[static_cast<size_t>(id)];
  return h;
}

// Token counts 1..8192, two per octave.
std::vector<int64_t> token_sweep() {
  std::vector<int64_t> out;
  for (int i = 0; i <= 26; ++i) {
    const auto t = static_cast<int64_t>(std::llround(std::exp2(i / 2.0)));
    if (out.empty() || t != out.back()) out.push_back(t);
  }
  return out;
}

void fit_axis(Axis& axis, const std::vector<Series>& series, bool vertical) {
  double low = HUGE_VAL;
  double high = -HUGE_VAL;
  for (const Series& s : series) {
    for (const double v : vertical ? s.y : s.x) {
      if (!std::isfinite(v) || (axis.log && v <= 0)) continue;
      low = std::min(low, v);
      high = std::max(high, v);
    }
  }
  if (low > high) low = axis.log ? 1 : 0, high = axis.log ? 10 : 1;
  if (axis.log) {
    const double room = std::pow(high / low, 0.04) * 1.02;
    axis.low = low / room;
    axis.high = high * room;
  } else {
    axis.low = 0;
    axis.high = high * 1.05;
  }
}

Panel scatter(const Source& s) {
  Panel p{"scatter", "Predicted against measured", "", {"measured (µs)", true}, {"predicted (µs)", true}};
  Series train{Series::Kind::kDots, Colour::kSky, 1.3, 0.55, "training point", {}, {}};
  Series test{Series::Kind::kDots, Colour::kVermilion, 1.3, 0.45, "test point", {}, {}};
  double error = 0;
  size_t n = 0;
  for (const size_t point : points_of(s)) {
    const core::WorkPoint& w = s.data->points[point];
    const std::vector<float> us = predict(s, w.histogram);
    for (size_t c = 0; c < us.size(); ++c) {
      const double measured = s.measured(point, c);
      if (std::isnan(measured) || !std::isfinite(us[c])) continue;
      Series& series = w.train ? train : test;
      series.x.push_back(measured);
      series.y.push_back(static_cast<double>(us[c]));
      if (!w.train) error += std::abs(static_cast<double>(us[c]) / measured - 1), ++n;
    }
  }
  p.series = {std::move(test), std::move(train)};
  fit_axis(p.x, p.series, false);
  p.y.low = p.x.low;
  p.y.high = p.x.high;
  p.rules = {{Rule::Kind::kProportional, 1, ""},
             {Rule::Kind::kProportional, 1.25, "+25%"},
             {Rule::Kind::kProportional, 0.8, "-20%", true}};
  p.caption = "Every config at every workload. On the line: predicted exactly.";
  if (n > 0)
    p.caption += fmt::format(" Mean error on test points {:.1f}%.", 100 * error / static_cast<double>(n));
  return p;
}

constexpr Colour kCurveColours[] = {Colour::kBlue,   Colour::kVermilion, Colour::kGreen,
                                    Colour::kPurple, Colour::kOrange,    Colour::kSky};

Panel curves(const Source& s) {
  Panel p{"curves", "Cost of each config, uniform routing", "", {"tokens", true}, {"time (µs)", true}};
  const std::vector<int64_t> tokens = token_sweep();
  const std::vector<std::string>& names = s.predictor().configs().names;
  std::vector<std::vector<float>> us;
  std::map<size_t, size_t> wins;
  for (const int64_t t : tokens) {
    us.push_back(predict(s, uniform(s.model(), t)));
    ++wins[static_cast<size_t>(std::min_element(us.back().begin(), us.back().end()) - us.back().begin())];
  }
  Series others{Series::Kind::kLine, Colour::kGrey, 0.5, 0.35, "other configs", {}, {}};
  for (size_t c = 0; c < names.size(); ++c) {
    for (size_t i = 0; i < tokens.size(); ++i) {
      others.x.push_back(static_cast<double>(tokens[i]));
      others.y.push_back(std::isfinite(us[i][c]) ? static_cast<double>(us[i][c]) : kGap);
    }
    others.x.push_back(kGap);
    others.y.push_back(kGap);
  }
  p.series.push_back(std::move(others));
  // The configs that win most often, in the order of the token counts at which they first do.
  std::vector<std::pair<size_t, size_t>> ranked(wins.begin(), wins.end());
  std::stable_sort(ranked.begin(), ranked.end(), [](auto& a, auto& b) { return a.second > b.second; });
  ranked.resize(std::min(ranked.size(), std::size(kCurveColours)));
  const auto first_win = [&](size_t c) {
    for (size_t i = 0; i < tokens.size(); ++i)
      if (us[i][c] == *std::min_element(us[i].begin(), us[i].end())) return i;
    return tokens.size();
  };
  std::sort(ranked.begin(), ranked.end(),
            [&](auto& a, auto& b) { return first_win(a.first) < first_win(b.first); });
  for (size_t k = 0; k < ranked.size(); ++k) {
    const size_t c = ranked[k].first;
    Series line{Series::Kind::kLine, kCurveColours[k], 1.6, 1, names[c], {}, {}};
    for (size_t i = 0; i < tokens.size(); ++i) {
      line.x.push_back(static_cast<double>(tokens[i]));
      line.y.push_back(std::isfinite(us[i][c]) ? static_cast<double>(us[i][c]) : kGap);
    }
    p.series.push_back(std::move(line));
    Series dots{Series::Kind::kDots, kCurveColours[k], 2.2, 1, "", {}, {}};
    for (const size_t point : points_of(s)) {
      if (s.data->points[point].zipf != 0 || std::isnan(s.measured(point, c))) continue;
      dots.x.push_back(static_cast<double>(s.data->points[point].tokens));
      dots.y.push_back(s.measured(point, c));
    }
    p.series.push_back(std::move(dots));
  }
  fit_axis(p.x, p.series, false);
  fit_axis(p.y, p.series, true);
  p.caption = "Lines: predicted. Dots: measured (Zipf 0). In colour: the configs that win somewhere.";
  return p;
}

Panel staircase(const Source& s, size_t config) {
  const core::ConfigTable& t = s.predictor().configs();
  const double sms = s.hardware.sm_count;
  const double residency = s.residency[config];
  Panel p{"staircase",
          fmt::format("Waves of {}", t.names[config]),
          "",
          {"tiles per SM", false},
          {"time (µs)", false}};
  const auto tiles_per_sm = [&](std::span<const int32_t> h) {
    return static_cast<double>(core::make_grid(h, s.model(), RAMP_FORMAT_FP8_BLOCK,
                                               RAMP_ACTIVATION_SILU_AND_MUL, t.configs[config],
                                               s.hardware.sm_count, static_cast<int64_t>(residency))
                                   .tiles) /
           sms;
  };
  // Eight waves are what the eye can tell apart.
  const double limit = std::max(8 * residency, 2.0);
  // Full tiles, one more at a time, dealt to the experts in turn: nothing but the number of tiles changes.
  Series line{Series::Kind::kLine, Colour::kBlack, 1, 1, "predicted, full tiles", {}, {}};
  std::vector<int32_t> full(static_cast<size_t>(s.model().experts));
  for (size_t n = 0; n < 20000; ++n) {
    full[n % full.size()] += t.configs[config].tile_m;
    const double x = tiles_per_sm(full);
    if (x > limit) break;
    line.x.push_back(x);
    line.y.push_back(static_cast<double>(predict(s, full)[config]));
  }
  Series even{Series::Kind::kDots, Colour::kBlue, 2.8, 0.9, "measured, Zipf 0", {}, {}};
  Series skewed{Series::Kind::kDots, Colour::kOrange, 2.8, 0.9, "measured, skewed", {}, {}};
  Series guess{Series::Kind::kRings, Colour::kBlack, 3.4, 0.7, "predicted there", {}, {}};
  Series gap{Series::Kind::kLine, Colour::kGrey, 0.8, 1, "", {}, {}};
  for (const size_t point : points_of(s)) {
    const core::WorkPoint& w = s.data->points[point];
    const double x = tiles_per_sm(w.histogram);
    const double measured = s.measured(point, config);
    if (std::isnan(measured) || x > limit) continue;
    const auto predicted = static_cast<double>(predict(s, w.histogram)[config]);
    Series& dots = w.zipf > 0 ? skewed : even;
    dots.x.push_back(x);
    dots.y.push_back(measured);
    guess.x.push_back(x);
    guess.y.push_back(predicted);
    gap.x.insert(gap.x.end(), {x, x, kGap});
    gap.y.insert(gap.y.end(), {measured, predicted, kGap});
  }
  p.series = {std::move(gap), std::move(line), std::move(guess), std::move(even), std::move(skewed)};
  fit_axis(p.x, p.series, false);
  fit_axis(p.y, p.series, true);
  for (double wave = residency; wave < p.x.high; wave += residency)
    p.rules.push_back({Rule::Kind::kVertical, wave, wave == residency ? "full waves" : ""});
  p.caption = fmt::format(
      "{:.0f} tile{} share{} an SM: a new wave begins at every dashed line. Real "
      "tiles are not full and fewer experts are active: hence dots off the line.",
      residency, residency == 1 ? "" : "s", residency == 1 ? "s" : "");
  return p;
}

Panel regret(const Source& s) {
  Panel p{"regret", "Regret by tokens and skew", "", {"tokens"}, {"Zipf exponent"}};
  const core::Dataset& d = *s.data;
  const std::vector<size_t> points = points_of(s);
  std::set<int64_t> tokens;
  std::set<double> skews;
  // Without a skew column every point is in one row.
  const auto skew = [&](size_t point) {
    return std::isnan(d.points[point].zipf) ? -1.0 : d.points[point].zipf;
  };
  for (const size_t point : points) {
    tokens.insert(d.points[point].tokens);
    skews.insert(skew(point));
  }
  const core::Chooser uniform = core::select_points(d, s.data_model, true).empty()
                                    ? core::Chooser()
                                    : core::make_policy(d, s.data_model, core::Policy::kStaticUniform);
  const auto fill = [&](const std::string& title, const core::Chooser& choose) {
    Heat h{title, {}, {}, {}, {}};
    for (const int64_t t : tokens) h.columns.push_back(std::to_string(t));
    for (const double z : skews) h.rows.push_back(z < 0 ? "any" : fmt::format("{:g}", z));
    h.values.assign(h.columns.size() * h.rows.size(), kGap);
    h.texts.resize(h.values.size());
    for (const size_t point : points) {
      const size_t config = choose(point);
      double best = HUGE_VAL;
      for (size_t c = 0; c < d.configs.size(); ++c)
        best = std::min(best, std::isnan(d.time(point, c)) ? best : d.time(point, c));
      const double value = 100 * (d.time(point, config) / best - 1);
      const auto row = static_cast<size_t>(std::distance(skews.begin(), skews.find(skew(point))));
      const auto column =
          static_cast<size_t>(std::distance(tokens.begin(), tokens.find(d.points[point].tokens)));
      const size_t at = row * h.columns.size() + column;
      if (std::isnan(value) || h.values[at] > value) continue;  // of several points in a cell: the worst
      h.values[at] = value;
      h.texts[at] = fmt::format("{:.1f}{}", value, d.points[point].train ? "°" : "");
      p.heat_high = std::max(p.heat_high, value);
    }
    p.heats.push_back(std::move(h));
  };
  fill("ramp's choice", [&](size_t point) {
    const int64_t c = s.data_config[s.dispatcher->choose(d.points[point].histogram)];
    if (c < 0)
      core::fail_argument("--fit", "a choice of a config that the data does not have",
                          "the data it was fitted on");
    return static_cast<size_t>(c);
  });
  if (uniform) fill("static: best at uniform routing", uniform);
  p.heat_unit = "%";
  p.caption = "Regret: time of the choice over time of the best config, minus one. ° training point.";
  return p;
}

Panel region_map(const Source& s) {
  const core::RegionThresholds t = core::region_thresholds(s.hardware);
  Panel p{"regions",
          "Performance regions (ttn 256)",
          "",
          {"weight slices λ = N1/ttn", true, 1, 300},
          {"compute density ρ = N1·H/(ttn·128)", true, 40, 20000}};
  Series zoo{Series::Kind::kDots, Colour::kBlue, 3.2, 1, "known models", {}, {}};
  Series mine{Series::Kind::kDots, Colour::kVermilion, 4.4, 1, s.model().name, {}, {}};
  const auto place = [&](const core::ModelShape& m, Series& series, bool strong) {
    const core::RegionPoint r =
        core::region_of(m.name, m.experts, core::w13_rows(m.intermediate, RAMP_ACTIVATION_SILU_AND_MUL),
                        m.hidden, 0, s.hardware);
    const auto lambda = static_cast<double>(r.lambda);
    series.x.push_back(lambda);
    series.y.push_back(r.rho);
    p.labels.push_back({lambda, r.rho, m.name, strong});
    p.x.low = std::min(p.x.low, lambda / 1.5), p.x.high = std::max(p.x.high, lambda * 3);
    p.y.low = std::min(p.y.low, r.rho / 2), p.y.high = std::max(p.y.high, r.rho * 2);
  };
  place(s.model(), mine, true);
  for (const core::ModelShape& m : core::known_models()) {
    if (m.name != s.model().name) place(m, zoo, false);
  }
  p.series = {std::move(zoo), std::move(mine)};
  p.rules = {{Rule::Kind::kHorizontal, t.rho_critical,
              fmt::format("ρ critical {:.0f}: A below, B above", t.rho_critical)},
             {Rule::Kind::kHorizontal, t.group_m_lambda_kappa,
              fmt::format("GROUP_M above λκ = {:.0f}", t.group_m_lambda_kappa)},
             {Rule::Kind::kProportional, t.split_k_kappa, fmt::format("κ = {:.0f}", t.split_k_kappa)}};
  p.caption = fmt::format(
      "Published thresholds, from the machine's constants. Split-K: left of κ = {:.0f} and below {:g} waves.",
      t.split_k_kappa, t.split_k_omega);
  return p;
}

}  // namespace

std::vector<std::string> Figure::panel_ids() const {
  std::vector<std::string> ids;
  for (const Panel& p : panels) ids.push_back(p.id);
  return ids;
}

const std::vector<std::string>& panel_names() {
  static const std::vector<std::string> names = {"scatter", "curves", "staircase", "regret", "regions"};
  return names;
}

Figure make_figure(const Source& s, const Explanation& e, const std::string& config,
                   const std::vector<std::string>& wanted) {
  std::set<std::string> asked;
  for (const std::string& text : wanted) {
    for (const std::string& name : split(text, ',')) {
      if (std::find(panel_names().begin(), panel_names().end(), name) == panel_names().end())
        core::fail_argument("--panel", fmt::format("'{}'", core::printable(name)),
                            "one of " + join(panel_names(), ", ") + did_you_mean(name, panel_names()));
      asked.insert(name);
    }
  }
  size_t shown = e.decision.config;
  if (!config.empty()) {
    const std::vector<std::string>& names = s.predictor().configs().names;
    const auto at = std::find(names.begin(), names.end(), config);
    if (at == names.end())
      core::fail_argument(
          "--config", fmt::format("'{}'", core::printable(config)),
          fmt::format("one of the {} configs of the fit{}", names.size(), did_you_mean(config, names)));
    shown = static_cast<size_t>(at - names.begin());
  }
  Figure f;
  f.title =
      fmt::format("{}, cost model {}; step: {}", s.model().name, s.predictor().cost_model(), e.step.name);
  for (const std::string& name : panel_names()) {
    if (!asked.empty() && asked.count(name) == 0) continue;
    if ((name == "scatter" || name == "regret") && !s.data) {
      if (asked.count(name) != 0)
        core::fail_argument("--panel", name, "--data with measured timings of this model", "give --data DIR");
      f.notes.push_back(fmt::format("panel {} left out: it needs --data with measured timings", name));
      continue;
    }
    if (name == "scatter") f.panels.push_back(scatter(s));
    if (name == "curves") f.panels.push_back(curves(s));
    if (name == "staircase") f.panels.push_back(staircase(s, shown));
    if (name == "regret") f.panels.push_back(regret(s));
    if (name == "regions") f.panels.push_back(region_map(s));
  }
  return f;
}

}  // namespace ramp::cli::plot
