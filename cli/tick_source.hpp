// What `ramp profile` times configs with: points (a histogram and the ids behind it), a source of ticks, and
// the loop that leads the profiling state machine (dispatch/profiler.hpp) through them. The loop knows
// neither a clock nor a device.
#pragma once

#include <cstdint>
#include <functional>
#include <span>
#include <string>
#include <utility>
#include <vector>

#include "dispatch/profiler.hpp"
#include "ramp/dispatch.h"
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

// One run of one config. failure: why it could not be run; "" where `us` says how long it took.
struct Tick {
  double us = 0;
  std::string failure;
};

// Runs the config of that number on the call of an expert block; throws.
using BlockLaunch = std::function<void(int32_t number, ramp_block_call& call)>;
// The name of the config of that number, for messages.
using ConfigNames = std::function<std::string(int32_t number)>;

class TickSource {
 public:
  TickSource() = default;
  virtual ~TickSource() = default;
  TickSource(const TickSource&) = delete;
  TickSource& operator=(const TickSource&) = delete;
  // Inputs for this point from now on. The point must live until the next call.
  virtual void prepare(const TimedPoint& point) = 0;
  // These configs will run at the prepared point, so that nothing of them need be made ready between two of
  // their runs. Returns who cannot, and why.
  struct Failure {
    size_t config = 0;
    std::string reason;
  };
  virtual std::vector<Failure> make_ready(std::span<const size_t> /*configs*/,
                                          std::span<const int32_t> /*numbers*/) {
    return {};
  }
  // How many tasks it likes to run at once.
  [[nodiscard]] virtual size_t batch() const { return 1; }
  // One tick per task, in their order; all tasks are of the prepared point. numbers[task.config]: the
  // context's number of the config, 0: it chooses.
  virtual std::vector<Tick> run(std::span<const core::Profiler::Task> tasks,
                                std::span<const int32_t> numbers) = 0;
  // From now on numbers mean what `launch` takes them for, not ramp_expert_block: where kernels of others
  // take part. names: of the same numbers.
  void launch_with(BlockLaunch launch, ConfigNames names) {
    launch_ = std::move(launch);
    names_ = std::move(names);
  }

 protected:
  BlockLaunch launch_;  // empty: ramp_expert_block
  ConfigNames names_;   // empty: the context's
};

// Runs the state machine to its end. after_point: called when a point has been finished (to save); progress:
// before every batch.
void run_profiler(core::Profiler& profiler, TickSource& source, const std::vector<TimedPoint>& points,
                  std::span<const int32_t> numbers, const std::function<void()>& after_point,
                  const std::function<void()>& progress);

}  // namespace ramp::cli
