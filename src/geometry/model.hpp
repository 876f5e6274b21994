// The shapes of MoE layers: what geometry, cost models, benchmarks and the CLI mean by a "model".
#pragma once

#include <cstdint>
#include <optional>
#include <span>
#include <string>
#include <string_view>

#include "ramp/ramp.h"

namespace ramp::core {

// One MoE layer's shape. experts, top_k: E, k; hidden, intermediate: H, I (per expert, after tensor
// parallelism).
struct ModelShape {
  std::string name;  // registry name, or "E,k,H,I"
  int64_t experts = 0;
  int64_t top_k = 0;
  int64_t hidden = 0;
  int64_t intermediate = 0;
};

std::span<const ModelShape> known_models();  // DESIGN.md §9's list
// A registry name or "E,k,H,I". Throws Error naming the known models.
ModelShape parse_model(std::string_view text);

inline bool is_gated(ramp_activation a) noexcept {
  return a != RAMP_ACTIVATION_RELU2;
}
// Rows of w13 per expert (N1): 2*I gated, I not.
inline int64_t w13_rows(int64_t intermediate, ramp_activation a) noexcept {
  return is_gated(a) ? 2 * intermediate : intermediate;
}
const char* format_name(int32_t format) noexcept;  // "fp8_block", "bf16", ...
ramp_format parse_format(std::string_view name);   // throws Error
const char* activation_name(
    int32_t activation) noexcept;  // "silu_and_mul", "gelu_and_mul", "gelu_tanh_and_mul", "relu2"
ramp_activation parse_activation(std::string_view name);
ramp_dtype weight_dtype(ramp_format f) noexcept;  // e4m3, bf16, f16, f32
// Bytes of one expert's weights and scales (both GEMMs) as the checkpoint stores them.
int64_t expert_bytes(const ModelShape& m, ramp_format f, ramp_activation a) noexcept;

}  // namespace ramp::core
