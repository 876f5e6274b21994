// What the launches of the flat formats' two kernels (stream_flat.cu, prefill_flat.cu) have in common: where
// token rows and weight scales lie. Params: StreamParams or PrefillParams, whose fields have the same names.
#pragma once

#include <cstdint>

#include "backend/cuda/prologue.hpp"
#include "base/tensor.hpp"
#include "geometry/model.hpp"

namespace ramp::core::cuda {

// Of weights, and of the activations that meet them.
inline int64_t element_bytes(ramp_format format) noexcept {
  return dtype_bytes(weight_dtype(format));
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

}  // namespace ramp::core::cuda
