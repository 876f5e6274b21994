// How many launches stand before GEMM 1, counted by the stand-in for libcuda: one where T*k <= 10240 ids are
// given, three above, one more for routing and one more where logits are computed. One more in fast mode with
// sums, which are zeroed, where there is anything to add.
#include <dlfcn.h>
#include <gtest/gtest.h>

#include <memory>
#include <vector>

#include "backend/cuda/kernel_library.hpp"
#include "backend/cuda/plain_block.hpp"
#include "backend/cuda/prefill_block.hpp"
#include "backend/cuda/prologue.hpp"
#include "base/tensor.hpp"
#include "cuda/fake_driver.hpp"
#include "cuda/support.hpp"
#include "routing/router.hpp"
#include "weights/synthetic.hpp"

namespace ramp::cuda_test {
namespace {
namespace cuda = core::cuda;

FakeState& fake() {
  static auto* const state =
      static_cast<FakeState*>(::dlsym(::dlopen("libcuda.so.1", RTLD_NOW | RTLD_NOLOAD), "fake_state"));
  return *state;
}

constexpr int64_t kExperts = 8, kTopK = 8, kHidden = 256, kIntermediate = 128;

// Nothing runs, so that no tensor needs memory: addresses that are aligned like real ones.
ramp_tensor tensor(ramp_dtype dtype, std::vector<int64_t> shape) {
  ramp_tensor t{};
  t.data = reinterpret_cast<void*>(uintptr_t{1} << 20);
  t.dtype = dtype;
  t.ndim = static_cast<int32_t>(shape.size());
  for (size_t d = 0; d < shape.size(); ++d) t.shape[d] = shape[d];
  t.device = {RAMP_DEVICE_CUDA, 0};
  return core::with_strides(t);
}

class FakeLaunches : public testing::Test {
 protected:
  FakeLaunches() {
    // The first call brings kernels in, which the counts below must not see.
    prologue.prepare(*weights, RAMP_BF16);
  }
  core::BlockCall call(int64_t tokens) {
    core::BlockCall c;
    c.weights = weights.get();
    c.tokens = tokens;
    c.top_k = kTopK;
    c.x = tensor(RAMP_BF16, {tokens, kHidden});
    c.ids = tensor(RAMP_I32, {tokens, kTopK});
    c.topk_weights = tensor(RAMP_F32, {tokens, kTopK});
    c.y = c.x;
    return c;
  }
  cuda::PrologueWorkspace parts(int64_t tokens) {
    cuda::PrologueWorkspace p;
    cuda::carve_prologue(*weights, tokens, kTopK, 32, reinterpret_cast<void*>(uintptr_t{1} << 20), p);
    return p;
  }

  std::shared_ptr<const cuda::Gpu> gpu = cuda::Gpu::open(0);
  cuda::KernelLibrary library{gpu, "", core::LogSink{}};
  cuda::Prologue prologue{gpu, library};
  const core::SyntheticWeights synthetic = core::make_synthetic_weights(
      {"", kExperts, kTopK, kHidden, kIntermediate}, RAMP_FORMAT_FP8_BLOCK, RAMP_ACTIVATION_SILU_AND_MUL);
  const std::unique_ptr<core::ExpertWeights> weights =
      core::make_expert_weights(synthetic.desc, {RAMP_DEVICE_CPU, 0}, {});
};

TEST_F(FakeLaunches, OfThePrologue) {
  struct Case {
    int64_t tokens;
    int launches;
  };
  for (const Case& c :
       {Case{1, 1}, Case{64, 1}, Case{512, 1}, Case{1024, 1}, Case{1280, 1}, Case{1281, 3}, Case{8192, 3}}) {
    const int before = fake().launches;
    prologue.block(call(c.tokens), parts(c.tokens), nullptr);
    EXPECT_EQ(fake().launches - before, c.launches) << "T = " << c.tokens;
  }
}

TEST_F(FakeLaunches, OfRoutingBeforeIt) {
  for (const bool given : {true, false}) {
    const core::BlockCall block = call(512);
    core::RouteCall route;
    route.router = ramp_router_config_init();
    route.router.top_k = kTopK;
    route.ids = block.ids;
    route.weights = block.topk_weights;
    if (given) {
      route.logits = tensor(RAMP_F32, {512, kExperts});
    } else {
      route.x = block.x;
      route.router_weight = tensor(RAMP_BF16, {kExperts, kHidden});
      route.workspace = route.x.data;
      route.workspace_bytes = prologue.route_workspace(route.router, kExperts, 512);
    }
    prologue.prepare_route(route.router, kExperts, given ? RAMP_F32 : RAMP_DTYPE_NONE);
    const int before = fake().launches;
    prologue.routed_block(route, block, parts(512), nullptr);
    EXPECT_EQ(fake().launches - before, given ? 2 : 3);
  }
}

TEST_F(FakeLaunches, OfSums) {
  cuda::Combine combine(gpu, library);
  cuda::PrefillBlock prefill(gpu, library, prologue, combine);
  const cuda::ScopedContext scope(*gpu);
  prefill.prepare(*weights, RAMP_BF16);
  core::BlockCall c = call(512);
  c.workspace = c.x.data;
  c.workspace_bytes = cuda::PrefillBlock::workspace(*weights, c.tokens, c.top_k);
  core::KernelConfig config = cuda::prefill_config();
  c.config = &config;
  const auto launches = [&] {
    prefill.block(c);  // brings kernels in
    const int before = fake().launches;
    prefill.block(c);
    return fake().launches - before;
  };
  const int rows = launches();
  config.sums = true;
  EXPECT_EQ(launches(), rows) << "repeatable";
  c.determinism = RAMP_FAST;
  EXPECT_EQ(launches(), rows + 1);
  config.sums = false;
  EXPECT_EQ(launches(), rows) << "sums only where the config says so";
  config.sums = true;
  c.output = RAMP_OUTPUT_PER_SLOT;
  c.y = tensor(RAMP_BF16, {c.tokens, kTopK, kHidden});
  EXPECT_EQ(launches(), rows);
}

}  // namespace
}  // namespace ramp::cuda_test
