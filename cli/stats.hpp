// Median and percentiles of repeated timings.
#pragma once

#include <algorithm>
#include <cmath>
#include <vector>

namespace ramp::cli {

struct Percentiles {
  double median = 0, p10 = 0, p90 = 0;
};

// Linear interpolation between the order statistics; all zero for no values.
inline Percentiles percentiles(std::vector<double> values) {
  if (values.empty()) return {};
  std::sort(values.begin(), values.end());
  const auto at = [&](double q) {
    const double position = q * static_cast<double>(values.size() - 1);
    const auto low = static_cast<size_t>(position);
    const size_t high = std::min(low + 1, values.size() - 1);
    return values[low] + (position - std::floor(position)) * (values[high] - values[low]);
  };
  return {at(0.5), at(0.1), at(0.9)};
}

}  // namespace ramp::cli
