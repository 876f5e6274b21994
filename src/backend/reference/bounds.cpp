// See bounds.hpp; the section numbers are those of docs/numerics.md.
#include "backend/reference/bounds.hpp"

#include <algorithm>
#include <cmath>
#include <limits>
#include <numbers>

#include "backend/backend.hpp"
#include "backend/reference/check.hpp"
#include "base/float_types.hpp"
#include "weights/activation.hpp"
#include "weights/quantize.hpp"

namespace ramp::core::reference {
namespace {

constexpr double kInfinity = std::numeric_limits<double>::infinity();
constexpr double kLargest = std::numeric_limits<float>::max();
// Absolute slack per operation for backends that flush subnormals (operands below 2^26): 2^-126 * 2^26.
constexpr double kUnderflow = 0x1p-100;
// Roundings besides the additions on the way of one term: two dequantisations, the product, the scale.
constexpr double kTermRoundings = 4;
// Error of an fp32 activation function in units of kUnit: relative, and for gelu also absolute in |gate|.
constexpr double kActivationUnits = 8;
constexpr double kGeluTailUnits = 4;

struct Curve {
  double value = 0, slope = 0, curvature = 0;  // curvature: bound of |f''| everywhere
};

// f, f' and max |f''| of the activations, in fp64 (section 3.2).
Curve curve_of(ramp_activation a, double g) noexcept {
  switch (a) {
    case RAMP_ACTIVATION_SILU_AND_MUL: {
      const double s = 1.0 / (1.0 + std::exp(-g));
      return {silu(g), s * (1.0 + g * (1.0 - s)), 0.5};  // |f''| is largest at 0: 1/2
    }
    case RAMP_ACTIVATION_GELU_AND_MUL: {
      const double phi = std::exp(-0.5 * g * g) / std::sqrt(2.0 * std::numbers::pi);
      return {gelu(g), 0.5 * std::erfc(-g / std::numbers::sqrt2) + g * phi, 0.8};  // at 0: sqrt(2/pi)
    }
    case RAMP_ACTIVATION_GELU_TANH_AND_MUL: {
      const double z = kGeluTanhScale * (g + kGeluTanhCubic * g * g * g);
      const double s = 1.0 / (1.0 + std::exp(-2.0 * z));
      const double dz = kGeluTanhScale * (1.0 + 3.0 * kGeluTanhCubic * g * g);
      const double tail = g * s * (1.0 - s) * 2.0 * dz;
      return {gelu_tanh(g), s + (std::isfinite(tail) ? tail : 0.0), 0.85};
    }
    case RAMP_ACTIVATION_RELU2:
      return {relu2(g), g > 0 ? 2.0 * g : 0.0, 2.0};
  }
  return {};
}

double finite_or_infinite(double v) noexcept {
  return std::isfinite(v) ? v : kInfinity;
}

// The value a code stands for after scaling by 1.
double code_value(double v, float scale) noexcept {
  return e4m3_to_f32(f32_to_e4m3(static_cast<float>(v) / scale));
}

struct CodeRange {
  double low = 0, high = 0;
};
// Codes that v in [h - d, h + d] can get with a scale in [s_low, s_high].
CodeRange codes(double h, double d, float s_low, float s_high) noexcept {
  return {std::min(code_value(h - d, s_low), code_value(h - d, s_high)),
          std::max(code_value(h + d, s_low), code_value(h + d, s_high))};
}

// Largest |h| of a run, with the interval that it lies in for a given uncertainty of each value.
struct Amax {
  double value = 0, low = 0, high = 0;
  void add(double h, double d) noexcept {
    const double a = std::fabs(h);
    if (std::isnan(a)) return;  // NaN does not count
    value = std::max(value, a);
    low = std::max(low, a - d);
    high = std::max(high, a + d);
  }
};

// One run of values with a common scale (section 3.3): fp8_block groups, or the whole row.
void requantize_run(const std::vector<Uncertain>& h, size_t first, size_t last, const float* static_scale,
                    Requantized& out) {
  Amax rigorous;
  Amax statistical;
  for (size_t j = first; j < last; ++j) {
    rigorous.add(h[j].value, h[j].error);
    statistical.add(h[j].value, kCheckSigmas * h[j].sigma);
  }
  const auto scale_at = [&](double amax) {
    return static_scale != nullptr ? *static_scale : amax_scale(static_cast<float>(amax));
  };
  const float scale = scale_at(rigorous.value);
  const float low = scale_at(rigorous.low);
  const float high = scale_at(rigorous.high);
  const float low_s = scale_at(statistical.low);
  const float high_s = scale_at(statistical.high);
  const double s0 = scale;
  const bool unknown = std::isfinite(rigorous.value) && !std::isfinite(rigorous.high);  // fp32 may overflow
  for (size_t j = first; j < last; ++j) {
    if (unknown && !std::isnan(h[j].value)) {
      out.error[j] = out.sigma[j] = kInfinity;
      continue;
    }
    const double code = code_value(h[j].value, scale);
    out.value[j] = code * s0;
    if (std::isinf(h[j].value) || std::isinf(s0)) out.infinite = true;
    if (std::isnan(code)) continue;  // NaN, whatever the uncertainty
    const CodeRange r = codes(h[j].value, h[j].error, low, high);
    out.error[j] = finite_or_infinite(std::max(r.high - code, code - r.low) * s0);
    if (out.error[j] != 0.0) ++out.flips;
    const double d = kCheckSigmas * h[j].sigma;
    const CodeRange s = codes(h[j].value, d, low_s, high_s);
    out.sigma[j] = finite_or_infinite(std::max(s.high - code, code - s.low) * s0);
  }
  for (size_t g = first / kGroup; g * kGroup < last; ++g) {
    out.scale_error[g] = finite_or_infinite(std::max(high - s0, s0 - low) / s0);
    out.scale_sigma[g] = finite_or_infinite(std::max(high_s - s0, s0 - low_s) / s0) / kCheckSigmas;
    if (std::isinf(s0)) out.scale_error[g] = out.scale_sigma[g] = 0.0;  // NaN or infinite result anyway
  }
}

// bf16, f16: rounded to the type; f32: as it is.
void round_row(const std::vector<Uncertain>& h, ramp_dtype dtype, Requantized& out) {
  for (size_t j = 0; j < h.size(); ++j) {
    if (std::isfinite(h[j].value) && !std::isfinite(h[j].error)) {  // fp32 may overflow
      out.error[j] = out.sigma[j] = kInfinity;
      continue;
    }
    const double v = round_to(dtype, h[j].value);
    out.value[j] = v;
    if (std::isinf(v)) out.infinite = true;
    if (!std::isfinite(h[j].value)) continue;
    const auto reach = [&](double d) {
      const double up = round_to(dtype, h[j].value + d);
      const double down = round_to(dtype, h[j].value - d);
      if (up == down) return 0.0;
      return finite_or_infinite(std::max(up - v, v - down));
    };
    if (dtype == RAMP_F32) {
      out.error[j] = h[j].error;
      out.sigma[j] = h[j].sigma;
      continue;
    }
    out.error[j] = reach(h[j].error);
    if (out.error[j] != 0.0) ++out.flips;
    out.sigma[j] = reach(kCheckSigmas * h[j].sigma);
  }
}

}  // namespace

Uncertain fp32_dot(const DotSums& s, double depth, double tensor_unit) noexcept {
  const double n = depth + kTermRoundings;
  // A rounding error is at most kUnit times the partial sum, kUnit/sqrt(3) in the mean square. Partial sums
  // drift to |sum| with the spread of a random walk, sqrt(square): twice that is allowed for.
  const double partial = std::fabs(s.sum) + 2.0 * std::sqrt(s.square);
  Uncertain r{s.sum, gamma_of(n) * s.absolute + depth * kUnderflow,
              kUnit * std::sqrt(n / 3.0) * partial + depth * kUnderflow};
  if (tensor_unit == kHalfTensorUnit) {
    // bf16 and f16: per instruction 16 products and the sum so far are cut towards zero to multiples of
    // tensor_unit times (at most) the largest of them, then their sum to fp32: up to 2 * kUnit of it.
    // Statistical: cuts have their terms' signs, so they scatter, with a mean square of 1/3 of the unit's;
    // the cut of the sum, kUnit times it in the mean, always shrinks it, which is an offset and not a spread.
    constexpr double kColumns = 16;
    constexpr double kCuts = kColumns + 1;
    const double chain = std::ceil(depth / kColumns);
    r.error += chain * (kCuts * tensor_unit + 2.0 * kUnit) * s.absolute;
    r.sigma = std::hypot(r.sigma, tensor_unit * std::sqrt(kCuts * chain / 3.0) *
                                      (std::fabs(s.sum) + 3.0 * std::sqrt(s.square))) +
              chain * kUnit * partial / kCheckSigmas;
  } else if (tensor_unit > 0) {
    // FP8: per instruction 32 products and the accumulator are cut to multiples of tensor_unit times (at
    // most) the largest of them; 4 instructions per 128 columns start from zero. Rigorous: each of the 33
    // cuts loses less than tensor_unit times the step's sum of magnitudes. Statistical: a cut is uniform, so
    // it spreads by 1/sqrt(12) of that unit, and the largest term of a step is taken as the drift plus three
    // times the spread of its sum.
    constexpr double kCuts = 4 * 34;
    r.error += kCuts * tensor_unit * s.absolute;
    r.sigma = std::hypot(
        r.sigma, tensor_unit * std::sqrt(kCuts / 12.0) * (std::fabs(s.sum) + 3.0 * std::sqrt(s.square)));
  }
  if (!(s.absolute < kLargest)) r.error = r.sigma = kInfinity;  // fp32 may overflow where fp64 does not
  return r;
}

Uncertain fp32_activation(ramp_activation a, const Uncertain& gate, const Uncertain& up) noexcept {
  const Curve f = curve_of(a, gate.value);
  const double tail = a == RAMP_ACTIVATION_GELU_AND_MUL || a == RAMP_ACTIVATION_GELU_TANH_AND_MUL
                          ? kGeluTailUnits * kUnit * std::fabs(gate.value)
                          : 0.0;
  const double own = kActivationUnits * kUnit * std::fabs(f.value) + tail + kUnderflow;
  const bool gated = is_gated(a);
  const double u = gated ? up.value : 1.0;
  const double value = gated ? f.value * u : f.value;

  const double df = (std::fabs(f.slope) + 0.5 * f.curvature * gate.error) * gate.error + own;
  const double error = df * (std::fabs(u) + (gated ? up.error : 0.0)) +
                       (gated ? (std::fabs(f.value)) * up.error : 0.0) + 2.0 * kUnit * std::fabs(value);
  const double sf = (std::fabs(f.slope) + 0.5 * f.curvature * gate.sigma) * gate.sigma;
  const double sigma = std::hypot(sf * u, gated ? f.value * up.sigma : 0.0) +
                       (own * std::fabs(u) + 2.0 * kUnit * std::fabs(value)) / kCheckSigmas;
  Uncertain r{value, finite_or_infinite(error), finite_or_infinite(sigma)};
  if (std::isfinite(value) && !(std::fabs(value) + r.error < kLargest)) r.error = r.sigma = kInfinity;
  return r;
}

Requantized requantize_uncertain(const ExpertWeights& w, const std::vector<Uncertain>& h) {
  const size_t n = h.size();
  const size_t groups = (n + kGroup - 1) / kGroup;
  Requantized out;
  out.value.assign(n, 0.0);
  out.error.assign(n, 0.0);
  out.sigma.assign(n, 0.0);
  out.scale_error.assign(groups, 0.0);
  out.scale_sigma.assign(groups, 0.0);
  out.stepwise = w.format != RAMP_FORMAT_F32;
  switch (w.format) {
    case RAMP_FORMAT_FP8_BLOCK:
      for (size_t first = 0; first < n; first += kGroup)
        requantize_run(h, first, std::min(n, first + static_cast<size_t>(kGroup)), nullptr, out);
      break;
    case RAMP_FORMAT_FP8_CHANNEL:
      requantize_run(h, 0, n, nullptr, out);
      break;
    case RAMP_FORMAT_FP8_TENSOR:
      requantize_run(h, 0, n, &w.w2_input_scale, out);
      break;
    default:
      round_row(h, weight_dtype(w.format), out);
      break;
  }
  return out;
}

double half_spacing(ramp_dtype dtype, double v) noexcept {
  int digits = 24;
  int smallest = -126;  // exponent of the smallest normal number
  if (dtype == RAMP_BF16) digits = 8;
  if (dtype == RAMP_F16) {
    digits = 11;
    smallest = -14;
  }
  int exponent = smallest;
  if (v != 0.0) std::frexp(v, &exponent);  // v = m * 2^exponent, m in [0.5, 1)
  return std::ldexp(0.5, std::max(exponent - 1, smallest) - digits + 1);
}

double round_to(ramp_dtype dtype, double v) noexcept {
  const auto f = static_cast<float>(v);
  if (dtype == RAMP_BF16) return bf16_to_f32(f32_to_bf16(f));
  if (dtype == RAMP_F16) return f16_to_f32(f32_to_f16(f));
  return f;
}

}  // namespace ramp::core::reference
