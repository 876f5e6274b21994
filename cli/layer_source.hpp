// Where a layer's expert weights come from: a checkpoint or the synthetic generator. A source can give them
// twice: as a handle that runs (packed), and as plain values that the fp64 reference reads. They are made
// anew each time, so that both need not be in memory at once.
#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "cli/gpu.hpp"
#include "cli/output.hpp"
#include "cli/runtime.hpp"
#include "geometry/model.hpp"
#include "loader/checkpoint.hpp"
#include "weights/synthetic.hpp"

namespace ramp::cli {

// A handle and the memory behind it.
struct RunnableLayer {
  // IN_PLACE memory of synthetic weights, on the host or the GPU; must outlive the handle.
  core::SyntheticWeights storage;
  DeviceWeights device_storage;
  WeightsPtr handle;
};
// Checkpoint-layout values and the memory behind them.
struct LayerValues {
  core::SyntheticWeights synthetic;
  core::LoadedLayer loaded;
  std::unique_ptr<core::ExpertWeights> weights;
};

class LayerSource {
 public:
  virtual ~LayerSource() = default;
  // Of the experts that it gives: shape().experts is their number. top_k is 0 where unknown.
  [[nodiscard]] const core::ModelShape& shape() const noexcept { return shape_; }
  [[nodiscard]] ramp_format format() const noexcept { return format_; }
  [[nodiscard]] ramp_activation activation() const noexcept { return activation_; }
  [[nodiscard]] virtual RunnableLayer runnable(ramp_context* context, bool pack, const Io& io) const = 0;
  [[nodiscard]] virtual std::unique_ptr<LayerValues> values(const Io& io) const = 0;
  // For JSON and headings.
  [[nodiscard]] virtual Json describe() const = 0;

 protected:
  core::ModelShape shape_;
  ramp_format format_ = RAMP_FORMAT_NONE;
  ramp_activation activation_ = RAMP_ACTIVATION_SILU_AND_MUL;
};

class RandomSource final : public LayerSource {
 public:
  RandomSource(core::ModelShape shape, ramp_format format, ramp_activation activation, uint64_t seed);
  [[nodiscard]] RunnableLayer runnable(ramp_context* context, bool pack, const Io& io) const override;
  [[nodiscard]] std::unique_ptr<LayerValues> values(const Io& io) const override;
  [[nodiscard]] Json describe() const override;
  [[nodiscard]] uint64_t seed() const noexcept { return seed_; }
  [[nodiscard]] core::SyntheticRecipe recipe() const;

 private:
  [[nodiscard]] core::SyntheticWeights make(const Io& io) const;
  uint64_t seed_;
};

class CheckpointSource final : public LayerSource {
 public:
  // num_experts 0: all from first_expert on. layer < 0: the first layer that has experts.
  CheckpointSource(const std::string& path, int64_t layer, int64_t first_expert, int64_t num_experts);
  [[nodiscard]] RunnableLayer runnable(ramp_context* context, bool pack, const Io& io) const override;
  [[nodiscard]] std::unique_ptr<LayerValues> values(const Io& io) const override;
  [[nodiscard]] Json describe() const override;
  // Of the whole layer; views are valid as long as this source.
  [[nodiscard]] const ramp_layer_info& info() const noexcept { return info_; }
  [[nodiscard]] int64_t layer() const noexcept { return layer_; }
  [[nodiscard]] int64_t first_expert() const noexcept { return first_expert_; }

 private:
  std::string path_;
  CheckpointPtr checkpoint_;
  int64_t layer_, first_expert_;
  ramp_layer_info info_;
};

}  // namespace ramp::cli
