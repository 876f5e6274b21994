// Expert weights: creation, packing, update in place, unpacking and facts.
#include <fmt/format.h>

#include <utility>

#include "abi/handles.hpp"
#include "abi/validate.hpp"
#include "base/error.hpp"
#include "weights/expert_weights.hpp"

namespace ramp::core {
namespace {

// Bytes of a tensor's elements, gaps between strides not counted.
int64_t element_bytes(const ramp_tensor& t) noexcept {
  return t.ndim == 0 ? 0 : numel(t) * dtype_bytes(static_cast<ramp_dtype>(t.dtype));
}

ramp_weights_desc check_desc(const ramp_weights_desc* user) {
  const ramp_weights_desc desc = read_sized(user, "ramp_weights_desc");
  check_reserved(desc.reserved, "desc.reserved");
  return desc;
}

std::unique_ptr<ramp_weights> create_weights(const ramp_context& context, const ramp_weights_desc* user,
                                             void* stream) {
  const ramp_weights_desc desc = check_desc(user);
  auto handle = std::make_unique<ramp_weights>();
  handle->weights = make_expert_weights(desc, context.device, {context.backend->memory(), stream});
  const ExpertWeights& w = *handle->weights;
  if (w.ownership != RAMP_COPY)
    handle->buffers = {byte_range(w.w13), byte_range(w.w2), byte_range(w.w13_scale), byte_range(w.w2_scale)};
  return handle;
}

void update_weights(ramp_context& context, ramp_weights& handle, int64_t first, const ramp_weights_desc* user,
                    void* stream) {
  const ramp_weights_desc desc = check_desc(user);
  ExpertWeights& w = *handle.weights;
  if (w.ownership == RAMP_BORROW && w.packed == nullptr) {
    fail(RAMP_ERROR_UNSUPPORTED,
         "weights: got a handle that borrows the caller's buffers, expected one that owns its values; write "
         "to your buffers instead, pack the handle first, or create it with RAMP_COPY or RAMP_IN_PLACE");
  }
  const ramp_weights_desc checked = check_update(w, first, desc, {context.backend->memory(), stream});
  MemoryMap memory;
  memory.reads("desc.w13", checked.w13);
  memory.reads("desc.w2", checked.w2);
  memory.reads("desc.w13_scale", checked.w13_scale);
  memory.reads("desc.w2_scale", checked.w2_scale);
  if (w.ownership == RAMP_IN_PLACE) {
    for (const ByteRange& b : handle.buffers) {
      // Only its address is looked at. NOLINTNEXTLINE(performance-no-int-to-ptr)
      memory.writes("weights", reinterpret_cast<const void*>(b.begin), b.end - b.begin);
    }
  }
  memory.check();
  context.backend->update(w, first, checked, stream);
}

void unpack_weights(ramp_context& context, const ramp_weights& handle, const ramp_tensor* w13,
                    const ramp_tensor* w2, void* stream) {
  const ExpertWeights& w = *handle.weights;
  const ramp_dtype dtype = weight_dtype(w.format);
  ramp_tensor to13{};
  ramp_tensor to2{};
  if (w13 != nullptr && present(*w13))
    to13 = check_output(*w13, "w13", {dtype}, {w.experts, w.rows13(), w.hidden}, context.device);
  if (w2 != nullptr && present(*w2))
    to2 = check_output(*w2, "w2", {dtype}, {w.experts, w.hidden, w.intermediate}, context.device);
  MemoryMap memory;
  memory.reads(handle);
  memory.writes("w13", to13);
  memory.writes("w2", to2);
  memory.check();
  if (present(to13) || present(to2)) context.backend->unpack(w, to13, to2, stream);
}

}  // namespace

void check_runs_on(const ramp_context& context, const ramp_weights& weights) {
  const ExpertWeights& w = *weights.weights;
  if (w.device.type != context.device.type || w.device.index != context.device.index) {
    fail_argument("weights",
                  fmt::format("weights on device type {}, index {}", w.device.type, w.device.index),
                  fmt::format("weights on the context's device (type {}, index {})", context.device.type,
                              context.device.index),
                  "create them with a context of that device");
  }
  if (w.packed == nullptr) return;
  const BackendInfo& info = context.backend->info();
  if (weights.packed_by != info.kind || weights.packed_isa != info.isa) {
    fail_argument(
        "weights", fmt::format("weights packed by another backend or ISA level ('{}')", weights.packed_isa),
        fmt::format("unpacked weights, or weights packed by a context of backend {} {}", info.name, info.isa),
        "use one handle per backend");
  }
}

}  // namespace ramp::core

using namespace ramp::core;  // NOLINT(google-build-using-namespace): this file implements the C ABI with it

extern "C" {

ramp_status ramp_weights_create(ramp_context* context, const ramp_weights_desc* desc, void* stream,
                                ramp_weights** out) {
  return border([&] {
    const ramp_context& c = context_of(context);
    check_out(out, "out");
    check_stream(c, stream);
    *out = create_weights(c, desc, stream).release();
  });
}

void ramp_weights_destroy(ramp_weights* weights) {
  if (weights == nullptr) return;
  border([&] { destroy_handle(&weights_of(weights)); });
}

ramp_status ramp_weights_pack(ramp_context* context, ramp_weights* weights, void* stream) {
  return border([&] {
    ramp_context& c = context_of(context);
    ramp_weights& w = weights_of(weights);
    check_stream(c, stream);
    check_runs_on(c, w);
    if (w.weights->packed != nullptr) return;
    const BackendInfo& info = c.backend->info();
    std::string isa = info.isa;  // before packing: nothing may fail after it
    c.backend->pack(*w.weights, stream);
    w.packed_by = info.kind;
    w.packed_isa = std::move(isa);
  });
}

ramp_status ramp_weights_update(ramp_context* context, ramp_weights* weights, int64_t first_expert,
                                const ramp_weights_desc* desc, void* stream) {
  return border([&] {
    ramp_context& c = context_of(context);
    ramp_weights& w = weights_of(weights);
    check_stream(c, stream);
    check_runs_on(c, w);
    update_weights(c, w, first_expert, desc, stream);
  });
}

ramp_status ramp_weights_unpack(ramp_context* context, const ramp_weights* weights, const ramp_tensor* w13,
                                const ramp_tensor* w2, void* stream) {
  return border([&] {
    ramp_context& c = context_of(context);
    const ramp_weights& w = weights_of(weights);
    check_stream(c, stream);
    check_runs_on(c, w);
    unpack_weights(c, w, w13, w2, stream);
  });
}

ramp_status ramp_weights_get_info(const ramp_weights* weights, ramp_weights_info* out) {
  return border([&] {
    const ExpertWeights& w = *weights_of(weights).weights;
    ramp_weights_info value = ramp_weights_info_init();
    value.format = w.format;
    value.activation = w.activation;
    value.packed = w.packed != nullptr ? 1 : 0;
    value.ownership = w.ownership;
    value.num_experts = w.experts;
    value.hidden = w.hidden;
    value.intermediate = w.intermediate;
    const int64_t values =
        w.packed != nullptr ? w.packed->bytes() : element_bytes(w.w13) + element_bytes(w.w2);
    value.bytes = values + element_bytes(w.w13_scale) + element_bytes(w.w2_scale);
    write_sized(out, value, "ramp_weights_info");
  });
}

}  // extern "C"
