// The portable family of ramp (mma.sync, any GPU from sm_80 on) in the part of somebody else's kernel, as a
// shared library for the command:
//   ramp profile --kernel-library libportable_kernel.so --backend cuda --model olmoe --format fp8_block
// It runs in a context of its own, of its own libramp, on copies of the weights; the command knows it by a
// table and a callback alone.
#include <cstdio>
#include <deque>
#include <exception>
#include <map>
#include <ramp/dispatch.hpp>
#include <string>
#include <vector>

#include "cuda.hpp"

namespace {

struct State {
  explicit State(const ramp_kernel_library_request& r) : context({.device = r.device, .isa = "portable"}) {
    for (int64_t l = 0; l < r.num_layers; ++l) {
      ramp_weights_desc values = *r.values[l];
      values.ownership = RAMP_COPY;
      ramp_weights* copy = nullptr;
      ramp::check(ramp_weights_create(context.get(), &values, nullptr, &copy));
      layers.emplace(r.weights[l], ramp::Weights(copy)).first->second.pack(context);
    }
    const ramp::Weights& first = layers.begin()->second;
    workspace.reserve(context.expert_block_workspace(first, r.max_tokens, r.top_k));
    for (int32_t c = 0; const char* name = context.config_name(first, c); ++c) {
      ramp_kernel_config row = ramp_kernel_config_init();
      // Names say tiles: m<tokens>_n<weight rows>_k<depth>.
      if (std::sscanf(name, "m%d_n%d_k%d", &row.tile_m, &row.tile_n, &row.tile_k) != 3) continue;
      row.name = names.emplace_back(std::string("portable:") + name).c_str();
      configs.push_back(row);
      numbers.push_back(c + 1);
    }
  }
  ramp::Context context;
  std::map<const ramp_weights*, ramp::Weights> layers;  // by the command's handle
  Buffer workspace;
  std::deque<std::string> names;  // which stay where they are
  std::vector<ramp_kernel_config> configs;
  std::vector<int32_t> numbers;
};

int launch(void* user, int32_t config, void* call) {
  auto& state = *static_cast<State*>(user);
  const auto& c = *static_cast<const ramp_block_call*>(call);
  ramp_expert_block_args args = *c.args;
  const auto layer = state.layers.find(args.weights);
  if (layer == state.layers.end()) return RAMP_ERROR_INVALID_ARGUMENT;
  args.weights = layer->second.get();
  args.config = state.numbers[static_cast<size_t>(config)];
  return ramp_expert_block(state.context.get(), &args, state.workspace.data(), state.workspace.bytes(),
                           c.stream);
}

}  // namespace

extern "C" __attribute__((visibility("default"))) int ramp_kernel_library(
    const ramp_kernel_library_request* request, ramp_kernel_desc* desc) try {
  if (request->device.type != RAMP_DEVICE_CUDA || !cuda.open()) return 1;
  auto* state = new State(*request);  // until the process ends
  desc->name = "portable";
  desc->configs = state->configs.data();
  desc->num_configs = static_cast<int32_t>(state->configs.size());
  desc->launch = launch;
  desc->user = state;
  return 0;
} catch (const std::exception& e) {
  return std::fprintf(stderr, "portable kernel: %s\n", e.what()), 2;
}
