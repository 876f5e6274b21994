// A natural logarithm in double from IEEE operations alone, so that workloads are the same on every machine:
// libm's log differs between versions and processors in its last bit, which can turn a draw.
#pragma once

#include <bit>
#include <cstdint>

namespace ramp::core {

// ln(x) for positive, normal, finite x. x = 2^e m with m in [sqrt(1/2), sqrt(2)); ln m = 2 atanh f with
// f = (m-1)/(m+1), |f| <= 0.1716: the series in f^2 stops after f^21 (the remainder, 2 f^23/23, is below
// 3e-19). Within a few units in the last place, except near x = 1 where the error stays below 1e-16 relative
// to f.
inline double stable_log(double x) noexcept {
  constexpr uint64_t kSqrtHalf = 0x3fe6a09e667f3bcdULL;
  const auto bits = std::bit_cast<uint64_t>(x);
  const auto e = static_cast<int64_t>(bits - kSqrtHalf) >> 52;
  const double m = std::bit_cast<double>(bits - (static_cast<uint64_t>(e) << 52U));
  const double f = (m - 1.0) / (m + 1.0);
  const double s = f * f;
  double p = 1.0 / 21;
  p = p * s + 1.0 / 19;
  p = p * s + 1.0 / 17;
  p = p * s + 1.0 / 15;
  p = p * s + 1.0 / 13;
  p = p * s + 1.0 / 11;
  p = p * s + 1.0 / 9;
  p = p * s + 1.0 / 7;
  p = p * s + 1.0 / 5;
  p = p * s + 1.0 / 3;
  // ln 2 in two parts, the first of 33 bits: its product with e is exact.
  const auto n = static_cast<double>(e);
  return n * 0x1.62e42feep-1 + (n * 0x1.a39ef35793c76p-33 + (2.0 * f + 2.0 * f * (s * p)));
}

}  // namespace ramp::core
