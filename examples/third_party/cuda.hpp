// The little of libcuda that the GPU example needs, opened at run time: the program builds and starts where
// there is no driver, and says so.
#pragma once

#include <cuda.h>
#include <dlfcn.h>

#include <cstdint>
#include <functional>
#include <stdexcept>
#include <string>

// clang-format off
#define CUDA_FUNCTIONS(X) \
  X(cuInit) X(cuDeviceGet) X(cuDevicePrimaryCtxRetain) X(cuCtxPushCurrent) X(cuMemAlloc) X(cuMemFree) \
  X(cuMemcpyHtoDAsync) X(cuMemcpyDtoHAsync) X(cuStreamCreate) X(cuStreamSynchronize) \
  X(cuStreamBeginCapture) X(cuStreamEndCapture) X(cuGraphInstantiateWithFlags) X(cuGraphLaunch) \
  X(cuGraphDestroy) X(cuGraphExecDestroy) X(cuEventCreate) X(cuEventRecord) X(cuEventElapsedTime)
// clang-format on
#define CUDA_TEXT(name) #name
#define CUDA_VERSIONED(name) CUDA_TEXT(name)  // cuda.h renames functions: cuMemAlloc is cuMemAlloc_v2

struct Cuda {
#define CUDA_MEMBER(name) decltype(&::name) name = nullptr;
  CUDA_FUNCTIONS(CUDA_MEMBER)
#undef CUDA_MEMBER

  // False: no driver or no GPU here.
  bool open() {
    void* const library = dlopen("libcuda.so.1", RTLD_NOW);
    if (library == nullptr) return false;
    const auto find = [&](const char* versioned, const char* plain) {
      void* const f = dlsym(library, versioned);
      return f != nullptr ? f : dlsym(library, plain);
    };
#define CUDA_LOAD(name)                                                          \
  name = reinterpret_cast<decltype(&::name)>(find(CUDA_VERSIONED(name), #name)); \
  if (name == nullptr) return false;
    CUDA_FUNCTIONS(CUDA_LOAD)
#undef CUDA_LOAD
    CUdevice device = 0;
    CUcontext context = nullptr;
    if (cuInit(0) != CUDA_SUCCESS || cuDeviceGet(&device, 0) != CUDA_SUCCESS) return false;
    // The primary context, which ramp works in as well.
    return cuDevicePrimaryCtxRetain(&context, device) == CUDA_SUCCESS &&
           cuCtxPushCurrent(context) == CUDA_SUCCESS;
  }
};
inline Cuda cuda;

inline void check_cuda(CUresult r, const char* what) {
  if (r != CUDA_SUCCESS) throw std::runtime_error(std::string(what) + " returned " + std::to_string(r));
}
#define CU(name, ...) check_cuda(cuda.name(__VA_ARGS__), #name)

// Device memory of its own.
class Buffer {
 public:
  Buffer() = default;
  explicit Buffer(uint64_t bytes) { reserve(bytes); }
  Buffer(const Buffer&) = delete;
  Buffer& operator=(const Buffer&) = delete;
  ~Buffer() { free(); }
  void reserve(uint64_t bytes) {
    if (bytes <= bytes_) return;
    free();
    CU(cuMemAlloc, &data_, bytes);
    bytes_ = bytes;
  }
  void upload(const void* from, uint64_t bytes) {
    reserve(bytes);
    CU(cuMemcpyHtoDAsync, data_, from, bytes, nullptr);
    CU(cuStreamSynchronize, nullptr);
  }
  void download(void* to, uint64_t bytes) const {
    CU(cuMemcpyDtoHAsync, to, data_, bytes, nullptr);
    CU(cuStreamSynchronize, nullptr);
  }
  [[nodiscard]] void* data() const { return reinterpret_cast<void*>(data_); }
  [[nodiscard]] uint64_t bytes() const { return bytes_; }

 private:
  void free() {
    if (data_ != 0) cuda.cuMemFree(data_);
    data_ = 0;
    bytes_ = 0;
  }
  CUdeviceptr data_ = 0;
  uint64_t bytes_ = 0;
};

// What `enqueue` puts on a stream, as a graph. It must have run once before, so that nothing has to be
// loaded.
class Graph {
 public:
  Graph(CUstream stream, const std::function<void()>& enqueue) {
    CUgraph graph = nullptr;
    CU(cuStreamBeginCapture, stream, CU_STREAM_CAPTURE_MODE_THREAD_LOCAL);
    try {
      enqueue();
    } catch (...) {
      cuda.cuStreamEndCapture(stream, &graph);
      if (graph != nullptr) cuda.cuGraphDestroy(graph);
      throw;
    }
    CU(cuStreamEndCapture, stream, &graph);
    const CUresult made = cuda.cuGraphInstantiateWithFlags(&exec_, graph, 0);
    cuda.cuGraphDestroy(graph);
    check_cuda(made, "cuGraphInstantiateWithFlags");
  }
  Graph(const Graph&) = delete;
  Graph& operator=(const Graph&) = delete;
  ~Graph() { cuda.cuGraphExecDestroy(exec_); }
  void launch(CUstream stream) const { CU(cuGraphLaunch, exec_, stream); }

 private:
  CUgraphExec exec_ = nullptr;
};
