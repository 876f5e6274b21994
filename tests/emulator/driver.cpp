// libcuda of the emulated GPU, first part: the device, contexts, errors. Kernels run to their end when they
// are launched, in the order of the calls, which is one of the orders that streams allow.
//   RAMP_EMULATED_ARCH     sm_90a (else sm_80, sm_89)
//   RAMP_EMULATED_SMS      multiprocessors, 4
//   RAMP_EMULATED_THREADS  OS threads that run blocks, as many as there are cores
//   RAMP_EMULATED_SEED     not 0: threads run in an order that changes with it
//   RAMP_EMULATED_LATE     1: asynchronous copies and wgmma are done when somebody waits for them, not before
//   RAMP_EMULATED_TRACE    a file that gets a line for every kernel that runs
//   RAMP_EMULATED_KEEP     1: translated programs stay in the directory for temporary files
//   RAMP_EMULATED_TIMEOUT  seconds of nothing but polling until a kernel counts as hanging, 60
#include <cuda.h>
#include <dlfcn.h>

#include <algorithm>
#include <atomic>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <mutex>

#include "emulator/driver_state.hpp"
#include "emulator/launch.hpp"

namespace emu {
namespace {

std::atomic<bool> g_lost{false};
std::atomic<int> g_retained{0};
const auto kPrimary = reinterpret_cast<CUcontext>(0x1000);
// Of this thread; of plain types, because statics of the program are destroyed after a thread's objects.
struct ContextStack {
  CUcontext at[64];
  int depth;
  [[nodiscard]] bool empty() const { return depth == 0; }
  [[nodiscard]] CUcontext back() const { return at[depth - 1]; }
  void push_back(CUcontext c) { at[depth++] = c; }
  void pop_back() { --depth; }
};
thread_local ContextStack t_contexts{};
thread_local CUstreamCaptureMode t_capture_mode = CU_STREAM_CAPTURE_MODE_GLOBAL;

struct ErrorText {
  CUresult code;
  const char *name, *text;
};
constexpr ErrorText kErrors[] = {
    {CUDA_SUCCESS, "CUDA_SUCCESS", "no error"},
    {CUDA_ERROR_INVALID_VALUE, "CUDA_ERROR_INVALID_VALUE", "invalid argument"},
    {CUDA_ERROR_OUT_OF_MEMORY, "CUDA_ERROR_OUT_OF_MEMORY", "out of memory"},
    {CUDA_ERROR_NO_DEVICE, "CUDA_ERROR_NO_DEVICE", "no CUDA-capable device is detected"},
    {CUDA_ERROR_INVALID_DEVICE, "CUDA_ERROR_INVALID_DEVICE", "invalid device ordinal"},
    {CUDA_ERROR_INVALID_IMAGE, "CUDA_ERROR_INVALID_IMAGE", "device kernel image is invalid"},
    {CUDA_ERROR_INVALID_CONTEXT, "CUDA_ERROR_INVALID_CONTEXT", "invalid device context"},
    {CUDA_ERROR_NO_BINARY_FOR_GPU, "CUDA_ERROR_NO_BINARY_FOR_GPU",
     "no kernel image is available for this device"},
    {CUDA_ERROR_INVALID_HANDLE, "CUDA_ERROR_INVALID_HANDLE", "invalid resource handle"},
    {CUDA_ERROR_NOT_FOUND, "CUDA_ERROR_NOT_FOUND", "named symbol not found"},
    {CUDA_ERROR_NOT_READY, "CUDA_ERROR_NOT_READY", "device not ready"},
    {CUDA_ERROR_LAUNCH_FAILED, "CUDA_ERROR_LAUNCH_FAILED", "unspecified launch failure"},
    {CUDA_ERROR_COOPERATIVE_LAUNCH_TOO_LARGE, "CUDA_ERROR_COOPERATIVE_LAUNCH_TOO_LARGE",
     "too many blocks in cooperative launch"},
    {CUDA_ERROR_NOT_SUPPORTED, "CUDA_ERROR_NOT_SUPPORTED", "operation not supported"},
    {CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED, "CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED",
     "operation not permitted when stream is capturing"},
    {CUDA_ERROR_STREAM_CAPTURE_INVALIDATED, "CUDA_ERROR_STREAM_CAPTURE_INVALIDATED",
     "operation failed due to a previous error during capture"},
    {CUDA_ERROR_INVALID_CLUSTER_SIZE, "CUDA_ERROR_INVALID_CLUSTER_SIZE", "invalid cluster size"},
};
const ErrorText* find_error(CUresult r) {
  const auto* const at =
      std::find_if(std::begin(kErrors), std::end(kErrors), [&](const ErrorText& e) { return e.code == r; });
  return at == std::end(kErrors) ? nullptr : at;
}

}  // namespace

const Device& device() {
  static const Device made = [] {
    Device d;
    // NOLINTBEGIN(concurrency-mt-unsafe)
    if (const char* const arch = std::getenv("RAMP_EMULATED_ARCH")) {
      const int number = std::strncmp(arch, "sm_", 3) == 0 ? std::atoi(arch + 3) : 90;
      d.major = number / 10;
      d.minor = number % 10;
    }
    if (const char* const count = std::getenv("RAMP_EMULATED_SMS"))
      d.multiprocessors = std::max(1, std::atoi(count));
    // NOLINTEND(concurrency-mt-unsafe)
    if (d.major == 8) {  // sm_80: 163 of 164 KiB, sm_86 and sm_89: 99 of 100
      d.shared_per_multiprocessor = (d.minor == 0 ? 164 : 100) * 1024;
      d.shared_per_block = d.shared_per_multiprocessor - 1024;
      if (d.minor != 0) d.threads = 1536;
      if (d.minor != 0) d.blocks = 24;
    }
    return d;
  }();
  return made;
}

CUresult ready() {
  if (g_lost) return CUDA_ERROR_LAUNCH_FAILED;
  return t_contexts.empty() || g_retained == 0 ? CUDA_ERROR_INVALID_CONTEXT : CUDA_SUCCESS;
}
void lose_context() {
  g_lost = true;
}
CUresult unless_capturing() {
  if (any_capture() && t_capture_mode != CU_STREAM_CAPTURE_MODE_RELAXED)
    return CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED;
  return ready();
}

}  // namespace emu

using namespace emu;  // NOLINT(google-build-using-namespace)

extern "C" {

CUresult cuDriverGetVersion(int* version) {
  *version = 13000;
  return CUDA_SUCCESS;
}
CUresult cuInit(unsigned) {
  // Translated programs find the machine's functions among the process's global symbols.
  Dl_info info{};
  if (::dladdr(reinterpret_cast<void*>(&cuDriverGetVersion), &info) == 0 ||
      ::dlopen(info.dli_fname, RTLD_NOW | RTLD_GLOBAL | RTLD_NOLOAD) == nullptr)
    return CUDA_ERROR_SHARED_OBJECT_INIT_FAILED;
  set_memory_check(inside_memory);
  return CUDA_SUCCESS;
}
CUresult cuGetErrorName(CUresult r, const char** text) {
  const ErrorText* const e = find_error(r);
  *text = e == nullptr ? "CUDA_ERROR_OTHER" : e->name;
  return CUDA_SUCCESS;
}
CUresult cuGetErrorString(CUresult r, const char** text) {
  const ErrorText* const e = find_error(r);
  *text = e == nullptr ? "an error of the emulated GPU" : e->text;
  return CUDA_SUCCESS;
}
CUresult cuDeviceGetCount(int* count) {
  *count = 1;
  return CUDA_SUCCESS;
}
CUresult cuDeviceGet(CUdevice* device, int ordinal) {
  *device = 0;
  return ordinal == 0 ? CUDA_SUCCESS : CUDA_ERROR_INVALID_DEVICE;
}
CUresult cuDeviceGetName(char* name, int bytes, CUdevice) {
  std::snprintf(name, static_cast<size_t>(bytes), "Emulated GPU");
  return CUDA_SUCCESS;
}
CUresult cuDeviceGetUuid(CUuuid* uuid, CUdevice) {
  std::memcpy(uuid->bytes, "ramp emulated 01", 16);
  return CUDA_SUCCESS;
}
CUresult cuDeviceTotalMem(size_t* bytes, CUdevice) {
  *bytes = device().memory_bytes;
  return CUDA_SUCCESS;
}
CUresult cuDeviceGetAttribute(int* value, CUdevice_attribute which, CUdevice) {
  const Device& d = device();
  switch (which) {
    case CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR:
      *value = d.major;
      break;
    case CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR:
      *value = d.minor;
      break;
    case CU_DEVICE_ATTRIBUTE_MULTIPROCESSOR_COUNT:
      *value = d.multiprocessors;
      break;
    case CU_DEVICE_ATTRIBUTE_CLOCK_RATE:
    case CU_DEVICE_ATTRIBUTE_MEMORY_CLOCK_RATE:
      return CUDA_ERROR_NOT_SUPPORTED;
    case CU_DEVICE_ATTRIBUTE_L2_CACHE_SIZE:
      *value = 8 << 20;
      break;
    case CU_DEVICE_ATTRIBUTE_MAX_SHARED_MEMORY_PER_BLOCK:
      *value = 48 * 1024;
      break;
    case CU_DEVICE_ATTRIBUTE_MAX_SHARED_MEMORY_PER_BLOCK_OPTIN:
      *value = d.shared_per_block;
      break;
    case CU_DEVICE_ATTRIBUTE_MAX_SHARED_MEMORY_PER_MULTIPROCESSOR:
      *value = d.shared_per_multiprocessor;
      break;
    case CU_DEVICE_ATTRIBUTE_MAX_REGISTERS_PER_MULTIPROCESSOR:
      *value = d.registers;
      break;
    case CU_DEVICE_ATTRIBUTE_MAX_THREADS_PER_MULTIPROCESSOR:
      *value = d.threads;
      break;
    case CU_DEVICE_ATTRIBUTE_MAX_THREADS_PER_BLOCK:
      *value = 1024;
      break;
    case CU_DEVICE_ATTRIBUTE_WARP_SIZE:
      *value = 32;
      break;
    case CU_DEVICE_ATTRIBUTE_COOPERATIVE_LAUNCH:
      *value = 1;
      break;
    case CU_DEVICE_ATTRIBUTE_CLUSTER_LAUNCH:
      *value = d.major >= 9 ? 1 : 0;
      break;
    default:
      *value = 0;
  }
  return CUDA_SUCCESS;
}
CUresult cuDevicePrimaryCtxRetain(CUcontext* context, CUdevice) {
  ++g_retained;
  *context = kPrimary;
  return g_lost ? CUDA_ERROR_LAUNCH_FAILED : CUDA_SUCCESS;
}
CUresult cuDevicePrimaryCtxRelease(CUdevice) {
  --g_retained;
  return CUDA_SUCCESS;
}
CUresult cuDevicePrimaryCtxGetState(CUdevice, unsigned* flags, int* active) {
  *flags = 0;
  *active = g_retained > 0 ? 1 : 0;
  return CUDA_SUCCESS;
}
CUresult cuCtxGetCurrent(CUcontext* context) {
  *context = t_contexts.empty() ? nullptr : t_contexts.back();
  return CUDA_SUCCESS;
}
CUresult cuCtxGetDevice(CUdevice* device) {
  *device = 0;
  return t_contexts.empty() ? CUDA_ERROR_INVALID_CONTEXT : CUDA_SUCCESS;
}
CUresult cuCtxSetCurrent(CUcontext context) {
  if (!t_contexts.empty()) t_contexts.pop_back();
  if (context != nullptr) t_contexts.push_back(context);
  return CUDA_SUCCESS;
}
CUresult cuCtxPushCurrent(CUcontext context) {
  if (context == nullptr || (context == kPrimary && g_retained == 0) || t_contexts.depth == 64)
    return CUDA_ERROR_INVALID_CONTEXT;
  t_contexts.push_back(context);
  return CUDA_SUCCESS;
}
CUresult cuCtxPopCurrent(CUcontext* context) {
  if (t_contexts.empty()) return CUDA_ERROR_INVALID_CONTEXT;
  *context = t_contexts.back();
  t_contexts.pop_back();
  return CUDA_SUCCESS;
}
CUresult cuCtxSynchronize() {
  const CUresult r = unless_capturing();
  return r == CUDA_SUCCESS ? check_guards() : r;
}
CUresult cuThreadExchangeStreamCaptureMode(CUstreamCaptureMode* mode) {
  std::swap(t_capture_mode, *mode);
  return CUDA_SUCCESS;
}
CUresult cuTensorMapEncodeTiled(CUtensorMap*, CUtensorMapDataType, cuuint32_t, void*, const cuuint64_t*,
                                const cuuint64_t*, const cuuint32_t*, const cuuint32_t*,
                                CUtensorMapInterleave, CUtensorMapSwizzle, CUtensorMapL2promotion,
                                CUtensorMapFloatOOBfill) {
  return CUDA_ERROR_NOT_SUPPORTED;
}

}  // extern "C"
