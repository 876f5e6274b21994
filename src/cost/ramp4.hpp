// The published cost model (arXiv 2604.26039), as published, warts included:
//   T(c) = a + b*g/SM + c*g + d*log(g+1)      microseconds, g = grid of the config
// four coefficients per config by least squares on relative error, d only where the config's median profiling
// grid is below the SM count. g/SM and g are collinear, so three terms at most are independent; the rank is
// reported and the solution of minimum norm is taken. Outside of the profiled range of g the curve is left
// along its tangent there, never downwards and never below zero.
#pragma once

#include <memory>
#include <vector>

#include "cost/cost_model.hpp"
#include "cost/decide.hpp"

namespace ramp::core {

// Which columns a fit uses; the published model is all but `active`. Others serve the ablation.
struct Ramp4Switches {
  bool waves = true;        // b*g/SM
  bool grid = true;         // c*g
  bool log = true;          // d*log(g+1), for configs whose median profiling grid is below the SM count
  bool log_always = false;  // ... for all configs
  bool active = false;      // + e*active*slices/SM: one step beyond the paper
};

class Ramp4Model final : public CostModel {
 public:
  explicit Ramp4Model(const Ramp4Switches& on = {}) : on_(on) {}
  [[nodiscard]] std::string_view name() const noexcept override { return "ramp4"; }
  [[nodiscard]] std::unique_ptr<Predictor> fit(const Dataset& d, int32_t model,
                                               std::span<const size_t> points, const HardwareConstants& hw,
                                               FitReport& report) const override;
  [[nodiscard]] std::unique_ptr<Predictor> from_json(const nlohmann::json& j) const override;

 private:
  Ramp4Switches on_;
};

}  // namespace ramp::core
