// Router flags: the configuration of a router from a checkpoint's config.json, from a model, or from flags,
// where a flag that is given overrides the rest.
#pragma once

#include <CLI/CLI.hpp>
#include <cstdint>
#include <string>

#include "cli/output.hpp"
#include "cli/tensors.hpp"
#include "ramp/ramp.h"

namespace ramp::cli {

struct RouterFlags {
  std::string scoring, group_score, bias;
  int64_t top_k = 0, groups = 0, topk_groups = 0, shared = 0, capacity = 0;
  double scaling = 1.0;
  bool renormalize = false, no_renormalize = false;
  CLI::App* app = nullptr;  // to ask which flags were given
};
void add_router_options(CLI::App& app, RouterFlags& flags);

// `base` overridden by the flags that were given. bias: receives the memory behind selection_bias.
ramp_router_config make_router(const RouterFlags& flags, ramp_router_config base, int64_t num_logits,
                               HostTensor& bias);
Json to_json(const ramp_router_config& router);

}  // namespace ramp::cli
