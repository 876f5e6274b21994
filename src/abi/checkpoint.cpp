// Checkpoints: a thin skin over the loader room.
#include "loader/checkpoint.hpp"

#include <fmt/format.h>

#include <utility>

#include "abi/handles.hpp"
#include "abi/validate.hpp"
#include "base/error.hpp"

namespace ramp::core {
namespace {

// The handle owns the loaded buffers: the loader's views borrow them, then they move in, so that a layer is
// in memory once and pack may give them up.
std::unique_ptr<ramp_weights> load_weights(const ramp_context& context, const Checkpoint& checkpoint,
                                           int64_t layer, int64_t first, int64_t count, void* stream) {
  LoadedLayer loaded = load_layer(checkpoint, layer, first, count);
  loaded.desc.ownership = RAMP_BORROW;
  auto handle = std::make_unique<ramp_weights>();
  handle->weights = make_expert_weights(loaded.desc, {});
  if (const DeviceMemory* const memory = context.backend->memory()) {
    handle->weights = upload_weights(*handle->weights, context.device, {memory, stream});
    return handle;
  }
  ExpertWeights& w = *handle->weights;
  w.own_w13 = std::move(loaded.w13);
  w.own_w2 = std::move(loaded.w2);
  w.own_w13_scale = std::move(loaded.w13_scale);
  w.own_w2_scale = std::move(loaded.w2_scale);
  w.ownership = RAMP_COPY;
  return handle;
}

}  // namespace
}  // namespace ramp::core

using namespace ramp::core;  // NOLINT(google-build-using-namespace): this file implements the C ABI with it

extern "C" {

ramp_status ramp_checkpoint_open(const char* path, ramp_checkpoint** out) {
  return border([&] {
    check_out(out, "out");
    if (path == nullptr || *path == '\0') {
      fail_argument("path", path == nullptr ? "NULL" : "an empty string",
                    "a checkpoint directory or a .safetensors file");
    }
    *out = std::make_unique<ramp_checkpoint>(std::string(path)).release();
  });
}

void ramp_checkpoint_close(ramp_checkpoint* checkpoint) {
  if (checkpoint == nullptr) return;
  border([&] {
    checkpoint_of(checkpoint);
    destroy_handle(checkpoint);
  });
}

ramp_status ramp_checkpoint_layer_info(const ramp_checkpoint* checkpoint, int64_t layer,
                                       ramp_layer_info* out) {
  return border([&] {
    const ramp_checkpoint& c = checkpoint_of(checkpoint);
    ramp_layer_info value = c.checkpoint.layer_info(layer).info;
    value.router.struct_size = sizeof(ramp_router_config);
    write_sized(out, value, "ramp_layer_info");
  });
}

ramp_status ramp_checkpoint_load_weights(ramp_context* context, const ramp_checkpoint* checkpoint,
                                         int64_t layer, int64_t first_expert, int64_t num_experts,
                                         void* stream, ramp_weights** out) {
  return border([&] {
    const ramp_context& c = context_of(context);
    const ramp_checkpoint& k = checkpoint_of(checkpoint);
    check_out(out, "out");
    check_stream(c, stream);
    *out = load_weights(c, k.checkpoint, layer, first_expert, num_experts, stream).release();
  });
}

}  // extern "C"
