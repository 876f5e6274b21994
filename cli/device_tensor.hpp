// Host tensors where a context can read and write them. On the CPU that is the host tensor itself and nothing
// is copied; on a GPU a copy in device memory, moved by upload() and download().
#pragma once

#include <memory>

#include "base/device_memory.hpp"
#include "cli/tensors.hpp"
#include "ramp/ramp.h"

namespace ramp::cli {

// Of the context's device; nullptr: the host's.
const core::DeviceMemory* device_memory_of(ramp_context* context);

class Mirror {
 public:
  Mirror() = default;
  // host: contiguous, and alive as long as this; absent (ndim 0) stays absent. The content of the device's
  // copy is what upload() brings.
  Mirror(ramp_context* context, const ramp_tensor& host);
  // The same with its content there already.
  static Mirror uploaded(ramp_context* context, const ramp_tensor& host);
  [[nodiscard]] const ramp_tensor& view() const noexcept { return view_; }  // what the ABI is given
  void upload() const;
  void download() const;  // waits for what the default stream still has to do
  // One row [0, columns) of the first dimension's `row`, into the host tensor's same row.
  void download_row(int64_t row) const;
  // Fills the device's copy with a byte (on the CPU: the host tensor).
  void fill(uint8_t byte) const;

 private:
  const core::DeviceMemory* memory_ = nullptr;
  std::shared_ptr<void> own_;
  ramp_tensor host_{}, view_{};
};

}  // namespace ramp::cli
