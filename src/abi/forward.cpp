// Router and expert block in one call. The routing lands in the caller's tensors where given, else in the
// workspace, which holds, one after the other and each 256-byte aligned: ids i32 [T,slots], weights f32
// [T,slots], and scratch that routing (logits included) and the expert block use in turn.
#include <fmt/format.h>

#include <algorithm>

#include "abi/block.hpp"
#include "abi/calls.hpp"
#include "abi/handles.hpp"
#include "abi/validate.hpp"
#include "base/error.hpp"
#include "routing/router.hpp"

namespace ramp::core {
namespace {

constexpr std::string_view kForwardQuery = "ramp_moe_forward_workspace";

struct ForwardLayout {
  uint64_t ids = 0, weights = 0, scratch = 0, total = 0;  // offsets and size in bytes
};

ForwardLayout forward_layout(int64_t tokens, int64_t slots, uint64_t scratch) noexcept {
  const uint64_t column =
      align_up(static_cast<uint64_t>(tokens) * static_cast<uint64_t>(slots) * sizeof(int32_t));
  return {0, column, 2 * column, 2 * column + align_up(scratch)};
}

uint64_t forward_scratch(const ramp_context& context, const ExpertWeights& weights, int64_t tokens,
                         int64_t slots, uint64_t routing) {
  return std::max(routing, context.backend->block_workspace(weights, tokens, slots));
}

// The router embedded in the arguments: struct_size 0 means the whole struct of the caller's header, which is
// ours, since embedded structs keep their size.
ramp_router_config embedded_router(ramp_router_config router) {
  if (router.struct_size == 0) router.struct_size = sizeof router;
  if (router.struct_size > sizeof router) {
    fail_argument("router.struct_size", std::to_string(router.struct_size),
                  fmt::format("{} (or 0)", sizeof router), "initialise it with ramp_router_config_init()");
  }
  return read_sized(&router, "ramp_router_config");
}

// Without a map ids are local ids, so the weights hold the routed and the shared experts, no more, no fewer;
// with one, the map has an entry for each.
void check_num_experts(const ramp_moe_forward_args& args, const ExpertWeights& w,
                       const ramp_router_config& router, int64_t num_logits, std::span<const int32_t> map) {
  const int64_t global = num_logits + router.num_shared_experts;
  const std::string_view source = present(args.router_logits) ? "router_logits" : "router_weight";
  if (present(args.expert_map)) {
    if (static_cast<int64_t>(map.size()) != global) {
      fail_argument("expert_map", shape_text(args.expert_map), fmt::format("i32 [{}]", global),
                    fmt::format("one entry per logit ({}) and shared expert ({})", num_logits,
                                router.num_shared_experts));
    }
  } else if (w.experts != global) {
    fail_argument(source,
                  fmt::format("{} logits and {} shared experts", num_logits, router.num_shared_experts),
                  fmt::format("{} in all, the experts of the weights", w.experts),
                  "give expert_map when the weights hold other experts than the router knows");
  }
}

void run_forward(ramp_context& context, const ramp_moe_forward_args& args, void* workspace, uint64_t bytes,
                 void* stream) {
  const ramp_weights& handle = weights_of(args.weights);
  check_stream(context, stream);
  check_runs_on(context, handle);
  check_reserved(args.reserved, "reserved");
  const ExpertWeights& w = *handle.weights;
  const ramp_device device = context.device;

  BlockCall block;
  block.weights = &w;
  block.determinism = check_determinism(args.determinism);
  check_flag(args.router_weight_on_input, "router_weight_on_input");
  block.router_weight_on_input = args.router_weight_on_input == 1;
  block.stream = stream;
  block.x = check_tensor(args.x, "x", {RAMP_BF16, RAMP_F16, RAMP_F32}, {-1, w.hidden}, device);
  const int64_t tokens = block.tokens = block.x.shape[0];

  RouteCall route;
  route.stream = stream;
  const bool have_logits = present(args.router_logits) || (tokens == 0 && args.router_logits.ndim != 0);
  if (have_logits == present(args.router_weight)) {
    fail_argument("router_logits, router_weight", have_logits ? "both" : "neither", "exactly one of them",
                  "give logits [T,E], or the router's weight [E,H] to have them computed");
  }
  if (have_logits) {
    route.logits = check_tensor(args.router_logits, "router_logits", {RAMP_F32, RAMP_BF16, RAMP_F16},
                                {tokens, -1}, device);
  } else {
    route.x = block.x;
    route.router_weight = check_tensor(args.router_weight, "router_weight", {RAMP_BF16, RAMP_F16, RAMP_F32},
                                       {-1, w.hidden}, device);
  }
  const int64_t num_logits = have_logits ? route.logits.shape[1] : route.router_weight.shape[0];
  route.router = check_public_router(embedded_router(args.router), num_logits, device);
  const int64_t slots = block.top_k = router_slots(route.router);
  check_rows(tokens, "T", slots, "slots");
  check_rows(tokens, "T", num_logits, "E_global");

  block.y = check_output(args.y, "y", {RAMP_BF16, RAMP_F16, RAMP_F32}, {tokens, w.hidden}, device);
  const BlockExtras extras =
      check_extras(args.expert_map, args.shared_addend, args.counters, tokens, w, device);
  check_num_experts(args, w, route.router, num_logits, extras.map);
  block.expert_map = extras.map;
  block.shared_addend = extras.addend;
  block.counters = extras.counters;
  if (present(args.topk_ids_out))
    route.ids =
        check_output(args.topk_ids_out, "topk_ids_out", {RAMP_I32, RAMP_I64}, {tokens, slots}, device);
  if (present(args.topk_weights_out))
    route.weights =
        check_output(args.topk_weights_out, "topk_weights_out", {RAMP_F32}, {tokens, slots}, device);
  block.config = find_config(context, w, args.config);

  MemoryMap memory;
  memory.reads(handle);
  memory.reads("x", block.x);
  memory.reads("router_logits", route.logits);
  memory.reads("router_weight", route.router_weight);
  memory.reads("router.selection_bias", route.router.selection_bias);
  memory.reads("expert_map", args.expert_map);
  memory.reads("shared_addend", block.shared_addend);
  memory.writes("y", block.y);
  memory.writes("counters", block.counters, block.counters != nullptr ? 2 * sizeof(int64_t) : 0);
  memory.writes("topk_ids_out", route.ids);
  memory.writes("topk_weights_out", route.weights);
  memory.writes("workspace", workspace, bytes);
  memory.check();

  ForwardLayout layout;
  if (tokens > 0) {
    layout =
        forward_layout(tokens, slots,
                       forward_scratch(context, w, tokens, slots,
                                       context.backend->route_workspace(route.router, num_logits, tokens)));
  }
  check_workspace(workspace, bytes, layout.total, kForwardQuery);
  if (tokens == 0) return;
  with_workspace(context, workspace, bytes, layout.total, stream, [&](void* data, uint64_t size) {
    auto* base = static_cast<std::byte*>(data);
    if (!present(route.ids)) {
      route.ids = make_tensor(base + layout.ids, RAMP_I32, {tokens, slots});
      route.ids.device = device;
    }
    if (!present(route.weights)) {
      route.weights = make_tensor(base + layout.weights, RAMP_F32, {tokens, slots});
      route.weights.device = device;
    }
    route.workspace = block.workspace = base + layout.scratch;
    route.workspace_bytes = block.workspace_bytes = size - layout.scratch;
    block.ids = route.ids;
    block.topk_weights = route.weights;
    context.backend->routed_block(route, block);
  });
}

}  // namespace
}  // namespace ramp::core

using namespace ramp::core;  // NOLINT(google-build-using-namespace): this file implements the C ABI with it

extern "C" {

ramp_status ramp_moe_forward_workspace(const ramp_context* context, const ramp_weights* weights,
                                       int64_t max_tokens, int64_t slots, int64_t num_logits,
                                       uint64_t* bytes) {
  return border([&] {
    const ramp_context& c = context_of(context);
    const ramp_weights& w = weights_of(weights);
    check_out(bytes, "bytes");
    check_runs_on(c, w);
    check_rows(max_tokens, "max_tokens", slots, "slots");
    check_rows(max_tokens, "max_tokens", num_logits, "num_logits");
    *bytes = max_tokens == 0
                 ? 0
                 : forward_layout(max_tokens, slots,
                                  forward_scratch(c, *w.weights, max_tokens, slots,
                                                  route_workspace_bound(c, num_logits, slots, max_tokens)))
                       .total;
  });
}

ramp_status ramp_moe_forward(ramp_context* context, const ramp_moe_forward_args* args, void* workspace,
                             uint64_t workspace_bytes, void* stream) {
  return border([&] {
    ramp_context& c = context_of(context);
    run_forward(c, read_sized(args, "ramp_moe_forward_args"), workspace, workspace_bytes, stream);
  });
}

}  // extern "C"
