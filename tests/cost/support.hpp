// Shared by the cost tests: the measured data, predictors with their scratch, and synthetic kernels.
#pragma once

#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <cstring>
#include <map>
#include <memory>
#include <new>
#include <string>
#include <vector>

#include "cost/cost_model.hpp"
#include "cost/dataset.hpp"
#include "cost/evaluate.hpp"

namespace ramp::core {

inline const std::string& measured_directory() {
  static const std::string dir = RAMP_SOURCE_DIR "/tests/data/alpha_moe_h200";
  return dir;
}
inline const Dataset& measured() {
  static const Dataset d = read_dataset(measured_directory());
  return d;
}

inline std::unique_ptr<Predictor> fit_model(std::string_view cost_model, const Dataset& d, int32_t model,
                                            FitReport* report = nullptr) {
  FitReport local;
  return find_cost_model(cost_model)
      .fit(d, model, select_points(d, model, true), h200(), report != nullptr ? *report : local);
}

// Scratch of exactly the size asked for, aligned as the interface says, poisoned before every use.
class Scratch {
 public:
  explicit Scratch(const Predictor& p)
      : size_(p.scratch_bytes()),
        bytes_(static_cast<std::byte*>(::operator new (size_, std::align_val_t{64}))) {}
  ~Scratch() { ::operator delete (bytes_, std::align_val_t{64}); }
  Scratch(const Scratch&) = delete;
  Scratch& operator=(const Scratch&) = delete;
  std::span<std::byte> get() {
    std::fill_n(bytes_, size_, std::byte{0xff});  // NaNs
    return {bytes_, size_};
  }

 private:
  size_t size_;
  std::byte* bytes_;
};

inline std::vector<float> predict(const Predictor& p, std::span<const int32_t> histogram) {
  Scratch s(p);
  std::vector<float> us(p.configs().size(), std::nanf(""));
  p.predict(histogram, us, s.get());
  return us;
}
inline size_t choose(const Predictor& p, std::span<const int32_t> histogram) {
  Scratch s(p);
  return p.choose(histogram, s.get());
}

// Fitted predictors on the measured data, fitted once per program.
inline const Predictor& fitted(std::string_view cost_model, int32_t model) {
  static std::map<std::pair<std::string, int32_t>, std::unique_ptr<Predictor>> cache;
  auto& p = cache[{std::string(cost_model), model}];
  if (!p) p = fit_model(cost_model, measured(), model);
  return *p;
}

inline RegretStats test_regret(const Dataset& d, int32_t model, const Predictor& p) {
  return regret(d, select_points(d, model, false),
                [&](size_t point) { return choose(p, d.points[point].histogram); });
}

}  // namespace ramp::core
