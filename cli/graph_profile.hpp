// Timing configs of the expert block for `ramp profile` on a GPU. What a tick is: one replay of a CUDA graph
// that runs layers with distinct weights, over their number, whole block, between events. All layers have the
// point's histogram, each with the experts in another order (so that it is the histogram that was timed, and
// not the mean of several). There are as many layers as it takes (LayerPlan::beyond_cache says whether there
// is room) for the weights that one replay reads to be beyond the L2 cache at every point, so that none finds
// its weights there, and fewer of them are run where passes are long (layers_of_replay); x is the same for
// all layers, as in the layers protocol of `ramp bench`.
//
// All graphs of a point are captured before the first is timed (65 us each, measured), and those of a round
// are replayed one behind the other without a pause: an idle GPU raises its clock.
#pragma once

#include <cstdint>
#include <memory>
#include <set>
#include <string>
#include <vector>

#include "cli/device_tensor.hpp"
#include "cli/gpu.hpp"
#include "cli/layer_source.hpp"
#include "cli/profile_protocol.hpp"
#include "cli/tensors.hpp"
#include "cli/tick_source.hpp"

namespace ramp::cli {

// wanted 0: the layers protocol's number, else 2 to 5; more where least_active experts, the fewest of any
// point, would leave a replay's weights within twice the L2 cache; as many as fit the memory. Throws
// Error(OUT_OF_MEMORY).
LayerPlan plan_gpu_layers(ramp_context* context, const core::ModelShape& model, ramp_format format,
                          ramp_activation activation, int64_t least_active, int64_t wanted);

class GraphTimer final : public TickSource {
 public:
  // most_tokens: of any point.
  GraphTimer(ramp_context* context, const std::vector<RunnableLayer>& layers, const core::ModelShape& shape,
             ramp_format format, ramp_determinism determinism, uint64_t seed, int64_t most_tokens);
  void prepare(const TimedPoint& point) override;
  std::vector<Failure> make_ready(std::span<const size_t> configs, std::span<const int32_t> numbers) override;
  // Some 50 ms at once, so that little is run in vain where a budget ends in the middle.
  [[nodiscard]] size_t batch() const override { return batch_; }
  std::vector<Tick> run(std::span<const core::Profiler::Task> tasks,
                        std::span<const int32_t> numbers) override;
  // Layers of a replay at this point.
  [[nodiscard]] int64_t layers_at(const core::WorkPoint& point) const;
  [[nodiscard]] bool unsteady_at(const core::WorkPoint& point) const;
  // kLive runs what this context, which has a fit, chooses by itself; nullptr: nothing does any more.
  static constexpr int32_t kLive = -1;
  void live_with(ramp_context* context);

  // Seconds of the host, so far.
  struct Spent {
    double inputs = 0, capture = 0, replay = 0;
    size_t graphs = 0, replays = 0;
  };
  [[nodiscard]] const Spent& spent() const noexcept { return spent_; }

 private:
  struct Layer {
    HostTensor ids;
    Mirror device_ids;
    std::shared_ptr<void> y;
  };
  void enqueue(int32_t number, void* stream) const;
  void capture(size_t config, int32_t number);
  [[nodiscard]] std::string name_of(int32_t number) const;

  [[nodiscard]] LayerFloor floor_at(const core::WorkPoint& point) const;

  ramp_context* context_;
  ramp_context* live_ = nullptr;
  const std::vector<RunnableLayer>& weights_;
  core::ModelShape shape_;
  ramp_format format_;
  ramp_determinism determinism_;
  uint64_t seed_;
  HostTensor x_, router_weights_;
  Mirror device_x_, device_router_weights_;
  std::vector<Layer> layers_;
  size_t used_ = 0, batch_ = 1;  // of them, at this point; replays at once
  int64_t tokens_ = 0;
  Workspace workspace_;
  GraphRounds graphs_;
  std::set<int32_t> seen_;  // configs that have run once outside of a graph
  Spent spent_;
};

}  // namespace ramp::cli
