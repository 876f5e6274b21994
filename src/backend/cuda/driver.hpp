// libcuda, opened at run time: a table of the driver functions that ramp calls, and checked calls of them.
// One binary runs with and without a driver; nothing here links to libcuda.
#pragma once

#include <cuda.h>

#include <string>
#include <string_view>

namespace ramp::core::cuda {

// Every driver function in use, once. X(name): the name as cuda.h declares it. (clang-format lays such a list
// out otherwise every time.)
// clang-format off
#define RAMP_CUDA_FUNCTIONS(X) \
  X(cuInit) X(cuDriverGetVersion) X(cuGetErrorName) X(cuGetErrorString) X(cuDeviceGetCount) \
  X(cuDeviceGet) X(cuDeviceGetName) X(cuDeviceGetUuid) X(cuDeviceTotalMem) \
  X(cuDeviceGetAttribute) X(cuDevicePrimaryCtxGetState) \
  X(cuThreadExchangeStreamCaptureMode) X(cuDevicePrimaryCtxRetain) \
  X(cuDevicePrimaryCtxRelease) X(cuCtxGetCurrent) X(cuCtxGetDevice) X(cuCtxPushCurrent) \
  X(cuCtxPopCurrent) X(cuCtxSynchronize) X(cuModuleLoadData) X(cuModuleUnload) \
  X(cuModuleGetFunction) X(cuFuncGetAttribute) X(cuFuncSetAttribute) \
  X(cuOccupancyMaxActiveBlocksPerMultiprocessor) X(cuLaunchKernel) X(cuLaunchKernelEx) \
  X(cuMemAlloc) X(cuMemFree) X(cuMemGetInfo) X(cuMemAllocHost) X(cuMemFreeHost) \
  X(cuMemcpyHtoDAsync) X(cuMemcpyDtoHAsync) X(cuMemcpyDtoDAsync) X(cuMemcpy3DAsync) \
  X(cuMemsetD8Async) X(cuMemsetD32Async) X(cuStreamCreate) X(cuStreamDestroy) \
  X(cuStreamSynchronize) X(cuStreamQuery) X(cuStreamWaitEvent) X(cuStreamIsCapturing) \
  X(cuStreamBeginCapture) X(cuStreamEndCapture) X(cuGraphInstantiateWithFlags) \
  X(cuGraphLaunch) X(cuGraphDestroy) X(cuGraphExecDestroy) X(cuEventCreate) \
  X(cuEventRecord) X(cuEventSynchronize) X(cuEventElapsedTime) X(cuEventDestroy) \
  X(cuTensorMapEncodeTiled)
// clang-format on

struct Driver {
// NOLINTNEXTLINE(bugprone-macro-parentheses): a declarator takes none.
#define RAMP_CUDA_MEMBER(name) decltype(&::name) name = nullptr;
  RAMP_CUDA_FUNCTIONS(RAMP_CUDA_MEMBER)
#undef RAMP_CUDA_MEMBER
  int version = 0;      // as cuDriverGetVersion tells: 13000 = CUDA 13.0
  std::string library;  // path or name that was opened
};

// The driver, opened and initialised on first use (thread-safe). Throws UNSUPPORTED with one clear line: no
// libcuda, a driver that is too old (below CUDA 12.0), or no GPU.
const Driver& driver();
// The same as a question: nullptr and the line in *why.
const Driver* find_driver(std::string* why) noexcept;

std::string version_text(int version);  // 13000 -> "13.0"

// Throws Error unless r is CUDA_SUCCESS: OUT_OF_MEMORY for CUDA_ERROR_OUT_OF_MEMORY, else DEVICE. Text: the
// call with its arguments, the error's name and description.
void check_result(CUresult r, std::string_view call, std::string_view arguments);

namespace detail {
std::string argument_text(const void* p);
std::string argument_text(unsigned long long v);
std::string argument_text(long long v);
template <typename T>
std::string describe_argument(const T& v) {
  if constexpr (std::is_pointer_v<T>) {
    return argument_text(reinterpret_cast<const void*>(v));
  } else if constexpr (std::is_enum_v<T> || std::is_unsigned_v<T>) {
    return argument_text(static_cast<unsigned long long>(v));
  } else if constexpr (std::is_integral_v<T>) {
    return argument_text(static_cast<long long>(v));
  } else {
    return "...";
  }
}
template <typename... A>
std::string describe_arguments(const A&... a) {
  std::string text;
  ((text += (text.empty() ? "" : ", ") + describe_argument(a)), ...);
  return text;
}
}  // namespace detail

template <typename F, typename... A>
void call(std::string_view name, F function, A... arguments) {
  const CUresult r = function(arguments...);
  if (r != CUDA_SUCCESS) [[unlikely]]
    check_result(r, name, detail::describe_arguments(arguments...));
}

}  // namespace ramp::core::cuda

// RAMP_CU(cuMemAlloc, &p, bytes): calls through the table and throws on an error.
#define RAMP_CU(name, ...) \
  ::ramp::core::cuda::call(#name, ::ramp::core::cuda::driver().name __VA_OPT__(, ) __VA_ARGS__)
