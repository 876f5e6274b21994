// What a GPU is, and whose context the backend works in.
#include "backend/cuda/gpu.hpp"

#include <fmt/format.h>

#include "backend/cuda/driver.hpp"
#include "base/error.hpp"

namespace ramp::core::cuda {
namespace {

CUdevice device_of(int ordinal) {
  int count = 0;
  RAMP_CU(cuDeviceGetCount, &count);
  if (ordinal < 0 || ordinal >= count)
    fail_argument("device.index", fmt::format("{}", ordinal),
                  count == 1 ? std::string("0, the only GPU") : fmt::format("0 to {}", count - 1),
                  "CUDA_VISIBLE_DEVICES says which GPUs a process sees");
  CUdevice device = 0;
  RAMP_CU(cuDeviceGet, &device, ordinal);
  return device;
}

int attribute(CUdevice device, CUdevice_attribute which) {
  int value = 0;
  RAMP_CU(cuDeviceGetAttribute, &value, which, device);
  return value;
}
// Clocks are for people to read: a driver that no longer tells them is no reason to fail.
int attribute_or_zero(CUdevice device, CUdevice_attribute which) {
  int value = 0;
  return driver().cuDeviceGetAttribute(&value, which, device) == CUDA_SUCCESS ? value : 0;
}

// Asks without making the primary context where there is none yet: it takes time and memory.
bool is_primary(CUcontext context, CUdevice device) {
  unsigned flags = 0;
  int active = 0;
  RAMP_CU(cuDevicePrimaryCtxGetState, device, &flags, &active);
  if (active == 0) return false;
  CUcontext primary = nullptr;
  RAMP_CU(cuDevicePrimaryCtxRetain, &primary, device);
  RAMP_CU(cuDevicePrimaryCtxRelease, device);
  return primary == context;
}

}  // namespace

std::string GpuFacts::arch() const {
  // wgmma, tensor memory and their like exist in the architecture-specific targets alone, from 9.0 on.
  return fmt::format("sm_{}{}{}", major, minor, major >= 9 ? "a" : "");
}

GpuFacts gpu_facts(int ordinal) {
  const CUdevice device = device_of(ordinal);
  GpuFacts f;
  f.ordinal = ordinal;
  char name[256] = {};
  RAMP_CU(cuDeviceGetName, name, static_cast<int>(sizeof name) - 1, device);
  f.name = name;
  f.major = attribute(device, CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR);
  f.minor = attribute(device, CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR);
  f.sm_count = attribute(device, CU_DEVICE_ATTRIBUTE_MULTIPROCESSOR_COUNT);
  f.clock_khz = attribute_or_zero(device, CU_DEVICE_ATTRIBUTE_CLOCK_RATE);
  f.memory_clock_khz = attribute_or_zero(device, CU_DEVICE_ATTRIBUTE_MEMORY_CLOCK_RATE);
  f.l2_bytes = attribute(device, CU_DEVICE_ATTRIBUTE_L2_CACHE_SIZE);
  f.shared_per_block = attribute(device, CU_DEVICE_ATTRIBUTE_MAX_SHARED_MEMORY_PER_BLOCK_OPTIN);
  f.shared_per_sm = attribute(device, CU_DEVICE_ATTRIBUTE_MAX_SHARED_MEMORY_PER_MULTIPROCESSOR);
  f.registers_per_sm = attribute(device, CU_DEVICE_ATTRIBUTE_MAX_REGISTERS_PER_MULTIPROCESSOR);
  size_t bytes = 0;
  RAMP_CU(cuDeviceTotalMem, &bytes, device);
  f.memory_bytes = bytes;
  f.driver_version = driver().version;
  return f;
}

std::shared_ptr<const Gpu> Gpu::open(int ordinal) {
  std::shared_ptr<Gpu> gpu(new Gpu);
  gpu->facts_ = gpu_facts(ordinal);
  RAMP_CU(cuDeviceGet, &gpu->device_, ordinal);
  CUcontext current = nullptr;
  RAMP_CU(cuCtxGetCurrent, &current);
  CUdevice device = 0;
  if (current != nullptr) RAMP_CU(cuCtxGetDevice, &device);
  const bool mine = current != nullptr && device == gpu->device_;
  if (mine && !is_primary(current, device)) {
    gpu->context_ = current;
    return gpu;
  }
  RAMP_CU(cuDevicePrimaryCtxRetain, &gpu->context_, gpu->device_);
  gpu->retained_ = true;
  return gpu;
}

Gpu::~Gpu() {
  // Fails only where the driver has shut down already, with the process.
  if (!retained_) return;
  if (const Driver* const d = find_driver(nullptr)) static_cast<void>(d->cuDevicePrimaryCtxRelease(device_));
}

ScopedContext::ScopedContext(const Gpu& gpu) {
  CUcontext current = nullptr;
  RAMP_CU(cuCtxGetCurrent, &current);
  if (current == gpu.context()) return;
  RAMP_CU(cuCtxPushCurrent, gpu.context());
  pushed_ = true;
}

RelaxedCapture::RelaxedCapture() {
  RAMP_CU(cuThreadExchangeStreamCaptureMode, &other_);
}

RelaxedCapture::~RelaxedCapture() {
  static_cast<void>(driver().cuThreadExchangeStreamCaptureMode(&other_));
}

ScopedContext::~ScopedContext() {
  if (!pushed_) return;
  CUcontext popped = nullptr;
  static_cast<void>(driver().cuCtxPopCurrent(&popped));
}

}  // namespace ramp::core::cuda
