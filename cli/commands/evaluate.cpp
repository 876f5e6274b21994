// `ramp evaluate`: how well a cost model chooses on measured workloads that it was not fitted on.
#include <fmt/format.h>

#include <cmath>
#include <limits>
#include <memory>
#include <set>

#include "cli/command.hpp"
#include "cli/evaluation.hpp"
#include "cli/options.hpp"

namespace ramp::cli {
namespace {

struct EvaluateOptions {
  DataOptions data;
  std::string cost_model{core::kDefaultCostModel}, fit;
  double missing_as = 0;
};

// Test points alone: what is fitted stays what was measured.
size_t fill_missing(core::Dataset& d, double ratio) {
  size_t filled = 0;
  const size_t width = d.configs.size();
  for (size_t p = 0; p < d.points.size(); ++p) {
    if (d.points[p].train) continue;
    double best = std::numeric_limits<double>::infinity();
    for (size_t c = 0; c < width; ++c)
      if (d.time(p, c) < best) best = d.time(p, c);
    for (size_t c = 0; c < width; ++c) {
      if (!std::isnan(d.time(p, c))) continue;
      d.us[p * width + c] = ratio * best;
      ++filled;
    }
  }
  return filled;
}

int evaluate_command(Io& io, const EvaluateOptions& o) {
  core::Dataset d = read_data(o.data);
  if (o.missing_as > 0)
    if (const size_t n = fill_missing(d, o.missing_as))
      io.note(fmt::format("{} timings are missing at test points and count as {:g} times the best there", n,
                          o.missing_as));
  const core::HardwareConstants hw = hardware_of(o.data);
  core::Fit fit;
  std::string cost_model = o.cost_model;
  if (o.fit.empty()) {
    std::vector<core::ModelFitReport> reports;
    fit = core::fit_dataset(d, o.cost_model, hw, metadata_of(o.data, ""), &reports);
    for (const core::ModelFitReport& r : reports) {
      for (const std::string& w : r.report.warnings) io.note(fmt::format("{}: {}", r.model, w));
    }
  } else {
    // Judging needs no device: nothing to compare the file's machine with.
    core::LoadedFit loaded = core::read_fit(o.fit, {});
    for (const std::string& w : loaded.compatibility.warnings) io.note(w);
    fit = std::move(loaded.fit);
    std::set<std::string> used;
    for (const core::FittedModel& m : fit.models) used.emplace(m.predictor->cost_model());
    if (!used.empty()) cost_model = fmt::format("{}", fmt::join(used, "+"));
  }
  const std::vector<ModelEvaluation> models = evaluate(d, fit, hw);
  io.print(evaluation_text(models, cost_model, o.data.directory));
  io.emit(evaluation_json(d, models, cost_model, o.data.directory));
  return kOk;
}

Body setup(CLI::App& app) {
  auto o = std::make_shared<EvaluateOptions>();
  add_data_options(app, o->data);
  std::vector<std::string> names;
  for (const std::string_view n : core::cost_model_names()) names.emplace_back(n);
  CLI::Option* const model = add_choice(app, "--cost-model", o->cost_model, names,
                                        "what to fit on split=train and judge on split=test");
  add_text(app, "--fit", o->fit, "FILE", "judge this fit file instead of fitting")->excludes(model);
  add_real(
      app, "--missing-as", o->missing_as, 0, 100, "RATIO",
      "with --allow-missing: a config without a timing at a test point counts as RATIO times the best there "
      "(a profile leaves out what was at least 1.5 times slower next door; 0: choosing one is an error)");
  examples(app,
           {{"ramp evaluate --data tests/data/alpha_moe_h200", "the default model on the measured kernel"},
            {"ramp evaluate --data DIR --cost-model analytic", "what no profile at all gives"},
            {"ramp evaluate --data DIR --fit mine.json --json", "an existing fit, for programs"}});
  return [o](Io& io) { return evaluate_command(io, *o); };
}
const Register kRegister{{"evaluate", "regret of a cost model's choices on measured workloads", 62, setup}};

}  // namespace
}  // namespace ramp::cli
