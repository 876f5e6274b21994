// See naive.hpp.
#include <algorithm>
#include <cmath>

#include "base/float_types.hpp"
#include "base/tensor.hpp"
#include "numerics/naive.hpp"

namespace ramp::core::test {
namespace {

double read(const ramp_tensor& t, int64_t a, int64_t b, int64_t c) {
  const int64_t at =
      a * t.stride[0] + (t.ndim > 1 ? b * t.stride[1] : 0) + (t.ndim > 2 ? c * t.stride[2] : 0);
  if (t.dtype == RAMP_E4M3) return naive_e4m3(static_cast<const uint8_t*>(t.data)[at]);
  return load_f32(t.data, static_cast<ramp_dtype>(t.dtype), at);
}

double naive_w13(const ramp_weights_desc& d, int64_t e, int64_t row, int64_t col) {
  const double v = read(d.w13, e, row, col);
  const bool up = row >= d.intermediate;
  const int64_t r = up ? row - d.intermediate : row;
  const int64_t blocks = (d.intermediate + 127) / 128;
  switch (d.format) {
    case RAMP_FORMAT_FP8_BLOCK:
      return v * read(d.w13_scale, e, (up ? blocks : 0) + r / 128, col / 128);
    case RAMP_FORMAT_FP8_TENSOR:
      return v * read(d.w13_scale, e, up ? 1 : 0, 0);
    case RAMP_FORMAT_FP8_CHANNEL:
      return v * read(d.w13_scale, e, row, 0);
    default:
      return v;
  }
}

double naive_w2(const ramp_weights_desc& d, int64_t e, int64_t row, int64_t col) {
  const double v = read(d.w2, e, row, col);
  switch (d.format) {
    case RAMP_FORMAT_FP8_BLOCK:
      return v * read(d.w2_scale, e, row / 128, col / 128);
    case RAMP_FORMAT_FP8_TENSOR:
      return v * read(d.w2_scale, e, 0, 0);
    case RAMP_FORMAT_FP8_CHANNEL:
      return v * read(d.w2_scale, e, row, 0);
    default:
      return v;
  }
}

// Quantises as GEMM inputs are, and returns the values that the codes stand for.
std::vector<double> naive_quantise(const ramp_weights_desc& d, const std::vector<float>& v,
                                   float static_scale) {
  std::vector<double> out(v.size());
  const auto n = static_cast<int64_t>(v.size());
  for (int64_t i = 0; i < n; ++i) {
    const float x = v[static_cast<size_t>(i)];
    if (d.format == RAMP_FORMAT_F32) out[static_cast<size_t>(i)] = x;
    if (d.format == RAMP_FORMAT_BF16) out[static_cast<size_t>(i)] = bf16_to_f32(f32_to_bf16(x));
    if (d.format == RAMP_FORMAT_F16) out[static_cast<size_t>(i)] = f16_to_f32(f32_to_f16(x));
    if (d.w13.dtype != RAMP_E4M3) continue;
    float scale = static_scale;
    if (d.format != RAMP_FORMAT_FP8_TENSOR) {
      const int64_t first = d.format == RAMP_FORMAT_FP8_BLOCK ? i / 128 * 128 : 0;
      const int64_t last = d.format == RAMP_FORMAT_FP8_BLOCK ? std::min(n, first + 128) : n;
      float amax = 1e-10F;
      for (int64_t j = first; j < last; ++j) amax = std::fmax(amax, std::fabs(v[static_cast<size_t>(j)]));
      scale = amax / 448.0F;
    }
    out[static_cast<size_t>(i)] = naive_e4m3(naive_to_e4m3(x / scale)) * static_cast<double>(scale);
  }
  return out;
}

double naive_activation(int32_t a, double g, double u) {
  switch (a) {
    case RAMP_ACTIVATION_SILU_AND_MUL:
      return u * g / (1 + std::exp(-g));
    case RAMP_ACTIVATION_GELU_AND_MUL:
      return u * g * 0.5 * (1 + std::erf(g * std::sqrt(0.5)));
    case RAMP_ACTIVATION_GELU_TANH_AND_MUL:
      return u * g * 0.5 * (1 + std::tanh(std::sqrt(2 / M_PI) * (g + 0.044715 * std::pow(g, 3))));
    default:
      return g > 0 ? g * g : 0;
  }
}

// expert e of the row whose elements x(k) are f32 (or dequantised codes, with `quantised`).
std::vector<double> naive_expert(const ramp_weights_desc& d, int64_t e, const std::vector<double>& a) {
  const int64_t h = d.hidden;
  const int64_t i = d.intermediate;
  const bool gated = d.activation != RAMP_ACTIVATION_RELU2;
  std::vector<float> middle(static_cast<size_t>(i));
  for (int64_t n = 0; n < i; ++n) {
    double gate = 0;
    double up = 0;
    for (int64_t k = 0; k < h; ++k) {
      gate += a[static_cast<size_t>(k)] * naive_w13(d, e, n, k);
      if (gated) up += a[static_cast<size_t>(k)] * naive_w13(d, e, i + n, k);
    }
    middle[static_cast<size_t>(n)] = static_cast<float>(naive_activation(d.activation, gate, up));
  }
  const float static_scale =
      present(d.w2_input_scale) ? *static_cast<const float*>(d.w2_input_scale.data) : 1.0F;
  const std::vector<double> b = naive_quantise(d, middle, static_scale);
  std::vector<double> z(static_cast<size_t>(h));
  for (int64_t n = 0; n < h; ++n) {
    for (int64_t k = 0; k < i; ++k)
      z[static_cast<size_t>(n)] += b[static_cast<size_t>(k)] * naive_w2(d, e, n, k);
  }
  return z;
}

// GEMM1's input. at(k): element k of x; scale(g): its scale g, for e4m3 x. weight: router weight on input.
template <typename At, typename Scale>
std::vector<double> naive_input(const ramp_weights_desc& d, bool codes, At at, Scale scale,
                                const float* weight) {
  const int64_t h = d.hidden;
  std::vector<double> a(static_cast<size_t>(h));
  if (codes) {
    for (int64_t k = 0; k < h; ++k) {
      const double s = d.format == RAMP_FORMAT_FP8_TENSOR
                           ? *static_cast<const float*>(d.w13_input_scale.data)
                           : scale(d.format == RAMP_FORMAT_FP8_BLOCK ? k / 128 : 0);
      a[static_cast<size_t>(k)] = at(k) * s * (weight != nullptr ? *weight : 1.0F);
    }
    return a;
  }
  std::vector<float> v(static_cast<size_t>(h));
  for (int64_t k = 0; k < h; ++k) {
    v[static_cast<size_t>(k)] = static_cast<float>(at(k));
    if (weight != nullptr) v[static_cast<size_t>(k)] *= *weight;
  }
  const float static_scale =
      present(d.w13_input_scale) ? *static_cast<const float*>(d.w13_input_scale.data) : 1.0F;
  return naive_quantise(d, v, static_scale);
}

}  // namespace

double naive_e4m3(uint8_t code) {
  const int exponent = (code >> 3) & 15;
  const int mantissa = code & 7;
  if (exponent == 15 && mantissa == 7) return std::nan("");
  const double magnitude = exponent == 0 ? std::ldexp(mantissa, -9) : std::ldexp(8 + mantissa, exponent - 10);
  return (code & 0x80) != 0 ? -magnitude : magnitude;
}

uint8_t naive_to_e4m3(float v) {
  if (std::isnan(v)) return 0x7f;
  const double target = std::fabs(static_cast<double>(v));
  int best = 0;
  for (int code = 1; code <= 0x7e; ++code) {
    const double d = std::fabs(naive_e4m3(static_cast<uint8_t>(code)) - target);
    const double b = std::fabs(naive_e4m3(static_cast<uint8_t>(best)) - target);
    if (d < b || (d == b && code % 2 == 0)) best = code;
  }
  if (std::isinf(v)) best = 0x7e;
  return static_cast<uint8_t>(best | (std::signbit(v) ? 0x80 : 0));
}

std::vector<double> naive_block(const BlockCase& c) {
  const ramp_weights_desc& d = c.synthetic.desc;
  const CaseSpec& s = c.spec;
  const bool per_slot = s.output == RAMP_OUTPUT_PER_SLOT;
  std::vector<double> y(static_cast<size_t>(s.tokens * (per_slot ? s.top_k : 1) * s.hidden));
  for (int64_t t = 0; t < s.tokens; ++t) {
    for (int64_t j = 0; j < s.top_k; ++j) {
      const int64_t at = t * c.ids.view.stride[0] + j * c.ids.view.stride[1];
      int64_t id = s.int64_ids ? static_cast<const int64_t*>(c.ids.view.data)[at]
                               : static_cast<const int32_t*>(c.ids.view.data)[at];
      const int64_t global = s.expert_map ? 2 * s.experts : s.experts;
      if (id < 0 || id >= global) continue;
      if (s.expert_map) id = c.map[static_cast<size_t>(id)];
      if (id < 0) continue;
      const float weight = c.topk_weights.get(t, j);
      const std::vector<double> a = naive_input(
          d, s.x_dtype == RAMP_E4M3, [&](int64_t k) { return read(c.x.view, t, k, 0); },
          [&](int64_t g) { return static_cast<double>(c.x_scale.get(t, g)); },
          s.router_weight_on_input ? &weight : nullptr);
      const std::vector<double> z = naive_expert(d, id, a);
      for (int64_t n = 0; n < s.hidden; ++n) {
        const double v = z[static_cast<size_t>(n)] * (s.router_weight_on_input ? 1.0 : weight);
        y[static_cast<size_t>((per_slot ? t * s.top_k + j : t) * s.hidden + n)] += v;
      }
    }
    for (int64_t n = 0; n < s.hidden && present(c.shared_addend.view); ++n)
      y[static_cast<size_t>(t * s.hidden + n)] += c.shared_addend.get(t, n);
  }
  return y;
}

std::vector<double> naive_batched(const BatchedCase& c) {
  const ramp_weights_desc& d = c.synthetic.desc;
  const CaseSpec& s = c.spec;
  std::vector<double> y(static_cast<size_t>(s.experts * s.tokens * s.hidden));
  for (int64_t e = 0; e < s.experts; ++e) {
    const int64_t count = s.int64_ids ? static_cast<const int64_t*>(c.counts.view.data)[e]
                                      : static_cast<const int32_t*>(c.counts.view.data)[e];
    for (int64_t r = 0; r < std::min(count, s.tokens); ++r) {
      const bool has_weight = present(c.row_weights.view);
      const float weight = has_weight ? c.row_weights.get(e, r) : 1.0F;
      const std::vector<double> a = naive_input(
          d, s.x_dtype == RAMP_E4M3, [&](int64_t k) { return read(c.x.view, e, r, k); },
          [&](int64_t g) { return read(c.x_scale.view, e, r, g); },
          s.router_weight_on_input && has_weight ? &weight : nullptr);
      const std::vector<double> z = naive_expert(d, e, a);
      for (int64_t n = 0; n < s.hidden; ++n)
        y[static_cast<size_t>((e * s.tokens + r) * s.hidden + n)] =
            z[static_cast<size_t>(n)] * (s.router_weight_on_input ? 1.0 : weight);
    }
  }
  return y;
}

}  // namespace ramp::core::test
