// The cost models `wave` (fitted) and `analytic` (no profile): two ways to parameters, one predictor.
#pragma once

#include <memory>

#include "cost/cost_model.hpp"
#include "cost/decide.hpp"
#include "cost/wave_fit.hpp"

namespace ramp::core {

class WavePredictor final : public Predictor {
 public:
  // name: "wave" or "analytic". Takes the fit as it is; throws nothing.
  WavePredictor(std::string_view name, WaveFit fit, ConfigTable configs, ModelShape model,
                std::string hardware);
  [[nodiscard]] std::string_view cost_model() const noexcept override { return name_; }
  [[nodiscard]] const ModelShape& model() const noexcept override { return model_; }
  [[nodiscard]] const ConfigTable& configs() const noexcept override { return configs_; }
  [[nodiscard]] size_t coefficients() const noexcept override;
  [[nodiscard]] size_t scratch_bytes() const noexcept override { return table_.scratch_bytes(); }
  void predict(std::span<const int32_t> histogram, std::span<float> us,
               std::span<std::byte> scratch) const noexcept override;
  [[nodiscard]] size_t choose(std::span<const int32_t> histogram,
                              std::span<std::byte> scratch) const noexcept override;
  [[nodiscard]] std::vector<CostTerm> explain(std::span<const int32_t> histogram,
                                              size_t config) const override;
  [[nodiscard]] nlohmann::json to_json() const override;

  [[nodiscard]] const WaveFit& fit() const noexcept { return fit_; }
  [[nodiscard]] const DecisionTable& table() const noexcept { return table_; }

 private:
  std::string_view name_;  // of a static string
  WaveFit fit_;
  ConfigTable configs_;
  ModelShape model_;
  std::string hardware_;
  DecisionTable table_;
  const DecideKernels* kernels_;
};

class WaveModel final : public CostModel {
 public:
  explicit WaveModel(const WaveSwitches& on = {}, const WaveHyper& hyper = {}) : on_(on), hyper_(hyper) {}
  [[nodiscard]] std::string_view name() const noexcept override { return "wave"; }
  [[nodiscard]] std::unique_ptr<Predictor> fit(const Dataset& d, int32_t model,
                                               std::span<const size_t> points, const HardwareConstants& hw,
                                               FitReport& report) const override;
  [[nodiscard]] std::unique_ptr<Predictor> from_json(const nlohmann::json& j) const override;

 private:
  WaveSwitches on_;
  WaveHyper hyper_;
};

class AnalyticModel final : public CostModel {
 public:
  [[nodiscard]] std::string_view name() const noexcept override { return "analytic"; }
  // Reads no timing; `points` may be empty.
  [[nodiscard]] std::unique_ptr<Predictor> fit(const Dataset& d, int32_t model,
                                               std::span<const size_t> points, const HardwareConstants& hw,
                                               FitReport& report) const override;
  [[nodiscard]] std::unique_ptr<Predictor> from_json(const nlohmann::json& j) const override;
};

// The analytic model without a dataset: any table of configs, any shape. Notes go to report.warnings.
std::unique_ptr<Predictor> make_analytic(const ConfigTable& configs, const ModelShape& model,
                                         const HardwareConstants& hw, FitReport& report,
                                         const WaveKernelConstants& k = {});

}  // namespace ramp::core
