// Packing into tiles against the stand-in for libcuda: what comes back is what went in, under every ownership
// and with every layout of the source; and want of memory at any point leaves a handle as it was.
#include "backend/cuda/weights.hpp"

#include <dlfcn.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <cstring>

#include "backend/cuda/kernel_library.hpp"
#include "backend/cuda/stream_block.hpp"
#include "base/error.hpp"
#include "base/tensor.hpp"
#include "cuda/fake_driver.hpp"
#include "cuda/support.hpp"
#include "weights/synthetic.hpp"

namespace ramp::cuda_test {
namespace {
namespace cuda = core::cuda;
using core::ExpertWeights;

constexpr ramp_device kGpu{RAMP_DEVICE_CUDA, 0};

FakeState& fake() {
  static auto* const state =
      static_cast<FakeState*>(::dlsym(::dlopen("libcuda.so.1", RTLD_NOW | RTLD_NOLOAD), "fake_state"));
  return *state;
}

// Weights (fp8_block: with scales) whose w2 has the larger experts, in memory of the stand-in.
class FakePacking : public testing::TestWithParam<ramp_format> {
 protected:
  FakePacking() {
    for (ramp_tensor* const t : tensors(desc)) {
      const int64_t bytes = core::numel(*t) * core::dtype_bytes(static_cast<ramp_dtype>(t->dtype));
      buffers.push_back(memory->allocate(static_cast<uint64_t>(bytes) + 64));
      std::memcpy(buffers.back().get(), t->data, static_cast<size_t>(bytes));
      t->data = buffers.back().get();
      t->device = kGpu;
    }
  }
  ~FakePacking() override { fake().allocations_left = -1; }

  static std::vector<ramp_tensor*> tensors(ramp_weights_desc& d) {
    std::vector<ramp_tensor*> list = {&d.w13, &d.w2};
    if (core::present(d.w13_scale)) list.insert(list.end(), {&d.w13_scale, &d.w2_scale});
    return list;
  }
  [[nodiscard]] std::unique_ptr<ExpertWeights> make(ramp_ownership ownership) {
    ramp_weights_desc d = desc;
    d.ownership = ownership;
    return core::make_expert_weights(d, kGpu, {memory.get(), nullptr});
  }
  // unpack() into tensors whose rows have `gap` elements behind them.
  void expect_values(const ExpertWeights& w, int64_t gap, const core::SyntheticWeights& expected) {
    const int64_t bytes = core::dtype_bytes(core::weight_dtype(GetParam()));
    ramp_tensor parts[2] = {expected.desc.w13, expected.desc.w2};
    std::shared_ptr<void> room[2];
    for (int i = 0; i < 2; ++i) {
      ramp_tensor& t = parts[i];
      t = core::with_strides(t);
      t.stride[1] = t.shape[2] + gap;
      t.stride[0] = t.shape[1] * t.stride[1];
      room[i] = memory->allocate(static_cast<uint64_t>(t.shape[0] * t.stride[0] * bytes));
      t.data = room[i].get();
      t.device = kGpu;
    }
    cuda::unpack_weights(w, parts[0], parts[1], *memory, &packer, nullptr);
    const ramp_tensor* const from[2] = {&expected.desc.w13, &expected.desc.w2};
    for (int i = 0; i < 2; ++i) {
      const ramp_tensor& t = parts[i];
      for (int64_t r = 0; r < t.shape[0] * t.shape[1]; ++r)
        ASSERT_EQ(std::memcmp(static_cast<uint8_t*>(t.data) + r * t.stride[1] * bytes,
                              static_cast<const uint8_t*>(from[i]->data) + r * t.shape[2] * bytes,
                              static_cast<size_t>(t.shape[2] * bytes)),
                  0)
            << (i == 0 ? "w13" : "w2") << ", row " << r << ", gap " << gap;
    }
  }

  const core::ModelShape model{"", 3, 1, 256, 640};
  const core::SyntheticWeights host =
      core::make_synthetic_weights(model, GetParam(), RAMP_ACTIVATION_SILU_AND_MUL, {});
  ramp_weights_desc desc = host.desc;
  std::vector<std::shared_ptr<void>> buffers;  // w13, w2, their scales
  const std::shared_ptr<const cuda::Gpu> gpu = cuda::Gpu::open(0);
  const std::shared_ptr<cuda::KernelLibrary> library =
      std::make_shared<cuda::KernelLibrary>(gpu, "", core::LogSink{});
  const std::shared_ptr<const core::DeviceMemory> memory = cuda::make_device_memory(gpu, library);
  const cuda::ScopedContext current{*gpu};  // as the backend does before it packs
  const cuda::TilePacker packer{*memory, library->get(cuda::pack_programs(90).front(), "pack_tiles")};
};

INSTANTIATE_TEST_SUITE_P(Formats, FakePacking,
                         testing::Values(RAMP_FORMAT_FP8_BLOCK, RAMP_FORMAT_BF16, RAMP_FORMAT_F16),
                         [](const auto& p) { return std::string(core::format_name(p.param)); });

TEST_P(FakePacking, ComesBackUnderEveryOwnership) {
  for (const ramp_ownership ownership : {RAMP_COPY, RAMP_BORROW, RAMP_IN_PLACE}) {
    const auto w = make(ownership);
    cuda::pack_weights(*w, *memory, &packer, nullptr);
    EXPECT_TRUE(cuda::is_tiled(*w));
    for (const int64_t gap : {0, 16, 3}) expect_values(*w, gap, host);
    const bool unchanged = std::memcmp(buffers[0].get(), host.desc.w13.data, host.w13.size()) == 0;
    EXPECT_EQ(unchanged, ownership != RAMP_IN_PLACE);
  }
}

TEST_P(FakePacking, WantOfMemoryLosesNothing) {
  for (const ramp_ownership ownership : {RAMP_IN_PLACE, RAMP_COPY, RAMP_BORROW}) {
    bool packed = false;
    for (int left = 0; !packed; ++left) {
      ASSERT_LT(left, 5);
      std::memcpy(buffers[0].get(), host.desc.w13.data,
                  host.w13.size());  // an earlier handle packed in place
      std::memcpy(buffers[1].get(), host.desc.w2.data, host.w2.size());
      const auto w = make(ownership);
      fake().allocations_left = left;
      try {
        cuda::pack_weights(*w, *memory, &packer, nullptr);
        packed = true;
      } catch (const core::Error& e) {
        EXPECT_EQ(e.status(), RAMP_ERROR_OUT_OF_MEMORY) << e.what();
      }
      fake().allocations_left = -1;
      EXPECT_EQ(cuda::is_tiled(*w), packed) << "ownership " << ownership << ", " << left << " allocations";
      expect_values(*w, 0, host);
    }
  }
}

TEST_P(FakePacking, InPlaceTilesNeedAlignedMemory) {
  std::memmove(static_cast<uint8_t*>(buffers[1].get()) + 8, buffers[1].get(), host.w2.size());
  desc.w2.data = static_cast<uint8_t*>(buffers[1].get()) + 8;
  const auto w = make(RAMP_IN_PLACE);
  try {
    cuda::pack_weights(*w, *memory, &packer, nullptr);
    FAIL();
  } catch (const core::Error& e) {
    EXPECT_EQ(e.status(), RAMP_ERROR_INVALID_ARGUMENT);
    EXPECT_NE(std::string(e.what()).find("weights.w2: got address"), std::string::npos) << e.what();
  }
  EXPECT_FALSE(cuda::is_tiled(*w));
  expect_values(*w, 0, host);
  for (const ramp_ownership other : {RAMP_COPY, RAMP_BORROW}) {  // these have tiles of their own
    const auto v = make(other);
    cuda::pack_weights(*v, *memory, &packer, nullptr);
    expect_values(*v, 0, host);
  }
}

// Expert 1 of another layer over expert 2, from dense and from misaligned rows, and without memory.
TEST_P(FakePacking, UpdateOfOneExpert) {
  core::SyntheticWeightsOptions options;
  options.seed = 77;
  const core::SyntheticWeights other =
      core::make_synthetic_weights(model, GetParam(), RAMP_ACTIVATION_SILU_AND_MUL, options);
  for (const int64_t gap : {0, 5}) {
    const auto w = make(RAMP_COPY);
    cuda::pack_weights(*w, *memory, &packer, nullptr);
    core::SyntheticWeights expected =
        core::make_synthetic_weights(model, GetParam(), RAMP_ACTIVATION_SILU_AND_MUL, {});
    ramp_weights_desc update = other.desc;
    update.num_experts = 1;
    std::vector<std::shared_ptr<void>> held;
    for (ramp_tensor* const t : tensors(update)) {
      *t = core::expert_range(core::with_strides(*t), 1, 1);
      const auto width = core::dtype_bytes(static_cast<ramp_dtype>(t->dtype));
      ramp_tensor to = *t;
      to.stride[1] = t->shape[2] + gap;
      to.stride[0] = t->shape[1] * to.stride[1];
      held.push_back(memory->allocate(static_cast<uint64_t>(to.stride[0] * width)));
      to.data = held.back().get();
      to.device = kGpu;
      for (int64_t r = 0; r < t->shape[1]; ++r)
        std::memcpy(static_cast<uint8_t*>(to.data) + r * to.stride[1] * width,
                    static_cast<const uint8_t*>(t->data) + r * t->stride[1] * width,
                    static_cast<size_t>(t->shape[2] * width));
      *t = to;
    }
    std::vector<uint8_t> scales;
    if (core::present(w->w13_scale))
      scales.assign(static_cast<const uint8_t*>(w->w13_scale.data),
                    static_cast<const uint8_t*>(w->w13_scale.data) + core::numel(w->w13_scale) * 4);
    if (gap != 0) {
      fake().allocations_left = 0;
      EXPECT_THROW(cuda::update_weights(*w, 2, update, *memory, &packer, nullptr), core::Error);
      fake().allocations_left = -1;
      expect_values(*w, 0, expected);
      if (!scales.empty()) {
        EXPECT_EQ(std::memcmp(scales.data(), w->w13_scale.data, scales.size()), 0) << "scales without values";
      }
    }
    cuda::update_weights(*w, 2, update, *memory, &packer, nullptr);
    const auto replace = [](const core::AlignedBuffer& from, core::AlignedBuffer& to) {
      const size_t each = from.size() / 3;
      std::memcpy(static_cast<uint8_t*>(to.data()) + 2 * each,
                  static_cast<const uint8_t*>(from.data()) + each, each);
    };
    replace(other.w13, expected.w13);
    replace(other.w2, expected.w2);
    expect_values(*w, 0, expected);
  }
}

}  // namespace
}  // namespace ramp::cuda_test
