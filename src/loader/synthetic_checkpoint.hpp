// Small made-up checkpoints in Hugging Face layout, for the demo and the tests: the same files that a real
// model has (config.json, safetensors, index), with values that are a pure function of seed, tensor name and
// index.
#pragma once

#include <cstdint>
#include <functional>
#include <string>

#include "geometry/model.hpp"
#include "ramp/ramp.h"

namespace ramp::core {

struct SyntheticOptions {
  std::string architecture = "olmoe";  // olmoe, mixtral, qwen2_moe, qwen3_moe, deepseek_v2, deepseek_v3
  ModelShape shape;
  ramp_format format = RAMP_FORMAT_FP8_BLOCK;  // or bf16, f16, f32
  int64_t layers = 1;
  uint64_t seed = 0;
  int64_t shards = 1;                 // > 1: model-0000i-of-0000n.safetensors and an index
  int64_t dense_layers = 0;           // DeepSeek's first_k_dense_replace
  int64_t shared_experts = 0;         // DeepSeek's n_shared_experts; Qwen2-MoE: 0 or 1
  ramp_dtype scale_dtype = RAMP_F32;  // of weight_scale_inv: f32 or bf16
  bool stacked = false;     // experts.gate_up_proj / experts.down_proj instead of one tensor per expert
  bool transposed = false;  // stacked as [E, H, 2I] and [E, I, H]
};

// Creates `directory` (its parent must exist) and the files in it; each file is atomic. Weights are
// approximately normal with standard deviation 1/sqrt(fan in). progress, if given, is called with the
// fraction done. Throws Error(INVALID_ARGUMENT) for options that make no checkpoint, Error(IO).
void write_demo_checkpoint(const std::string& directory, const SyntheticOptions& options,
                           const std::function<void(double)>& progress = {});

// The value before rounding to the storage type: element `index` of tensor `name`, with unit variance.
float synthetic_value(uint64_t seed, const std::string& name, int64_t index) noexcept;

}  // namespace ramp::core
