// The expert weights of one layer as the library holds them: format, shapes, checkpoint-layout views with
// strides, and (after packing) a backend's own layout. Every host consumer reads elements through the
// accessors below.
#pragma once

#include <cstdint>
#include <memory>
#include <span>
#include <vector>

#include "base/aligned_buffer.hpp"
#include "base/device_memory.hpp"
#include "geometry/model.hpp"
#include "ramp/ramp.h"

namespace ramp::core {

// A backend's packed form (base of the backends' own structs).
struct PackedWeights {
  virtual ~PackedWeights() = default;
  [[nodiscard]] virtual int64_t bytes() const noexcept = 0;
};

struct ExpertWeights {
  ramp_format format = RAMP_FORMAT_NONE;
  ramp_activation activation = RAMP_ACTIVATION_SILU_AND_MUL;
  ramp_ownership ownership = RAMP_COPY;
  int64_t experts = 0, hidden = 0, intermediate = 0;
  ramp_device device{};
  // Checkpoint layout (strides filled in). Once packed, w13/w2 of COPY and IN_PLACE handles have data ==
  // nullptr: the values then live in `packed` alone. Scales stay readable always.
  ramp_tensor w13{}, w2{}, w13_scale{}, w2_scale{};
  float w13_input_scale = 1.0F, w2_input_scale = 1.0F;  // fp8_tensor
  std::unique_ptr<PackedWeights> packed;
  // Owned storage behind the views when ownership == COPY.
  AlignedBuffer own_w13, own_w2;
  std::vector<float> own_w13_scale, own_w2_scale;
  // The same where the device is not the host.
  std::shared_ptr<void> device_w13, device_w2, device_w13_scale, device_w2_scale;

  [[nodiscard]] int64_t rows13() const noexcept { return w13_rows(intermediate, activation); }
  [[nodiscard]] bool gated() const noexcept { return is_gated(activation); }
};

// Scale tensors' expected shapes: -> {ndim, dims}. fp8_tensor w13 also accepts [E] or [E,2].
struct ScaleShape {
  int32_t ndim = 0;
  int64_t dims[RAMP_MAX_DIMS] = {};
};
ScaleShape w13_scale_shape(ramp_format f, ramp_activation a, int64_t experts, int64_t hidden,
                           int64_t intermediate) noexcept;
ScaleShape w2_scale_shape(ramp_format f, int64_t experts, int64_t hidden, int64_t intermediate) noexcept;

// Validates the descriptor (throws Error naming the field) and builds the handle: copies for COPY, refers
// otherwise. access: of `device`, where that is not the host. Blocking.
std::unique_ptr<ExpertWeights> make_expert_weights(const ramp_weights_desc& desc, ramp_device device,
                                                   DeviceAccess access = {});
// Same checks as make_expert_weights for an update of `target` at first_expert; returns normalised views, no
// copy.
ramp_weights_desc check_update(const ExpertWeights& target, int64_t first_expert,
                               const ramp_weights_desc& desc, DeviceAccess access = {});
// Takes over the static input scales that a checked descriptor has.
void take_input_scales(ExpertWeights& w, const ramp_weights_desc& desc, DeviceAccess access);
// Host weights on a device: a COPY handle there. Blocking.
std::unique_ptr<ExpertWeights> upload_weights(const ExpertWeights& host, ramp_device device,
                                              DeviceAccess access);

// Experts [first, first + count) of a tensor whose first dimension is the expert.
ramp_tensor expert_range(ramp_tensor t, int64_t first, int64_t count) noexcept;
// Copies every element of `from` to `to`: same dtype and shape, any strides with a unit last one, no overlap.
void copy_elements(const ramp_tensor& from, const ramp_tensor& to) noexcept;
// The part of an update that every backend shares: writes the update's weight scales into the handle (into
// the caller's buffers for IN_PLACE; a BORROW handle gets its own copy first, for the caller's buffers are
// never written) and replaces the static input scales where the update has them. `update` has gone through
// check_update. Throws OUT_OF_MEMORY before anything is changed.
void update_scales(ExpertWeights& target, int64_t first_expert, const ramp_weights_desc& update);

// The scale (f32) that multiplies w13[e,row,col] / w2[e,row,col]; 1 for formats without scales.
// Gate and up are quantised apart: row r of the up half in fp8_block uses scale row ceil(I/128) + (r -
// I)/128.
float w13_scale_at(const ExpertWeights& w, int64_t e, int64_t row, int64_t col) noexcept;
float w2_scale_at(const ExpertWeights& w, int64_t e, int64_t row, int64_t col) noexcept;
// Dequantised element in fp64: value * scale. Requires checkpoint-layout views to be present.
double w13_at(const ExpertWeights& w, int64_t e, int64_t row, int64_t col) noexcept;
double w2_at(const ExpertWeights& w, int64_t e, int64_t row, int64_t col) noexcept;

}  // namespace ramp::core
