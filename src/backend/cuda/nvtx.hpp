// Named ranges on the timeline of a profiler (Nsight Systems and the like). Without one attached a range is
// one load and one branch; nothing is linked. NVTX itself asks the environment, once, whether a tool wants to
// be loaded: that is the tool's business and no setting of ramp.
#pragma once

namespace ramp::core::cuda {

class ScopedRange {
 public:
  explicit ScopedRange(const char* name) noexcept;
  ~ScopedRange();
  ScopedRange(const ScopedRange&) = delete;
  ScopedRange& operator=(const ScopedRange&) = delete;

 private:
  bool pushed_;
};

}  // namespace ramp::core::cuda
