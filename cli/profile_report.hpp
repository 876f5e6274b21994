// A profile and its fit as one HTML page that needs nothing else: which config is best where, what the fit's
// choice loses there, how good its predictions are, what choosing is worth, and where the time went.
#pragma once

#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "cli/judgement.hpp"
#include "cost/dataset.hpp"
#include "dispatch/fit_file.hpp"

namespace ramp::cli {

struct ProfileReport {
  const core::Dataset* data = nullptr;  // halves merged; one model
  const core::Fit* fit = nullptr;       // of it
  std::string format;
  // By point: the config that runs without a fit; data->configs.size() where that is none of them.
  std::vector<size_t> defaults;
  std::vector<std::pair<std::string, double>> seconds;  // of each part of the work, by name
  std::optional<Judgement> judged;
};
std::string profile_html(const ProfileReport& report);

}  // namespace ramp::cli
