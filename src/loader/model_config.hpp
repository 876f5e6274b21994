// config.json of a Hugging Face MoE model: shapes, router and quantisation, as plain values.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "ramp/ramp.h"

namespace ramp::core {

struct ModelConfig {
  bool present = false;  // false: there was no config.json; everything below is unknown (zero)
  std::string architecture = "unknown";  // model_type
  int64_t num_experts = 0, top_k = 0, hidden = 0, intermediate = 0, num_layers = 0;
  int64_t num_shared_experts = 0;
  ramp_activation activation = RAMP_ACTIVATION_SILU_AND_MUL;
  // All but selection_bias, which is a tensor of the layer.
  ramp_router_config router{};
  bool wants_selection_bias = false;  // DeepSeek-V3's topk_method "noaux_tc"
  // Dense layers.
  int64_t first_k_dense_replace = 0, moe_layer_freq = 1, decoder_sparse_step = 1;
  std::vector<int64_t> mlp_only_layers;
  // quantization_config
  std::string quant_method;                       // "" if none
  std::optional<int64_t> block_rows, block_cols;  // weight_block_size

  [[nodiscard]] bool is_dense(int64_t layer) const noexcept;
};

// Throws Error(BAD_FILE) for malformed JSON, wrong types or values out of range (naming file and key), and
// Error(UNSUPPORTED) for a model_type whose router is neither known nor spelled out.
ModelConfig parse_model_config(std::string_view json, const std::string& name);

}  // namespace ramp::core
