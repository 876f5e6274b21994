// Somebody else's kernel (or ours): a table of configs for one layer shape on one machine, its profile, its
// fit and the dispatcher made from them. What the C ABI's ramp_kernel is behind the border.
//
// A kernel always has a dispatcher: from its fit, else from the `analytic` model, whose prediction needs no
// profile; a declared default is kept until a fit shows something faster.
#pragma once

#include <memory>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "dispatch/dispatcher.hpp"
#include "dispatch/fit_file.hpp"
#include "dispatch/profile_file.hpp"
#include "dispatch/profiler.hpp"
#include "geometry/hardware.hpp"

namespace ramp::core {

struct KernelDescription {
  std::string name;
  ConfigTable configs;
  ModelShape model;
  int32_t default_config = -1;  // what its users run today; -1 = not declared
  Metadata machine;             // device, sm_count, clocks, driver, cuda
  HardwareConstants hardware;
};

// Throws Error naming what is wrong: no name, no configs, duplicate names, tile sizes out of range, missing
// or non-finite extra values, a default that is not a config, a shape that makes no sense.
void check_description(const KernelDescription& k);

class RegisteredKernel {
 public:
  explicit RegisteredKernel(KernelDescription description);

  [[nodiscard]] const KernelDescription& description() const noexcept { return description_; }
  [[nodiscard]] const Dispatcher& dispatcher() const noexcept { return *dispatcher_; }
  // The profile so far; nullptr before there is one.
  [[nodiscard]] const Dataset* profile() const noexcept { return profile_ ? &profile_->data : nullptr; }
  [[nodiscard]] bool fitted() const noexcept { return fitted_; }
  // One line each, of the last load, profile or fit.
  [[nodiscard]] const std::vector<std::string>& warnings() const noexcept { return warnings_; }

  // Writers: no other call on this object may run meanwhile. On an error the object stays as it was.
  void set_profile(Dataset data, std::vector<std::string> notes);
  void save_profile(const std::string& path) const;  // throws when there is none
  // Returns whether the profile fits this kernel and machine and was taken over.
  bool load_profile(const std::string& path);
  void fit(std::string_view cost_model);  // on the profile's points; throws when there is none
  void save_fit(const std::string& path) const;
  // Returns whether the fit was taken over; if not, warnings() says why and the dispatcher stays what it was.
  bool load_fit(const std::string& path);

 private:
  void install(std::shared_ptr<const Predictor> predictor, Guard guard, bool fitted);
  // "" or what differs between our configs and shape and theirs.
  [[nodiscard]] std::string differs(const ConfigTable& configs, const ModelShape& model) const;
  [[nodiscard]] Metadata metadata() const;

  KernelDescription description_;
  std::optional<Profile> profile_;
  std::unique_ptr<const Dispatcher> dispatcher_;
  Metadata fit_metadata_;
  bool fitted_ = false;
  std::vector<std::string> warnings_;
};

}  // namespace ramp::core
