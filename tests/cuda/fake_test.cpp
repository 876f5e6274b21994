// The driver's callers against the stand-in for libcuda: contexts, device memory, modules. What a GPU does as
// well is in device_test.cpp.
#include <dlfcn.h>
#include <gtest/gtest.h>

#include <thread>

#include "backend/cuda/cubin_cache.hpp"
#include "backend/cuda/driver.hpp"
#include "backend/cuda/gpu.hpp"
#include "backend/cuda/kernel_library.hpp"
#include "backend/cuda/nvrtc.hpp"
#include "backend/cuda/nvtx.hpp"
#include "backend/cuda/programs.hpp"
#include "base/error.hpp"
#include "cuda/fake_driver.hpp"
#include "cuda/support.hpp"

namespace ramp::cuda_test {
namespace {
namespace cuda = core::cuda;

FakeState& fake() {
  static FakeState* const state = [] {
    cuda::driver();
    void* const library = ::dlopen("libcuda.so.1", RTLD_NOW | RTLD_NOLOAD);
    return static_cast<FakeState*>(library == nullptr ? nullptr : ::dlsym(library, "fake_state"));
  }();
  if (state == nullptr)
    throw std::runtime_error("libcuda.so.1 is not the stand-in: " + cuda::driver().library);
  return *state;
}

CUcontext current() {
  CUcontext context = nullptr;
  RAMP_CU(cuCtxGetCurrent, &context);
  return context;
}

TEST(FakeGpu, Facts) {
  fake();
  const cuda::GpuFacts f = cuda::gpu_facts(0);
  EXPECT_EQ(f.name, "Stand-in");
  EXPECT_EQ(f.arch(), "sm_90a");
  EXPECT_EQ(f.sm_count, 132);
  EXPECT_EQ(f.clock_khz, 0) << "clocks that the driver does not tell are no failure";
  EXPECT_EQ(f.memory_bytes, kFakeMemory);
  EXPECT_EQ(f.driver_version, 12000);
  for (const int bad : {-1, 1, 100}) {
    try {
      cuda::gpu_facts(bad);
      FAIL() << bad;
    } catch (const core::Error& e) {
      EXPECT_EQ(e.status(), RAMP_ERROR_INVALID_ARGUMENT);
      EXPECT_TRUE(
          std::string(e.what()).starts_with("device.index: got " + std::to_string(bad) + ", expected 0"))
          << e.what();
    }
  }
  EXPECT_EQ(fake().primary_contexts, 0) << "facts need no context";
}

TEST(FakeGpu, PrimaryContextUnlessTheCallerHasOne) {
  {
    const auto gpu = cuda::Gpu::open(0);
    EXPECT_EQ(fake().primary_contexts, 1);
    EXPECT_EQ(current(), nullptr);
    {
      const cuda::ScopedContext outer(*gpu);
      EXPECT_EQ(current(), gpu->context());
      { const cuda::ScopedContext inner(*gpu); }
      EXPECT_EQ(current(), gpu->context()) << "the inner scope pushed nothing and popped nothing";
    }
    EXPECT_EQ(current(), nullptr);
  }
  EXPECT_EQ(fake().primary_contexts, 0);

  // The caller's may be the primary one, which the caller may let go of.
  CUcontext primary = nullptr;
  RAMP_CU(cuDevicePrimaryCtxRetain, &primary, 7);
  RAMP_CU(cuCtxPushCurrent, primary);
  {
    const auto gpu = cuda::Gpu::open(0);
    EXPECT_EQ(gpu->context(), primary);
    CUcontext theirs = nullptr;
    RAMP_CU(cuCtxPopCurrent, &theirs);
    RAMP_CU(cuDevicePrimaryCtxRelease, 7);
    EXPECT_EQ(fake().primary_contexts, 1);
    const cuda::ScopedContext scope(*gpu);
    EXPECT_EQ(current(), primary);
  }
  EXPECT_EQ(fake().primary_contexts, 0);

  const auto mine = reinterpret_cast<CUcontext>(0x2000);
  RAMP_CU(cuCtxPushCurrent, mine);
  {
    const auto gpu = cuda::Gpu::open(0);
    EXPECT_EQ(gpu->context(), mine);
    EXPECT_EQ(fake().primary_contexts, 0);
  }
  CUcontext popped = nullptr;
  RAMP_CU(cuCtxPopCurrent, &popped);
  EXPECT_EQ(popped, mine);
}

TEST(FakeMemory, LivesWithItsLastOwner) {
  std::shared_ptr<void> memory;
  {
    const auto gpu = cuda::Gpu::open(0);
    const auto device = cuda::make_device_memory(gpu);
    memory = device->allocate(1000);
    const auto none = device->allocate(0);
    EXPECT_NE(none, nullptr);
    EXPECT_EQ(fake().allocations, 2);
    EXPECT_EQ(device->free_bytes(), kFakeMemory - 1001);
    EXPECT_EQ(current(), nullptr);
  }
  EXPECT_EQ(fake().allocations, 1);
  EXPECT_EQ(fake().primary_contexts, 1) << "the memory keeps the context";
  memory.reset();
  EXPECT_EQ(fake().allocations, 0);
  EXPECT_EQ(fake().primary_contexts, 0);
}

TEST(FakeMemory, OutOfMemoryTellsWhatIsFree) {
  const auto device = cuda::make_device_memory(cuda::Gpu::open(0));
  const auto some = device->allocate(1000);
  try {
    static_cast<void>(device->allocate(uint64_t{1} << 40));
    FAIL();
  } catch (const core::Error& e) {
    EXPECT_EQ(e.status(), RAMP_ERROR_OUT_OF_MEMORY);
    EXPECT_STREQ(
        e.what(),
        "device memory: got a request for 1099511627776 bytes on GPU 0 (Stand-in), expected at most the "
        "1073740824 of 1073741824 bytes that are free; use fewer tokens or layers, a smaller shard, or end "
        "what else runs on this GPU");
  }
}

TEST(FakeMemory, BytesUpAndDown) {
  const auto device = cuda::make_device_memory(cuda::Gpu::open(0));
  const auto memory = device->allocate(100);
  std::vector<uint8_t> in(100), out(100);
  for (size_t i = 0; i < in.size(); ++i) in[i] = static_cast<uint8_t>(i * 7);
  device->upload(memory.get(), in.data(), 100, nullptr);
  device->download(out.data(), memory.get(), 100, nullptr);
  EXPECT_EQ(in, out);
  device->fill(memory.get(), 0xab, 60, nullptr);
  device->synchronize(nullptr);
  device->download(out.data(), memory.get(), 100, nullptr);
  for (size_t i = 0; i < out.size(); ++i) EXPECT_EQ(out[i], i < 60 ? 0xab : in[i]) << i;
  device->upload(nullptr, nullptr, 0, nullptr);
  device->fill(nullptr, 0, 0, nullptr);
  device->download(nullptr, nullptr, 0, nullptr);
  try {
    device->upload(memory.get(), in.data(), 101, nullptr);
    FAIL();
  } catch (const core::Error& e) {
    EXPECT_EQ(e.status(), RAMP_ERROR_DEVICE);
    const std::string text = e.what();
    EXPECT_TRUE(text.starts_with("cuMemcpyHtoDAsync(")) << text;
    EXPECT_NE(text.find(", 101, NULL): got CUDA_ERROR_INVALID_VALUE (1: as the driver"), std::string::npos)
        << text;
  }
}

TEST(FakeLibrary, CompilesOnceAndUnloads) {
  const Scratch scratch;
  Log log;
  const auto gpu = cuda::Gpu::open(0);
  const std::vector<cuda::KernelProgram> programs = cuda::copy_programs(90);
  {
    cuda::KernelLibrary library(gpu, scratch.directory(), log.sink());
    const int loads = fake().loads;
    std::vector<std::thread> threads;
    std::vector<CUfunction> found(8);
    for (CUfunction& f : found) threads.emplace_back([&] { f = library.get(programs[0], "copy_4"); });
    for (std::thread& t : threads) t.join();
    for (const CUfunction f : found) EXPECT_EQ(f, found[0]);
    EXPECT_NE(found[0], library.get(programs[0], "copy_8"));
    library.load(programs);
    EXPECT_EQ(fake().loads, loads + 1);
    EXPECT_EQ(fake().modules, 1);
    try {
      library.get(programs[0], "nothing");
      FAIL();
    } catch (const core::Error& e) {
      EXPECT_EQ(e.status(), RAMP_ERROR_INTERNAL);
      EXPECT_NE(std::string(e.what()).find("kernel copy: got no entry 'nothing'"), std::string::npos)
          << e.what();
    }
    cuda::KernelProgram impostor = programs[0];
    impostor.options = {"-DX"};
    EXPECT_THROW(library.get(impostor, "copy_4"), core::Error);
  }
  EXPECT_EQ(fake().modules, 0);
  EXPECT_TRUE(log.warnings.empty());
  EXPECT_EQ(files_in(scratch.path("cubin")).size(), 1U);
}

TEST(FakeLibrary, RefusedCubinIsCompiledAgainOnce) {
  const Scratch scratch;
  Log log;
  const auto gpu = cuda::Gpu::open(0);
  const cuda::KernelProgram program = cuda::copy_programs(90).front();
  { cuda::KernelLibrary(gpu, scratch.directory(), log.sink()).get(program, "copy_1"); }
  EXPECT_TRUE(log.warnings.empty());
  fake().refuse_loads = 1;
  { cuda::KernelLibrary(gpu, scratch.directory(), log.sink()).get(program, "copy_1"); }
  ASSERT_EQ(log.warnings.size(), 1U);
  EXPECT_NE(log.warnings[0].find("the driver refuses it"), std::string::npos) << log.warnings[0];
  fake().refuse_loads = 2;
  try {
    cuda::KernelLibrary(gpu, scratch.directory(), log.sink()).get(program, "copy_1");
    FAIL();
  } catch (const core::Error& e) {
    EXPECT_EQ(e.status(), RAMP_ERROR_DEVICE);
    EXPECT_NE(std::string(e.what()).find("cuModuleLoadData(copy for sm_90a, compiled by NVRTC"),
              std::string::npos)
        << e.what();
  }
  EXPECT_EQ(fake().refuse_loads, 0);
  EXPECT_EQ(fake().modules, 0);
}

TEST(FakeLibrary, FailureOfOneProgramIsRethrownAndNothingLeaks) {
  const auto gpu = cuda::Gpu::open(0);
  std::vector<cuda::KernelProgram> programs = cuda::copy_programs(90);
  programs.push_back({"broken", "nowhere.cu", {}, {"f"}, 80});
  programs.push_back({"foreign", "copy.cu", {}, {"copy_1", "paste_1"}, 80});
  {
    cuda::KernelLibrary library(gpu, "", core::LogSink{});
    EXPECT_THROW(library.load(programs), core::Error);
    EXPECT_THROW(library.get(programs[2], "copy_1"), core::Error);
    EXPECT_NE(library.get(programs[0], "copy_1"), nullptr) << "the others still work";
    EXPECT_EQ(fake().modules, 1);
  }
  EXPECT_EQ(fake().modules, 0);
}

// The caller destroys its context before the library that worked in it.
TEST(FakeLibrary, OutlivesTheCallersContext) {
  const auto mine = reinterpret_cast<CUcontext>(0x2000);
  auto keep = cuda::Gpu::open(0);  // the stand-in wants some context to exist
  RAMP_CU(cuCtxPushCurrent, mine);
  auto library = std::make_unique<cuda::KernelLibrary>(cuda::Gpu::open(0), "", core::LogSink{});
  library->get(cuda::copy_programs(90).front(), "copy_1");
  CUcontext popped = nullptr;
  RAMP_CU(cuCtxPopCurrent, &popped);
  keep.reset();
  const int modules = fake().modules;
  EXPECT_NO_THROW(library.reset());
  EXPECT_EQ(fake().modules, modules) << "nothing to unload from";
  fake().modules = 0;
}

TEST(FakeNvtx, RangesNest) {
  const cuda::ScopedRange outer("outer");
  const cuda::ScopedRange inner("inner");
}

}  // namespace
}  // namespace ramp::cuda_test
