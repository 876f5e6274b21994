// Quantisation of activations and weights to e4m3, exactly as DESIGN defines it:
//   s = max(amax, 1e-10) / 448 in fp32;  q = saturating round-to-nearest-even(x / s) with true division;
//   amax over the valid elements of a short group. NaN propagates: a NaN element becomes e4m3 NaN and does
//   not count in amax. The one scalar definition that vector code, the reference and device twins must match
//   bit for bit.
#pragma once

#include <cstdint>
#include <span>

#include "ramp/ramp.h"

namespace ramp::core {

inline constexpr int64_t kGroup = 128;  // elements per activation scale, and side of a weight scale block

float amax_scale(float amax) noexcept;  // max(amax,1e-10)/448

// One row of n fp32 values -> q[n] and scales[ceil(n/128)].
void quantize_row_groups(const float* x, int64_t n, uint8_t* q, float* scales) noexcept;
// One row, one dynamic scale over the whole row (fp8_channel).
float quantize_row_dynamic(const float* x, int64_t n, uint8_t* q) noexcept;
// One row with a given static scale (fp8_tensor).
void quantize_row_static(const float* x, int64_t n, float scale, uint8_t* q) noexcept;

// Weights, for generators and tests: fp32 matrix [rows, cols] -> e4m3 with scales per 128x128 block
// [ceil(rows/128), ceil(cols/128)], per tensor (returns the scale) or per row.
void quantize_weight_block(const float* w, int64_t rows, int64_t cols, uint8_t* q, float* scales) noexcept;
float quantize_weight_tensor(const float* w, int64_t rows, int64_t cols, uint8_t* q) noexcept;
void quantize_weight_channel(const float* w, int64_t rows, int64_t cols, uint8_t* q, float* scales) noexcept;

}  // namespace ramp::core
