// Why a config was chosen: everything `ramp explain` says about one step, as plain data. Also the sources
// that its plots draw from.
#pragma once

#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "cli/output.hpp"
#include "cost/dataset.hpp"
#include "dispatch/dispatcher.hpp"
#include "dispatch/fit_file.hpp"
#include "geometry/grid.hpp"
#include "geometry/hardware.hpp"
#include "routing/workload.hpp"

namespace ramp::cli {

// Where choices come from: a fit of one model, and measured data where there is some.
struct Source {
  core::HardwareConstants hardware;
  std::optional<core::Dataset> data;
  int32_t data_model = -1;           // of `data`; -1 = none
  std::vector<int64_t> data_config;  // config of the fit -> config of the data, -1 = not in it
  std::unique_ptr<core::Dispatcher> dispatcher;
  std::vector<std::string> notes;
  std::vector<double> residency;  // tiles that share an SM, per config; all 1 when the columns don't say

  [[nodiscard]] const core::Predictor& predictor() const { return dispatcher->predictor(); }
  [[nodiscard]] const core::ModelShape& model() const { return predictor().model(); }
  // Microseconds of a fit's config at a point of the data; NaN = not measured.
  [[nodiscard]] double measured(size_t point, size_t config) const;
};

// model: a name of the fit or data, or E,k,H,I; "" = the only one there is. point: "" or a point of the data,
// which then decides the model. Exactly one of fit_file and fitted is used.
Source make_source(const core::Fit& fit, std::optional<core::Dataset> data, const std::string& model,
                   const std::string& point, const core::HardwareConstants& hardware);

struct Step {
  std::string name;  // "zipf:1.2, 64 tokens, seed 0", the point's name, "histogram"
  std::vector<int32_t> histogram;
  std::optional<size_t> point;  // of the data, when one has this very histogram
};

struct Candidate {
  size_t config = 0;
  std::string name;
  core::Grid grid;
  double residency = 1;
  double fill = 0;          // rows / (rows + padding)
  double predicted_us = 0;  // +infinity: must not be chosen
  double measured_us = 0;   // NaN: unknown
  std::vector<core::CostTerm> terms;
  std::string evidence;  // against the default: "default", "faster", "tied", "slower"; "" without a guard
  double best_speedup = 0;
};

struct Explanation {
  Step step;
  core::HistogramStats stats;
  core::Decision decision;
  std::vector<Candidate> candidates;  // all configs, fastest prediction first
  size_t measured_best = 0;           // config; valid if has_measured
  bool has_measured = false;
};
Explanation explain(const Source& source, Step step, ramp_format format);

std::string explanation_text(const Source& source, const Explanation& e, size_t top);
Json explanation_json(const Source& source, const Explanation& e);

}  // namespace ramp::cli
