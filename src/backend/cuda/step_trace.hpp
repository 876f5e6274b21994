// The trace: a ring in device memory into which prologues write a record per layer call (histogram, decision,
// predicted time: kernels/prologue/decide.cuh), and what the host knows of the calls. Nothing is read back
// until somebody asks.
#pragma once

#include <atomic>
#include <cstdint>
#include <functional>
#include <map>
#include <memory>
#include <mutex>
#include <tuple>
#include <vector>

#include "backend/backend.hpp"
#include "backend/cuda/step_block.hpp"

namespace ramp::core::cuda {

class StepTrace {
 public:
  explicit StepTrace(std::shared_ptr<const DeviceMemory> memory) : memory_(std::move(memory)) {}
  // Room for so many records, the oldest of which give way. 0: calls made from now on write none. Throws
  // INVALID_ARGUMENT for another number than before.
  void begin(uint64_t records);
  [[nodiscard]] bool active() const noexcept { return active_.load(std::memory_order_relaxed); }
  // What a call with this set has to write: fills the trace's part of `out`.
  void describe(const ExpertWeights& w, int64_t tokens, int64_t top_k, bool batched, const StepSet& set,
                DecideParams& out);
  // Waits for the device, then hands out what has been written since the last time, oldest first.
  void read(const std::function<void(const TraceRecord&)>& take);

 private:
  struct Call {
    ModelShape shape;
    ramp_format format = RAMP_FORMAT_NONE;
    int64_t tokens = 0;
    bool batched = false;
    std::vector<KernelConfig> configs;
  };
  std::shared_ptr<const DeviceMemory> memory_;
  std::mutex mutex_;
  std::atomic<bool> active_{false};
  std::shared_ptr<void> ring_;
  uint64_t records_ = 0, read_ = 0;
  // A layer is known by its weights: eager calls of one shape are one call.
  std::map<std::tuple<const void*, int64_t, int64_t, bool, const void*>, unsigned> numbers_;
  std::vector<Call> calls_;
};

}  // namespace ramp::core::cuda
