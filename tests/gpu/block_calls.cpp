// The other calls on the GPU: ownership of weights, packing, update and round trip; and errors.
#include <algorithm>
#include <cstring>

#include "base/tensor.hpp"
#include "cli/gpu.hpp"
#include "gpu/support.hpp"

namespace ramp::core::test {
namespace {

CaseSpec small_spec(ramp_format format) {
  CaseSpec s;
  s.format = format;
  s.tokens = 21;
  s.experts = 6;
  s.top_k = 2;
  s.hidden = 160;
  s.intermediate = 288;
  s.seed = 5;
  return s;
}

void expect_right(BlockCase& c) {
  const CheckResult result = c.check(check_options());
  EXPECT_TRUE(result.ok()) << result.text();
}

std::vector<uint8_t> download(const ramp_tensor& t) {
  std::vector<uint8_t> bytes(static_cast<size_t>(numel(t) * dtype_bytes(static_cast<ramp_dtype>(t.dtype))));
  memory(gpu()).download(bytes.data(), t.data, bytes.size(), nullptr);
  return bytes;
}

std::vector<uint8_t> host_bytes(const AlignedBuffer& b) {
  return {b.as<uint8_t>(), b.as<uint8_t>() + b.size()};
}

// What unpack gives, as bytes: w13 and w2.
std::pair<std::vector<uint8_t>, std::vector<uint8_t>> unpacked(const ramp_weights* w, const BlockCase& c) {
  const DeviceBuffer b13(gpu(), c.synthetic.w13.size());
  const DeviceBuffer b2(gpu(), c.synthetic.w2.size());
  ramp_tensor t13 = c.synthetic.desc.w13;
  ramp_tensor t2 = c.synthetic.desc.w2;
  t13.data = b13.data();
  t2.data = b2.data();
  t13.device = t2.device = gpu_device();
  require(ramp_weights_unpack(gpu(), w, &t13, &t2, nullptr));
  EXPECT_TRUE(b13.guard_intact());
  EXPECT_TRUE(b2.guard_intact());
  return {download(t13), download(t2)};
}

class GpuWeightsOf : public testing::TestWithParam<ramp_format> {};
INSTANTIATE_TEST_SUITE_P(Formats, GpuWeightsOf, testing::ValuesIn(kAllFormats),
                         [](const auto& p) { return std::string(format_name(p.param)); });

TEST_P(GpuWeightsOf, RunAndComeBackUnderEveryOwnership) {
  for (const ramp_ownership ownership : {RAMP_COPY, RAMP_BORROW, RAMP_IN_PLACE}) {
    for (const bool pack : {false, true}) {
      SCOPED_TRACE(testing::Message() << "ownership " << ownership << ", packed " << pack);
      BlockCase c(small_spec(GetParam()));
      const GpuWeights w = make_gpu_weights(gpu(), c.synthetic, ownership, pack);
      GpuBlock(c, gpu()).run(w.handle.get());
      expect_right(c);
      const auto [w13, w2] = unpacked(w.handle.get(), c);
      EXPECT_EQ(w13, host_bytes(c.synthetic.w13));
      EXPECT_EQ(w2, host_bytes(c.synthetic.w2));
      if (ownership == RAMP_BORROW) {  // never written
        EXPECT_EQ(download(w.desc.w13), host_bytes(c.synthetic.w13));
        EXPECT_EQ(download(w.desc.w2), host_bytes(c.synthetic.w2));
      }
      ramp_weights_info info = ramp_weights_info_init();
      require(ramp_weights_get_info(w.handle.get(), &info));
      EXPECT_EQ(info.packed, pack ? 1 : 0);
      EXPECT_GE(info.bytes, static_cast<int64_t>(c.synthetic.w13.size() + c.synthetic.w2.size()));
    }
  }
}

// Elements of experts [first, first + count) of a host tensor.
void copy_experts(const ramp_tensor& from, const ramp_tensor& to, int64_t first, int64_t count) {
  if (!present(from)) return;
  const int64_t each = numel(from) / from.shape[0] * dtype_bytes(static_cast<ramp_dtype>(from.dtype));
  std::memcpy(static_cast<std::byte*>(to.data) + first * each,
              static_cast<const std::byte*>(from.data) + first * each, static_cast<size_t>(count * each));
}

TEST_P(GpuWeightsOf, UpdateReplacesExpertsInEveryLayout) {
  constexpr int64_t kFirst = 2;
  constexpr int64_t kCount = 3;
  for (const ramp_ownership ownership : {RAMP_COPY, RAMP_BORROW, RAMP_IN_PLACE}) {
    for (const bool pack : {false, true}) {
      if (ownership == RAMP_BORROW && !pack) continue;  // the caller's buffers: not allowed
      SCOPED_TRACE(testing::Message() << "ownership " << ownership << ", packed " << pack);
      BlockCase c(small_spec(GetParam()));
      CaseSpec other = c.spec;
      other.seed = 77;
      const BlockCase fresh(other);
      const GpuWeights w = make_gpu_weights(gpu(), c.synthetic, ownership, pack);
      const GpuWeights source = upload_weights_of(gpu(), fresh.synthetic);
      ramp_weights_desc desc = source.desc;
      desc.num_experts = kCount;
      desc.w13_input_scale = desc.w2_input_scale = {};  // the static scales stay
      for (ramp_tensor* const t : {&desc.w13, &desc.w2, &desc.w13_scale, &desc.w2_scale})
        if (present(*t)) *t = expert_range(with_strides(*t), kFirst, kCount);
      require(ramp_weights_update(gpu(), w.handle.get(), kFirst, &desc, nullptr));
      const std::vector<uint8_t> before = host_bytes(c.synthetic.w13);
      copy_experts(fresh.synthetic.desc.w13, c.synthetic.desc.w13, kFirst, kCount);
      copy_experts(fresh.synthetic.desc.w2, c.synthetic.desc.w2, kFirst, kCount);
      copy_experts(fresh.synthetic.desc.w13_scale, c.synthetic.desc.w13_scale, kFirst, kCount);
      copy_experts(fresh.synthetic.desc.w2_scale, c.synthetic.desc.w2_scale, kFirst, kCount);
      GpuBlock(c, gpu()).run(w.handle.get());
      expect_right(c);
      const auto [w13, w2] = unpacked(w.handle.get(), c);
      EXPECT_EQ(w13, host_bytes(c.synthetic.w13));
      EXPECT_EQ(w2, host_bytes(c.synthetic.w2));
      if (ownership == RAMP_BORROW) {
        EXPECT_EQ(download(w.desc.w13), before);
      }
    }
  }
}

// The GPU's generator writes what the host's does.
TEST_P(GpuWeightsOf, FilledOnTheDeviceAreTheSameBits) {
  for (const ramp_activation activation : {RAMP_ACTIVATION_SILU_AND_MUL, RAMP_ACTIVATION_RELU2}) {
    const ModelShape model{"", 5, 1, 1184, 96};  // neither a multiple of 5 nor of 256 * 5 columns
    SyntheticWeightsOptions options;
    options.seed = 9;
    const SyntheticWeights host = make_synthetic_weights(model, GetParam(), activation, options);
    const cli::DeviceWeights d =
        cli::fill_on_device(gpu(), make_synthetic_recipe(model, GetParam(), activation, options));
    EXPECT_EQ(download(d.desc.w13), host_bytes(host.w13));
    EXPECT_EQ(download(d.desc.w2), host_bytes(host.w2));
    if (is_fp8(GetParam())) {
      const std::vector<uint8_t> scales = download(d.desc.w13_scale);
      ASSERT_EQ(scales.size(), host.w13_scale.size() * sizeof(float));
      EXPECT_EQ(std::memcmp(scales.data(), host.w13_scale.data(), scales.size()), 0);
    }
  }
}

// ---------------------------------------------------------------- errors

bool said(const char* part) {
  return std::string(ramp_last_error()).find(part) != std::string::npos;
}

TEST(GpuErrors, WorkspaceTooSmallOrMisaligned) {
  BlockCase c(small_spec(RAMP_FORMAT_FP8_BLOCK));
  const GpuWeights w = make_gpu_weights(gpu(), c.synthetic, RAMP_COPY, true);
  GpuBlock block(c, gpu());
  const DeviceBuffer scratch = block.workspace(w.handle.get());
  const ramp_expert_block_args a = block.args(w.handle.get());
  block.begin();
  EXPECT_EQ(ramp_expert_block(gpu(), &a, scratch.data(), scratch.bytes() - 1, nullptr),
            RAMP_ERROR_WORKSPACE_TOO_SMALL);
  EXPECT_TRUE(said(std::to_string(scratch.bytes()).c_str())) << ramp_last_error();
  EXPECT_EQ(ramp_expert_block(gpu(), &a, static_cast<std::byte*>(scratch.data()) + 128, scratch.bytes() - 128,
                              nullptr),
            RAMP_ERROR_INVALID_ARGUMENT);
  memory(gpu()).synchronize_all();
  block.y.download();
  const std::vector<uint8_t> bits = c.y_bits();
  EXPECT_TRUE(std::all_of(bits.begin(), bits.end(), [](uint8_t b) { return b == kPoison; })) << "y written";
}

TEST(GpuErrors, TensorsOfAnotherDevice) {
  BlockCase c(small_spec(RAMP_FORMAT_BF16));
  const GpuWeights w = make_gpu_weights(gpu(), c.synthetic, RAMP_COPY, true);
  GpuBlock block(c, gpu());
  ramp_expert_block_args a = block.args(w.handle.get());
  a.x = c.x.view;  // on the host
  EXPECT_EQ(ramp_expert_block(gpu(), &a, nullptr, 0, nullptr), RAMP_ERROR_INVALID_ARGUMENT);
  EXPECT_TRUE(said("x:")) << ramp_last_error();
  a = block.args(w.handle.get());
  a.y.device.index = 1;
  EXPECT_EQ(ramp_expert_block(gpu(), &a, nullptr, 0, nullptr), RAMP_ERROR_INVALID_ARGUMENT);
  EXPECT_TRUE(said("y:")) << ramp_last_error();
  ramp_weights* handle = nullptr;
  EXPECT_EQ(ramp_weights_create(gpu(), &c.synthetic.desc, nullptr, &handle), RAMP_ERROR_INVALID_ARGUMENT);
  EXPECT_EQ(handle, nullptr);
  // Weights of the host on a GPU context.
  require(ramp_weights_create(cpu(), &c.synthetic.desc, nullptr, &handle));
  const WeightsPtr host(handle);
  a = block.args(handle);
  EXPECT_EQ(ramp_expert_block(gpu(), &a, nullptr, 0, nullptr), RAMP_ERROR_INVALID_ARGUMENT);
  EXPECT_TRUE(said("weights")) << ramp_last_error();
}

// A batch whose workspace no GPU holds. The addresses are never followed: the allocation fails before.
TEST(GpuErrors, OutOfMemoryForTheWorkspace) {
  BlockCase c(small_spec(RAMP_FORMAT_BF16));
  const GpuWeights w = make_gpu_weights(gpu(), c.synthetic, RAMP_COPY, true);
  GpuBlock block(c, gpu());
  constexpr int64_t kTokens = int64_t{1} << 29;
  const auto far = [&](ramp_dtype dtype, int64_t columns, uintptr_t place) {
    ramp_tensor t = make_tensor(reinterpret_cast<void*>(place << 44), dtype, {kTokens, columns});
    t.device = gpu_device();
    return t;
  };
  ramp_expert_block_args a = block.args(w.handle.get());
  a.counters = {};
  a.x = far(RAMP_BF16, c.spec.hidden, 1);
  a.topk_ids = far(RAMP_I32, 2, 2);
  a.topk_weights = far(RAMP_F32, 2, 3);
  a.y = far(RAMP_BF16, c.spec.hidden, 4);
  EXPECT_EQ(ramp_expert_block(gpu(), &a, nullptr, 0, nullptr), RAMP_ERROR_OUT_OF_MEMORY);
  EXPECT_TRUE(said("bytes")) << ramp_last_error();
  block.run(w.handle.get(), nullptr, true);  // and the context goes on
  expect_right(c);
}

TEST(GpuErrors, NoSuchDevice) {
  ramp_context_options options = ramp_context_options_init();
  options.device = {RAMP_DEVICE_CUDA, 999};
  ramp_context* context = nullptr;
  EXPECT_EQ(ramp_context_create(&options, &context), RAMP_ERROR_INVALID_ARGUMENT);
  EXPECT_EQ(context, nullptr);
  options.device.index = 0;
  options.isa = "avx2";
  EXPECT_EQ(ramp_context_create(&options, &context), RAMP_ERROR_UNSUPPORTED);
  EXPECT_TRUE(said("plain")) << ramp_last_error();
}

}  // namespace
}  // namespace ramp::core::test
