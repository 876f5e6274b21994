// The dispatcher's C ABI: a kernel whose table begins with ramp's own configs of the expert block and goes on
// with somebody's, and the launch of either.
#include <fmt/format.h>

#include <algorithm>
#include <array>
#include <string_view>

#include "abi/block.hpp"
#include "abi/dispatch_handles.hpp"
#include "abi/handles.hpp"
#include "base/error.hpp"
#include "dispatch/config_columns.hpp"
#include "geometry/hardware.hpp"

namespace ramp::core {
namespace {

WeightKind kind_of(const ExpertWeights& w) {
  return {w.experts, w.hidden, w.intermediate, w.format, w.activation};
}

std::string kind_text(const WeightKind& k) {
  return fmt::format("E = {}, H = {}, I = {}, {}, {}", k.experts, k.hidden, k.intermediate,
                     format_name(k.format), activation_name(k.activation));
}

// Sizes that the weights know already.
int64_t check_size(const char* name, int64_t given, int64_t weights) {
  if (given != 0 && given != weights)
    fail_argument(name, fmt::format("{}", given), fmt::format("0, or the weights' {}", weights));
  return weights;
}

// Which table a file was made for: `differs` and cost models see a config only as its columns say it.
KernelConfig as_columns(KernelConfig c) {
  c.warps_n = 0;
  c.blocks = 0;
  c.order = TaskOrder::kColumnMajor;
  finish_config(c);
  return c;
}

// ramp's rows, then theirs. Two columns are added to theirs: `order` (of ramp's configs; it is all that some
// differ in) and `kernel` (0: ramp's, 1: theirs), which keeps cost models from taking one for the neighbour
// of the other.
ConfigTable joined(const std::vector<KernelConfig>& own, const ConfigTable& theirs) {
  for (const std::string& column : theirs.extra_columns) {
    constexpr std::array<std::string_view, 5> kTaken = {"residency", "smem_bytes", "regs", "order", "kernel"};
    if (std::find(kTaken.begin(), kTaken.end(), column) != kTaken.end())
      fail_argument("extra_columns", fmt::format("'{}'", column),
                    "a column that need not be known of ramp's configs, nor stands in the table already",
                    "leave it out");
  }
  ConfigTable t;
  const ConfigTable ours = block_configs(own);
  t.known_columns = {"tile_m", "tile_n"};
  for (size_t i = 2; i < kConfigColumns.size(); ++i) {
    const ConfigColumn& column = kConfigColumns[i];
    if (column.name == "warps_n") continue;
    const auto sets = [&](const KernelConfig& c) { return c.*column.member != 0; };
    if (std::any_of(own.begin(), own.end(), sets) || theirs.has(column.name))
      t.known_columns.emplace_back(column.name);
  }
  t.extra_columns = {"order", "kernel"};
  t.extra_columns.insert(t.extra_columns.end(), theirs.extra_columns.begin(), theirs.extra_columns.end());
  for (size_t c = 0; c < own.size(); ++c) {
    t.names.push_back(ours.names[c]);
    t.configs.push_back(as_columns(own[c]));
    t.extra.push_back(static_cast<double>(own[c].order));
    t.extra.resize(t.names.size() * t.extra_columns.size());  // zeros
  }
  const size_t extras = theirs.extra_columns.size();
  for (size_t c = 0; c < theirs.size(); ++c) {
    t.names.push_back(theirs.names[c]);
    t.configs.push_back(as_columns(theirs.configs[c]));
    t.extra.insert(t.extra.end(), {0.0, 1.0});
    for (size_t x = 0; x < extras; ++x) t.extra.push_back(theirs.extra[c * extras + x]);
  }
  return t;
}

void read_block_machine(const ramp_context& context, const ramp_machine* user, KernelDescription& k) {
  if (user != nullptr) return read_machine(user, k);
  const BackendInfo& info = context.backend->info();
  if (context.device.type == RAMP_DEVICE_CUDA) {
    k.hardware = h200();  // of another GPU: where the fit starts
    k.hardware.sm_count = info.workers;
  } else {
    k.hardware = cpu_hardware(info.workers);
  }
  k.machine.device = info.device_name;
  k.machine.sm_count = info.workers;
}

}  // namespace

int launch_config(const ramp_kernel& k, int32_t config, void* call) {
  if (!k.block) return k.launch(k.user, config, call);
  const BlockSide& block = *k.block;
  if (config >= block.own_configs) return k.launch(k.user, config - block.own_configs, call);
  const auto c = read_sized(static_cast<const ramp_block_call*>(call), "ramp_block_call");
  auto args = read_sized(c.args, "ramp_expert_block_args");
  const WeightKind kind = kind_of(*weights_of(args.weights).weights);
  if (!(kind == block.kind))
    fail_argument("weights", kind_text(kind),
                  fmt::format("the kernel's kind of weights: {}", kind_text(block.kind)),
                  "register a kernel for each kind");
  args.config = config + 1;
  run_expert_block(context_of(block.context), args, c.workspace, c.workspace_bytes, c.stream);
  return 0;
}

bool launches(const ramp_kernel& k) noexcept {
  return k.launch != nullptr ||
         (k.block && static_cast<size_t>(k.block->own_configs) == k.kernel->dispatcher().configs());
}

}  // namespace ramp::core

using namespace ramp::core;  // NOLINT(google-build-using-namespace): the border file of the C ABI

ramp_status ramp_block_kernel_create(ramp_context* context, const ramp_weights* weights,
                                     const ramp_kernel_desc* user, ramp_kernel** out) {
  return border([&] {
    check_out(out, "out");
    ramp_context& c = context_of(context);
    const ramp_weights& handle = weights_of(weights);
    check_runs_on(c, handle);
    const ExpertWeights& w = *handle.weights;
    const auto desc = read_sized(user, "ramp_kernel_desc");
    if (desc.name == nullptr) fail_argument("name", "NULL", "the kernel's name");
    if (desc.reserved != 0) fail_argument("reserved", fmt::format("{}", desc.reserved), "0");

    KernelDescription k;
    const BackendInfo& info = c.backend->info();
    k.name =
        fmt::format("{} + {}", block_kernel_name({info.name, info.isa, w.format, w.activation}), desc.name);
    const std::vector<KernelConfig>& own = shape_configs(c, w).configs;
    k.configs = joined(own, desc.num_configs == 0 ? ConfigTable() : read_configs(desc));
    k.model.experts = check_size("num_experts", desc.num_experts, w.experts);
    k.model.top_k = desc.top_k;
    k.model.hidden = check_size("hidden", desc.hidden, w.hidden);
    k.model.intermediate = check_size("intermediate", desc.intermediate, w.intermediate);
    k.model.name = desc.model_name != nullptr
                       ? std::string(desc.model_name)
                       : fmt::format("{},{},{},{}", w.experts, desc.top_k, w.hidden, w.intermediate);
    const auto configs = static_cast<int32_t>(k.configs.size());
    if (desc.default_config < 0 || desc.default_config > configs)
      fail_argument("default_config", fmt::format("{}", desc.default_config),
                    fmt::format("0 (none) or 1 to {} (number in the whole table + 1)", configs));
    k.default_config = desc.default_config - 1;
    read_block_machine(c, desc.machine, k);

    auto kernel = std::make_unique<ramp_kernel>();
    kernel->kernel = std::make_unique<RegisteredKernel>(std::move(k));
    kernel->launch = desc.launch;
    kernel->user = desc.user;
    kernel->log = {desc.log, desc.log_user};
    kernel->block = BlockSide{context, kind_of(w), static_cast<int32_t>(own.size())};
    *out = kernel.release();
  });
}
