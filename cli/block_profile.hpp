// Timing configs of the expert block for `ramp profile` on a CPU: the weights and inputs behind the
// profiler's ticks.
//
// What a tick is: one call of the block on one layer, whole block, steady clock. From tick to tick both the
// layer and the experts change (ids are relabelled by a rotation, which keeps the multiset of loads), so that
// the weights of a call were last touched as long ago as the made-up weights allow; the layers together are
// about twice the last-level cache, where memory allows it.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "cli/layer_source.hpp"
#include "cli/profile_protocol.hpp"
#include "cli/tensors.hpp"
#include "cli/tick_source.hpp"

namespace ramp::cli {

// wanted 0: as many as hold twice the last-level cache, 1 to 24. Throws Error(OUT_OF_MEMORY) when not even
// one fits.
LayerPlan plan_layers(const core::ModelShape& model, ramp_format format, ramp_activation activation,
                      int64_t wanted);

// One call as a timer makes it: by `launch` where there is one, with the number that args.config holds.
void run_block(ramp_context* context, const ramp_expert_block_args& args, const Workspace& workspace,
               void* stream, const BlockLaunch& launch);

class BlockTimer final : public TickSource {
 public:
  BlockTimer(ramp_context* context, const std::vector<RunnableLayer>& layers, const core::ModelShape& shape,
             ramp_format format, ramp_determinism determinism, uint64_t seed);
  void prepare(const TimedPoint& point) override;
  std::vector<Tick> run(std::span<const core::Profiler::Task> tasks,
                        std::span<const int32_t> numbers) override;
  // Ticks are CPU time of the process over this many workers from now on, not wall time: blind to workers
  // that wait for one another, but also to other programs that take the cores away.
  void use_cpu_time(int32_t workers) { cpu_time_workers_ = workers; }

 private:
  ramp_context* context_;
  const std::vector<RunnableLayer>& layers_;
  core::ModelShape shape_;
  ramp_format format_;
  ramp_determinism determinism_;
  uint64_t seed_;
  Workspace workspace_;
  HostTensor x_, y_, weights_;
  std::vector<HostTensor> ids_;  // one per rotation of the experts
  uint64_t calls_ = 0;
  int32_t cpu_time_workers_ = 0;  // 0: wall time

  double tick(int32_t number);
  [[nodiscard]] double now_us() const;
};

}  // namespace ramp::cli
