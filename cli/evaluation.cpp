// Judging fits on test rows, and how the result is printed.
#include "cli/evaluation.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <filesystem>
#include <limits>

#include "base/aligned_buffer.hpp"
#include "base/error.hpp"
#include "cli/options.hpp"
#include "dispatch/dispatcher.hpp"
#include "routing/workload.hpp"

namespace ramp::cli {
namespace {

constexpr const char* kPolicyOrder[] = {"by_tokens",     "ramp4",       "static_uniform",
                                        "static_skewed", "single_best", "oracle"};
// Routings over which "by_tokens" expects: those of a capture on the GPU (src/backend/cuda/step_choice.cpp).
constexpr double kExponents[] = {0, 0.4, 0.8, 1.2, 1.6};
constexpr size_t kNotInData = std::numeric_limits<size_t>::max();

// Index in the data of each config of the fit.
std::vector<size_t> match_configs(const core::Dataset& d, const core::Predictor& p) {
  std::map<std::string, size_t> index;
  for (size_t c = 0; c < d.configs.size(); ++c) index[d.configs.names[c]] = c;
  std::vector<size_t> out;
  size_t found = 0;
  for (const std::string& name : p.configs().names) {
    const auto at = index.find(name);
    out.push_back(at == index.end() ? kNotInData : at->second);
    found += at == index.end() ? 0 : 1;
  }
  if (found == 0) {
    core::fail_argument("--fit",
                        fmt::format("a fit of configs like '{}'", core::printable(p.configs().names[0])),
                        fmt::format("configs of the data, like '{}'", core::printable(d.configs.names[0])),
                        "fit this data: ramp fit --data DIR -o FILE");
  }
  return out;
}

size_t in_data(const std::vector<size_t>& match, size_t config, const core::Predictor& p) {
  if (match[config] == kNotInData) {
    core::fail_argument("--fit",
                        fmt::format("a choice of config '{}'", core::printable(p.configs().names[config])),
                        "configs that the data has", "fit this data: ramp fit --data DIR -o FILE");
  }
  return match[config];
}

core::RegretStats regret_of(const core::Dataset& d, const std::vector<size_t>& points,
                            const core::Predictor& p) {
  const std::vector<size_t> match = match_configs(d, p);
  const core::AlignedBuffer scratch(p.scratch_bytes());
  const std::span<std::byte> bytes(scratch.as<std::byte>(), p.scratch_bytes());
  return core::regret(
      d, points, [&](size_t point) { return in_data(match, p.choose(d.points[point].histogram, bytes), p); });
}

// The config of least expected loss at this many tokens, whatever the step's histogram: about what a routed
// call on a GPU is captured with where the fit leaves one candidate (that one, step_choice.cpp, reckons with
// expected histograms and classes of tokens, this one with one draw per exponent).
size_t choose_by_tokens(const core::Predictor& p, int64_t tokens) {
  const core::AlignedBuffer scratch(p.scratch_bytes());
  std::vector<float> us(p.configs().size());
  std::vector<double> loss(us.size(), 0);
  for (const double exponent : kExponents) {
    const core::ModelShape& m = p.model();
    const core::Routing r =
        core::make_routing({core::WorkloadKind::kZipf, exponent, {}}, m.experts, m.top_k, tokens, 0);
    std::vector<int32_t> histogram(static_cast<size_t>(m.experts), 0);
    for (const int32_t id : r.ids) ++histogram[static_cast<size_t>(id)];
    p.predict(histogram, us, {scratch.as<std::byte>(), p.scratch_bytes()});
    float best = std::numeric_limits<float>::infinity();
    for (const float v : us)
      if (v < best) best = v;  // not by min: a config that was never timed has no prediction
    for (size_t c = 0; c < us.size(); ++c) loss[c] += us[c] / std::max(best, 1e-3F);
  }
  size_t chosen = 0;
  for (size_t c = 0; c < loss.size(); ++c)
    if (loss[c] < loss[chosen] || std::isnan(loss[chosen])) chosen = c;
  return chosen;
}

size_t fastest_at(const core::Dataset& d, size_t point, bool repeat) {
  size_t best = 0;
  double least = std::numeric_limits<double>::infinity();
  for (size_t c = 0; c < d.configs.size(); ++c) {
    const double us = repeat ? d.repeat(point, c) : d.time(point, c);
    if (us >= least || std::isnan(us)) continue;
    least = us;
    best = c;
  }
  return best;
}

std::vector<EvaluatedPoint> points_of(const core::Dataset& d, const std::vector<size_t>& test,
                                      const std::map<std::string, core::Chooser>& choosers) {
  std::vector<EvaluatedPoint> points;
  for (const size_t p : test) {
    EvaluatedPoint& e = points.emplace_back();
    const size_t best = fastest_at(d, p, false);
    e.point = p;
    e.best = d.configs.names[best];
    e.best_us = d.time(p, best);
    e.noise = std::numeric_limits<double>::quiet_NaN();
    if (d.has_repeat) e.noise = d.repeat(p, best) / d.repeat(p, fastest_at(d, p, true)) - 1;
    for (const auto& [name, choose] : choosers) {
      const size_t c = choose(p);
      e.choices[name] = {d.configs.names[c], d.time(p, c)};
    }
  }
  return points;
}

// Mean absolute relative error over test points and measured configs.
double mape_of(const core::Dataset& d, const std::vector<size_t>& points, const core::Predictor& p) {
  const std::vector<size_t> match = match_configs(d, p);
  const core::AlignedBuffer scratch(p.scratch_bytes());
  std::vector<float> us(p.configs().size());
  double sum = 0;
  size_t n = 0;
  for (const size_t point : points) {
    p.predict(d.points[point].histogram, us, {scratch.as<std::byte>(), p.scratch_bytes()});
    for (size_t c = 0; c < us.size(); ++c) {
      if (match[c] == kNotInData || !std::isfinite(us[c])) continue;
      const double measured = d.time(point, match[c]);
      if (std::isnan(measured)) continue;
      sum += std::abs(us[c] / measured - 1);
      ++n;
    }
  }
  return n == 0 ? 0 : sum / static_cast<double>(n);
}

std::string percent(double fraction) {
  return fmt::format("{:.2f}", 100 * fraction);
}

struct Mean {
  double mean = 0, p95 = 0, max = 0;
  size_t models = 0;
};
// Mean of the models' means (and of their p95), largest maximum; models without test points don't count.
template <typename F>
Mean over_models(const std::vector<ModelEvaluation>& models, F&& stats) {
  Mean m;
  for (const ModelEvaluation& e : models) {
    const core::RegretStats* const s = stats(e);
    if (s == nullptr || s->count == 0) continue;
    m.mean += s->mean;
    m.p95 += s->p95;
    m.max = std::max(m.max, s->max);
    ++m.models;
  }
  if (m.models > 0) {
    m.mean /= static_cast<double>(m.models);
    m.p95 /= static_cast<double>(m.models);
  }
  return m;
}

const core::RegretStats* policy_of(const ModelEvaluation& e, const std::string& policy) {
  const auto at = e.policies.find(policy);
  return at == e.policies.end() ? nullptr : &at->second;
}

double mean_mape(const std::vector<ModelEvaluation>& models) {
  double sum = 0;
  size_t n = 0;
  for (const ModelEvaluation& e : models) {
    if (e.n_test == 0) continue;
    sum += e.mape;
    ++n;
  }
  return n == 0 ? 0 : sum / static_cast<double>(n);
}

Json point_json(const core::Dataset& d, const EvaluatedPoint& e) {
  const core::WorkPoint& p = d.points[e.point];
  Json j = {{"point", p.name},
            {"tokens", p.tokens},
            {"normalised_entropy", core::describe(p.histogram).normalised_entropy},
            {"best", e.best},
            {"best_us", e.best_us},
            {"noise", std::isfinite(e.noise) ? Json(e.noise) : Json(nullptr)},
            {"choices", Json::object()}};
  for (const auto& [name, choice] : e.choices)
    j["choices"][name] = {{"config", choice.config}, {"us", choice.us}};
  return j;
}

}  // namespace

void add_data_options(CLI::App& app, DataOptions& o) {
  add_text(app, "--data", o.directory, "DIR",
           "directory with points.csv, configs.csv and timings.csv (docs/cost-model.md describes them)")
      ->required();
  std::vector<std::string> machines;
  for (const core::HardwareConstants& h : core::known_hardware()) machines.push_back(h.name);
  machines.emplace_back("cpu");
  add_choice(app, "--hardware", o.hardware, machines, "the machine that was measured");
  add_integer(app, "--sm-count", o.sm_count, {1, 1 << 20}, "N",
              "SMs (or CPU workers) of the machine, where they differ from --hardware's");
  add_switch(app, "--allow-missing", o.allow_missing,
             "accept configs without a timing at some points; they are left out there");
}

core::Dataset read_data(const DataOptions& o) {
  return core::read_dataset(o.directory, {.allow_missing = o.allow_missing});
}

core::HardwareConstants hardware_of(const DataOptions& o) {
  if (o.hardware == "cpu") {
    if (o.sm_count < 1)
      core::fail_argument("--sm-count", "nothing", "the number of workers that were measured",
                          "give it with --hardware cpu");
    return core::cpu_hardware(static_cast<int32_t>(o.sm_count));
  }
  core::HardwareConstants hw = core::find_hardware(o.hardware);
  if (o.sm_count > 0) hw.sm_count = static_cast<int32_t>(o.sm_count);
  return hw;
}

core::Metadata metadata_of(const DataOptions& o, const std::string& kernel) {
  core::Metadata m;
  m.library_version = ramp_version();
  std::filesystem::path directory = std::filesystem::path(o.directory).lexically_normal();
  if (!directory.has_filename()) directory = directory.parent_path();
  m.kernel = kernel.empty() ? directory.filename().string() : kernel;
  m.device = o.hardware;
  m.sm_count = hardware_of(o).sm_count;
  m.date_utc = core::utc_now();
  m.source = o.directory;
  return m;
}

std::vector<ModelEvaluation> evaluate(const core::Dataset& d, const core::Fit& fit,
                                      const core::HardwareConstants& hw) {
  std::vector<ModelEvaluation> out;
  for (size_t m = 0; m < d.models.size(); ++m) {
    const auto model = static_cast<int32_t>(m);
    const core::ModelShape& shape = d.models[m];
    const core::FittedModel& fitted = fit.find(shape.name);
    const core::Predictor& p = *fitted.predictor;
    const core::ModelShape& known = p.model();
    if (known.experts != shape.experts || known.hidden != shape.hidden ||
        known.intermediate != shape.intermediate) {
      core::fail_argument(
          "--fit",
          fmt::format("'{}' with {} experts, H {}, I {}", shape.name, known.experts, known.hidden,
                      known.intermediate),
          fmt::format("the data's {} experts, H {}, I {}", shape.experts, shape.hidden, shape.intermediate),
          "fit this data: ramp fit --data DIR -o FILE");
    }
    const std::vector<size_t> train = core::select_points(d, model, true);
    const std::vector<size_t> test = core::select_points(d, model, false);
    ModelEvaluation e;
    e.model = shape.name;
    e.n_train = train.size();
    e.n_test = test.size();
    e.coefficients = p.coefficients();
    e.regret = regret_of(d, test, p);
    const std::vector<size_t> match = match_configs(d, p);
    const core::Dispatcher dispatcher(fitted);
    std::map<std::string, core::Chooser> choosers;
    choosers["dispatcher"] = [&](size_t point) {
      return in_data(match, dispatcher.choose(d.points[point].histogram), p);
    };
    std::map<int64_t, size_t> by_tokens;
    for (const size_t point : test) {
      const int64_t tokens = d.points[point].tokens;
      if (!by_tokens.contains(tokens)) by_tokens[tokens] = choose_by_tokens(p, tokens);
    }
    choosers["by_tokens"] = [&](size_t point) {
      return in_data(match, by_tokens.at(d.points[point].tokens), p);
    };
    choosers["oracle"] = core::make_policy(d, model, core::Policy::kOracle);
    std::unique_ptr<core::Predictor> ramp4;
    if (!train.empty()) {
      for (const core::Policy policy :
           {core::Policy::kStaticUniform, core::Policy::kStaticSkewed, core::Policy::kSingleBest})
        choosers[core::policy_name(policy)] = core::make_policy(d, model, policy);
      core::FitReport report;
      ramp4 = core::find_cost_model("ramp4").fit(d, model, train, hw, report);
      const std::vector<size_t> same = match_configs(d, *ramp4);
      choosers["ramp4"] = [&d, same, &ramp4](size_t point) {
        const core::AlignedBuffer scratch(ramp4->scratch_bytes());
        return in_data(
            same, ramp4->choose(d.points[point].histogram, {scratch.as<std::byte>(), ramp4->scratch_bytes()}),
            *ramp4);
      };
    }
    e.dispatched = core::regret(d, test, choosers["dispatcher"]);
    for (const auto& [name, choose] : choosers)
      if (name != "dispatcher") e.policies[name] = core::regret(d, test, choose);
    e.mape = mape_of(d, test, p);
    e.noise = core::noise_floor(d, test);
    e.points = points_of(d, test, choosers);
    out.push_back(std::move(e));
  }
  return out;
}

Json evaluation_json(const core::Dataset& d, const std::vector<ModelEvaluation>& models,
                     const std::string& cost_model, const std::string& data) {
  const Mean overall = over_models(models, [](const ModelEvaluation& e) { return &e.regret; });
  const Mean guarded = over_models(models, [](const ModelEvaluation& e) { return &e.dispatched; });
  const Mean noise = over_models(models, [](const ModelEvaluation& e) { return &e.noise; });
  Json j;
  Json& o = j["overall"];
  size_t n_train = 0;
  size_t n_test = 0;
  size_t coefficients = 0;
  for (const ModelEvaluation& e : models) {
    n_train += e.n_train;
    n_test += e.n_test;
    coefficients += e.coefficients;
  }
  o["cost_model"] = cost_model;
  o["data"] = data;
  o["models"] = models.size();
  o["n_train"] = n_train;
  o["n_test"] = n_test;
  o["mean_regret"] = overall.mean;  // mean over the models' means
  o["p95_regret"] = overall.p95;
  o["max_regret"] = overall.max;
  o["mape"] = mean_mape(models);
  o["coefficients"] = coefficients;
  o["noise_floor"] =
      noise.models == 0 ? Json(nullptr) : Json{{"mean_regret", noise.mean}, {"max_regret", noise.max}};
  j["models"] = Json::object();
  for (const ModelEvaluation& e : models) {
    Json& m = j["models"][e.model];
    m = {{"n_train", e.n_train},          {"n_test", e.n_test},         {"mean_regret", e.regret.mean},
         {"p95_regret", e.regret.p95},    {"max_regret", e.regret.max}, {"mape", e.mape},
         {"coefficients", e.coefficients}};
    m["noise_floor"] =
        e.noise.count == 0
            ? Json(nullptr)
            : Json{{"n_test", e.noise.count}, {"mean_regret", e.noise.mean}, {"max_regret", e.noise.max}};
    m["dispatcher"] = {{"mean_regret", e.dispatched.mean}, {"max_regret", e.dispatched.max}};
    Json& policies = m["policies"] = Json::object();
    for (const char* policy : kPolicyOrder) {
      if (const core::RegretStats* const s = policy_of(e, policy)) {
        policies[policy] = {{"mean_regret", s->mean}, {"p95_regret", s->p95}, {"max_regret", s->max}};
      }
    }
    Json& points = m["points"] = Json::array();
    for (const EvaluatedPoint& at : e.points) points.push_back(point_json(d, at));
  }
  Json& policies = j["policies"] = Json::object();
  for (const char* policy : kPolicyOrder) {
    const Mean m = over_models(models, [&](const ModelEvaluation& e) { return policy_of(e, policy); });
    if (m.models > 0)
      policies[policy] = {{"mean_regret", m.mean}, {"p95_regret", m.p95}, {"max_regret", m.max}};
  }
  j["dispatcher"] = {{"mean_regret", guarded.mean}, {"max_regret", guarded.max}};
  return j;
}

std::string evaluation_text(const std::vector<ModelEvaluation>& models, const std::string& cost_model,
                            const std::string& data) {
  std::string out =
      fmt::format("cost model {} on {}: regret of the choice on test points, %\n\n", cost_model, data);
  Table t({{"model", Table::Align::kLeft},
           {"train"},
           {"test"},
           {"mean"},
           {"p95"},
           {"max"},
           {"error"},
           {"coefficients"},
           {"noise floor"}});
  for (const ModelEvaluation& e : models) {
    t.add({e.model, std::to_string(e.n_train), std::to_string(e.n_test), percent(e.regret.mean),
           percent(e.regret.p95), percent(e.regret.max), percent(e.mape), std::to_string(e.coefficients),
           e.noise.count == 0 ? "-" : percent(e.noise.mean)});
  }
  const Mean overall = over_models(models, [](const ModelEvaluation& e) { return &e.regret; });
  const Mean noise = over_models(models, [](const ModelEvaluation& e) { return &e.noise; });
  t.add({"mean of models (max)", "", "", percent(overall.mean), percent(overall.p95), percent(overall.max),
         percent(mean_mape(models)), "", noise.models == 0 ? "-" : percent(noise.mean)});
  out += t.text();
  out +=
      "\nerror: mean |predicted/measured - 1| over test points and configs; noise floor: the first run's "
      "best\n"
      "config judged on the second run, where there is one\n\n";
  std::vector<Table::Column> columns = {{"policy", Table::Align::kLeft}, {"mean"}, {"p95"}, {"max"}};
  for (const ModelEvaluation& e : models) columns.push_back({e.model});
  Table policies(columns);
  const auto add = [&](const std::string& name, auto&& stats) {
    const Mean m = over_models(models, stats);
    if (m.models == 0) return;
    std::vector<std::string> cells = {name, percent(m.mean), percent(m.p95), percent(m.max)};
    for (const ModelEvaluation& e : models) {
      const core::RegretStats* const s = stats(e);
      cells.push_back(s == nullptr || s->count == 0 ? "-" : percent(s->mean));
    }
    policies.add(std::move(cells));
  };
  add(cost_model, [](const ModelEvaluation& e) { return &e.regret; });
  add("... in the dispatcher", [](const ModelEvaluation& e) { return &e.dispatched; });
  for (const char* policy : kPolicyOrder) {
    if (policy == cost_model) continue;
    add(policy, [&](const ModelEvaluation& e) { return policy_of(e, policy); });
  }
  return out + policies.text();
}

}  // namespace ramp::cli
