// Fit files: what a profile was condensed to, one entry per model shape. JSON, schema "ramp.fit" version 1
// (docs/dispatch.md shows one). A fit that does not belong to this machine or this version is never used
// silently: see compare_metadata.
#pragma once

#include <memory>
#include <string>
#include <string_view>
#include <vector>

#include "cost/cost_model.hpp"
#include "dispatch/guard.hpp"
#include "dispatch/metadata.hpp"

namespace ramp::core {

inline constexpr std::string_view kFitSchema = "ramp.fit";
inline constexpr int64_t kFitVersion = 1;

struct FittedModel {
  std::shared_ptr<const Predictor> predictor;  // carries the model shape and the config table
  Guard guard;
};

struct Fit {
  Metadata metadata;
  std::vector<FittedModel> models;
  // By name. Throws Error that lists what is there.
  [[nodiscard]] const FittedModel& find(std::string_view model) const;
};

struct ModelFitReport {
  std::string model;
  FitReport report;
};

// Fits every model of the dataset on its rows with split=train (no other timing is read), guard included.
// Throws what CostModel::fit throws.
Fit fit_dataset(const Dataset& d, std::string_view cost_model, const HardwareConstants& hw, Metadata metadata,
                std::vector<ModelFitReport>* reports = nullptr);

// Atomic. Throws Error(IO).
void write_fit(const std::string& path, const Fit& fit);
std::string fit_text(const Fit& fit);

struct LoadedFit {
  Fit fit;  // no models when it could not be used at all (another schema version)
  Compatibility compatibility;
};
// Reads and compares with the machine at hand; what `here` leaves empty is not compared. When
// compatibility.usable is false the caller must not dispatch with it (explaining it is fine) and tells the
// user the warnings. Throws Error(IO) or Error(BAD_FILE) naming file, key, what was found and what is
// expected.
LoadedFit read_fit(const std::string& path, const Metadata& here);
LoadedFit parse_fit(std::string_view text, const std::string& name, const Metadata& here);

}  // namespace ramp::core
