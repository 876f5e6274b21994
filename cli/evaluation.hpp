// What `ramp fit` and `ramp evaluate` share: reading a data directory, and judging a fit on its test rows.
#pragma once

#include <CLI/CLI.hpp>
#include <map>
#include <memory>
#include <string>
#include <vector>

#include "cli/output.hpp"
#include "cost/cost_model.hpp"
#include "cost/evaluate.hpp"
#include "dispatch/fit_file.hpp"

namespace ramp::cli {

struct DataOptions {
  std::string directory, hardware = "h200";
  int64_t sm_count = 0;
  bool allow_missing = false;
};
void add_data_options(CLI::App& app, DataOptions& o);
core::Dataset read_data(const DataOptions& o);
core::HardwareConstants hardware_of(const DataOptions& o);
core::Metadata metadata_of(const DataOptions& o, const std::string& kernel);

// A test point: what each policy, and "dispatcher", would run there.
struct EvaluatedPoint {
  struct Choice {
    std::string config;
    double us = 0;
  };
  size_t point = 0;  // of the data
  std::string best;
  double best_us = 0;
  double noise = 0;  // the first run's best on the second run, over the best there, minus 1; NaN: no repeats
  std::map<std::string, Choice> choices;
};

struct ModelEvaluation {
  std::string model;
  size_t n_train = 0, n_test = 0;
  core::RegretStats regret;      // the cost model's choice
  core::RegretStats dispatched;  // the same under the fit file's measured guard
  core::RegretStats noise;       // count 0: no repeats
  double mape = 0;               // over test points and configs, fraction
  size_t coefficients = 0;
  std::map<std::string, core::RegretStats> policies;  // and "ramp4", "by_tokens"
  std::vector<EvaluatedPoint> points;
};
// Judges `fit` (one entry per model of the data, configs matched by name) on the rows with split=test. A
// model of the data that the fit lacks is an error.
std::vector<ModelEvaluation> evaluate(const core::Dataset& d, const core::Fit& fit,
                                      const core::HardwareConstants& hw);

Json evaluation_json(const core::Dataset& d, const std::vector<ModelEvaluation>& models,
                     const std::string& cost_model, const std::string& data);
std::string evaluation_text(const std::vector<ModelEvaluation>& models, const std::string& cost_model,
                            const std::string& data);

}  // namespace ramp::cli
