// A stand-in for libcuda: one GPU whose memory is the host's, streams that are always done, contexts and
// modules that are counted, and of all kernels the strided copy and the packing of tiles. As strict as the
// driver where the callers could go wrong: no call but the first few works without a current context, and a
// cubin must be an ELF file.
#include "fake_driver.hpp"

#include <cuda.h>

#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <map>
#include <memory>
#include <mutex>
#include <string>
#include <utility>
#include <vector>

#include "backend/cuda/strided_copy.hpp"
#include "params/stream.hpp"

#undef cuEventElapsedTime  // see fake_symbols.cpp

extern "C" {
FakeState fake_state;
}

namespace {

const auto kPrimary = reinterpret_cast<CUcontext>(0x1000);
thread_local std::vector<CUcontext> stack;
std::mutex mutex;
std::map<CUdeviceptr, size_t> blocks;
size_t used = 0;

std::string mode() {
  const char* const value = std::getenv("RAMP_FAKE_DRIVER");  // NOLINT(concurrency-mt-unsafe)
  return value == nullptr ? "" : value;
}

bool inside(CUdeviceptr p, size_t bytes) {
  const std::lock_guard lock(mutex);
  auto at = blocks.upper_bound(p);
  if (at == blocks.begin()) return false;
  --at;
  return p + bytes <= at->first + at->second;
}

CUresult ready() {
  return stack.empty() || fake_state.primary_contexts == 0 ? CUDA_ERROR_INVALID_CONTEXT : CUDA_SUCCESS;
}

void* host(CUdeviceptr p) {
  return reinterpret_cast<void*>(p);
}

// kernels/copy.cu, row by row.
void strided_copy(const ramp::core::cuda::CopyParameters& p, size_t unit) {
  for (uint64_t row = 0; row < p.rows; ++row) {
    uint64_t rest = row;
    uint64_t to = p.to;
    uint64_t from = p.from;
    for (int i = 0; i < 4; ++i) {
      to += rest % p.count[i] * p.to_stride[i];
      from += rest % p.count[i] * p.from_stride[i];
      rest /= p.count[i];
    }
    std::memmove(host(to), host(from), p.units * unit);
  }
}

// kernels/sm90/pack.cu by the words of params/stream.hpp: 16 bytes at a time, all addresses multiples of 16.
CUresult pack_tiles(const ramp::core::cuda::PackParams& p) {
  const auto bits = reinterpret_cast<uintptr_t>(p.from) | reinterpret_cast<uintptr_t>(p.to) |
                    static_cast<uintptr_t>(p.from_stride);
  if (bits % 16 != 0) return CUDA_ERROR_MISALIGNED_ADDRESS;
  size_t at = 0;  // of the chunk in the tiles, before the swizzle
  for (int slice = 0; slice < p.rows / 128; ++slice) {
    for (int step = 0; step < p.row_bytes / 128; ++step) {
      for (int r = 0; r < 128; ++r) {
        const int q = r / 16;
        const int row =
            p.gated == 0 ? slice * 128 + r : slice * 64 + 8 * q + r % 8 + (r % 16 < 8 ? 0 : p.rows / 2);
        for (int c = 0; c < 8; ++c, at += 16) {
          const size_t tile = at / 128 * 128 + static_cast<size_t>((c ^ (r % 8)) * 16);
          const size_t plain = static_cast<size_t>(row) * static_cast<size_t>(p.from_stride) +
                               static_cast<size_t>(step * 128 + c * 16);
          if (p.unpack != 0)
            std::memcpy(p.to + plain, p.from + tile, 16);
          else
            std::memcpy(p.to + tile, p.from + plain, 16);
        }
      }
    }
  }
  return CUDA_SUCCESS;
}

struct FakeModule {
  std::map<std::string, std::string> functions;
};
struct FakeEvent {
  int us = -1;  // not recorded
};
// Owned here: those that nobody could unload, their context being gone, are freed with the process.
std::map<CUmodule, std::unique_ptr<FakeModule>> modules;

}  // namespace

extern "C" {

CUresult cuDriverGetVersion(int* version) {
  *version = mode() == "old" ? 11080 : 12000;
  return CUDA_SUCCESS;
}
CUresult cuInit(unsigned) {
  return mode() == "no-device" ? CUDA_ERROR_NO_DEVICE
         : mode() == "no-init" ? CUDA_ERROR_SYSTEM_DRIVER_MISMATCH
                               : CUDA_SUCCESS;
}
// NVRTC asks the driver for tables of its own, for tools that are not here.
CUresult cuGetExportTable(const void** table, const CUuuid*) {
  *table = nullptr;
  return CUDA_ERROR_NOT_FOUND;
}
CUresult cuGetErrorName(CUresult r, const char** text) {
  *text = r == CUDA_ERROR_OUT_OF_MEMORY            ? "CUDA_ERROR_OUT_OF_MEMORY"
          : r == CUDA_ERROR_INVALID_VALUE          ? "CUDA_ERROR_INVALID_VALUE"
          : r == CUDA_ERROR_INVALID_CONTEXT        ? "CUDA_ERROR_INVALID_CONTEXT"
          : r == CUDA_ERROR_SYSTEM_DRIVER_MISMATCH ? "CUDA_ERROR_SYSTEM_DRIVER_MISMATCH"
                                                   : "CUDA_ERROR_OTHER";
  return CUDA_SUCCESS;
}
CUresult cuGetErrorString(CUresult, const char** text) {
  *text = "as the driver describes it";
  return CUDA_SUCCESS;
}
CUresult cuDeviceGetCount(int* count) {
  *count = 1;
  return CUDA_SUCCESS;
}
CUresult cuDeviceGet(CUdevice* device, int ordinal) {
  *device = 7;  // a handle, not an ordinal
  return ordinal == 0 ? CUDA_SUCCESS : CUDA_ERROR_INVALID_DEVICE;
}
CUresult cuDeviceGetName(char* name, int bytes, CUdevice) {
  std::strncpy(name, "Stand-in", static_cast<size_t>(bytes));
  return CUDA_SUCCESS;
}
CUresult cuDeviceTotalMem(size_t* bytes, CUdevice) {
  *bytes = kFakeMemory;
  return CUDA_SUCCESS;
}
CUresult cuDeviceGetAttribute(int* value, CUdevice_attribute which, CUdevice device) {
  if (device != 7) return CUDA_ERROR_INVALID_DEVICE;
  switch (which) {
    case CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR:
      *value = 9;
      return CUDA_SUCCESS;
    case CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR:
      *value = 0;
      return CUDA_SUCCESS;
    case CU_DEVICE_ATTRIBUTE_MAX_SHARED_MEMORY_PER_BLOCK_OPTIN:
      *value = 232448;  // of sm_90: what kernels ask for depends on it
      return CUDA_SUCCESS;
    case CU_DEVICE_ATTRIBUTE_CLOCK_RATE:
    case CU_DEVICE_ATTRIBUTE_MEMORY_CLOCK_RATE:
      return CUDA_ERROR_NOT_SUPPORTED;
    default:
      *value = 132;
      return CUDA_SUCCESS;
  }
}
CUresult cuDevicePrimaryCtxRetain(CUcontext* context, CUdevice) {
  ++fake_state.primary_contexts;
  *context = kPrimary;
  return CUDA_SUCCESS;
}
CUresult cuDevicePrimaryCtxRelease(CUdevice) {
  --fake_state.primary_contexts;
  return CUDA_SUCCESS;
}
CUresult cuDevicePrimaryCtxGetState(CUdevice, unsigned* flags, int* active) {
  *flags = 0;
  *active = fake_state.primary_contexts > 0 ? 1 : 0;
  return CUDA_SUCCESS;
}
CUresult cuThreadExchangeStreamCaptureMode(CUstreamCaptureMode* mode) {
  thread_local CUstreamCaptureMode current = CU_STREAM_CAPTURE_MODE_GLOBAL;
  std::swap(current, *mode);
  return CUDA_SUCCESS;
}
CUresult cuStreamIsCapturing(CUstream, CUstreamCaptureStatus* status) {
  *status = fake_state.capturing != 0 ? CU_STREAM_CAPTURE_STATUS_ACTIVE : CU_STREAM_CAPTURE_STATUS_NONE;
  return CUDA_SUCCESS;
}
CUresult cuCtxSynchronize() {
  return fake_state.capturing != 0 ? CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED : ready();
}
CUresult cuEventCreate(CUevent* event, unsigned) {
  if (ready() != CUDA_SUCCESS) return ready();
  *event = reinterpret_cast<CUevent>(new FakeEvent);
  ++fake_state.events;
  return CUDA_SUCCESS;
}
CUresult cuEventDestroy(CUevent event) {
  if (ready() != CUDA_SUCCESS) return ready();
  delete reinterpret_cast<FakeEvent*>(event);
  --fake_state.events;
  return CUDA_SUCCESS;
}
CUresult cuEventRecord(CUevent event, CUstream) {
  if (ready() != CUDA_SUCCESS) return ready();
  reinterpret_cast<FakeEvent*>(event)->us = fake_state.clock_us;
  return CUDA_SUCCESS;
}
CUresult cuEventElapsedTime(float* ms, CUevent from, CUevent to) {
  const int start = reinterpret_cast<FakeEvent*>(from)->us;
  const int stop = reinterpret_cast<FakeEvent*>(to)->us;
  if (start < 0 || stop < 0) return CUDA_ERROR_INVALID_HANDLE;
  *ms = static_cast<float>(stop - start) / 1000;
  return ready();
}
CUresult cuCtxGetCurrent(CUcontext* context) {
  *context = stack.empty() ? nullptr : stack.back();
  return CUDA_SUCCESS;
}
CUresult cuCtxGetDevice(CUdevice* device) {
  *device = 7;
  return stack.empty() ? CUDA_ERROR_INVALID_CONTEXT : CUDA_SUCCESS;
}
CUresult cuCtxPushCurrent(CUcontext context) {
  if (context == nullptr || (context == kPrimary && fake_state.primary_contexts == 0))
    return CUDA_ERROR_INVALID_CONTEXT;
  stack.push_back(context);
  return CUDA_SUCCESS;
}
CUresult cuCtxPopCurrent(CUcontext* context) {
  if (stack.empty()) return CUDA_ERROR_INVALID_CONTEXT;
  *context = stack.back();
  stack.pop_back();
  return CUDA_SUCCESS;
}
CUresult cuModuleLoadData(CUmodule* module, const void* image) {
  ++fake_state.loads;
  if (ready() != CUDA_SUCCESS) return ready();
  if (fake_state.refuse_loads > 0) {
    --fake_state.refuse_loads;
    return CUDA_ERROR_NO_BINARY_FOR_GPU;
  }
  if (std::memcmp(image, "\177ELF", 4) != 0) return CUDA_ERROR_INVALID_IMAGE;
  ++fake_state.modules;
  auto made = std::make_unique<FakeModule>();
  *module = reinterpret_cast<CUmodule>(made.get());
  const std::lock_guard lock(mutex);
  modules[*module] = std::move(made);
  return CUDA_SUCCESS;
}
CUresult cuModuleUnload(CUmodule module) {
  if (ready() != CUDA_SUCCESS) return ready();
  const std::lock_guard lock(mutex);
  if (modules.erase(module) == 0) return CUDA_ERROR_INVALID_HANDLE;
  --fake_state.modules;
  return CUDA_SUCCESS;
}
CUresult cuModuleGetFunction(CUfunction* function, CUmodule module, const char* name) {
  if (ready() != CUDA_SUCCESS) return ready();
  // Entries that tests ask for in vain; else every program has what is asked of it.
  if (std::strcmp(name, "nothing") == 0 || std::strcmp(name, "paste_1") == 0) return CUDA_ERROR_NOT_FOUND;
  auto& functions = reinterpret_cast<FakeModule*>(module)->functions;
  *function = reinterpret_cast<CUfunction>(&functions.emplace(name, name).first->second);
  return CUDA_SUCCESS;
}
CUresult cuFuncGetAttribute(int* value, CUfunction_attribute, CUfunction) {
  *value = 32;
  return ready();
}
CUresult cuLaunchKernel(CUfunction function, unsigned gx, unsigned, unsigned, unsigned bx, unsigned by,
                        unsigned, unsigned, CUstream, void** arguments, void**) {
  ++fake_state.launches;
  if (ready() != CUDA_SUCCESS) return ready();
  if (gx == 0 || bx * by != 256) return CUDA_ERROR_INVALID_VALUE;
  const std::string& name = *reinterpret_cast<std::string*>(function);
  if (name == "pack_tiles")
    return pack_tiles(*static_cast<const ramp::core::cuda::PackParams*>(arguments[0]));
  strided_copy(*static_cast<const ramp::core::cuda::CopyParameters*>(arguments[0]),
               static_cast<size_t>(std::stoi(name.substr(5))));
  return CUDA_SUCCESS;
}
// By shared memory alone, as sm_90 has it.
CUresult cuOccupancyMaxActiveBlocksPerMultiprocessor(int* blocks, CUfunction, int, size_t shared) {
  *blocks = static_cast<int>(233472 / (shared + 1024));
  return ready();
}

CUresult cuFuncSetAttribute(CUfunction, CUfunction_attribute, int) {
  return ready();
}
// Launches of everything else are counted and do nothing.
CUresult cuLaunchKernelEx(const CUlaunchConfig* config, CUfunction, void**, void**) {
  ++fake_state.launches;
  if (ready() != CUDA_SUCCESS) return ready();
  return config->gridDimX * config->blockDimX == 0 ? CUDA_ERROR_INVALID_VALUE : CUDA_SUCCESS;
}
CUresult cuMemAlloc(CUdeviceptr* p, size_t bytes) {
  if (ready() != CUDA_SUCCESS) return ready();
  if (bytes == 0) return CUDA_ERROR_INVALID_VALUE;
  const std::lock_guard lock(mutex);
  if (fake_state.allocations_left == 0 || bytes > kFakeMemory - used) return CUDA_ERROR_OUT_OF_MEMORY;
  if (fake_state.allocations_left > 0) --fake_state.allocations_left;
  void* const memory = std::aligned_alloc(256, (bytes + 255) / 256 * 256);
  if (memory == nullptr) return CUDA_ERROR_OUT_OF_MEMORY;
  *p = reinterpret_cast<CUdeviceptr>(memory);
  blocks[*p] = bytes;
  used += bytes;
  ++fake_state.allocations;
  return CUDA_SUCCESS;
}
CUresult cuMemFree(CUdeviceptr p) {
  if (ready() != CUDA_SUCCESS) return ready();
  const std::lock_guard lock(mutex);
  const auto at = blocks.find(p);
  if (at == blocks.end()) return CUDA_ERROR_INVALID_VALUE;
  used -= at->second;
  blocks.erase(at);
  std::free(host(p));
  --fake_state.allocations;
  return CUDA_SUCCESS;
}
CUresult cuMemGetInfo(size_t* free, size_t* total) {
  const std::lock_guard lock(mutex);
  *free = kFakeMemory - used;
  *total = kFakeMemory;
  return ready();
}
CUresult cuMemcpyHtoDAsync(CUdeviceptr to, const void* from, size_t bytes, CUstream) {
  if (ready() != CUDA_SUCCESS) return ready();
  if (!inside(to, bytes)) return CUDA_ERROR_INVALID_VALUE;
  std::memcpy(host(to), from, bytes);
  return CUDA_SUCCESS;
}
CUresult cuMemcpyDtoHAsync(void* to, CUdeviceptr from, size_t bytes, CUstream) {
  if (ready() != CUDA_SUCCESS) return ready();
  if (!inside(from, bytes)) return CUDA_ERROR_INVALID_VALUE;
  std::memcpy(to, host(from), bytes);
  return CUDA_SUCCESS;
}
CUresult cuMemcpyDtoDAsync(CUdeviceptr to, CUdeviceptr from, size_t bytes, CUstream) {
  if (ready() != CUDA_SUCCESS) return ready();
  if (!inside(from, bytes) || !inside(to, bytes)) return CUDA_ERROR_INVALID_VALUE;
  std::memmove(host(to), host(from), bytes);
  return CUDA_SUCCESS;
}
CUresult cuMemcpy3DAsync(const CUDA_MEMCPY3D* c, CUstream) {
  ++fake_state.copies_3d;
  if (ready() != CUDA_SUCCESS) return ready();
  if (c->srcPitch < c->WidthInBytes || c->dstPitch < c->WidthInBytes || c->srcHeight < c->Height ||
      c->dstHeight < c->Height || c->srcMemoryType != CU_MEMORYTYPE_DEVICE ||
      c->dstMemoryType != CU_MEMORYTYPE_DEVICE)
    return CUDA_ERROR_INVALID_VALUE;
  for (size_t z = 0; z < c->Depth; ++z)
    for (size_t y = 0; y < c->Height; ++y)
      std::memcpy(host(c->dstDevice + (z * c->dstHeight + y) * c->dstPitch),
                  host(c->srcDevice + (z * c->srcHeight + y) * c->srcPitch), c->WidthInBytes);
  return CUDA_SUCCESS;
}
CUresult cuMemsetD8Async(CUdeviceptr p, unsigned char value, size_t bytes, CUstream) {
  if (ready() != CUDA_SUCCESS) return ready();
  if (!inside(p, bytes)) return CUDA_ERROR_INVALID_VALUE;
  std::memset(host(p), value, bytes);
  return CUDA_SUCCESS;
}
CUresult cuStreamSynchronize(CUstream) {
  return ready();
}

}  // extern "C"
