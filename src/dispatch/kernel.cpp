// Registered kernels.
#include "dispatch/kernel.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <unordered_set>

#include "base/error.hpp"
#include "dispatch/config_columns.hpp"
#include "ramp/version.h"

namespace ramp::core {
namespace {

// The limits of dataset.cpp and profile_file.cpp: what is registered can be written and read back.
constexpr size_t kMaxConfigs = 1 << 16;
constexpr int64_t kMaxExperts = 1 << 16;
constexpr int64_t kMaxSize = int64_t{1} << 31;

void check_text(std::string_view what, std::string_view text) {
  if (text.empty() || text.size() > 1024 || text.find_first_of("\r\n") != std::string_view::npos)
    fail_argument(what, fmt::format("'{}'", printable(text)), "one line of 1 to 1024 characters");
}

void check_range(const std::string& what, int64_t got, int64_t low, int64_t high) {
  if (got < low || got > high)
    fail_argument(what, fmt::format("{}", got), fmt::format("{} to {}", low, high));
}

void check_configs(const ConfigTable& t) {
  if (t.size() == 0 || t.size() > kMaxConfigs)
    fail_argument("configs", fmt::format("{}", t.size()), fmt::format("1 to {} configs", kMaxConfigs));
  std::unordered_set<std::string> seen;
  const size_t extras = t.extra_columns.size();
  for (size_t c = 0; c < t.size(); ++c) {
    const std::string what = fmt::format("configs[{}]", c);
    check_text(what + ".name", t.names[c]);
    if (!seen.insert(t.names[c]).second)
      fail_argument(what + ".name", fmt::format("'{}' again", printable(t.names[c])), "distinct names");
    for (const ConfigColumn& column : kConfigColumns)
      check_range(fmt::format("{}.{}", what, column.name), t.configs[c].*column.member, column.low,
                  kMaxConfigValue);
    for (size_t x = 0; x < extras; ++x) {
      const double v = t.extra[c * extras + x];
      if (!std::isfinite(v))
        fail_argument(fmt::format("{}.extra[{}]", what, x), fmt::format("{}", v), "a finite number");
    }
  }
  seen.clear();
  for (size_t x = 0; x < extras; ++x) {
    const std::string what = fmt::format("extra_columns[{}]", x);
    check_text(what, t.extra_columns[x]);
    if (find_config_column(t.extra_columns[x]) != nullptr || t.extra_columns[x] == "config" ||
        !seen.insert(t.extra_columns[x]).second) {
      fail_argument(what, fmt::format("'{}'", printable(t.extra_columns[x])),
                    "a name that no other column has");
    }
  }
}

}  // namespace

void check_description(const KernelDescription& k) {
  check_text("name", k.name);
  check_configs(k.configs);
  check_text("model_name", k.model.name);
  check_range("num_experts", k.model.experts, 1, kMaxExperts);
  check_range("top_k", k.model.top_k, 1, k.model.experts);
  check_range("hidden", k.model.hidden, 1, kMaxSize);
  check_range("intermediate", k.model.intermediate, 1, kMaxSize);
  check_range("default_config", k.default_config, -1, static_cast<int64_t>(k.configs.size()) - 1);
  check_range("machine.sm_count", k.hardware.sm_count, 1, 1 << 20);
}

RegisteredKernel::RegisteredKernel(KernelDescription description) : description_(std::move(description)) {
  check_description(description_);
  Dataset d;
  d.configs = description_.configs;
  d.models = {description_.model};
  FitReport report;
  std::shared_ptr<const Predictor> analytic =
      find_cost_model("analytic").fit(d, 0, {}, description_.hardware, report);
  const int32_t declared = description_.default_config;
  install(std::move(analytic),
          declared < 0 ? Guard() : Guard::keep(d.configs.size(), description_.model.top_k, declared), false);
}

void RegisteredKernel::install(std::shared_ptr<const Predictor> predictor, Guard guard, bool fitted) {
  dispatcher_ = std::make_unique<const Dispatcher>(std::move(predictor), std::move(guard));
  fitted_ = fitted;
}

Metadata RegisteredKernel::metadata() const {
  Metadata m = description_.machine;
  m.library_version = RAMP_VERSION_STRING;
  m.kernel = description_.name;
  m.date_utc = utc_now();
  return m;
}

std::string RegisteredKernel::differs(const ConfigTable& t, const ModelShape& m) const {
  const ModelShape& mine = description_.model;
  if (m.experts != mine.experts || m.top_k != mine.top_k || m.hidden != mine.hidden ||
      m.intermediate != mine.intermediate) {
    return fmt::format("shape {},{},{},{} (E,k,H,I), the kernel has {},{},{},{}", m.experts, m.top_k,
                       m.hidden, m.intermediate, mine.experts, mine.top_k, mine.hidden, mine.intermediate);
  }
  const ConfigTable& ours = description_.configs;
  if (t.size() != ours.size()) return fmt::format("{} configs, the kernel has {}", t.size(), ours.size());
  for (size_t c = 0; c < t.size(); ++c) {
    if (t.names[c] != ours.names[c] || !(t.configs[c] == ours.configs[c])) {
      return fmt::format("config {} is '{}', the kernel's is '{}' (name or tile sizes differ)", c,
                         printable(t.names[c]), printable(ours.names[c]));
    }
  }
  // Files may hold the extra columns in another order.
  if (t.extra_columns.size() != ours.extra_columns.size()) return "other extra config columns";
  const size_t extras = ours.extra_columns.size();
  for (size_t x = 0; x < extras; ++x) {
    const auto at = std::find(t.extra_columns.begin(), t.extra_columns.end(), ours.extra_columns[x]);
    if (at == t.extra_columns.end())
      return fmt::format("no extra config column '{}'", printable(ours.extra_columns[x]));
    const auto y = static_cast<size_t>(at - t.extra_columns.begin());
    for (size_t c = 0; c < ours.size(); ++c) {
      if (t.extra[c * extras + y] != ours.extra[c * extras + x])
        return fmt::format("config '{}' has another {}", ours.names[c], printable(ours.extra_columns[x]));
    }
  }
  return {};
}

void RegisteredKernel::set_profile(Dataset data, std::vector<std::string> notes) {
  profile_ = Profile{metadata(), std::move(data)};
  warnings_ = std::move(notes);
}

void RegisteredKernel::save_profile(const std::string& path) const {
  if (!profile_)
    fail_argument("profile", "none", "a measured or loaded profile", "call ramp_kernel_profile first");
  write_profile(path, profile_->metadata, profile_->data);
}

bool RegisteredKernel::load_profile(const std::string& path) {
  LoadedProfile loaded = read_profile(path, metadata());
  std::vector<std::string> warnings = std::move(loaded.compatibility.warnings);
  bool usable = loaded.compatibility.usable;
  if (usable) {
    // One shape per kernel: of a profile of several, ours is picked.
    Dataset& d = loaded.profile.data;
    std::string why;
    size_t model = 0;
    for (; model < d.models.size(); ++model) {
      why = differs(d.configs, d.models[model]);
      if (why.empty()) break;
    }
    usable = why.empty();
    if (!usable) {
      warnings.push_back(fmt::format("{}: {}; not used; to mend: profile this kernel again", path, why));
    } else {
      Dataset ours = d;
      ours.models = {description_.model};
      ours.points.clear();
      ours.us.clear();
      ours.us_repeat.clear();
      const size_t width = d.configs.size();
      for (size_t p = 0; p < d.points.size(); ++p) {
        if (d.points[p].model != static_cast<int32_t>(model)) continue;
        ours.points.push_back(d.points[p]);
        ours.points.back().model = 0;
        const auto from = static_cast<std::ptrdiff_t>(p * width);
        const auto to = static_cast<std::ptrdiff_t>((p + 1) * width);
        ours.us.insert(ours.us.end(), d.us.begin() + from, d.us.begin() + to);
        ours.us_repeat.insert(ours.us_repeat.end(), d.us_repeat.begin() + from, d.us_repeat.begin() + to);
      }
      profile_ = Profile{loaded.profile.metadata, std::move(ours)};
    }
  }
  warnings_ = std::move(warnings);
  return usable;
}

void RegisteredKernel::fit(std::string_view cost_model) {
  if (!profile_)
    fail_argument("profile", "none", "a measured or loaded profile",
                  "call ramp_kernel_profile or ramp_kernel_load_profile first");
  const Dataset& d = profile_->data;
  const std::vector<size_t> points = select_points(d, 0, true);
  FitReport report;
  std::shared_ptr<const Predictor> predictor =
      find_cost_model(cost_model).fit(d, 0, points, description_.hardware, report);
  // A declared default that failed while profiling cannot be defended: the measured one takes its place.
  int32_t declared = description_.default_config;
  const bool measured = declared < 0 || std::any_of(points.begin(), points.end(), [&](size_t p) {
                          return !std::isnan(d.time(p, static_cast<size_t>(declared)));
                        });
  if (!measured) {
    report.warnings.push_back(
        fmt::format("the declared default '{}' has no timing: the fastest config on balanced routing stands "
                    "in for it",
                    description_.configs.names[static_cast<size_t>(declared)]));
    declared = -1;
  }
  Guard guard(d, 0, points, declared);
  Metadata m = profile_->metadata;
  m.library_version = RAMP_VERSION_STRING;
  install(std::move(predictor), std::move(guard), true);
  fit_metadata_ = std::move(m);
  warnings_ = std::move(report.warnings);
}

void RegisteredKernel::save_fit(const std::string& path) const {
  if (!fitted_)
    fail_argument("fit", "none", "a fitted kernel", "call ramp_kernel_fit or ramp_kernel_load_fit first");
  Fit fit;
  fit.metadata = fit_metadata_;
  // The dispatcher owns the predictor; the file only looks at it.
  const std::shared_ptr<const Predictor> view(std::shared_ptr<const Predictor>(), &dispatcher_->predictor());
  fit.models.push_back({view, dispatcher_->guard()});
  write_fit(path, fit);
}

bool RegisteredKernel::load_fit(const std::string& path) {
  LoadedFit loaded = read_fit(path, metadata());
  std::vector<std::string> warnings = std::move(loaded.compatibility.warnings);
  bool taken = false;
  if (loaded.compatibility.usable) {
    std::string why;
    for (const FittedModel& m : loaded.fit.models) {
      why = differs(m.predictor->configs(), m.predictor->model());
      if (!why.empty()) continue;
      install(m.predictor, m.guard, true);
      fit_metadata_ = loaded.fit.metadata;
      taken = true;
      break;
    }
    if (!taken)
      warnings.push_back(
          fmt::format("{}: {}; not used; to mend: profile and fit this kernel again", path, why));
  }
  warnings_ = std::move(warnings);
  return taken;
}

}  // namespace ramp::core
