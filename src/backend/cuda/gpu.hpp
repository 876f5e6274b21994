// One GPU as the backend uses it: its attributes, the CUDA context that calls run in, and device memory.
#pragma once

#include <cuda.h>

#include <cstdint>
#include <memory>
#include <string>

#include "base/device_memory.hpp"

namespace ramp::core::cuda {

struct GpuFacts {
  int ordinal = 0;
  std::string name;
  int major = 0, minor = 0;  // compute capability
  int sm_count = 0, clock_khz = 0, memory_clock_khz = 0, l2_bytes = 0;
  int shared_per_block = 0;  // opt-in maximum, bytes
  int shared_per_sm = 0, registers_per_sm = 0;
  uint64_t memory_bytes = 0;
  int driver_version = 0;  // 13000 = CUDA 13.0
  [[nodiscard]] std::string arch()
      const;  // "sm_90a" (the architecture-specific target where there is one), "sm_80", ...
};

// Facts of a GPU without making a context on it. Throws (driver.hpp), INVALID_ARGUMENT for an ordinal that is
// not there.
GpuFacts gpu_facts(int ordinal);

// The CUDA context of a device: the caller's, where one of this device is current at construction, else the
// device's primary context. The primary one is retained as long as this lives, also where it is what the
// caller had current; copies of the shared_ptr keep it alive behind memory and modules. A context that the
// caller has made (cuCtxCreate) cannot be retained: it has to outlive this and everything made with it.
class Gpu {
 public:
  static std::shared_ptr<const Gpu> open(int ordinal);
  ~Gpu();
  Gpu(const Gpu&) = delete;
  Gpu& operator=(const Gpu&) = delete;
  [[nodiscard]] const GpuFacts& facts() const noexcept { return facts_; }
  [[nodiscard]] CUcontext context() const noexcept { return context_; }

 private:
  Gpu() = default;
  GpuFacts facts_;
  CUdevice device_ = 0;
  CUcontext context_ = nullptr;
  bool retained_ = false;
};

// Makes the GPU's context current on this thread for a scope; costs nothing where it is current already.
class ScopedContext {
 public:
  explicit ScopedContext(const Gpu& gpu);
  ~ScopedContext();
  ScopedContext(const ScopedContext&) = delete;
  ScopedContext& operator=(const ScopedContext&) = delete;

 private:
  bool pushed_ = false;
};

// For a scope, lets this thread make calls that CUDA forbids while a stream is captured, by this thread or
// (global mode) by another: loading modules, allocating and freeing memory. None of them becomes part of the
// graph, and the capture goes on. Needs no context.
class RelaxedCapture {
 public:
  RelaxedCapture();
  ~RelaxedCapture();
  RelaxedCapture(const RelaxedCapture&) = delete;
  RelaxedCapture& operator=(const RelaxedCapture&) = delete;

 private:
  CUstreamCaptureMode other_ = CU_STREAM_CAPTURE_MODE_RELAXED;
};

class KernelLibrary;  // kernel_library.hpp
// kernels: for strided copies that the driver's own copies do not take; without it those go row by row.
std::shared_ptr<const DeviceMemory> make_device_memory(std::shared_ptr<const Gpu> gpu,
                                                       std::shared_ptr<KernelLibrary> kernels = nullptr);

}  // namespace ramp::core::cuda
