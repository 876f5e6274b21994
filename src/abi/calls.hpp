// Checks of activations and routers that the expert block, the batched entry, routing and the fused forward
// share.
#pragma once

#include <cstdint>

#include "abi/handles.hpp"
#include "abi/validate.hpp"
#include "backend/backend.hpp"

namespace ramp::core {

struct Activations {
  ramp_tensor x{}, scale{};
};

// x [T,H] (tokens -1: any T) or, with slabs > 0, [slabs,max_tokens,H]; bf16, f16, f32, or e4m3 with the scale
// that the format asks for. Where the library quantises x itself a scale is an error.
Activations check_activations(const ramp_tensor& x, const ramp_tensor& x_scale, const ExpertWeights& weights,
                              int64_t slabs, ramp_device device);

// A router of the caller's, checked against the number of logits, with defaults filled in (scaling 0 -> 1).
ramp_router_config check_public_router(const ramp_router_config& router, int64_t num_logits,
                                       ramp_device device);

// Scratch that routing needs at most, whatever the router, for this many logits and slots.
uint64_t route_workspace_bound(const ramp_context& context, int64_t num_logits, int64_t slots,
                               int64_t max_tokens);

}  // namespace ramp::core
