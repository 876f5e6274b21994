// Which configs the CPU backend offers for a shape, why not the others, and the analytic default that picks
// one from a histogram when no fit does.
//
// What the parameters mean here. tile_m: most rows of x in a tile. tile_n: rows of w13 (gate and up counted)
// in a tile; w2 is cut into as many slices. tile_k: depth step: a tile's x rows and decoded weights of one
// step live in cache. order, group_m: order of the tiles of one expert. split_k: depth of GEMM1 split over
// that many tiles (partial sums are added in order before the activation; GEMM2 has H rows and needs no
// split). stages: prefetch distance along the panel, in pieces of 1088 bytes, the current one counted (1: no
// software prefetch); where the depth is cut into steps, the piece of the panel that comes next is fetched
// instead.
#pragma once

#include <cstdint>
#include <span>
#include <string>

#include "backend/backend.hpp"
#include "geometry/config.hpp"
#include "geometry/model.hpp"

namespace ramp::core {

// "" when the backend runs this config for this shape; else the reason, with the numbers.
std::string cpu_config_rejection(const KernelConfig& c, const ModelShape& model, ramp_format format,
                                 ramp_activation activation);
// The same rules without text: no allocation, for the hot path.
bool cpu_config_legal(const KernelConfig& c, int64_t hidden, int64_t intermediate, ramp_format format,
                      ramp_activation activation) noexcept;

ConfigList cpu_configs(const ModelShape& model, ramp_format format, ramp_activation activation,
                       bool with_rejected);

// The analytic default: a rule of thumb, no measurement behind its thresholds but the ones named in the
// source. histogram: c_e per local expert. Always legal for the shape.
KernelConfig cpu_default_config(std::span<const int32_t> histogram, int64_t hidden, int64_t intermediate,
                                ramp_format format, ramp_activation activation, ramp_determinism determinism,
                                int32_t workers) noexcept;

}  // namespace ramp::core
