// Expert weights on the GPU: where their values are, and packing. The plain kernels read the checkpoint
// layout, so packing moves the values as they are (BORROW: copies them) behind the handle.
#pragma once

#include <cuda.h>

#include <memory>

#include "base/device_memory.hpp"
#include "weights/expert_weights.hpp"

namespace ramp::core::cuda {

struct CudaPacked final : PackedWeights {
  bool tiles = false;                     // the stream kernels' tiles; else checkpoint layout
  ramp_tensor w13{}, w2{};                // shapes of the checkpoint layout; contiguous where tiles
  std::shared_ptr<void> own_w13, own_w2;  // empty where the caller's buffers serve (IN_PLACE)
  [[nodiscard]] int64_t bytes() const noexcept override;
};

// Checkpoint-layout views of the values, wherever the handle keeps them.
struct WeightViews {
  ramp_tensor w13{}, w2{};
};
WeightViews weight_views(const ExpertWeights& w) noexcept;

bool is_tiled(const ExpertWeights& w) noexcept;

// Packs and unpacks tiles (kernels/sm90/pack.cu). An expert at a time through scratch of one expert's size,
// so that packing needs no second copy of the layer.
class TilePacker {
 public:
  TilePacker(const DeviceMemory& memory, CUfunction pack) : memory_(memory), pack_(pack) {}
  // Scratch for an expert of either, taken before anything moves, so that want of memory leaves everything as
  // it was. It must live until the stream has been waited for.
  [[nodiscard]] std::shared_ptr<void> room(const ramp_tensor& a, const ramp_tensor& b) const;
  // The same for update(): nothing where the kernel reads both directly.
  [[nodiscard]] std::shared_ptr<void> update_room(const ramp_tensor& from13, const ramp_tensor& from2) const;
  // In place; asynchronous.
  void pack(const ramp_tensor& w, bool gated, void* room, CUstream stream) const;
  // Experts of `from` (any strides) over experts [first, ...) of packed `to`; asynchronous.
  void update(const ramp_tensor& from, const ramp_tensor& to, int64_t first, bool gated, void* room,
              CUstream stream) const;
  void unpack(const ramp_tensor& from, const ramp_tensor& to, bool gated, CUstream stream) const;

 private:
  const DeviceMemory& memory_;
  CUfunction pack_;
};

// packer: tiles; nullptr: the checkpoint layout.
void pack_weights(ExpertWeights& w, const DeviceMemory& memory, const TilePacker* packer, void* stream);
// `update` has passed check_update.
void update_weights(ExpertWeights& w, int64_t first_expert, const ramp_weights_desc& update,
                    const DeviceMemory& memory, const TilePacker* packer, void* stream);
void unpack_weights(const ExpertWeights& w, const ramp_tensor& w13, const ramp_tensor& w2,
                    const DeviceMemory& memory, const TilePacker* packer, void* stream);

}  // namespace ramp::core::cuda
