// The scalar definition of quantisation to e4m3 (see quantize.hpp). Every operation is one correctly rounded
// fp32 operation, so that any other implementation of the same steps gives the same bits.
#include "weights/quantize.hpp"

#include <algorithm>
#include <cmath>

#include "base/float_types.hpp"

namespace ramp::core {
namespace {

// Smallest amax that a scale is made from, so that a group of zeros has a finite, non-zero scale.
constexpr float kSmallestAmax = 1e-10F;

// Largest magnitude; a NaN compares false and so does not count.
float row_amax(const float* x, int64_t n, float amax = 0.0F) noexcept {
  for (int64_t i = 0; i < n; ++i) {
    const float a = std::fabs(x[i]);
    if (a > amax) amax = a;
  }
  return amax;
}

}  // namespace

float amax_scale(float amax) noexcept {
  return (amax > kSmallestAmax ? amax : kSmallestAmax) / kE4m3Max;
}

void quantize_row_static(const float* x, int64_t n, float scale, uint8_t* q) noexcept {
  for (int64_t i = 0; i < n; ++i) q[i] = f32_to_e4m3(x[i] / scale);
}

void quantize_row_groups(const float* x, int64_t n, uint8_t* q, float* scales) noexcept {
  for (int64_t first = 0; first < n; first += kGroup) {
    const int64_t count = std::min(kGroup, n - first);
    const float scale = amax_scale(row_amax(x + first, count));
    quantize_row_static(x + first, count, scale, q + first);
    scales[first / kGroup] = scale;
  }
}

float quantize_row_dynamic(const float* x, int64_t n, uint8_t* q) noexcept {
  const float scale = amax_scale(row_amax(x, n));
  quantize_row_static(x, n, scale, q);
  return scale;
}

void quantize_weight_block(const float* w, int64_t rows, int64_t cols, uint8_t* q, float* scales) noexcept {
  const int64_t scale_cols = (cols + kGroup - 1) / kGroup;
  for (int64_t r0 = 0; r0 < rows; r0 += kGroup) {
    for (int64_t c0 = 0; c0 < cols; c0 += kGroup) {
      const int64_t height = std::min(kGroup, rows - r0);
      const int64_t width = std::min(kGroup, cols - c0);
      float amax = 0.0F;
      for (int64_t r = r0; r < r0 + height; ++r) amax = row_amax(w + r * cols + c0, width, amax);
      const float scale = amax_scale(amax);
      for (int64_t r = r0; r < r0 + height; ++r)
        quantize_row_static(w + r * cols + c0, width, scale, q + r * cols + c0);
      scales[r0 / kGroup * scale_cols + c0 / kGroup] = scale;
    }
  }
}

float quantize_weight_tensor(const float* w, int64_t rows, int64_t cols, uint8_t* q) noexcept {
  return quantize_row_dynamic(w, rows * cols, q);
}

void quantize_weight_channel(const float* w, int64_t rows, int64_t cols, uint8_t* q, float* scales) noexcept {
  for (int64_t r = 0; r < rows; ++r) scales[r] = quantize_row_dynamic(w + r * cols, cols, q + r * cols);
}

}  // namespace ramp::core
