// Expert weights on the GPU: where their values are, and packing. The plain kernels read the checkpoint
// layout, so packing moves the values as they are (BORROW: copies them) behind the handle.
#pragma once

#include <memory>

#include "base/device_memory.hpp"
#include "weights/expert_weights.hpp"

namespace ramp::core::cuda {

struct CudaPacked final : PackedWeights {
  ramp_tensor w13{}, w2{};                // checkpoint layout
  std::shared_ptr<void> own_w13, own_w2;  // empty where the caller's buffers serve (IN_PLACE)
  [[nodiscard]] int64_t bytes() const noexcept override;
};

// Checkpoint-layout views of the values, wherever the handle keeps them.
struct WeightViews {
  ramp_tensor w13{}, w2{};
};
WeightViews weight_views(const ExpertWeights& w) noexcept;

void pack_weights(ExpertWeights& w, const DeviceMemory& memory, void* stream);
// `update` has passed check_update.
void update_weights(ExpertWeights& w, int64_t first_expert, const ramp_weights_desc& update,
                    const DeviceMemory& memory, void* stream);
void unpack_weights(const ExpertWeights& w, const ramp_tensor& w13, const ramp_tensor& w2,
                    const DeviceMemory& memory, void* stream);

}  // namespace ramp::core::cuda
