// Counter-based random numbers (SplitMix64 finaliser): value i of stream s is a pure function, the same on
// every machine and thread count. For data and workloads, not for secrets.
#pragma once

#include <cmath>
#include <cstdint>
#include <numbers>

namespace ramp::core {

constexpr uint64_t mix64(uint64_t z) noexcept {
  z += 0x9e3779b97f4a7c15ULL;
  z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9ULL;
  z = (z ^ (z >> 27)) * 0x94d049bb133111ebULL;
  return z ^ (z >> 31);
}
constexpr uint64_t random_u64(uint64_t seed, uint64_t index) noexcept {
  return mix64(mix64(seed) ^ (index * 0xd1342543de82ef95ULL));
}
// Uniform in (0,1), 53 bits, never 0 or 1.
constexpr double random_unit(uint64_t seed, uint64_t index) noexcept {
  return (static_cast<double>(random_u64(seed, index) >> 11) + 0.5) * 0x1p-53;
}
inline double random_normal(uint64_t seed, uint64_t index) noexcept {
  const double u = random_unit(seed, 2 * index);
  const double v = random_unit(seed, 2 * index + 1);
  return std::sqrt(-2.0 * std::log(u)) * std::cos(2.0 * std::numbers::pi * v);
}

// Sequential use of one stream.
class Rng {
 public:
  explicit Rng(uint64_t seed) : seed_(seed) {}
  uint64_t next() noexcept { return random_u64(seed_, index_++); }
  double unit() noexcept { return random_unit(seed_, index_++); }
  double normal() noexcept { return random_normal(seed_, index_++ + (1ULL << 62)); }
  uint64_t below(uint64_t n) noexcept { return static_cast<uint64_t>(unit() * static_cast<double>(n)); }

 private:
  uint64_t seed_;
  uint64_t index_ = 0;
};

}  // namespace ramp::core
