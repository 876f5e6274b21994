// The dispatcher's opaque handles.
#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "abi/border.hpp"
#include "base/log.hpp"
#include "dispatch/kernel.hpp"
#include "ramp/dispatch.h"

namespace ramp::core {
inline constexpr uint64_t kKernelMagic = 0x52614d50'006e31edULL;
inline constexpr uint64_t kProfilerMagic = 0x52614d50'0090f113ULL;
}  // namespace ramp::core

struct ramp_kernel {
  uint64_t magic = ramp::core::kKernelMagic;
  std::unique_ptr<ramp::core::RegisteredKernel> kernel;
  ramp_kernel_launch_fn launch = nullptr;
  void* user = nullptr;
  ramp::core::LogSink log;
};

struct ramp_profiler {
  uint64_t magic = ramp::core::kProfilerMagic;
  std::unique_ptr<ramp::core::Profiler> profiler;
};

namespace ramp::core {

inline ramp_kernel& kernel_of(ramp_kernel* k) {
  check_handle(k, kKernelMagic, "kernel", "ramp_kernel_create");
  return *k;
}
inline const ramp_kernel& kernel_of(const ramp_kernel* k) {
  check_handle(k, kKernelMagic, "kernel", "ramp_kernel_create");
  return *k;
}
inline ramp_profiler& profiler_of(ramp_profiler* p) {
  check_handle(p, kProfilerMagic, "profiler", "ramp_profiler_create");
  return *p;
}
inline const ramp_profiler& profiler_of(const ramp_profiler* p) {
  check_handle(p, kProfilerMagic, "profiler", "ramp_profiler_create");
  return *p;
}

// Clears the magic, so that use after destroy is recognised while the memory is not reused, and frees.
template <typename Handle>
void destroy_dispatch_handle(Handle* handle) noexcept {
  *static_cast<volatile uint64_t*>(&handle->magic) = 0;
  delete handle;
}

// Element i of a caller's array of sized structs: all elements are as large as the first says.
template <typename T>
T read_element(const T* array, size_t i, std::string_view type) {
  uint64_t stride = 0;
  std::memcpy(&stride, array, sizeof stride);
  const T first = read_sized(array, type);  // refuses an absurd stride
  if (i == 0) return first;
  const auto* at = reinterpret_cast<const std::byte*>(array) + i * stride;
  return read_sized(reinterpret_cast<const T*>(at), type);
}

// Sends the kernel's warnings to its log.
void log_warnings(const ramp_kernel& k);

}  // namespace ramp::core
