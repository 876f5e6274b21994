// The sums that the error analysis is made of (bounds.hpp), in fp64, and GEMM2's element, which needs all of
// them. This is where the checker spends its time.
#include <algorithm>
#include <cmath>
#include <cstring>

#include "backend/reference/bounds.hpp"
#include "backend/reference/check.hpp"
#include "weights/quantize.hpp"

namespace ramp::core::reference {
namespace {

// Two lanes of the compilers' own vector type: plain loops over three sums at once are not vectorised.
typedef double Pair __attribute__((vector_size(16)));
typedef int64_t PairBits __attribute__((vector_size(16)));

inline Pair load_pair(const double* p) noexcept {
  Pair v;
  std::memcpy(&v, p, sizeof v);
  return v;
}
inline Pair magnitude(Pair v) noexcept {
  return reinterpret_cast<Pair>(reinterpret_cast<PairBits>(v) & PairBits{INT64_MAX, INT64_MAX});
}
inline double total(Pair a, Pair b) noexcept {
  const Pair s = a + b;
  return s[0] + s[1];
}

// Sums of error*|w|, sigma*|w| and (sigma*w)^2.
struct Spread {
  double linear = 0, steps = 0, square = 0;
};
Spread spread_sums(const double* error, const double* sigma, const double* w, int64_t n) noexcept {
  Pair linear0{}, linear1{}, steps0{}, steps1{}, square0{}, square1{};
  for (int64_t k = 0; k < n; k += 4) {
    const Pair w0 = load_pair(w + k);
    const Pair w1 = load_pair(w + k + 2);
    const Pair s0 = load_pair(sigma + k) * w0;
    const Pair s1 = load_pair(sigma + k + 2) * w1;
    linear0 += load_pair(error + k) * magnitude(w0);
    linear1 += load_pair(error + k + 2) * magnitude(w1);
    steps0 += magnitude(s0);
    steps1 += magnitude(s1);
    square0 += s0 * s0;
    square1 += s1 * s1;
  }
  return {total(linear0, linear1), total(steps0, steps1), total(square0, square1)};
}

}  // namespace

DotSums dot_sums(const double* a, const double* w, int64_t n) noexcept {
  Pair sum0{}, sum1{}, absolute0{}, absolute1{}, square0{}, square1{};
  for (int64_t k = 0; k < n; k += 4) {
    const Pair p = load_pair(a + k) * load_pair(w + k);
    const Pair q = load_pair(a + k + 2) * load_pair(w + k + 2);
    sum0 += p;
    sum1 += q;
    absolute0 += magnitude(p);
    absolute1 += magnitude(q);
    square0 += p * p;
    square1 += q * q;
  }
  return {total(sum0, sum1), total(absolute0, absolute1), total(square0, square1)};
}

Uncertain gemm2_element(const Requantized& q, const double* w, int64_t n, double depth,
                        double tensor_unit) noexcept {
  DotSums all;
  double linear = 0;
  double steps = 0;
  double square = 0;
  double scale_square = 0;
  for (int64_t first = 0; first < n; first += kGroup) {
    const int64_t count = std::min(kGroup, n - first);
    const auto g = static_cast<size_t>(first / kGroup);
    const DotSums s = dot_sums(q.value.data() + first, w + first, count);
    const Spread d = spread_sums(q.error.data() + first, q.sigma.data() + first, w + first, count);
    all.sum += s.sum;
    all.absolute += s.absolute + d.linear;
    all.square += s.square;
    // A common factor 1 + e of the group: e times the group's own sum (flips included).
    linear += d.linear + q.scale_error[g] * (std::fabs(s.sum) + d.linear);
    steps += d.steps;
    square += d.square;
    scale_square += q.scale_sigma[g] * q.scale_sigma[g] * s.sum * s.sum;
  }
  Uncertain r = fp32_dot(all, depth, tensor_unit);
  r.error += linear;
  // Steps cannot add up to more than their sum, which is the sharper bound where they are few.
  double flips = std::sqrt(square);
  if (q.stepwise) flips = std::min(flips, steps / kCheckSigmas);
  r.sigma = std::sqrt(r.sigma * r.sigma + scale_square) + flips;
  return r;
}

}  // namespace ramp::core::reference
