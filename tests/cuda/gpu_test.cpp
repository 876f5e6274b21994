// What only a GPU can tell: it loads every shipped program, out of memory is an error and not the end, errors
// are reported, and strided copies can be captured in a graph.
#include "backend/cuda/gpu.hpp"

#include <gtest/gtest.h>

#include "backend/cuda/cubin_cache.hpp"
#include "backend/cuda/kernel_library.hpp"
#include "backend/cuda/nvrtc.hpp"
#include "base/error.hpp"
#include "cuda/needs_gpu.hpp"
#include "cuda/strided.hpp"
#include "cuda/support.hpp"

namespace ramp::cuda_test {
namespace {
namespace cuda = core::cuda;

TEST(Gpu, Facts) {
  RAMP_NEEDS_GPU();
  const cuda::GpuFacts f = cuda::gpu_facts(0);
  EXPECT_FALSE(f.name.empty());
  EXPECT_GE(f.major, 5);
  EXPECT_GT(f.sm_count, 0);
  EXPECT_GT(f.l2_bytes, 0);
  EXPECT_GE(f.shared_per_block, 48 << 10);
  EXPECT_GE(f.shared_per_sm, f.shared_per_block);
  EXPECT_GT(f.memory_bytes, uint64_t{1} << 30);
  const auto gpu = cuda::Gpu::open(0);
  const uint64_t free = cuda::make_device_memory(gpu)->free_bytes();
  EXPECT_GT(free, 0U);
  EXPECT_LE(free, f.memory_bytes);
}

TEST(Gpu, LoadsEveryShippedProgram) {
  RAMP_NEEDS_GPU();
  const Scratch scratch;
  Log log;
  const auto gpu = cuda::Gpu::open(0);
  const std::vector<cuda::KernelProgram> programs =
      cuda::shipped_programs(gpu->facts().major * 10 + gpu->facts().minor);
  ASSERT_FALSE(programs.empty());
  for (int round = 0; round < 2; ++round) {  // compiled, then from the cache
    cuda::KernelLibrary library(gpu, scratch.directory(), log.sink());
    library.load(programs);
    for (const cuda::KernelProgram& p : programs)
      for (const std::string& entry : p.entries)
        EXPECT_NE(library.get(p, entry), nullptr) << p.name << " " << entry;
  }
  EXPECT_TRUE(log.warnings.empty()) << log.warnings[0];
  EXPECT_EQ(cuda::list_cache(scratch.directory()).size(), programs.size());
}

// An entry whose checksum is right and whose cubin is none: only the driver can tell.
TEST(Gpu, RefusedCubinIsCompiledAgain) {
  RAMP_NEEDS_GPU();
  const Scratch scratch;
  Log log;
  const auto gpu = cuda::Gpu::open(0);
  const cuda::KernelProgram program = cuda::shipped_programs(80).front();
  const std::string arch = gpu->facts().arch();
  const cuda::CubinKey key = cuda::cubin_key(program, arch, cuda::nvrtc().version());
  cuda::CubinCache(scratch.directory(), log.sink()).store(program.name, arch, key, std::string(5000, 'x'));
  cuda::KernelLibrary library(gpu, scratch.directory(), log.sink());
  EXPECT_NE(library.get(program, program.entries.front()), nullptr);
  ASSERT_EQ(log.warnings.size(), 1U);
  EXPECT_NE(log.warnings[0].find("the driver refuses it"), std::string::npos) << log.warnings[0];
}

TEST(Gpu, OutOfMemoryIsAnErrorAndNotTheEnd) {
  RAMP_NEEDS_GPU();
  const auto device = cuda::make_device_memory(cuda::Gpu::open(0));
  try {
    static_cast<void>(device->allocate(uint64_t{1} << 45));
    FAIL();
  } catch (const core::Error& e) {
    EXPECT_EQ(e.status(), RAMP_ERROR_OUT_OF_MEMORY);
    EXPECT_NE(std::string(e.what()).find("bytes that are free"), std::string::npos) << e.what();
  }
  EXPECT_NE(device->allocate(1 << 20), nullptr);
}

// Both ways of copying, captured once and replayed on new values: what allocates or synchronises would fail.
TEST(Gpu, StridedCopiesAreCapturable) {
  RAMP_NEEDS_GPU();
  const auto gpu = cuda::Gpu::open(0);
  const auto kernels = std::make_shared<cuda::KernelLibrary>(gpu, "", core::LogSink{});
  const auto device = cuda::make_device_memory(gpu, kernels);
  const cuda::ScopedContext scope(*gpu);
  CUstream stream = nullptr;
  RAMP_CU(cuStreamCreate, &stream, CU_STREAM_NON_BLOCKING);
  constexpr size_t kBytes = 4096;
  const auto from = device->allocate(kBytes);
  const auto to = device->allocate(kBytes);
  const std::vector<int64_t> shape = {3, 4, 8};
  for (const std::vector<int64_t>& strides :
       {std::vector<int64_t>{80, 16, 1}, std::vector<int64_t>{8, 24, 1}}) {
    const ramp_tensor source = tensor_of(from.get(), RAMP_F32, shape, strides);
    const ramp_tensor target = tensor_of(to.get(), RAMP_F32, shape, {60, 10, 1});
    device->copy(source, target, stream);  // brings in the kernel
    RAMP_CU(cuStreamBeginCapture, stream, CU_STREAM_CAPTURE_MODE_THREAD_LOCAL);
    device->copy(source, target, stream);
    CUgraph graph = nullptr;
    RAMP_CU(cuStreamEndCapture, stream, &graph);
    CUgraphExec replay = nullptr;
    RAMP_CU(cuGraphInstantiateWithFlags, &replay, graph, 0ULL);
    std::vector<uint8_t> in(kBytes), wanted(kBytes, 0), got(kBytes);
    for (size_t i = 0; i < kBytes; ++i) in[i] = static_cast<uint8_t>(i * 131 + strides.size());
    device->upload(from.get(), in.data(), kBytes, stream);
    device->fill(to.get(), 0, kBytes, stream);
    RAMP_CU(cuGraphLaunch, replay, stream);
    device->download(got.data(), to.get(), kBytes, stream);
    copy_elements(tensor_of(in.data(), RAMP_F32, shape, strides),
                  tensor_of(wanted.data(), RAMP_F32, shape, {60, 10, 1}));
    EXPECT_EQ(got, wanted);
    RAMP_CU(cuGraphExecDestroy, replay);
    RAMP_CU(cuGraphDestroy, graph);
  }
  RAMP_CU(cuStreamDestroy, stream);
}

}  // namespace
}  // namespace ramp::cuda_test
