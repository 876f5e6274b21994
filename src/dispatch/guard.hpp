// The measured guard: the dispatcher leaves the default config only where the profile speaks for it.
// Precisely:
//
//   default   what a user would run without a dispatcher: the kernel's declared default if it has one, else
//   the
//             config that was fastest on balanced routing at the nearest profiled token count (|log(T'/T)|,
//             the smaller T' on a tie; T = rows / top_k, rounded up)
//   evidence  the largest ratio us(default) / us(candidate) that was measured at any profile point, against
//   the
//             noise margin m of a timing:
//               faster   ratio > 1 + m           may replace the default when it is predicted to be faster
//               tied     ratio >= 1 / (1 + m)    the profile cannot tell them apart at that point: may
//               replace it
//                                                when it is predicted to be faster by more than m
//               slower   below, or never measured together: never replaces it
//
// A kernel without a profile has no guard, unless it declares a default: then nothing has been shown to be
// faster and the default is kept.
#pragma once

#include <cstdint>
#include <nlohmann/json_fwd.hpp>
#include <span>
#include <vector>

#include "cost/dataset.hpp"
#include "dispatch/json_view.hpp"

namespace ramp::core {

// Run-to-run noise when a profile has no repeats: p90 of |log(us_repeat/us)| on the H200 measurements in
// tests/data is 2%.
inline constexpr double kDefaultNoiseMargin = 0.02;

enum class Evidence : uint8_t { kSlower = 0, kTied = 1, kFaster = 2 };
const char* evidence_name(Evidence e) noexcept;  // "slower", "tied", "faster"

class Guard {
 public:
  struct Default {
    int64_t tokens = 0;  // of the profile point
    int32_t config = 0;
  };

  Guard() = default;  // guards nothing
  // From the measurements of one model at `points` (the training points; nothing else is read).
  // declared_default: a config index, or -1. The noise margin is p90 of |log(us_repeat/us)| over these points
  // where there are repeats, else kDefaultNoiseMargin. Throws when no point has a timing.
  Guard(const Dataset& d, int32_t model, std::span<const size_t> points, int32_t declared_default = -1);
  // No profile, a declared default: keeps to it.
  static Guard keep(size_t configs, int64_t top_k, int32_t declared_default);

  [[nodiscard]] bool active() const noexcept { return !defaults_.empty(); }
  // Row of `defaults()` for this many rows (sum of the histogram). Only when active.
  [[nodiscard]] size_t row(int64_t rows) const noexcept;
  [[nodiscard]] size_t default_config(size_t row) const noexcept {
    return static_cast<size_t>(defaults_[row].config);
  }
  // Of `config` against the default of this row; kFaster for the default itself.
  [[nodiscard]] Evidence evidence(size_t row, size_t config) const noexcept {
    return evidence_[distinct_[row] * configs_ + config];
  }
  // May `config` replace the default of this row, given both predictions?
  [[nodiscard]] bool allows(size_t row, size_t config, float us, float default_us) const noexcept {
    const Evidence e = evidence(row, config);
    return (e == Evidence::kFaster && us < default_us) ||
           (e == Evidence::kTied && us * (1.0F + static_cast<float>(margin_)) < default_us);
  }
  // Largest measured us(default of row)/us(config) over the profile points; 0 = never measured together.
  [[nodiscard]] double best_speedup(size_t row, size_t config) const noexcept {
    return speedup_[distinct_[row] * configs_ + config];
  }

  [[nodiscard]] std::span<const Default> defaults() const noexcept { return defaults_; }
  [[nodiscard]] double noise_margin() const noexcept { return margin_; }

  [[nodiscard]] nlohmann::json to_json() const;
  static Guard from_json(const JsonView& v, size_t configs, int64_t top_k);

 private:
  void finish();  // derives everything below `margin_` from what stands above it
  size_t configs_ = 0;
  int64_t top_k_ = 1;
  std::vector<Default> defaults_;  // ascending tokens
  std::vector<double> speedup_;    // [distinct default][config]
  double margin_ = kDefaultNoiseMargin;
  std::vector<size_t> distinct_;    // defaults_ row -> distinct default
  std::vector<double> limits_;      // row i serves up to this many rows (the last: any)
  std::vector<Evidence> evidence_;  // [distinct default][config]
};

}  // namespace ramp::core
