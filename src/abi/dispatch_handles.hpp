// The dispatcher's opaque handles.
#pragma once

#include <cstdint>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "abi/border.hpp"
#include "base/log.hpp"
#include "dispatch/block_fit.hpp"
#include "dispatch/kernel.hpp"
#include "ramp/dispatch.h"

namespace ramp::core {
inline constexpr uint64_t kKernelMagic = 0x52614d50'006e31edULL;
inline constexpr uint64_t kProfilerMagic = 0x52614d50'0090f113ULL;

// Of a kernel that has ramp's own configs in its table: who runs them. They come first.
struct BlockSide {
  ramp_context* context = nullptr;
  WeightKind kind;
  int32_t own_configs = 0;
};

}  // namespace ramp::core

struct ramp_kernel {
  uint64_t magic = ramp::core::kKernelMagic;
  std::unique_ptr<ramp::core::RegisteredKernel> kernel;
  ramp_kernel_launch_fn launch = nullptr;
  void* user = nullptr;
  ramp::core::LogSink log;
  std::optional<ramp::core::BlockSide> block;  // of ramp_block_kernel_create
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

// What of a description stands for any kernel.
ConfigTable read_configs(const ramp_kernel_desc& desc);
void read_machine(const ramp_machine* user, KernelDescription& k);

// Runs config `config` of the table, which must be one, on the caller's `call`. What the caller's own launch
// returns; one of ramp's own configs returns 0 or throws.
int launch_config(const ramp_kernel& k, int32_t config, void* call);
// Whether there is something that runs every config.
bool launches(const ramp_kernel& k) noexcept;

// Sends the kernel's warnings to its log.
void log_warnings(const ramp_kernel& k);

}  // namespace ramp::core
