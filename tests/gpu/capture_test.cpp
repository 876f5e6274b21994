// What a stream capture may meet: calls whose kernels were never loaded, in every capture mode; the context's
// own workspace, which cannot grow or change its stream then; memory that comes and goes. And whose CUDA
// context a library's handles live in, which has to be there as long as they are.
#include <dlfcn.h>

#include <array>

#include "backend/cuda/driver.hpp"
#include "backend/cuda/gpu.hpp"
#include "gpu/support.hpp"

namespace ramp::core::test {
namespace {

using cuda::driver;

class Stream {
 public:
  Stream() { RAMP_CU(cuStreamCreate, &handle_, static_cast<unsigned>(CU_STREAM_NON_BLOCKING)); }
  ~Stream() { driver().cuStreamDestroy(handle_); }
  Stream(const Stream&) = delete;
  Stream& operator=(const Stream&) = delete;
  [[nodiscard]] CUstream get() const noexcept { return handle_; }
  [[nodiscard]] CUstreamCaptureStatus status() const {
    CUstreamCaptureStatus s = CU_STREAM_CAPTURE_STATUS_NONE;
    RAMP_CU(cuStreamIsCapturing, handle_, &s);
    return s;
  }

 private:
  CUstream handle_ = nullptr;
};

// From now to end(), which gives the graph to launch, in a capture.
class Capture {
 public:
  Capture(const Stream& stream, CUstreamCaptureMode mode) : stream_(stream.get()) {
    RAMP_CU(cuStreamBeginCapture, stream_, mode);
  }
  ~Capture() {
    if (exec_ != nullptr) driver().cuGraphExecDestroy(exec_);
  }
  Capture(const Capture&) = delete;
  Capture& operator=(const Capture&) = delete;
  void run() {
    CUgraph graph = nullptr;
    RAMP_CU(cuStreamEndCapture, stream_, &graph);
    RAMP_CU(cuGraphInstantiateWithFlags, &exec_, graph, 0ULL);
    RAMP_CU(cuGraphDestroy, graph);
    RAMP_CU(cuGraphLaunch, exec_, stream_);
    RAMP_CU(cuStreamSynchronize, stream_);
  }

 private:
  CUstream stream_;
  CUgraphExec exec_ = nullptr;
};

struct Mode {
  const char* name;
  CUstreamCaptureMode mode;
};
constexpr std::array<Mode, 3> kModes = {{{"Global", CU_STREAM_CAPTURE_MODE_GLOBAL},
                                         {"ThreadLocal", CU_STREAM_CAPTURE_MODE_THREAD_LOCAL},
                                         {"Relaxed", CU_STREAM_CAPTURE_MODE_RELAXED}}};

class GpuCapture : public testing::TestWithParam<Mode> {
 protected:
  const std::shared_ptr<const cuda::Gpu> device_ = cuda::Gpu::open(0);
  const cuda::ScopedContext scope_{*device_};
  const Stream stream_;
};
INSTANTIATE_TEST_SUITE_P(Modes, GpuCapture, testing::ValuesIn(kModes),
                         [](const auto& p) { return std::string(p.param.name); });

void expect_right(BlockCase& c) {
  const CheckResult result = c.check(check_options());
  EXPECT_TRUE(result.ok()) << result.text();
}

// Nothing of the context's is loaded: the plain kernels, and the stream kernels' neighbours for another x and
// y than packing has brought in.
TEST_P(GpuCapture, TheFirstCallLoadsItsKernels) {
  for (const bool packed : {false, true}) {
    SCOPED_TRACE(packed ? "packed" : "plain");
    CaseSpec spec;
    spec.tokens = 20;
    spec.hidden = spec.intermediate = 256;
    spec.x_dtype = spec.y_dtype = packed ? RAMP_F16 : RAMP_BF16;
    BlockCase c(spec);
    const ContextPtr context = make_gpu_context();
    const GpuWeights w = make_gpu_weights(context.get(), c.synthetic, RAMP_COPY, packed);
    GpuBlock block(c, context.get());
    const DeviceBuffer scratch = block.workspace(w.handle.get());
    block.begin();
    const ramp_expert_block_args a = block.args(w.handle.get());
    Capture capture(stream_, GetParam().mode);
    EXPECT_EQ(ramp_expert_block(context.get(), &a, scratch.data(), scratch.bytes(), stream_.get()), RAMP_OK)
        << ramp_last_error();
    EXPECT_EQ(stream_.status(), CU_STREAM_CAPTURE_STATUS_ACTIVE);
    capture.run();
    block.finish();
    expect_right(c);
  }
}

TEST_P(GpuCapture, TheContextsWorkspaceStaysAsItIs) {
  CaseSpec spec;
  spec.tokens = 20;
  BlockCase c(spec);
  const ContextPtr context = make_gpu_context();
  const GpuWeights w = make_gpu_weights(context.get(), c.synthetic, RAMP_COPY, false);
  GpuBlock block(c, context.get());
  const ramp_expert_block_args a = block.args(w.handle.get());
  const auto expect_refusal = [&](const Stream& stream) {
    EXPECT_EQ(ramp_expert_block(context.get(), &a, nullptr, 0, stream.get()), RAMP_ERROR_INVALID_ARGUMENT);
    EXPECT_NE(std::string(ramp_last_error()).find("captured"), std::string::npos) << ramp_last_error();
    EXPECT_EQ(stream.status(), CU_STREAM_CAPTURE_STATUS_ACTIVE);
  };
  block.begin();
  {  // It would have to grow. With a workspace of the caller's the same capture goes on.
    const DeviceBuffer scratch = block.workspace(w.handle.get());
    Capture capture(stream_, GetParam().mode);
    expect_refusal(stream_);
    require(ramp_expert_block(context.get(), &a, scratch.data(), scratch.bytes(), stream_.get()));
    capture.run();
  }
  block.finish();
  expect_right(c);

  block.run(w.handle.get(), stream_.get(), true);  // grows outside
  expect_right(c);
  block.begin();
  {
    Capture capture(stream_, GetParam().mode);
    require(ramp_expert_block(context.get(), &a, nullptr, 0, stream_.get()));
    capture.run();
  }
  block.finish();
  expect_right(c);

  const Stream other;
  {
    Capture capture(other, GetParam().mode);
    expect_refusal(other);
    capture.run();
  }
  block.run(w.handle.get(), other.get(), true);
  expect_right(c);
}

TEST_P(GpuCapture, MemoryComesAndGoes) {
  const ContextPtr context = make_gpu_context();
  const DeviceBuffer y(context.get(), 4096);
  Capture capture(stream_, GetParam().mode);
  { const std::shared_ptr<void> passing = memory(context.get()).allocate(1 << 20); }
  const std::shared_ptr<void> staying = memory(context.get()).allocate(1 << 20);
  memory(context.get()).fill(y.data(), 7, 4096, stream_.get());
  EXPECT_EQ(stream_.status(), CU_STREAM_CAPTURE_STATUS_ACTIVE);
  capture.run();
  std::array<uint8_t, 4096> got{};
  y.download(got.data());
  EXPECT_EQ(got.front(), 7);
  EXPECT_EQ(got.back(), 7);
}

// ---------------------------------------------------------------- contexts

bool primary_active(CUdevice device) {
  unsigned flags = 0;
  int active = 0;
  RAMP_CU(cuDevicePrimaryCtxGetState, device, &flags, &active);
  return active != 0;
}

void run_in(ramp_context* context) {
  BlockCase c(CaseSpec{.tokens = 5});
  const GpuWeights w = make_gpu_weights(context, c.synthetic, RAMP_COPY, true);
  GpuBlock block(c, context);
  block.run(w.handle.get());
  expect_right(c);
}

// A process of its own (faults_test.cpp starts it): no other handle keeps the primary context.
TEST(GpuChild, DISABLED_KeepsThePrimaryContext) {
  RAMP_CU(cuInit, 0U);
  CUdevice device = 0;
  RAMP_CU(cuDeviceGet, &device, 0);
  ASSERT_FALSE(primary_active(device));
  CUcontext primary = nullptr;
  RAMP_CU(cuDevicePrimaryCtxRetain, &primary, device);
  RAMP_CU(cuCtxPushCurrent, primary);
  {
    const ContextPtr context = make_gpu_context();
    run_in(context.get());
    // The caller lets go of it, as an engine's other library may at any time.
    CUcontext popped = nullptr;
    RAMP_CU(cuCtxPopCurrent, &popped);
    RAMP_CU(cuDevicePrimaryCtxRelease, device);
    EXPECT_TRUE(primary_active(device));
    run_in(context.get());
  }
  EXPECT_FALSE(primary_active(device));
}

TEST(GpuChild, DISABLED_RunsInAContextOfTheCallers) {
  RAMP_CU(cuInit, 0U);
  CUdevice device = 0;
  RAMP_CU(cuDeviceGet, &device, 0);
  void* const library = ::dlopen("libcuda.so.1", RTLD_NOW);
  ASSERT_NE(library, nullptr);
  using Create = CUresult (*)(CUcontext*, unsigned, CUdevice);
  using Destroy = CUresult (*)(CUcontext);
  const auto create = reinterpret_cast<Create>(::dlsym(library, "cuCtxCreate_v2"));
  const auto destroy = reinterpret_cast<Destroy>(::dlsym(library, "cuCtxDestroy_v2"));
  ASSERT_NE(create, nullptr);
  ASSERT_NE(destroy, nullptr);
  CUcontext own = nullptr;
  ASSERT_EQ(create(&own, 0, device), CUDA_SUCCESS);
  {
    const ContextPtr context = make_gpu_context();
    run_in(context.get());
    EXPECT_EQ(cuda::Gpu::open(0)->context(), own);
    EXPECT_FALSE(primary_active(device));
  }
  EXPECT_EQ(destroy(own), CUDA_SUCCESS);
}

}  // namespace
}  // namespace ramp::core::test
