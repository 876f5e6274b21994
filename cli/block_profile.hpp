// Timing every config of the expert block for `ramp profile`: the weights and inputs behind the profiler's
// ticks, and the comparison of a fit's choices with exhaustive timing.
//
// What a tick is: one call of the block on one layer, whole block, steady clock. From tick to tick both the
// layer and the experts change (ids are relabelled by a rotation, which keeps the multiset of loads), so that
// the weights of a call were last touched as long ago as the made-up weights allow; the layers together are
// about twice the last-level cache, where memory allows it.
#pragma once

#include <cstdint>
#include <functional>
#include <string>
#include <vector>

#include "cli/layer_source.hpp"
#include "cli/tensors.hpp"
#include "dispatch/dispatcher.hpp"
#include "dispatch/profiler.hpp"
#include "routing/workload.hpp"

namespace ramp::cli {

// A point and the ids behind its histogram.
struct TimedPoint {
  core::WorkPoint work;
  core::Routing routing;
};
// tokens x routings, in that order; names "t8_zipf:1.2". `train` goes into the points. seed: of the first
// one.
std::vector<TimedPoint> make_points(const core::ModelShape& model, const std::vector<int64_t>& tokens,
                                    const std::vector<core::WorkloadSpec>& routings, bool train,
                                    uint64_t seed);

// How many layers a profile makes, and what they weigh.
struct LayerPlan {
  int64_t layers = 1, bytes = 0;  // bytes: of all
  bool beyond_cache = false;      // together more than the last-level cache
};
// wanted 0: as many as hold twice the last-level cache, 1 to 24. Throws Error(OUT_OF_MEMORY) when not even
// one fits.
LayerPlan plan_layers(const core::ModelShape& model, ramp_format format, ramp_activation activation,
                      int64_t wanted);

class BlockTimer {
 public:
  BlockTimer(ramp_context* context, const std::vector<RunnableLayer>& layers, const core::ModelShape& shape,
             ramp_format format, ramp_determinism determinism, uint64_t seed);
  // Inputs for this point from now on. The point must live until the next call.
  void prepare(const TimedPoint& point);
  // Ticks are CPU time of the process over this many workers from now on, not wall time: blind to workers
  // that wait for one another, but also to other programs that take the cores away.
  void use_cpu_time(int32_t workers) { cpu_time_workers_ = workers; }
  // One call with config number `number` of the context (0: it chooses); microseconds.
  double tick(int32_t number);

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

  [[nodiscard]] double now_us() const;
};

// Runs the state machine to its end. after_point: called when a point has been finished (to save); progress:
// before every tick.
void run_profiler(core::Profiler& profiler, BlockTimer& timer, const std::vector<TimedPoint>& points,
                  const std::vector<int32_t>& numbers, const std::function<void()>& after_point,
                  const std::function<void()>& progress);

// us = geometric mean of the two halves that the profiler keeps (ProfilerOptions::halves): what is fitted and
// judged. us_repeat stays, so that a guard's noise margin is that of the mean.
core::Dataset merge_halves(core::Dataset d);

// A fit's choices against exhaustive timing at points that it has not seen.
struct JudgedPoint {
  std::string name;
  int64_t tokens = 0;
  std::string chosen, best;  // configs
  double us = 0, best_us = 0, default_us = 0, single_us = 0;
  double regret = 0;  // us / best_us - 1
  double noise = 0;   // the first half's best config judged on the second half
};
struct Judgement {
  std::vector<JudgedPoint> points;
  std::string single_best;  // the one config that the profile would fix
  double mean_regret = 0, p95_regret = 0, max_regret = 0, mean_noise = 0;
  double over_single_best = 1, over_default = 1;  // geometric means of us(other) / us(chosen)
};
// train: what was profiled (halves merged); test: exhaustive timings of the same configs and, after them, of
// one more: the analytic default, whatever that is at each point (halves not merged).
Judgement judge(const core::Dataset& train, const core::Dataset& test, const core::Dispatcher& dispatcher);
// Both as one dataset for `ramp evaluate` (halves apart); test's configs beyond train's are left out.
core::Dataset join_datasets(const core::Dataset& train, const core::Dataset& test);

}  // namespace ramp::cli
