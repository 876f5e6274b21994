// How one layer's experts lie in a checkpoint: which names, which orientation, which format. Found once per
// call from names and shapes, then followed by the loader.
#pragma once

#include <cstdint>
#include <string>

#include "loader/checkpoint.hpp"

namespace ramp::core {

enum class Projection { kGate, kUp, kDown };

struct LayerLayout {
  std::string base;            // "model.layers.3.mlp."
  bool mixtral = false;        // w1, w3, w2 instead of gate_proj, up_proj, down_proj
  bool stacked = false;        // one tensor for all experts: gate_up_proj and down_proj
  bool transposed = false;     // stacked as [E, H, 2I] and [E, I, H]
  std::string stacked_suffix;  // "" or ".weight"
  ramp_format format = RAMP_FORMAT_NONE;
  ramp_dtype dtype = RAMP_DTYPE_NONE;
  int64_t experts = 0, hidden = 0, intermediate = 0;
  // Filled by find_shared.
  std::string shared_base;  // "model.layers.3.mlp.shared_experts."; "" if the layer has none
  int64_t shared_intermediate = 0;
  bool shared_gated = false;

  // Full names. `expert` is ignored for stacked layouts, where gate and up share a tensor.
  [[nodiscard]] std::string expert_name(int64_t expert, Projection p) const;
  [[nodiscard]] std::string shared_name(Projection p) const;
  [[nodiscard]] std::string router_name() const { return base + "gate.weight"; }
};

// probe: the expert whose tensors tell the shapes (its shard must be there). Throws as Checkpoint::layer_info
// does.
LayerLayout describe_layer(const Checkpoint& checkpoint, int64_t layer, int64_t probe);

// Looks for shared experts. Apart from describe_layer, so that a load without them does not need their shard.
void find_shared(const Checkpoint& checkpoint, LayerLayout& layout);

// Throws Error(BAD_FILE) naming tensor and file unless it has this dtype and shape.
void check_shape(const CheckpointTensor& tensor, ramp_dtype dtype, std::initializer_list<int64_t> shape);

}  // namespace ramp::core
