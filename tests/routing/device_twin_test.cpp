// score_math.hpp as NVRTC sees it: the device branch of the header, with the CUDA intrinsics that it uses
// played by their host equivalents, must compile without any standard header and give the bits of the host
// build. A program of its own, because the header is included in its other guise.
#include <gtest/gtest.h>

#include <bit>
#include <cmath>
#include <cstdint>
#include <vector>

#include "base/rng.hpp"
#include "routing/score_rows.hpp"

namespace {
float __uint_as_float(unsigned int bits) {  // NOLINT(bugprone-reserved-identifier)
  return std::bit_cast<float>(bits);
}
unsigned int __float_as_uint(float x) {  // NOLINT(bugprone-reserved-identifier)
  return std::bit_cast<unsigned int>(x);
}
float __fmaf_rn(float a, float b, float c) {  // NOLINT(bugprone-reserved-identifier)
  return std::fma(a, b, c);
}
}  // namespace
#define __CUDACC_RTC__          // NOLINT(bugprone-reserved-identifier)
#define __device__ static       // NOLINT(bugprone-reserved-identifier)
#define __forceinline__ inline  // NOLINT(bugprone-reserved-identifier)
#include "routing/score_math.hpp"

namespace ramp::core {
namespace {

TEST(DeviceTwin, SameBitsAsTheHost) {
  constexpr int64_t kCount = 200000;
  std::vector<float> x(kCount), terms(kCount), sigmoids(kCount);
  float m = -std::numeric_limits<float>::infinity();
  for (size_t i = 0; i < x.size(); ++i) {
    // Random bits, so every exponent, NaN and infinity; the rest in the range where results vary.
    x[i] = i % 4 == 0 ? std::bit_cast<float>(static_cast<uint32_t>(random_u64(1, i)))
                      : static_cast<float>(40.0 * random_normal(2, i));
    if (std::isinf(x[i])) x[i] = 0.0F;
    m = x[i] > m ? x[i] : m;
  }
  for (const float largest : {m, 150.0F}) {
    softmax_terms(x.data(), kCount, largest, terms.data());
    for (size_t i = 0; i < x.size(); ++i) {
      if (x[i] > largest) continue;
      ASSERT_EQ(std::bit_cast<uint32_t>(terms[i]), std::bit_cast<uint32_t>(softmax_term(x[i], largest)))
          << x[i];
    }
  }
  sigmoid_scores(x.data(), kCount, sigmoids.data());
  for (size_t i = 0; i < x.size(); ++i) {
    if (x[i] != x[i]) continue;
    ASSERT_EQ(std::bit_cast<uint32_t>(sigmoids[i]), std::bit_cast<uint32_t>(sigmoid_f32(x[i]))) << x[i];
  }
  for (const int64_t n : {1, 8, 32, 60, 512, 1000})
    EXPECT_EQ(row_sum(sigmoids.data(), n), warp_order_sum(sigmoids.data(), n)) << n;
}

}  // namespace
}  // namespace ramp::core
