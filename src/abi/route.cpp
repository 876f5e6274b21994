// Routing on its own: logits in, ids and weights out.
#include <algorithm>

#include "abi/calls.hpp"
#include "abi/handles.hpp"
#include "abi/validate.hpp"
#include "base/error.hpp"
#include "routing/router.hpp"

namespace ramp::core {
namespace {

void run_route(ramp_context& context, const ramp_router_config& router, const ramp_tensor& logits,
               const ramp_tensor& ids, const ramp_tensor& weights, void* stream) {
  check_stream(context, stream);
  const ramp_device device = context.device;
  RouteCall call;
  call.stream = stream;
  call.logits = check_tensor(logits, "logits", {RAMP_F32, RAMP_BF16, RAMP_F16}, {-1, -1}, device);
  const int64_t tokens = call.logits.shape[0];
  const int64_t num_logits = call.logits.shape[1];
  call.router = check_public_router(router, num_logits, device);
  const int64_t slots = router_slots(call.router);
  check_rows(tokens, "T", slots, "slots");
  check_rows(tokens, "T", num_logits, "E");
  call.ids = check_output(ids, "topk_ids", {RAMP_I32, RAMP_I64}, {tokens, slots}, device);
  call.weights = check_output(weights, "topk_weights", {RAMP_F32}, {tokens, slots}, device);

  MemoryMap memory;
  memory.reads("logits", call.logits);
  memory.reads("router.selection_bias", call.router.selection_bias);
  memory.writes("topk_ids", call.ids);
  memory.writes("topk_weights", call.weights);
  memory.check();
  if (tokens == 0) return;
  const uint64_t needed = context.backend->select_workspace(call.router, num_logits, tokens);
  with_workspace(context, nullptr, 0, needed, stream, [&](void* data, uint64_t size) {
    call.workspace = data;
    call.workspace_bytes = size;
    context.backend->route(call);
  });
}

// A tensor that a caller passes by pointer.
const ramp_tensor& tensor_at(const ramp_tensor* t, std::string_view name) {
  if (t == nullptr) fail_argument(name, "NULL", "a pointer to a ramp_tensor");
  return *t;
}

}  // namespace
}  // namespace ramp::core

using namespace ramp::core;  // NOLINT(google-build-using-namespace): this file implements the C ABI with it

extern "C" ramp_status ramp_route(ramp_context* context, const ramp_router_config* router,
                                  const ramp_tensor* logits, const ramp_tensor* topk_ids,
                                  const ramp_tensor* topk_weights, void* stream) {
  return border([&] {
    ramp_context& c = context_of(context);
    run_route(c, read_sized(router, "ramp_router_config"), tensor_at(logits, "logits"),
              tensor_at(topk_ids, "topk_ids"), tensor_at(topk_weights, "topk_weights"), stream);
  });
}
