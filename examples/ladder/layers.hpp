// What the ladder works on: MoE layers with weights of their own on the GPU, in checkpoint layout and packed,
// and one step of tokens with its plan. The plan is made on the host here, so that only the GEMM is timed;
// the library makes it on the device (kernels/prologue).
#pragma once

#include <cuda.h>

#include <cstdint>
#include <map>
#include <memory>
#include <string>
#include <vector>

#include "backend/cuda/kernel_library.hpp"
#include "base/device_memory.hpp"
#include "geometry/model.hpp"
#include "ladder/check.hpp"
#include "ladder/params.hpp"
#include "routing/workload.hpp"

namespace ladder {

// The GPU and what is used of it.
struct Device {
  std::shared_ptr<const ramp::core::cuda::Gpu> gpu;
  std::shared_ptr<const ramp::core::DeviceMemory> memory;
  CUstream stream = nullptr;
};

struct Layer {
  std::shared_ptr<void> weights, packed, weight_scale;
  std::vector<float> host_scale;
};
// Synthetic W13 of `count` layers, the same for the same seed. Throws OUT_OF_MEMORY with the bytes.
std::vector<Layer> make_layers(const Device& device, const ramp::core::ModelShape& model, int64_t count);

// Tiles of one height, on the device. Height 0: one tile per active expert.
struct Tiles {
  std::shared_ptr<void> list;
  int count = 0;
};
inline constexpr int kTileHeights[] = {0, 1, 8, 32, 64};

// One layer's part of a step: its own routing, and its own h.
struct LayerStep {
  std::vector<int32_t> counts, token;  // rows per expert; sorted row -> token
  std::shared_ptr<void> device_token, h;
  std::map<int, Tiles> tiles;  // by height
};
struct Step {
  ramp::core::ModelShape model;
  int64_t tokens = 0;
  std::vector<uint8_t> x;  // quantised: [T, H] and [T, H/128]
  std::vector<float> x_scale;
  std::shared_ptr<void> device_x, device_x_scale;
  std::vector<LayerStep> layers;

  [[nodiscard]] int64_t rows() const { return tokens * model.top_k; }
  [[nodiscard]] double active() const;        // experts per layer, on average
  [[nodiscard]] double weight_bytes() const;  // of the active experts' W13 per layer
  [[nodiscard]] int64_t max_rows() const;     // of one expert in one layer
};
Step make_step(const Device& device, const ramp::core::ModelShape& model,
               const ramp::core::WorkloadSpec& routing, int64_t tokens, int64_t layers);

Params params_of(const Step& step, const Layer& layer, const LayerStep& part, int tile_height);

// The reference of one layer's step: whole rows of h of the hottest and the coldest expert and of others
// between, fewer columns where that would take the host too long.
std::vector<Sample> make_reference(const Device& device, const Step& step, const Layer& layer,
                                   const LayerStep& part);

}  // namespace ladder
