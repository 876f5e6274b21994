// See rows.hpp. Everything here is one row at a time and as plain as it can be.
#include "backend/reference/rows.hpp"

#include <algorithm>
#include <array>
#include <numeric>

#include "base/error.hpp"
#include "base/float_types.hpp"
#include "base/tensor.hpp"
#include "weights/quantize.hpp"

namespace ramp::core::reference {
namespace {

bool is_fp8(const ExpertWeights& w) noexcept {
  return weight_dtype(w.format) == RAMP_E4M3;
}

// The exact values of the 256 codes.
template <typename F>
const std::array<F, 256>& e4m3_values() noexcept {
  static const std::array<F, 256> table = [] {
    std::array<F, 256> t{};
    for (size_t code = 0; code < t.size(); ++code) t[code] = e4m3_to_f32(static_cast<uint8_t>(code));
    return t;
  }();
  return table;
}

// n values of a weight row, times the scale that holds for each run of kGroup columns. (Where the format has
// one scale per row or tensor, scale_at gives the same one for every run.)
template <typename F, typename ScaleAt>
void dequantize_row(const ramp_tensor& t, int64_t expert, int64_t row, int64_t n, ScaleAt&& scale_at,
                    F* out) {
  const int64_t offset = expert * t.stride[0] + row * t.stride[1];
  switch (t.dtype) {
    case RAMP_E4M3: {
      const std::array<F, 256>& values = e4m3_values<F>();
      const uint8_t* codes = static_cast<const uint8_t*>(t.data) + offset;
      for (int64_t first = 0; first < n; first += kGroup) {
        const F scale = static_cast<F>(scale_at(first));
        for (int64_t k = first; k < std::min(n, first + kGroup); ++k) out[k] = values[codes[k]] * scale;
      }
      return;
    }
    case RAMP_BF16: {
      const uint16_t* v = static_cast<const uint16_t*>(t.data) + offset;
      for (int64_t k = 0; k < n; ++k) out[k] = static_cast<F>(bf16_to_f32(v[k]));
      return;
    }
    case RAMP_F16: {
      const uint16_t* v = static_cast<const uint16_t*>(t.data) + offset;
      for (int64_t k = 0; k < n; ++k) out[k] = static_cast<F>(f16_to_f32(v[k]));
      return;
    }
    default: {
      const float* v = static_cast<const float*>(t.data) + offset;
      for (int64_t k = 0; k < n; ++k) out[k] = static_cast<F>(v[k]);
      return;
    }
  }
}

// Quantises n fp32 values to e4m3 with the format's kind of scale and gives back the values that the codes
// stand for.
template <typename F>
void through_e4m3(const ExpertWeights& w, const float* v, int64_t n, float static_scale, F* out) {
  std::vector<uint8_t> codes(static_cast<size_t>(n));
  std::vector<float> scales;
  int64_t group = n;
  switch (w.format) {
    case RAMP_FORMAT_FP8_BLOCK:
      group = kGroup;
      scales.resize(static_cast<size_t>((n + kGroup - 1) / kGroup));
      quantize_row_groups(v, n, codes.data(), scales.data());
      break;
    case RAMP_FORMAT_FP8_CHANNEL:
      scales.push_back(quantize_row_dynamic(v, n, codes.data()));
      break;
    default:
      scales.push_back(static_scale);
      quantize_row_static(v, n, static_scale, codes.data());
      break;
  }
  for (int64_t k = 0; k < n; ++k)
    out[k] = e4m3_values<F>()[codes[static_cast<size_t>(k)]] *
             static_cast<F>(scales[static_cast<size_t>(k / group)]);
}

}  // namespace

int64_t ReferencePacked::bytes() const noexcept {
  return numel(w13) * dtype_bytes(static_cast<ramp_dtype>(w13.dtype)) +
         numel(w2) * dtype_bytes(static_cast<ramp_dtype>(w2.dtype));
}

WeightViews weight_views(const ExpertWeights& w) {
  if (w.packed != nullptr) {
    const auto* packed = dynamic_cast<const ReferencePacked*>(w.packed.get());
    if (packed != nullptr) return {&w, packed->w13, packed->w2};
  }
  if (w.w13.data == nullptr || w.w2.data == nullptr) {
    fail_argument("weights", "weights packed by another backend", "the checkpoint layout",
                  "give the reference a handle of its own that is not packed", RAMP_ERROR_UNSUPPORTED);
  }
  return {&w, w.w13, w.w2};
}

int64_t local_expert_of(int64_t id, std::span<const int32_t> map, int64_t num_local) noexcept {
  if (id == -1) return -1;
  if (!map.empty()) {
    if (id < 0 || id >= static_cast<int64_t>(map.size())) return -2;
    id = map[static_cast<size_t>(id)];
    if (id == -1) return -1;
  }
  return id >= 0 && id < num_local ? id : -2;
}

int64_t id_at(const ramp_tensor& ids, int64_t row, int64_t col) noexcept {
  const int64_t at = row * ids.stride[0] + col * ids.stride[1];
  return ids.dtype == RAMP_I64 ? static_cast<const int64_t*>(ids.data)[at]
                               : static_cast<const int32_t*>(ids.data)[at];
}

std::vector<std::vector<Source>> sources_of(const BlockCall& call, std::span<const int64_t> tokens,
                                            int64_t* masked, int64_t* out_of_range) {
  std::vector<std::vector<Source>> lists(static_cast<size_t>(call.weights->experts));
  for (size_t n = 0; n < tokens.size(); ++n) {
    const int64_t t = tokens[n];
    for (int64_t j = 0; j < call.top_k; ++j) {
      const int64_t e = local_expert_of(id_at(call.ids, t, j), call.expert_map, call.weights->experts);
      if (e == -1 && masked != nullptr) ++*masked;
      if (e == -2 && out_of_range != nullptr) ++*out_of_range;
      if (e < 0) continue;
      const float weight = static_cast<const float*>(
          call.topk_weights.data)[t * call.topk_weights.stride[0] + j * call.topk_weights.stride[1]];
      Source s;
      s.x = t * call.x.stride[0];
      s.x_scale = t * call.x_scale.stride[0];
      s.weighted = call.router_weight_on_input;
      s.input_weight = s.weighted ? weight : 1.0F;
      s.output_weight = s.weighted ? 1.0F : weight;
      s.token = t;
      s.slot = j;
      s.out = static_cast<int64_t>(n) * call.top_k + j;
      lists[static_cast<size_t>(e)].push_back(s);
    }
  }
  return lists;
}

std::vector<std::vector<Source>> sources_of(const BatchedCall& call, std::span<const int64_t> rows) {
  std::vector<std::vector<Source>> lists(static_cast<size_t>(call.weights->experts));
  for (size_t n = 0; n < rows.size(); ++n) {
    const int64_t e = rows[n] / call.max_tokens;
    const int64_t r = rows[n] % call.max_tokens;
    const int64_t at = e * call.counts.stride[0];
    const int64_t count = call.counts.dtype == RAMP_I64 ? static_cast<const int64_t*>(call.counts.data)[at]
                                                        : static_cast<const int32_t*>(call.counts.data)[at];
    if (r >= count) continue;
    Source s;
    s.x = e * call.x.stride[0] + r * call.x.stride[1];
    s.x_scale = e * call.x_scale.stride[0] + r * call.x_scale.stride[1];
    float weight = 1.0F;
    if (present(call.row_weights)) {
      weight = static_cast<const float*>(
          call.row_weights.data)[e * call.row_weights.stride[0] + r * call.row_weights.stride[1]];
    }
    s.weighted = call.router_weight_on_input && present(call.row_weights);
    s.input_weight = s.weighted ? weight : 1.0F;
    s.output_weight = s.weighted ? 1.0F : weight;
    s.token = rows[n];
    s.out = static_cast<int64_t>(n);
    lists[static_cast<size_t>(e)].push_back(s);
  }
  return lists;
}

std::vector<int64_t> list_or_all(std::span<const int64_t> list, int64_t n) {
  if (!list.empty()) return {list.begin(), list.end()};
  std::vector<int64_t> all(static_cast<size_t>(n));
  std::iota(all.begin(), all.end(), int64_t{0});
  return all;
}

int64_t flat_rows(const BatchedCall& call) noexcept {
  return call.max_tokens * call.weights->experts;
}

template <typename F>
void load_input(const ExpertWeights& w, const ramp_tensor& x, const ramp_tensor& x_scale, const Source& s,
                bool ideal, F* a) {
  const int64_t n = w.hidden;
  const auto dtype = static_cast<ramp_dtype>(x.dtype);
  if (dtype == RAMP_E4M3) {
    // Already quantised: the codes stay, a router weight goes into the scale.
    const auto* scales = static_cast<const float*>(x_scale.data) + s.x_scale;
    for (int64_t k = 0; k < n; ++k) {
      F scale = static_cast<F>(w.w13_input_scale);
      if (w.format == RAMP_FORMAT_FP8_BLOCK) scale = static_cast<F>(scales[k / kGroup]);
      if (w.format == RAMP_FORMAT_FP8_CHANNEL) scale = static_cast<F>(scales[0]);
      if (s.weighted) scale *= static_cast<F>(s.input_weight);
      a[k] = static_cast<F>(load_f32(x.data, dtype, s.x + k)) * scale;
    }
    return;
  }
  std::vector<float> v(static_cast<size_t>(n));
  for (int64_t k = 0; k < n; ++k) {
    v[static_cast<size_t>(k)] = load_f32(x.data, dtype, s.x + k);
    if (s.weighted) v[static_cast<size_t>(k)] *= s.input_weight;
  }
  if (!ideal && is_fp8(w)) {
    through_e4m3(w, v.data(), n, w.w13_input_scale, a);
    return;
  }
  for (int64_t k = 0; k < n; ++k) {
    float value = v[static_cast<size_t>(k)];
    if (!ideal && w.format == RAMP_FORMAT_BF16) value = bf16_to_f32(f32_to_bf16(value));
    if (!ideal && w.format == RAMP_FORMAT_F16) value = f16_to_f32(f32_to_f16(value));
    a[k] = static_cast<F>(value);
  }
}

template <typename F>
void requantize(const ExpertWeights& w, F* h) {
  const int64_t n = w.intermediate;
  std::vector<float> v(static_cast<size_t>(n));
  for (int64_t k = 0; k < n; ++k) v[static_cast<size_t>(k)] = static_cast<float>(h[k]);
  if (is_fp8(w)) {
    through_e4m3(w, v.data(), n, w.w2_input_scale, h);
    return;
  }
  for (int64_t k = 0; k < n; ++k) {
    float value = v[static_cast<size_t>(k)];
    if (w.format == RAMP_FORMAT_BF16) value = bf16_to_f32(f32_to_bf16(value));
    if (w.format == RAMP_FORMAT_F16) value = f16_to_f32(f32_to_f16(value));
    h[k] = static_cast<F>(value);
  }
}

template <typename F>
void weight_row13(const WeightViews& v, int64_t expert, int64_t row, F* out) {
  dequantize_row(
      v.w13, expert, row, v.w->hidden, [&](int64_t col) { return w13_scale_at(*v.w, expert, row, col); },
      out);
}

template <typename F>
void weight_row2(const WeightViews& v, int64_t expert, int64_t row, F* out) {
  dequantize_row(
      v.w2, expert, row, v.w->intermediate, [&](int64_t col) { return w2_scale_at(*v.w, expert, row, col); },
      out);
}

template void load_input(const ExpertWeights&, const ramp_tensor&, const ramp_tensor&, const Source&, bool,
                         float*);
template void load_input(const ExpertWeights&, const ramp_tensor&, const ramp_tensor&, const Source&, bool,
                         double*);
template void requantize(const ExpertWeights&, float*);
template void requantize(const ExpertWeights&, double*);
template void weight_row13(const WeightViews&, int64_t, int64_t, float*);
template void weight_row13(const WeightViews&, int64_t, int64_t, double*);
template void weight_row2(const WeightViews&, int64_t, int64_t, float*);
template void weight_row2(const WeightViews&, int64_t, int64_t, double*);

}  // namespace ramp::core::reference
