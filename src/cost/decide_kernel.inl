// The lane code, compiled once per instruction set: the including file sets RAMP_DECIDE_NAME. It must not
// include or call anything whose inline code could leak into other translation units (no standard library
// beyond fixed-width integers), must be compiled with -ffp-contract=off, and its floating-point operations are
// written in the order in which they are to be done.
#include "cost/decide_kernels.hpp"

namespace ramp::core {
namespace {

constexpr int kWide = 8;

void count_tiles(const float* rows, size_t n, const float* inverse, size_t tiles, int32_t* out) {
  for (size_t t = 0; t < tiles; ++t) {
    const float inv = inverse[t];
    int32_t sum[2 * kWide] = {};
    for (size_t i = 0; i < n; i += 2 * kWide) {
      for (int j = 0; j < 2 * kWide; ++j) sum[j] += static_cast<int32_t>(rows[i + static_cast<size_t>(j)] * inv);
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
  constexpr float kHuge = 3.0e38F;   // finite stand-in for anything beyond
  constexpr float kTiny = 1.0e-4F;   // below it a share's eighth power is nothing (and would be denormal)
  const float overlap_share = 1.0F - k.additive_share;
  const float has_last = r.last_wave > 0.0F ? 1.0F : 0.0F;
  const float last_extra = larger(r.last_wave - 1.0F, 0.0F);
  const float rereads = r.tiles - r.first_read;
  for (int32_t lane = r.lane_begin; lane < r.lane_end; lane += kWide) {
    // log residual: sum over training points of similarity * weight, in this order.
    float residual[kWide] = {};
    const float* __restrict alpha = v.alpha + static_cast<size_t>(lane) * points;
    for (size_t p = 0; p < points; ++p) {
      for (int j = 0; j < kWide; ++j) residual[j] += near[p] * alpha[p * kWide + static_cast<size_t>(j)];
    }
    for (int j = 0; j < kWide; ++j) {
      const int32_t c = lane + j;
      const float alone =
          v.latency[c] * (1.0F + v.fill_slope[c] * r.padding_centred) + v.row[c] * r.fill;
      const float partial = has_last * (1.0F + v.sharing[c] * last_extra);
      const float latency = alone * (r.full_waves * v.together[c] + partial) + v.row[c] * r.tail;
      const float weights = v.first_read[c] * r.first_read + v.reread[c] * rereads;
      const float output = v.output[c] * r.output;
      const float most = larger(latency, larger(weights, output));
      const float scale = 1.0F / most;
      const float x = larger(latency * scale, kTiny);
      const float y = larger(weights * scale, kTiny);
      const float z = larger(output * scale, kTiny);
      const float sum8 = (power8(x) + power8(y)) + power8(z);
      const float norm = most * __builtin_sqrtf(__builtin_sqrtf(__builtin_sqrtf(sum8)));
      const float physics =
          v.launch[c] + (overlap_share * norm + k.additive_share * ((latency + weights) + output));
      // exp of the residual, |e| <= residual_limit <= 0.5: fifth order, relative error below 3e-5 at 0.5 and
      // 4e-7 at 0.25.
      const float e = smaller(larger(residual[j], -k.residual_limit), k.residual_limit);
      const float factor =
          1.0F +
          e * (1.0F + e * (0.5F + e * (1.0F / 6.0F + e * (1.0F / 24.0F + e * (1.0F / 120.0F)))));
      const float t = physics * factor;
      us[c] = (t < kHuge ? t : kHuge) + v.blocked[c];
    }
  }
}

}  // namespace

const DecideKernels RAMP_DECIDE_SYMBOL = {RAMP_DECIDE_NAME, count_tiles, similarity, evaluate};

}  // namespace ramp::core
