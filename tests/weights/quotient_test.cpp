// The device divides by a group's scale with a reciprocal and one correction (kernels/prologue/quantize.cuh).
// The same operations here, where they are IEEE's as well: no value around a boundary between two e4m3 codes
// may come out on another side of it than the exact quotient. Exponents do not matter (nothing under- or
// overflows there).
#include <gtest/gtest.h>

#include <array>
#include <bit>
#include <cmath>
#include <cstdint>

namespace {

float corrected(float a, float scale) {
  const float inverse = 1.0F / scale;
  const float q = a * inverse;
  return std::fmaf(std::fmaf(-scale, q, a), inverse, q);
}

// Boundaries lie half way between two codes: of normal numbers (8 + j + 1/2) / 8 times a power of two, of
// subnormal ones j + 1/2 times the smallest.
std::array<float, 16> boundaries() {
  std::array<float, 16> m{};
  for (size_t j = 0; j < 8; ++j) {
    const float half = static_cast<float>(j) + 0.5F;
    m[2 * j] = (8 + half) / 8;
    int exponent = 0;
    m[2 * j + 1] = 2 * std::frexp(half, &exponent);
  }
  return m;
}

int side(float q, float boundary) {
  return q < boundary ? -1 : q > boundary ? 1 : 0;
}

TEST(Quotient, OneCorrectionKeepsTheSideOfEveryBoundary) {
  // All mantissas with stride 1 (2 s); here every 61st.
  const std::array<float, 16> all = boundaries();
  int64_t wrong = 0;
  for (uint32_t i = 0; i < 1U << 23; i += 61) {
    const float scale = std::bit_cast<float>(0x3f800000U | i);
    for (const float m : all) {
      const auto centre = std::bit_cast<uint32_t>(scale * m);
      for (uint32_t d = 0; d < 7; ++d) {
        const float a = std::bit_cast<float>(centre + d - 3);
        if (side(corrected(a, scale), m) != side(a / scale, m)) ++wrong;
      }
    }
  }
  EXPECT_EQ(wrong, 0);
}

}  // namespace
