// What the launches of the flat formats' two kernels (stream_flat.cu, prefill_flat.cu) have in common:
// formats and the depth of their tiles, programs' activations, where token rows and weight scales lie, what
// comes between the GEMMs. Params: StreamParams or PrefillParams, whose fields have the same names.
#pragma once

#include <algorithm>
#include <array>
#include <cstddef>
#include <cstdint>

#include "backend/cuda/prologue.hpp"
#include "base/tensor.hpp"
#include "geometry/model.hpp"

namespace ramp::core::cuda {

// Of weights, and of the activations that meet them.
inline int64_t element_bytes(ramp_format format) noexcept {
  return dtype_bytes(weight_dtype(format));
}

inline constexpr std::array<ramp_format, 4> kFlatFormats = {RAMP_FORMAT_BF16, RAMP_FORMAT_F16,
                                                            RAMP_FORMAT_FP8_TENSOR, RAMP_FORMAT_FP8_CHANNEL};
// Its place among them; their number: none of them.
inline size_t flat_number(ramp_format format) noexcept {
  return static_cast<size_t>(std::find(kFlatFormats.begin(), kFlatFormats.end(), format) -
                             kFlatFormats.begin());
}
// A packed tile of weights: 128 rows of 128 bytes, and how many weights deep that is.
inline constexpr int64_t kFlatTileRows = 128;
inline int64_t flat_depth(ramp_format format) noexcept {
  constexpr int64_t kTileBytes = 128;
  return element_bytes(format) == 2 ? kTileBytes / 2 : kTileBytes;
}

// source, scale_source: RowSource (params/block.hpp).
template <typename Params>
void set_flat_input(Params& p, ramp_format format, const GemmInput& in, int source, int scale_source) {
  p.x = static_cast<const unsigned char*>(in.data);
  p.x_stride = in.stride * element_bytes(format);
  p.x_source = source;
  p.x_scale = in.scales;
  p.x_scale_stride = in.scale_stride;
  p.x_scale_source = scale_source;
  p.x_static = in.static_scale;
}

// up_row: first scale row of W13's up half, 0: W2. A tensor that is absent leaves p as it is.
template <typename Params>
void set_flat_scales(Params& p, const ramp_tensor& scale, int64_t up_row) {
  if (!present(scale)) return;
  p.weight_scale = static_cast<const float*>(scale.data);
  p.ws_expert = scale.stride[0];
  p.ws_row = scale.ndim > 1 ? scale.stride[1] : 0;  // [E]: gate and up share one
  p.up_scale_row = static_cast<int>(up_row);
}

// GEMM 2's input: the codes that GEMM 1 has left, or (fp8_channel, whose scales need whole rows) codes made
// from its rows of floats.
inline GemmInput flat_middle(Prologue& prologue, const ExpertWeights& w, const float* floats, int64_t slots,
                             const RowIndex& index, void* codes, float* scales, CUstream stream) {
  if (w.format == RAMP_FORMAT_FP8_CHANNEL && slots > 0)
    return prologue.requantize(w, floats, slots, index, codes, scales, stream);
  GemmInput in;
  in.data = codes;
  in.stride = w.intermediate;
  in.static_scale = w.w2_input_scale;
  return in;
}

}  // namespace ramp::core::cuda
