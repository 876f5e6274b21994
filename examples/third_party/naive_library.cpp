// The naive kernel as a shared library for the command:
//   ramp profile --kernel-library libnaive_kernel.so --backend cpu --format f32 --model 2,1,32,32
// It needs the headers of ramp alone and links to nothing of it.
#include <ramp/dispatch.h>

#include <exception>
#include <map>
#include <memory>

#include "naive.hpp"

namespace {

// What the table points at, and the kernel's copy of each layer.
struct State {
  ramp_kernel_config configs[2];
  std::map<const ramp_weights*, std::unique_ptr<Naive>> layers;
};

int launch(void* user, int32_t config, void* call) {
  const ramp_expert_block_args& args = *static_cast<const ramp_block_call*>(call)->args;
  auto& layers = static_cast<State*>(user)->layers;
  const auto layer = layers.find(args.weights);
  if (layer == layers.end()) return 1;
  layer->second->run(config == 0 ? 1 : 8, args);
  return 0;
}

}  // namespace

extern "C" __attribute__((visibility("default"))) int ramp_kernel_library(
    const ramp_kernel_library_request* request, ramp_kernel_desc* desc) try {
  if (request->device.type != RAMP_DEVICE_CPU || request->format != RAMP_FORMAT_F32 ||
      request->activation != RAMP_ACTIVATION_SILU_AND_MUL) {
    return 1;
  }
  const Shape shape{request->num_experts, request->top_k, request->hidden, request->intermediate};
  auto* state = new State;  // until the process ends
  for (int64_t l = 0; l < request->num_layers; ++l) {
    const ramp_weights_desc& values = *request->values[l];
    state->layers[request->weights[l]] = std::make_unique<Naive>(
        shape, static_cast<const float*>(values.w13.data), static_cast<const float*>(values.w2.data));
  }
  for (int i = 0; i < 2; ++i) {
    state->configs[i] = ramp_kernel_config_init();
    state->configs[i].name = i == 0 ? "naive_1" : "naive_8";
    state->configs[i].tile_m = i == 0 ? 1 : 8;
    state->configs[i].tile_n = static_cast<int32_t>(2 * shape.intermediate);
  }
  desc->name = "naive";
  desc->configs = state->configs;
  desc->num_configs = 2;
  desc->launch = launch;
  desc->user = state;
  return 0;
} catch (const std::exception&) {
  return 2;
}
