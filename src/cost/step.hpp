// The cost model `step`: what the GPU can evaluate by itself inside a captured graph. Integers alone
// (kernels/params/decide.hpp, which host and device share): nanoseconds from a curve per config over an
// expert's rows, the active experts' weights, waves. Few terms, all of them costs (none is negative), so that
// sums over any part of the experts mean something: the device asks what a config would take for the experts
// that it would be given.
#pragma once

#include <memory>
#include <span>
#include <vector>

#include "cost/cost_model.hpp"
#include "params/decide.hpp"

namespace ramp::core {

// One config's terms in microseconds, as fitted. make_cost() turns them into what decides.
struct StepTerms {
  double base = 0;      // once
  double wave[2] = {};  // per wave of GEMM 1, GEMM 2
  double active = 0;    // per expert that has rows: its weights out of memory
  double tile = 0;      // per tile
  double row = 0;       // per row, rounded up to 8 in an expert
  double overlap =
      0;  // 0 .. 1: share of the smaller of (weights, tiles and rows) that hides behind the larger
  double places = 1;  // tiles that run at once
  bool measured = false;
};
cuda::CandidateCost make_cost(const StepTerms& terms, const KernelConfig& config, const ModelShape& model);

// T of the header, in ns, for all experts; the sums as the device makes them.
uint32_t step_ns(const cuda::CandidateCost& cost, uint32_t tile_m,
                 std::span<const int32_t> histogram) noexcept;

class StepPredictor final : public Predictor {
 public:
  StepPredictor(std::vector<StepTerms> terms, ConfigTable configs, ModelShape model, std::string hardware,
                int32_t sm_count);
  [[nodiscard]] std::string_view cost_model() const noexcept override { return "step"; }
  [[nodiscard]] const ModelShape& model() const noexcept override { return model_; }
  [[nodiscard]] const ConfigTable& configs() const noexcept override { return configs_; }
  [[nodiscard]] size_t coefficients() const noexcept override;
  [[nodiscard]] size_t scratch_bytes() const noexcept override { return 0; }
  void predict(std::span<const int32_t> histogram, std::span<float> us,
               std::span<std::byte> scratch) const noexcept override;
  [[nodiscard]] size_t choose(std::span<const int32_t> histogram,
                              std::span<std::byte> scratch) const noexcept override;
  [[nodiscard]] std::vector<CostTerm> explain(std::span<const int32_t> histogram,
                                              size_t config) const override;
  [[nodiscard]] nlohmann::json to_json() const override;

  [[nodiscard]] const StepTerms& terms(size_t config) const noexcept { return terms_[config]; }
  [[nodiscard]] const cuda::CandidateCost& cost(size_t config) const noexcept { return costs_[config]; }

 private:
  std::vector<StepTerms> terms_;
  std::vector<cuda::CandidateCost> costs_;
  ConfigTable configs_;
  ModelShape model_;
  std::string hardware_;
  int32_t sm_count_;
};

// Least squares of relative error with no term below zero; overlap, and places where no column tells, from
// short lists, by the error on the same points.
class StepModel final : public CostModel {
 public:
  [[nodiscard]] std::string_view name() const noexcept override { return "step"; }
  [[nodiscard]] std::unique_ptr<Predictor> fit(const Dataset& d, int32_t model,
                                               std::span<const size_t> points, const HardwareConstants& hw,
                                               FitReport& report) const override;
  [[nodiscard]] std::unique_ptr<Predictor> from_json(const nlohmann::json& j) const override;
};

}  // namespace ramp::core
