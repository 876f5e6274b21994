// See weights.hpp. Copies run on the caller's stream; what must be readable by the host, or be in place
// before memory is given up, is waited for.
#include "backend/cuda/weights.hpp"

#include <utility>

#include "base/tensor.hpp"

namespace ramp::core::cuda {
namespace {

uint64_t bytes_of(const ramp_tensor& t) noexcept {
  return static_cast<uint64_t>(numel(t)) *
         static_cast<uint64_t>(dtype_bytes(static_cast<ramp_dtype>(t.dtype)));
}

ramp_tensor contiguous_at(ramp_tensor t, void* data) noexcept {
  t.data = data;
  for (int64_t& s : t.stride) s = 0;
  return with_strides(t);
}

// A contiguous copy of `t` on the device; t becomes the view of it.
std::shared_ptr<void> own_copy(ramp_tensor& t, const DeviceMemory& memory, void* stream) {
  std::shared_ptr<void> own = memory.allocate(bytes_of(t));
  const ramp_tensor to = contiguous_at(t, own.get());
  memory.copy(t, to, stream);
  t = to;
  return own;
}

}  // namespace

int64_t CudaPacked::bytes() const noexcept {
  return static_cast<int64_t>(bytes_of(w13) + bytes_of(w2));
}

WeightViews weight_views(const ExpertWeights& w) noexcept {
  if (const auto* const packed = static_cast<const CudaPacked*>(w.packed.get()))
    return {packed->w13, packed->w2};
  return {w.w13, w.w2};
}

void pack_weights(ExpertWeights& w, const DeviceMemory& memory, void* stream) {
  auto packed = std::make_unique<CudaPacked>();
  packed->w13 = w.w13;
  packed->w2 = w.w2;
  if (w.ownership == RAMP_BORROW) {
    packed->own_w13 = own_copy(packed->w13, memory, stream);
    packed->own_w2 = own_copy(packed->w2, memory, stream);
    memory.synchronize(stream);  // other streams may use the handle from here on
  } else {
    packed->own_w13 = std::move(w.device_w13);
    packed->own_w2 = std::move(w.device_w2);
    w.w13.data = w.w2.data = nullptr;
  }
  w.packed = std::move(packed);
}

void update_weights(ExpertWeights& w, int64_t first_expert, const ramp_weights_desc& update,
                    const DeviceMemory& memory, void* stream) {
  if (present(w.w13_scale)) {
    // A BORROW handle's scales are the caller's, who is never written to.
    if (w.ownership == RAMP_BORROW && w.device_w13_scale == nullptr) {
      ramp_tensor s13 = w.w13_scale;
      ramp_tensor s2 = w.w2_scale;
      std::shared_ptr<void> own13 = own_copy(s13, memory, stream);
      std::shared_ptr<void> own2 = own_copy(s2, memory, stream);
      w.device_w13_scale = std::move(own13);
      w.device_w2_scale = std::move(own2);
      w.w13_scale = s13;
      w.w2_scale = s2;
    }
    memory.copy(update.w13_scale, expert_range(w.w13_scale, first_expert, update.num_experts), stream);
    memory.copy(update.w2_scale, expert_range(w.w2_scale, first_expert, update.num_experts), stream);
  }
  const WeightViews to = weight_views(w);
  memory.copy(update.w13, expert_range(to.w13, first_expert, update.num_experts), stream);
  memory.copy(update.w2, expert_range(to.w2, first_expert, update.num_experts), stream);
  take_input_scales(w, update, {&memory, stream});
  memory.synchronize(stream);  // "values are copied in": the caller may change its buffers when this returns
}

void unpack_weights(const ExpertWeights& w, const ramp_tensor& w13, const ramp_tensor& w2,
                    const DeviceMemory& memory, void* stream) {
  const WeightViews from = weight_views(w);
  if (present(w13)) memory.copy(from.w13, w13, stream);
  if (present(w2)) memory.copy(from.w2, w2, stream);
}

}  // namespace ramp::core::cuda
