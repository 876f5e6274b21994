// The inputs of `ramp run`: what comes from files, what is generated, and that all of it fits together.
#pragma once

#include <CLI/CLI.hpp>
#include <cstdint>
#include <string>
#include <vector>

#include "cli/layer_source.hpp"
#include "cli/router_options.hpp"
#include "cli/tensors.hpp"

namespace ramp::cli {

struct InputFlags {
  std::string x, x_scale, ids, topk_weights, logits, expert_map, shared_addend, routing = "uniform";
  bool router = false;
  int64_t tokens = 0, seed = 0;
  RouterFlags router_flags;
};
void add_input_options(CLI::App& app, InputFlags& flags);

// Ready for the ABI: every tensor that is present has passed its shape check.
struct RunInputs {
  int64_t tokens = 0;
  int64_t slots = 0;       // k, shared experts of the router included
  int64_t num_logits = 0;  // with a router
  bool routed = false;     // true: ids and weights are outputs of the router
  std::string routing;     // "files", "logits", "router" or the workload's name
  HostTensor x, x_scale, ids, topk_weights, logits, expert_map, shared_addend, selection_bias;
  ramp_tensor router_weight{};  // view into the checkpoint
  ramp_router_config router = ramp_router_config_init();
};
// checkpoint: nullptr for random weights.
RunInputs make_inputs(const InputFlags& flags, const LayerSource& source, const CheckpointSource* checkpoint,
                      const Io& io);

// c_e of the local experts under these inputs' ids and map.
std::vector<int32_t> local_histogram(const RunInputs& inputs, int64_t local_experts);

}  // namespace ramp::cli
