// Hugging Face checkpoints: a directory (config.json and model.safetensors, or shards with
// model.safetensors.index.json) or one .safetensors file, and the expert weights of one layer out of it.
//
// Tensor names (L layer, N expert; prefix "model." or any other before "layers."):
//   Mixtral                       layers.L.block_sparse_moe.experts.N.{w1 gate, w3 up, w2 down}.weight,
//   .gate.weight OLMoE, Qwen2/3-MoE,           layers.L.mlp.experts.N.{gate_proj, up_proj, down_proj}.weight,
//   mlp.gate.weight
//     DeepSeek-V2/V3, GLM-4.5     + mlp.gate.e_score_correction_bias, mlp.shared_experts.*,
//     mlp.shared_expert.*
//   stacked (both families)       ...experts.gate_up_proj and .down_proj, [E, 2I, H] and [E, H, I] or both
//                                 transposed; the shapes tell which
// Formats: bf16, fp16, f32, and e4m3 with *_scale_inv (f32 or bf16, per 128x128 block; a multiplier despite
// its name), as DeepSeek-V3 stores them.
#pragma once

#include <cstdint>
#include <map>
#include <memory>
#include <mutex>
#include <string>
#include <unordered_map>
#include <vector>

#include "base/aligned_buffer.hpp"
#include "loader/model_config.hpp"
#include "loader/safetensors.hpp"
#include "ramp/ramp.h"

namespace ramp::core {

// A tensor of the checkpoint: its description and its bytes in the mapped file (not necessarily aligned).
struct CheckpointTensor {
  std::string name;
  const SafetensorsEntry* entry = nullptr;
  std::span<const std::byte> bytes;
  const std::string* file = nullptr;
};

// What ramp_checkpoint_layer_info returns, and what the ABI struct has no field for.
struct LayerInfo {
  // Pointers live as long as the Checkpoint. router.num_shared_experts is 0: a checkpoint's shared experts
  // are not among num_experts (see `shared`). top_k is 0 if there is no config.json (a lone .safetensors
  // file).
  ramp_layer_info info{};
  // Shared experts of this layer (DeepSeek, GLM, Qwen2-MoE): an always-on MLP beside the routed experts.
  struct Shared {
    int64_t experts = 0;  // n such that their intermediate size is n * I; 0: none, or not a multiple of I
    int64_t intermediate = 0;  // n * I; 0: this layer has none
    bool gated = false;  // Qwen2-MoE: scaled by sigmoid(x * shared_expert_gate), so weight 1 would be wrong
  } shared;
};

class Checkpoint {
 public:
  // Opens the directory or file; shards are mapped when a tensor in them is first needed, so a layer loads
  // from a partial download that holds its shards. Throws Error(IO) or Error(BAD_FILE).
  explicit Checkpoint(const std::string& path);

  [[nodiscard]] const std::string& path() const noexcept { return path_; }
  [[nodiscard]] const ModelConfig& config() const noexcept { return config_; }
  [[nodiscard]] int64_t num_layers() const noexcept { return num_layers_; }
  // The first layer that has experts (not dense); throws if there is none.
  [[nodiscard]] int64_t first_moe_layer() const;

  // Throws Error(INVALID_ARGUMENT) for a layer out of range or dense, BAD_FILE for missing or malformed
  // tensors, UNSUPPORTED for formats that ramp cannot run. Thread-safe.
  [[nodiscard]] LayerInfo layer_info(int64_t layer) const;

  // Lookup by full tensor name. get throws Error(BAD_FILE) if the checkpoint has no such tensor, Error(IO) if
  // its shard is missing. Thread-safe.
  [[nodiscard]] bool has(const std::string& name) const { return where_.contains(name); }
  [[nodiscard]] CheckpointTensor get(const std::string& name) const;
  // "model.layers.3." for layer 3.
  [[nodiscard]] std::string layer_prefix(int64_t layer) const;

 private:
  void open_directory();
  void open_single(const std::string& file);
  void open_index(const std::string& index_path);
  void scan_names();
  [[nodiscard]] const SafetensorsFile& shard(size_t index, const std::string& tensor) const;
  // The tensor as an aligned view of `dtype` (NONE: its own): into the map where possible, else a copy kept
  // here.
  [[nodiscard]] ramp_tensor view(const CheckpointTensor& tensor, ramp_dtype dtype) const;

  std::string path_, directory_, index_;
  ModelConfig config_;
  std::string prefix_;  // before "layers."
  int64_t num_layers_ = 0;
  std::vector<std::string> shard_names_;
  std::unordered_map<std::string, size_t> where_;  // tensor -> shard
  mutable std::mutex mutex_;                       // guards the two below
  mutable std::vector<std::unique_ptr<SafetensorsFile>> shards_;
  mutable std::map<std::string, AlignedBuffer> copies_;
};

struct LoadOptions {
  // Appends the layer's shared experts after the routed ones, split into n experts of the routed size (then
  // route with num_shared_experts = n; they get weight 1). Error(UNSUPPORTED) where that is not the same
  // computation: a gated shared expert, a size that is no multiple of I, or fp8 blocks that would straddle
  // the split.
  bool append_shared_experts = false;
};

// Expert weights in owned buffers, w13 rows gate then up. desc views the buffers, with ownership RAMP_BORROW:
// whoever builds the handle moves the four buffers into it, so that a layer is in memory once.
struct LoadedLayer {
  ramp_weights_desc desc{};
  AlignedBuffer w13, w2;
  std::vector<float> w13_scale, w2_scale;  // fp8_block only
  int64_t shared_experts = 0;              // how many of desc.num_experts, at the end, are shared ones
};

// Experts [first_expert, first_expert + num_experts) of a layer (num_experts 0: all from first_expert on).
LoadedLayer load_layer(const Checkpoint& checkpoint, int64_t layer, int64_t first_expert = 0,
                       int64_t num_experts = 0, const LoadOptions& options = {});

}  // namespace ramp::core
