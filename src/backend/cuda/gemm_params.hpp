// What the blocks fill in alike for their GEMMs, whichever kernels those are: fields that the parameter
// structs (StreamParams, PrefillParams, PortableParams and the plain kernels') have under the same names; and
// what of a call's router weights is left for GEMM 2.
#pragma once

#include <cstdint>

#include "backend/backend.hpp"
#include "backend/cuda/prologue.hpp"
#include "base/tensor.hpp"
#include "params/block.hpp"

namespace ramp::core::cuda {

// The plan. Its slots are numbered t*top_k + j.
template <typename Params>
void set_plan(Params& p, const RowIndex& index, int64_t top_k) {
  p.tiles = reinterpret_cast<decltype(p.tiles)>(index.tiles);
  p.num_tiles = index.num_tiles;
  p.offsets = index.offsets;
  p.slots = index.slots;
  p.top_k = static_cast<int>(top_k);
}

// Where rows of GEMM 1's input come from: RowSource.
inline auto row_source(bool per_slot) noexcept {
  return per_slot ? kRowSlot : kRowToken;
}

// Codes with scales of their own (fp8_block), for GEMM 1.
template <typename Params>
void set_input(Params& p, const GemmInput& in) {
  p.x = static_cast<const unsigned char*>(in.data);
  p.x_stride = in.stride;  // a code is a byte
  p.x_scale = in.scales;
  p.x_scale_stride = in.scale_stride;
  p.x_source = row_source(in.per_slot);
  p.x_scale_source = row_source(in.scales_per_slot);
}

// Scales of 128 x 128 blocks of weights (fp8_block).
template <typename Params>
void set_block_scales(Params& p, const ramp_tensor& scale) {
  p.weight_scale = static_cast<const float*>(scale.data);
  p.ws_expert = scale.stride[0];
  p.ws_row = scale.stride[1];
}

// weights: [T,k], absent where there is nothing to multiply by.
template <typename Params>
void set_router_weights(Params& p, const ramp_tensor& weights) {
  if (!present(weights)) return;
  p.slot_weight = static_cast<const float*>(weights.data);
  p.slot_weight_token = weights.stride[0];
  p.slot_weight_slot = weights.stride[1];
}

// The router weights that GEMM 2 multiplies its rows by: absent where they were applied to the input.
inline ramp_tensor weights_for_gemm2(const BlockCall& call) noexcept {
  return call.router_weight_on_input ? ramp_tensor{} : call.topk_weights;
}
inline ramp_tensor weights_for_gemm2(const BatchedCall& call) noexcept {
  return call.router_weight_on_input ? ramp_tensor{} : call.row_weights;
}

}  // namespace ramp::core::cuda
