// histogram -> config, over one fitted model and its measured guard. Immutable after construction: any number
// of threads may choose at once. choose() neither allocates nor throws nor locks.
//
// The choice: the predictor's own (by contract the smallest predicted time; `wave` prefers the config
// measured fastest at the most similar profile point when the difference is within its margin) if that is the
// default or was measured faster than it; else the fastest predicted config that the guard lets replace the
// default.
#pragma once

#include <cstdint>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include "cost/cost_model.hpp"
#include "dispatch/fit_file.hpp"
#include "dispatch/guard.hpp"

namespace ramp::core {

// How a choice came about, for people.
struct Decision {
  size_t config = 0;  // what choose() returns
  size_t predictor_choice = 0;
  bool guarded = false;       // there is a default to guard
  size_t default_config = 0;  // valid if guarded
  // Valid if guarded: what the profile says of predictor_choice against the default, and the largest measured
  // us(default)/us(predictor_choice).
  Evidence evidence = Evidence::kSlower;
  double best_speedup = 0;
  bool overruled = false;  // the guard put another config in the place of predictor_choice
  std::vector<float> us;   // predicted microseconds per config
};

class Dispatcher {
 public:
  // Scratch lives on the caller's stack: at most this much. Throws Error(UNSUPPORTED) for a predictor that
  // needs more.
  static constexpr size_t kMaxScratch = 48 << 10;

  explicit Dispatcher(std::shared_ptr<const Predictor> predictor, Guard guard = {});
  explicit Dispatcher(const FittedModel& fitted) : Dispatcher(fitted.predictor, fitted.guard) {}

  // histogram: E counts >= 0 (precondition; E = experts()). An empty step (all zero) is valid.
  [[nodiscard]] size_t choose(std::span<const int32_t> histogram) const noexcept;
  // Predicted microseconds per config. us.size() == configs. Does not allocate.
  void predict(std::span<const int32_t> histogram, std::span<float> us) const noexcept;
  [[nodiscard]] Decision decide(std::span<const int32_t> histogram) const;

  [[nodiscard]] const Predictor& predictor() const noexcept { return *predictor_; }
  [[nodiscard]] const Guard& guard() const noexcept { return guard_; }
  [[nodiscard]] size_t experts() const noexcept { return static_cast<size_t>(predictor_->model().experts); }
  [[nodiscard]] size_t configs() const noexcept { return predictor_->configs().size(); }

 private:
  std::shared_ptr<const Predictor> predictor_;
  Guard guard_;
};

}  // namespace ramp::core
