// The expert block and its batched entry: arguments in, one call of the backend out.
#include "abi/block.hpp"

#include <fmt/format.h>

#include "abi/calls.hpp"
#include "abi/handles.hpp"
#include "abi/validate.hpp"
#include "base/error.hpp"

namespace ramp::core {
namespace {

constexpr std::string_view kBlockQuery = "ramp_expert_block_workspace";
constexpr std::string_view kBatchedQuery = "ramp_expert_block_batched_workspace";

}  // namespace

void run_expert_block(ramp_context& context, const ramp_expert_block_args& args, void* workspace,
                      uint64_t bytes, void* stream) {
  const ramp_weights& handle = weights_of(args.weights);
  check_stream(context, stream);
  check_runs_on(context, handle);
  const ExpertWeights& w = *handle.weights;
  const ramp_device device = context.device;

  BlockCall call;
  call.weights = &w;
  call.determinism = check_determinism(args.determinism);
  call.output = check_output_mode(args.output);
  check_flag(args.router_weight_on_input, "router_weight_on_input");
  call.router_weight_on_input = args.router_weight_on_input == 1;
  call.stream = stream;

  const Activations a = check_activations(args.x, args.x_scale, w, 0, device);
  call.x = a.x;
  call.x_scale = a.scale;
  call.tokens = a.x.shape[0];
  call.ids = check_tensor(args.topk_ids, "topk_ids", {RAMP_I32, RAMP_I64}, {call.tokens, -1}, device);
  call.top_k = call.ids.shape[1];
  check_rows(call.tokens, "T", call.top_k, "k");
  call.topk_weights =
      check_tensor(args.topk_weights, "topk_weights", {RAMP_F32}, {call.tokens, call.top_k}, device);
  call.y = call.output == RAMP_OUTPUT_PER_SLOT
               ? check_output(args.y, "y", {RAMP_BF16, RAMP_F16, RAMP_F32},
                              {call.tokens, call.top_k, w.hidden}, device)
               : check_output(args.y, "y", {RAMP_BF16, RAMP_F16, RAMP_F32}, {call.tokens, w.hidden}, device);
  if (present(args.shared_addend) && call.output == RAMP_OUTPUT_PER_SLOT) {
    fail_argument("shared_addend", shape_text(args.shared_addend),
                  "no tensor (data NULL) with RAMP_OUTPUT_PER_SLOT",
                  "add it where the slots are combined, or use RAMP_OUTPUT_COMBINED");
  }
  const BlockExtras extras =
      check_extras(args.expert_map, args.shared_addend, args.counters, call.tokens, w, device);
  call.expert_map = extras.map;
  call.shared_addend = extras.addend;
  call.counters = extras.counters;
  call.config = find_config(context, w, args.config);

  MemoryMap memory;
  memory.reads(handle);
  memory.reads("x", call.x);
  memory.reads("x_scale", call.x_scale);
  memory.reads("topk_ids", call.ids);
  memory.reads("topk_weights", call.topk_weights);
  memory.reads("expert_map", args.expert_map);
  memory.reads("shared_addend", call.shared_addend);
  memory.writes("y", call.y);
  memory.writes("counters", call.counters, call.counters != nullptr ? 2 * sizeof(int64_t) : 0);
  memory.writes("workspace", workspace, bytes);
  memory.check();

  const uint64_t needed = call.tokens == 0 ? 0 : context.backend->block_workspace(w, call.tokens, call.top_k);
  check_workspace(workspace, bytes, needed, kBlockQuery);
  if (call.tokens == 0) return;
  with_workspace(context, workspace, bytes, needed, stream, [&](void* data, uint64_t size) {
    call.workspace = data;
    call.workspace_bytes = size;
    context.backend->expert_block(call);
  });
}

namespace {

void run_batched(ramp_context& context, const ramp_batched_args& args, void* workspace, uint64_t bytes,
                 void* stream) {
  const ramp_weights& handle = weights_of(args.weights);
  check_stream(context, stream);
  check_runs_on(context, handle);
  check_reserved(args.reserved, "reserved");
  const ExpertWeights& w = *handle.weights;
  const ramp_device device = context.device;

  BatchedCall call;
  call.weights = &w;
  call.determinism = check_determinism(args.determinism);
  check_flag(args.router_weight_on_input, "router_weight_on_input");
  call.router_weight_on_input = args.router_weight_on_input == 1;
  call.stream = stream;

  const Activations a = check_activations(args.x, args.x_scale, w, w.experts, device);
  call.x = a.x;
  call.x_scale = a.scale;
  call.max_tokens = a.x.shape[1];
  check_rows(call.max_tokens, "max_tokens", w.experts, "E");
  call.counts = check_tensor(args.counts, "counts", {RAMP_I32, RAMP_I64}, {w.experts}, device);
  call.row_weights =
      check_optional(args.row_weights, "row_weights", {RAMP_F32}, {w.experts, call.max_tokens}, device);
  if (call.router_weight_on_input && !present(call.row_weights) && call.max_tokens > 0) {
    fail_argument("row_weights", "no tensor (data is NULL)",
                  fmt::format("f32 [{}, {}] with router_weight_on_input", w.experts, call.max_tokens),
                  "give the weights or clear the flag");
  }
  call.y = check_output(args.y, "y", {RAMP_BF16, RAMP_F16, RAMP_F32}, {w.experts, call.max_tokens, w.hidden},
                        device);
  call.config = find_config(context, w, args.config);

  MemoryMap memory;
  memory.reads(handle);
  memory.reads("x", call.x);
  memory.reads("x_scale", call.x_scale);
  memory.reads("counts", call.counts);
  memory.reads("row_weights", call.row_weights);
  memory.writes("y", call.y);
  memory.writes("workspace", workspace, bytes);
  memory.check();

  const uint64_t needed = call.max_tokens == 0 ? 0 : context.backend->batched_workspace(w, call.max_tokens);
  check_workspace(workspace, bytes, needed, kBatchedQuery);
  if (call.max_tokens == 0) return;
  with_workspace(context, workspace, bytes, needed, stream, [&](void* data, uint64_t size) {
    call.workspace = data;
    call.workspace_bytes = size;
    context.backend->expert_block_batched(call);
  });
}

}  // namespace

BlockExtras check_extras(const ramp_tensor& expert_map, const ramp_tensor& shared_addend,
                         const ramp_tensor& counters, int64_t tokens, const ExpertWeights& weights,
                         ramp_device device) {
  BlockExtras e;
  if (present(expert_map) || (expert_map.ndim == 1 && expert_map.shape[0] == 0)) {
    const ramp_tensor map = check_tensor(expert_map, "expert_map", {RAMP_I32}, {-1}, device);
    // Neither a map nor none: taken for the latter, its ids would reach experts that they do not name.
    if (map.shape[0] == 0)
      fail_argument("expert_map", shape_text(map), "i32 [E_global], an entry per global id",
                    "leave it all zero where ids are local ids");
    e.map = {static_cast<const int32_t*>(map.data), static_cast<size_t>(map.shape[0])};
  }
  e.addend = check_optional(shared_addend, "shared_addend", {RAMP_BF16, RAMP_F16, RAMP_F32},
                            {tokens, weights.hidden}, device);
  if (present(counters)) {
    e.counters = static_cast<int64_t*>(check_output(counters, "counters", {RAMP_I64}, {2}, device).data);
  }
  return e;
}

}  // namespace ramp::core

using namespace ramp::core;  // NOLINT(google-build-using-namespace): this file implements the C ABI with it

extern "C" {

ramp_status ramp_expert_block_workspace(const ramp_context* context, const ramp_weights* weights,
                                        int64_t max_tokens, int64_t top_k, uint64_t* bytes) {
  return border([&] {
    const ramp_context& c = context_of(context);
    const ramp_weights& w = weights_of(weights);
    check_out(bytes, "bytes");
    check_runs_on(c, w);
    check_rows(max_tokens, "max_tokens", top_k, "top_k");
    *bytes = max_tokens == 0 ? 0 : c.backend->block_workspace(*w.weights, max_tokens, top_k);
  });
}

ramp_status ramp_expert_block(ramp_context* context, const ramp_expert_block_args* args, void* workspace,
                              uint64_t workspace_bytes, void* stream) {
  return border([&] {
    ramp_context& c = context_of(context);
    run_expert_block(c, read_sized(args, "ramp_expert_block_args"), workspace, workspace_bytes, stream);
  });
}

ramp_status ramp_expert_block_batched_workspace(const ramp_context* context, const ramp_weights* weights,
                                                int64_t max_tokens, uint64_t* bytes) {
  return border([&] {
    const ramp_context& c = context_of(context);
    const ramp_weights& w = weights_of(weights);
    check_out(bytes, "bytes");
    check_runs_on(c, w);
    check_rows(max_tokens, "max_tokens", w.weights->experts, "E");
    *bytes = max_tokens == 0 ? 0 : c.backend->batched_workspace(*w.weights, max_tokens);
  });
}

ramp_status ramp_expert_block_batched(ramp_context* context, const ramp_batched_args* args, void* workspace,
                                      uint64_t workspace_bytes, void* stream) {
  return border([&] {
    ramp_context& c = context_of(context);
    run_batched(c, read_sized(args, "ramp_batched_args"), workspace, workspace_bytes, stream);
  });
}

}  // extern "C"
