// Device memory through the driver: allocations that keep their context alive, copies that run on the
// caller's stream.
#include <fmt/format.h>

#include <algorithm>

#include "backend/cuda/driver.hpp"
#include "backend/cuda/gpu.hpp"
#include "backend/cuda/kernel_library.hpp"
#include "backend/cuda/programs.hpp"
#include "backend/cuda/strided_copy.hpp"
#include "base/error.hpp"

namespace ramp::core::cuda {
namespace {

CUstream stream_of(void* stream) noexcept {
  return static_cast<CUstream>(stream);
}
CUdeviceptr address(const void* p) noexcept {
  return reinterpret_cast<CUdeviceptr>(p);
}

class CudaMemory : public DeviceMemory {
 public:
  CudaMemory(std::shared_ptr<const Gpu> gpu, std::shared_ptr<KernelLibrary> kernels)
      : gpu_(std::move(gpu)), kernels_(std::move(kernels)) {}

  [[nodiscard]] std::shared_ptr<void> allocate(uint64_t bytes) const override {
    const ScopedContext scope(*gpu_);
    const RelaxedCapture relaxed;
    CUdeviceptr p = 0;
    const uint64_t asked = std::max<uint64_t>(bytes, 1);  // the driver refuses 0
    const CUresult r = driver().cuMemAlloc(&p, asked);
    if (r == CUDA_ERROR_OUT_OF_MEMORY)
      fail_argument(
          "device memory",
          fmt::format("a request for {} bytes on GPU {} ({})", bytes, gpu_->facts().ordinal,
                      gpu_->facts().name),
          fmt::format("at most the {} of {} bytes that are free", free_bytes(), gpu_->facts().memory_bytes),
          "use fewer tokens or layers, a smaller shard, or end what else runs on this GPU",
          RAMP_ERROR_OUT_OF_MEMORY);
    if (r != CUDA_SUCCESS) check_result(r, "cuMemAlloc", fmt::format("&p, {}", asked));
    std::shared_ptr<const Gpu> gpu = gpu_;
    // The constructor of shared_ptr calls the deleter should it fail itself.
    // An address of the device, never dereferenced here. NOLINTNEXTLINE(performance-no-int-to-ptr)
    return std::shared_ptr<void>(reinterpret_cast<void*>(p), [gpu = std::move(gpu)](void* memory) {
      try {
        const ScopedContext freeing(*gpu);
        const RelaxedCapture capture;
        static_cast<void>(driver().cuMemFree(address(memory)));
      } catch (const std::exception&) {
        // The caller's context is gone, and the memory with it.
      }
    });
  }

  void upload(void* device, const void* host, uint64_t bytes, void* stream) const override {
    if (bytes == 0) return;
    const ScopedContext scope(*gpu_);
    RAMP_CU(cuMemcpyHtoDAsync, address(device), host, bytes, stream_of(stream));
  }

  void download(void* host, const void* device, uint64_t bytes, void* stream) const override {
    const ScopedContext scope(*gpu_);
    if (bytes != 0) RAMP_CU(cuMemcpyDtoHAsync, host, address(device), bytes, stream_of(stream));
    RAMP_CU(cuStreamSynchronize, stream_of(stream));
  }

  void copy(const ramp_tensor& from, const ramp_tensor& to, void* stream) const override {
    const StridedCopy c = plan_copy(from, to);
    if (c.run == 0) return;
    const ScopedContext scope(*gpu_);
    if (c.loops == 0) {
      RAMP_CU(cuMemcpyDtoDAsync, address(to.data), address(from.data), c.run, stream_of(stream));
      return;
    }
    const int inner = loops_of_3d_copy(c);
    if (inner == c.loops || kernels_ == nullptr)
      copy_by_driver(c, inner, address(to.data), address(from.data), stream_of(stream));
    else
      copy_by_kernel(c, address(to.data), address(from.data), stream_of(stream));
  }

  void fill(void* device, uint8_t value, uint64_t bytes, void* stream) const override {
    if (bytes == 0) return;
    const ScopedContext scope(*gpu_);
    RAMP_CU(cuMemsetD8Async, address(device), value, bytes, stream_of(stream));
  }

  void synchronize(void* stream) const override {
    const ScopedContext scope(*gpu_);
    RAMP_CU(cuStreamSynchronize, stream_of(stream));
  }

  void synchronize_all() const override {
    const ScopedContext scope(*gpu_);
    RAMP_CU(cuCtxSynchronize);
  }

  [[nodiscard]] uint64_t free_bytes() const override {
    const ScopedContext scope(*gpu_);
    size_t free = 0;
    size_t total = 0;
    RAMP_CU(cuMemGetInfo, &free, &total);
    return free;
  }

  [[nodiscard]] bool capturing(void* stream) const override {
    const ScopedContext scope(*gpu_);
    CUstreamCaptureStatus status = CU_STREAM_CAPTURE_STATUS_NONE;
    RAMP_CU(cuStreamIsCapturing, stream_of(stream), &status);
    return status != CU_STREAM_CAPTURE_STATUS_NONE;
  }

 private:
  // One copy of the inner loops per step of the outer ones: the common case has no outer loop.
  static void copy_by_driver(const StridedCopy& c, int inner, CUdeviceptr to, CUdeviceptr from,
                             CUstream stream) {
    uint64_t steps = 1;
    for (int i = inner; i < c.loops; ++i) steps *= c.count[i];
    for (uint64_t step = 0; step < steps; ++step) {
      uint64_t rest = step;
      CUdeviceptr to_at = to;
      CUdeviceptr from_at = from;
      for (int i = inner; i < c.loops; ++i) {
        to_at += rest % c.count[i] * c.to_stride[i];
        from_at += rest % c.count[i] * c.from_stride[i];
        rest /= c.count[i];
      }
      if (inner == 0) {
        RAMP_CU(cuMemcpyDtoDAsync, to_at, from_at, c.run, stream);
        continue;
      }
      CUDA_MEMCPY3D m{};
      m.srcMemoryType = m.dstMemoryType = CU_MEMORYTYPE_DEVICE;
      m.srcDevice = from_at;
      m.dstDevice = to_at;
      m.srcPitch = c.from_stride[0];
      m.dstPitch = c.to_stride[0];
      m.WidthInBytes = c.run;
      m.Height = c.count[0];
      m.Depth = inner == 2 ? c.count[1] : 1;
      m.srcHeight = inner == 2 ? c.from_stride[1] / c.from_stride[0] : c.count[0];
      m.dstHeight = inner == 2 ? c.to_stride[1] / c.to_stride[0] : c.count[0];
      RAMP_CU(cuMemcpy3DAsync, &m, stream);
    }
  }

  void copy_by_kernel(const StridedCopy& c, CUdeviceptr to, CUdeviceptr from, CUstream stream) const {
    int unit = 0;
    CopyParameters p = copy_parameters(c, to, from, unit);
    const CUfunction kernel = kernels_->get(copy_programs(80).front(), fmt::format("copy_{}", unit));
    constexpr unsigned kLanes = 32;
    constexpr unsigned kRows = 8;  // per block: 256 threads, as the kernel is bounded
    // Enough blocks to fill the GPU (8 of 256 threads per SM); the kernel strides over the rest.
    const uint64_t wanted = (p.rows + kRows - 1) / kRows;
    const auto blocks =
        static_cast<unsigned>(std::min<uint64_t>(wanted, static_cast<uint64_t>(gpu_->facts().sm_count) * 8));
    void* arguments[] = {&p};
    RAMP_CU(cuLaunchKernel, kernel, blocks, 1U, 1U, kLanes, kRows, 1U, 0U, stream, arguments, nullptr);
  }

  std::shared_ptr<const Gpu> gpu_;
  std::shared_ptr<KernelLibrary> kernels_;
};

}  // namespace

std::vector<KernelProgram> copy_programs(int /*arch*/) {
  return {{"copy", "copy.cu", {}, {"copy_1", "copy_2", "copy_4", "copy_8", "copy_16"}, 80}};
}

std::shared_ptr<const DeviceMemory> make_device_memory(std::shared_ptr<const Gpu> gpu,
                                                       std::shared_ptr<KernelLibrary> kernels) {
  return std::make_shared<CudaMemory>(std::move(gpu), std::move(kernels));
}

}  // namespace ramp::core::cuda
