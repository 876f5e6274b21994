// The trace: a ring in device memory into which prologues write a record per layer call (histogram, decision,
// predicted time: kernels/prologue/decide.cuh), events around calls where they are to be timed, and what the
// host knows of the calls. Nothing is read back until somebody asks.
#pragma once

#include <atomic>
#include <cstdint>
#include <functional>
#include <map>
#include <memory>
#include <mutex>
#include <optional>
#include <tuple>
#include <vector>

#include "backend/backend.hpp"
#include "backend/cuda/gpu.hpp"
#include "backend/cuda/step_block.hpp"

namespace ramp::core::cuda {

class StepTrace {
 public:
  StepTrace(std::shared_ptr<const Gpu> gpu, std::shared_ptr<const DeviceMemory> memory)
      : gpu_(std::move(gpu)), memory_(std::move(memory)) {}
  ~StepTrace();
  StepTrace(const StepTrace&) = delete;
  StepTrace& operator=(const StepTrace&) = delete;

  // Room for so many records, the oldest of which give way. 0: calls made from now on write none. Throws
  // INVALID_ARGUMENT for another number than before.
  void begin(uint64_t records);
  [[nodiscard]] bool active() const noexcept { return active_.load(std::memory_order_relaxed); }
  // Whether calls are timed that are not captured.
  void time(bool on) noexcept { timed_.store(on, std::memory_order_relaxed); }

  struct CallInfo {
    const ExpertWeights* weights;
    int64_t tokens, top_k;  // batched: max_tokens, 1
    bool batched;
    StepCandidate fallback;  // what runs without a fit
  };
  struct Timing {
    unsigned tag = 0;  // 0: not timed
    CUevent stop = nullptr;
    CUstream stream = nullptr;
  };
  // Before the first launch of a call with this set: fills the trace's part of `out`.
  Timing begin_call(const CallInfo& info, const StepSet& set, CUstream stream, DecideParams& out);
  void end_call(const Timing& timing);  // behind the last one

  // Waits for the device, then hands out what has been written since the last time, oldest first.
  void read(const std::function<void(const TraceRecord&)>& take);
  // Waits likewise where there is anything to wait for.
  TraceCounters counters();

 private:
  struct Call {
    ModelShape shape;
    ramp_format format = RAMP_FORMAT_NONE;
    int64_t tokens = 0;
    bool batched = false;
    std::vector<KernelConfig> configs;
    const StepSet* set = nullptr;  // never freed before this
    KernelConfig fallback;
    std::optional<CandidateCost> fallback_cost;
    unsigned fallback_tile_m = 0;
  };
  // Events of a call; taken again by the call that comes so many later.
  struct Timed {
    unsigned taken = 0;  // by the call with this tag
    unsigned tag = 0;    // 0: not complete
    CUevent start = nullptr, stop = nullptr;
  };
  [[nodiscard]] Timing begin_timing(CUstream stream);
  [[nodiscard]] double elapsed_us(unsigned tag) const;
  // Records from `from` on, those that are not counted yet being counted; returns the number behind the last.
  uint64_t scan(uint64_t from, const std::function<void(const TraceRecord&)>& take);

  std::shared_ptr<const Gpu> gpu_;
  std::shared_ptr<const DeviceMemory> memory_;
  std::mutex mutex_;
  std::atomic<bool> active_{false}, timed_{false};
  std::shared_ptr<void> ring_;
  uint64_t records_ = 0, read_ = 0, counted_ = 0;
  TraceCounters counters_;
  // A layer is known by its weights: eager calls of one shape are one call.
  std::map<std::tuple<const void*, int64_t, int64_t, bool, const void*>, unsigned> numbers_;
  std::vector<Call> calls_;
  std::vector<Timed> timings_;
  unsigned last_tag_ = 0;
};

}  // namespace ramp::core::cuda
