// The registry of cost models.
#include "cost/cost_model.hpp"

#include <fmt/format.h>

#include <array>

#include "base/error.hpp"
#include "cost/ramp4.hpp"
#include "cost/step.hpp"
#include "cost/wave.hpp"

namespace ramp::core {
namespace {
constexpr std::array<std::string_view, 4> kNames = {"wave", "ramp4", "analytic", "step"};
}  // namespace

std::span<const std::string_view> cost_model_names() noexcept {
  return kNames;
}

const CostModel& find_cost_model(std::string_view name) {
  static const WaveModel wave;
  static const Ramp4Model ramp4;
  static const AnalyticModel analytic;
  static const StepModel step;
  if (name == wave.name()) return wave;
  if (name == ramp4.name()) return ramp4;
  if (name == analytic.name()) return analytic;
  if (name == step.name()) return step;
  fail_argument("cost model", fmt::format("'{}'", printable(name)),
                fmt::format("one of {}", fmt::join(kNames, ", ")));
}

}  // namespace ramp::core
