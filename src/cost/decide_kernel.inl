// The lane code, compiled once per instruction set: the including file sets RAMP_DECIDE_NAME. It must not
// include or call anything whose inline code could leak into other translation units (no standard library
// beyond fixed-width integers), must be compiled with -ffp-contract=off, and its floating-point operations
// are written in the order in which they are to be done.
#include "cost/decide_kernels.hpp"

namespace ramp::core {
namespace {

constexpr int kWide = 8;

void count_tiles(const float* rows, size_t n, const float* inverse, size_t tiles, int32_t* out) {
  for (size_t t = 0; t < tiles; ++t) {
    const float inv = inverse[t];
    int32_t sum[2 * kWide] = {};
    for (size_t i = 0; i < n; i += 2 * kWide) {
      for (int j = 0; j < 2 * kWide; ++j)
        sum[j] += static_cast<int32_t>(rows[i + static_cast<size_t>(j)] * inv);
    }
    int32_t total = 0;
    for (int j = 0; j < 2 * kWide; ++j) total += sum[j];
    out[t] = total;
  }
}

void similarity(const float* x, const float* __restrict train, size_t points, float* __restrict out) {
  const float* __restrict t0 = train;
  const float* __restrict t1 = train + points;
  const float* __restrict t2 = train + 2 * points;
  const float* __restrict t3 = train + 3 * points;
  for (size_t i = 0; i < points; i += kWide) {
    for (int j = 0; j < kWide; ++j) {
      const size_t p = i + static_cast<size_t>(j);
      const float d0 = x[0] - t0[p];
      const float d1 = x[1] - t1[p];
      const float d2 = x[2] - t2[p];
      const float d3 = x[3] - t3[p];
      const float near = 1.0F / (1.0F + 0.25F * (((d0 * d0 + d1 * d1) + d2 * d2) + d3 * d3));
      out[p] = near * near;
    }
  }
}

inline float larger(float a, float b) {
  return a > b ? a : b;
}
inline float smaller(float a, float b) {
  return a < b ? a : b;
}
inline float power8(float x) {
  const float x2 = x * x;
  const float x4 = x2 * x2;
  return x4 * x4;
}

void evaluate(const LaneView& v, const LaneConstants& k, const RunInput& r, const float* __restrict near,
              size_t points, float* __restrict us) {
  constexpr float kHuge = 3.0e38F;  // finite stand-in for anything beyond
  constexpr float kTiny = 1.0e-4F;  // below it a share's eighth power is nothing (and would be denormal)
  const float overlap_share = 1.0F - k.additive_share;
  const float has_last = r.last_wave > 0.0F ? 1.0F : 0.0F;
  const float last_extra = larger(r.last_wave - 1.0F, 0.0F);
  const float full_waves = r.full_waves;
  const float first_read_tiles = r.first_read;
  const float reread_tiles = r.tiles - r.first_read;
  const float output_rows = r.output;
  const float fill = r.fill;
  const float tail = r.tail;
  const float padding_centred = r.padding_centred;
  const float additive_share = k.additive_share;
  const float limit = k.residual_limit;
  const size_t n = static_cast<size_t>(r.lane_end - r.lane_begin) / kWide * kWide;
  const auto begin = static_cast<size_t>(r.lane_begin);
  // log residuals: sum over training points of similarity * weight, in this order.
  const float* __restrict alpha = v.alpha + begin * points;
  float* __restrict out = us + begin;
  for (size_t c = 0; c < n; ++c) out[c] = 0.0F;
  for (size_t p = 0; p < points; ++p) {
    const float weight = near[p];
    const float* __restrict a = alpha + p * n;
    for (size_t c = 0; c < n; ++c) out[c] += weight * a[c];
  }
  const float* __restrict latencies = v.latency + begin;
  const float* __restrict fill_slopes = v.fill_slope + begin;
  const float* __restrict rows = v.row + begin;
  const float* __restrict sharings = v.sharing + begin;
  const float* __restrict togethers = v.together + begin;
  const float* __restrict first_reads = v.first_read + begin;
  const float* __restrict rereads_us = v.reread + begin;
  const float* __restrict outputs = v.output + begin;
  const float* __restrict launches = v.launch + begin;
  const float* __restrict blocked = v.blocked + begin;
  for (size_t c = 0; c < n; ++c) {
    const float alone = latencies[c] * (1.0F + fill_slopes[c] * padding_centred) + rows[c] * fill;
    const float partial = has_last * (1.0F + sharings[c] * last_extra);
    const float latency = alone * (full_waves * togethers[c] + partial) + rows[c] * tail;
    const float weights = first_reads[c] * first_read_tiles + rereads_us[c] * reread_tiles;
    const float output = outputs[c] * output_rows;
    const float most = larger(latency, larger(weights, output));
    const float scale = 1.0F / most;
    const float x = larger(latency * scale, kTiny);
    const float y = larger(weights * scale, kTiny);
    const float z = larger(output * scale, kTiny);
    const float sum8 = (power8(x) + power8(y)) + power8(z);
    const float norm = most * __builtin_sqrtf(__builtin_sqrtf(__builtin_sqrtf(sum8)));
    const float physics =
        launches[c] + (overlap_share * norm + additive_share * ((latency + weights) + output));
    // exp of the residual, |log| <= residual_limit <= 2, as the fourth power of a fifth-order series at a
    // quarter: relative error below 5e-7 at 1 and 1e-4 at 2.
    const float e = 0.25F * smaller(larger(out[c], -limit), limit);
    const float quarter =
        1.0F + e * (1.0F + e * (0.5F + e * (1.0F / 6.0F + e * (1.0F / 24.0F + e * (1.0F / 120.0F)))));
    const float half = quarter * quarter;
    const float factor = half * half;
    const float t = physics * factor;
    out[c] = (t < kHuge ? t : kHuge) + blocked[c];
  }
}

}  // namespace

const DecideKernels RAMP_DECIDE_SYMBOL = {RAMP_DECIDE_NAME, count_tiles, similarity, evaluate};

}  // namespace ramp::core
