// Cost models behind one small interface: fit on measured points, then predict every config's time for a
// histogram.
//
//   ramp4     as published (arXiv 2604.26039): T = a + b*g/SM + c*g + d*log(g+1) per config
//   wave      ours: weight bytes of the active experts, waves quantised by residency, tile fill, output bytes
//   (docs/cost-model.md) analytic  no profile at all: hardware constants, config columns and geometry
//   step      integers alone: what the GPU evaluates by itself, for any part of the experts
//
// A Predictor is immutable and thread-safe; predict and choose allocate nothing and cost microseconds.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <nlohmann/json_fwd.hpp>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "cost/dataset.hpp"
#include "geometry/hardware.hpp"

namespace ramp::core {

struct FitReport {
  size_t n_train = 0;                 // points used
  std::vector<std::string> warnings;  // collinear columns, ignored configs, ...; one line each
};

struct CostTerm {
  std::string name;  // e.g. "weight bytes"
  double us = 0;     // its share or value in microseconds
};

class Predictor {
 public:
  virtual ~Predictor() = default;
  [[nodiscard]] virtual std::string_view cost_model() const noexcept = 0;
  [[nodiscard]] virtual const ModelShape& model() const noexcept = 0;
  [[nodiscard]] virtual const ConfigTable& configs() const noexcept = 0;
  // Number of fitted coefficients (0 for analytic).
  [[nodiscard]] virtual size_t coefficients() const noexcept = 0;
  // Bytes of scratch that predict and choose need (64-byte aligned).
  [[nodiscard]] virtual size_t scratch_bytes() const noexcept = 0;
  // us[c]: predicted microseconds of config c for this histogram (E counts). Finite and >= 0 always; configs
  // that must not be chosen (never measured) get +infinity. An empty histogram is valid.
  virtual void predict(std::span<const int32_t> histogram, std::span<float> us,
                       std::span<std::byte> scratch) const noexcept = 0;
  // The config to launch: smallest predicted time (lowest index on ties), subject to the model's measured
  // guard.
  [[nodiscard]] virtual size_t choose(std::span<const int32_t> histogram,
                                      std::span<std::byte> scratch) const noexcept = 0;
  // How the prediction of one config comes about, for people. Allocates.
  [[nodiscard]] virtual std::vector<CostTerm> explain(std::span<const int32_t> histogram,
                                                      size_t config) const = 0;
  [[nodiscard]] virtual nlohmann::json to_json() const = 0;
};

class CostModel {
 public:
  virtual ~CostModel() = default;
  [[nodiscard]] virtual std::string_view name() const noexcept = 0;
  // Fits one model shape of the dataset on the given points (rows with split=train; nothing else is read).
  // Throws Error on degenerate data: fewer than two configs or points, constant timings, ...
  [[nodiscard]] virtual std::unique_ptr<Predictor> fit(const Dataset& d, int32_t model,
                                                       std::span<const size_t> points,
                                                       const HardwareConstants& hw,
                                                       FitReport& report) const = 0;
  [[nodiscard]] virtual std::unique_ptr<Predictor> from_json(const nlohmann::json& j) const = 0;
};

const CostModel& find_cost_model(std::string_view name);  // throws Error listing the known ones
std::span<const std::string_view> cost_model_names() noexcept;
inline constexpr std::string_view kDefaultCostModel = "wave";

}  // namespace ramp::core
