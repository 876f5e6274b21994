// From a fit and a histogram to an explanation.
#include "cli/explanation.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <numeric>

#include "base/error.hpp"
#include "cli/options.hpp"
#include "cost/residency.hpp"

namespace ramp::cli {
namespace {

constexpr double kUnknown = std::numeric_limits<double>::quiet_NaN();

bool same_shape(const core::ModelShape& a, const core::ModelShape& b) {
  return a.experts == b.experts && a.top_k == b.top_k && a.hidden == b.hidden &&
         a.intermediate == b.intermediate;
}

// The fitted model that `name` means: by name, or by shape.
const core::FittedModel& pick(const core::Fit& fit, const std::string& name) {
  std::vector<std::string> known;
  for (const core::FittedModel& m : fit.models) known.push_back(m.predictor->model().name);
  if (name.empty()) {
    if (fit.models.size() == 1) return fit.models[0];
    core::fail_argument("--model", "nothing", "one of the fitted models: " + join(known, ", "),
                        "say which layer shape the step belongs to");
  }
  for (const core::FittedModel& m : fit.models) {
    if (m.predictor->model().name == name) return m;
  }
  std::optional<core::ModelShape> shape;
  try {
    shape = core::parse_model(name);
  } catch (const core::Error&) {
    shape.reset();  // neither a fitted nor a known name: told below
  }
  for (const core::FittedModel& m : fit.models) {
    if (shape && same_shape(m.predictor->model(), *shape)) return m;
  }
  core::fail_argument(
      "--model", fmt::format("'{}'", core::printable(name)),
      fmt::format("one of the fitted models: {}{}", join(known, ", "), did_you_mean(name, known)),
      "or fit this shape: ramp fit --data DIR -o FILE");
}

size_t find_point(const core::Dataset& d, const std::string& name) {
  std::vector<std::string> known;
  for (size_t p = 0; p < d.points.size(); ++p) {
    if (d.points[p].name == name) return p;
    known.push_back(d.points[p].name);
  }
  core::fail_argument(
      "--point", fmt::format("'{}'", core::printable(name)),
      fmt::format("one of the {} points of the data{}", known.size(), did_you_mean(name, known)));
}

std::string microseconds(double us) {
  if (std::isnan(us)) return "-";
  return std::isinf(us) ? "never" : fmt::format("{:.2f}", us);
}

std::string percent(double fraction) {
  return fmt::format("{:+.1f}%", 100 * fraction);
}

Json finite(double v) {
  return std::isfinite(v) ? Json(v) : Json();
}

const Candidate& candidate_of(const Explanation& e, size_t config) {
  return *std::find_if(e.candidates.begin(), e.candidates.end(),
                       [&](const Candidate& c) { return c.config == config; });
}

// What the guard did, in one line.
std::string guard_text(const Source& source, const Explanation& e) {
  const core::Decision& d = e.decision;
  if (!d.guarded) return "no profile: nothing to guard, the prediction decides";
  const std::vector<std::string>& names = source.predictor().configs().names;
  const std::string margin = fmt::format("{:.1f}%", 100 * source.dispatcher->guard().noise_margin());
  if (d.predictor_choice == d.default_config) return "the predicted winner is the default";
  const std::string proof =
      d.best_speedup <= 0
          ? std::string("never measured beside the default")
          : fmt::format("at best {:.3f}x the default's speed at a profile point, noise margin {}",
                        d.best_speedup, margin);
  return fmt::format("{} '{}': {} ({})", d.overruled ? "refuses" : "allows", names[d.predictor_choice],
                     core::evidence_name(d.evidence), proof);
}

}  // namespace

double Source::measured(size_t point, size_t config) const {
  const int64_t c = data ? data_config[config] : -1;
  return c < 0 ? kUnknown : data->time(point, static_cast<size_t>(c));
}

Source make_source(const core::Fit& fit, std::optional<core::Dataset> data, const std::string& model,
                   const std::string& point, const core::HardwareConstants& hardware) {
  Source s;
  s.hardware = hardware;
  if (fit.metadata.sm_count > 0) s.hardware.sm_count = fit.metadata.sm_count;
  std::string name = model;
  if (!point.empty()) {
    if (!data)
      core::fail_argument("--point", point, "--data with it", "points are rows of the data's points.csv");
    name = data->models[static_cast<size_t>(data->points[find_point(*data, point)].model)].name;
  }
  const core::FittedModel& fitted = pick(fit, name);
  s.dispatcher = std::make_unique<core::Dispatcher>(fitted);
  const core::ConfigTable& configs = s.predictor().configs();
  s.residency.assign(configs.size(), 1.0);
  const core::Residency residency = core::residency_of(configs, s.hardware);
  if (!residency.tiles.empty()) s.residency = residency.tiles;
  if (data) {
    for (size_t m = 0; m < data->models.size(); ++m) {
      if (same_shape(data->models[m], s.model())) s.data_model = static_cast<int32_t>(m);
    }
    if (s.data_model < 0)
      s.notes.push_back(fmt::format("the data has no points of {}: no measured values", s.model().name));
    for (const std::string& c : configs.names) {
      const auto at = std::find(data->configs.names.begin(), data->configs.names.end(), c);
      s.data_config.push_back(at == data->configs.names.end() ? -1 : at - data->configs.names.begin());
    }
    if (s.data_model >= 0) s.data = std::move(data);
  }
  return s;
}

Explanation explain(const Source& source, Step step, ramp_format format) {
  const core::Predictor& p = source.predictor();
  const core::ConfigTable& t = p.configs();
  if (step.histogram.size() != static_cast<size_t>(p.model().experts)) {
    core::fail_argument("--histogram", fmt::format("{} counts", step.histogram.size()),
                        fmt::format("one per expert of {} ({})", p.model().name, p.model().experts));
  }
  Explanation e;
  e.step = std::move(step);
  if (source.data && !e.step.point) {
    for (size_t i = 0; i < source.data->points.size(); ++i) {
      const core::WorkPoint& w = source.data->points[i];
      if (w.model == source.data_model && w.histogram == e.step.histogram) e.step.point = i;
    }
  }
  e.stats = core::describe(e.step.histogram);
  e.decision = source.dispatcher->decide(e.step.histogram);
  const core::Guard& guard = source.dispatcher->guard();
  const size_t row = guard.active() ? guard.row(e.stats.rows) : 0;
  double best = std::numeric_limits<double>::infinity();
  for (size_t c = 0; c < t.size(); ++c) {
    Candidate x;
    x.config = c;
    x.name = t.names[c];
    x.residency = source.residency[c];
    x.grid = core::make_grid(e.step.histogram, p.model(), format, RAMP_ACTIVATION_SILU_AND_MUL, t.configs[c],
                             source.hardware.sm_count, static_cast<int64_t>(x.residency));
    const auto rows = static_cast<double>(x.grid.tokens.rows);
    const double slots = rows + static_cast<double>(x.grid.tokens.padded_rows);
    x.fill = slots > 0 ? rows / slots : 0;
    x.predicted_us = static_cast<double>(e.decision.us[c]);
    x.measured_us = e.step.point ? source.measured(*e.step.point, c) : kUnknown;
    if (x.measured_us < best) {
      best = x.measured_us;
      e.measured_best = c;
      e.has_measured = true;
    }
    x.terms = p.explain(e.step.histogram, c);
    if (guard.active()) {
      x.evidence = c == guard.default_config(row) ? "default" : core::evidence_name(guard.evidence(row, c));
      x.best_speedup = guard.best_speedup(row, c);
    }
    e.candidates.push_back(std::move(x));
  }
  std::stable_sort(e.candidates.begin(), e.candidates.end(),
                   [](const Candidate& a, const Candidate& b) { return a.predicted_us < b.predicted_us; });
  return e;
}

std::string explanation_text(const Source& source, const Explanation& e, size_t top) {
  const core::ModelShape& m = source.model();
  const Candidate& winner = candidate_of(e, e.decision.config);
  std::string out = fmt::format(
      "{} (E {}, k {}, H {}, I {}), cost model {}, {} SMs\n{}: {} rows, {} of {} experts active, the hottest "
      "has "
      "{} rows ({}x the mean), entropy {:.3f}; weights of the active experts {}\n\n",
      m.name, m.experts, m.top_k, m.hidden, m.intermediate, source.predictor().cost_model(),
      source.hardware.sm_count, e.step.name, e.stats.rows, e.stats.active, e.stats.experts, e.stats.max_load,
      number(e.stats.max_over_mean), e.stats.normalised_entropy,
      bytes_text(static_cast<double>(winner.grid.weight_bytes)));
  out += fmt::format("choice    {}  predicted {} us{}\n", winner.name, microseconds(winner.predicted_us),
                     std::isnan(winner.measured_us)
                         ? ""
                         : fmt::format(", measured {} us", microseconds(winner.measured_us)));
  for (const Candidate& c : e.candidates) {
    if (c.config == winner.config) continue;
    out += fmt::format("next      {}  {} us ({})\n", c.name, microseconds(c.predicted_us),
                       percent(c.predicted_us / winner.predicted_us - 1));
    break;
  }
  if (e.decision.guarded) {
    const Candidate& def = candidate_of(e, e.decision.default_config);
    out += fmt::format("default   {}  {} us ({})\n", def.name, microseconds(def.predicted_us),
                       percent(def.predicted_us / winner.predicted_us - 1));
  }
  out += fmt::format("guard     {}\n", guard_text(source, e));
  if (e.has_measured) {
    const Candidate& best = candidate_of(e, e.measured_best);
    out += fmt::format("measured  best is {} with {} us: regret of the choice {:.2f}%\n", best.name,
                       microseconds(best.measured_us), 100 * (winner.measured_us / best.measured_us - 1));
  }
  std::vector<Table::Column> columns = {{"", Table::Align::kLeft},
                                        {"config", Table::Align::kLeft},
                                        {"predicted us"},
                                        {"measured us"},
                                        {"tiles"},
                                        {"per SM"},
                                        {"waves"},
                                        {"tail"},
                                        {"fill"},
                                        {"evidence", Table::Align::kLeft}};
  for (const core::CostTerm& t : winner.terms) columns.push_back({t.name});
  Table table(columns);
  const auto add = [&](const Candidate& c) {
    std::string mark = c.config == e.decision.config ? ">" : "";
    if (e.decision.guarded && c.config == e.decision.default_config) mark += "d";
    if (e.has_measured && c.config == e.measured_best) mark += "*";
    std::vector<std::string> cells = {mark,
                                      c.name,
                                      microseconds(c.predicted_us),
                                      microseconds(c.measured_us),
                                      std::to_string(c.grid.tiles),
                                      fmt::format("{:.2f}", c.grid.waves),
                                      fmt::format("{}", c.grid.full_waves + (c.grid.tail > 0 ? 1 : 0)),
                                      std::to_string(c.grid.tail),
                                      fmt::format("{:.0f}%", 100 * c.fill),
                                      c.evidence.empty() ? "-" : c.evidence};
    for (const core::CostTerm& t : c.terms) cells.push_back(fmt::format("{:.2f}", t.us));
    table.add(std::move(cells));
  };
  size_t shown = 0;
  for (const Candidate& c : e.candidates) {
    const bool special = c.config == e.decision.config ||
                         (e.decision.guarded && c.config == e.decision.default_config) ||
                         (e.has_measured && c.config == e.measured_best);
    if (shown++ < top || special) add(c);
  }
  out += "\n" + table.text();
  out += fmt::format(
      "({} configs; > choice, d default{}; waves: of {} SMs x the tiles that share one; tail: tiles in the "
      "last, partial wave; terms in us)\n",
      e.candidates.size(), e.has_measured ? ", * measured best" : "", source.hardware.sm_count);
  return out;
}

Json explanation_json(const Source& source, const Explanation& e) {
  const core::ModelShape& m = source.model();
  const std::vector<std::string>& names = source.predictor().configs().names;
  Json candidates = Json::array();
  for (const Candidate& c : e.candidates) {
    Json terms = Json::object();
    for (const core::CostTerm& t : c.terms) terms[t.name] = t.us;
    candidates.push_back({{"config", c.name},
                          {"predicted_us", finite(c.predicted_us)},
                          {"measured_us", finite(c.measured_us)},
                          {"tiles", c.grid.tiles},
                          {"m_tiles", c.grid.tokens.m_tiles},
                          {"n_tiles", c.grid.n_tiles},
                          {"tiles_per_sm", c.grid.waves},
                          {"residency", c.residency},
                          {"full_waves", c.grid.full_waves},
                          {"tail_tiles", c.grid.tail},
                          {"fill", c.fill},
                          {"weight_bytes", c.grid.weight_bytes},
                          {"evidence", c.evidence},
                          {"best_measured_speedup_over_default", c.best_speedup},
                          {"terms_us", terms}});
  }
  const core::Decision& d = e.decision;
  Json guard = {{"active", d.guarded}, {"verdict", guard_text(source, e)}};
  if (d.guarded) {
    guard["default"] = names[d.default_config];
    guard["predicted_winner"] = names[d.predictor_choice];
    guard["evidence"] = core::evidence_name(d.evidence);
    guard["overruled"] = d.overruled;
    guard["noise_margin"] = source.dispatcher->guard().noise_margin();
  }
  Json measured;
  if (e.has_measured) {
    const double best = candidate_of(e, e.measured_best).measured_us;
    measured = {{"point", source.data->points[*e.step.point].name},
                {"best", names[e.measured_best]},
                {"best_us", best},
                {"regret", finite(candidate_of(e, d.config).measured_us / best - 1)}};
  }
  return {{"model",
           {{"name", m.name},
            {"experts", m.experts},
            {"top_k", m.top_k},
            {"hidden", m.hidden},
            {"intermediate", m.intermediate}}},
          {"cost_model", source.predictor().cost_model()},
          {"sm_count", source.hardware.sm_count},
          {"workload",
           {{"name", e.step.name},
            {"rows", e.stats.rows},
            {"active", e.stats.active},
            {"max_load", e.stats.max_load},
            {"max_over_mean", e.stats.max_over_mean},
            {"normalised_entropy", e.stats.normalised_entropy},
            {"histogram", e.step.histogram}}},
          {"choice", names[d.config]},
          {"predicted_us", finite(candidate_of(e, d.config).predicted_us)},
          {"guard", guard},
          {"measured", measured},
          {"candidates", candidates}};
}

}  // namespace ramp::cli
