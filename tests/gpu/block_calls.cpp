// The other calls on the GPU: ownership of weights, packing, update and round trip; the router and the fused
// forward, held against the CPU's routing bit for bit; and errors.
#include <algorithm>
#include <cmath>
#include <cstring>

#include "base/rng.hpp"
#include "base/tensor.hpp"
#include "cli/gpu.hpp"
#include "gpu/support.hpp"
#include "routing/router.hpp"

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

// ---------------------------------------------------------------- routing and the fused forward

struct RouterCase {
  const char* name;
  int64_t logits;
  ramp_router_config config;
  bool bias = false;
};
std::vector<RouterCase> routers() {
  const auto make = [](ramp_scoring scoring, int32_t k, int32_t renormalize) {
    ramp_router_config r = ramp_router_config_init();
    r.scoring = scoring;
    r.top_k = k;
    r.renormalize = renormalize;
    return r;
  };
  std::vector<RouterCase> list = {{"softmax", 64, make(RAMP_SCORING_SOFTMAX, 8, 0)},
                                  {"renormalised", 128, make(RAMP_SCORING_SOFTMAX, 8, 1)},
                                  {"two of eight", 8, make(RAMP_SCORING_SOFTMAX, 2, 1)},
                                  {"one", 1, make(RAMP_SCORING_SOFTMAX, 1, 0)},
                                  {"top-k softmax", 60, make(RAMP_SCORING_TOPK_SOFTMAX, 4, 0)},
                                  {"sigmoid, bias, groups", 256, make(RAMP_SCORING_SIGMOID, 8, 1), true},
                                  {"group maximum, shared", 160, make(RAMP_SCORING_SOFTMAX, 6, 0)},
                                  {"capacity", 16, make(RAMP_SCORING_SOFTMAX, 4, 1)}};
  list[5].config.num_groups = 8;
  list[5].config.topk_groups = 4;
  list[5].config.group_score = RAMP_GROUP_SCORE_TOP2_SUM;
  list[5].config.routed_scaling_factor = 2.5F;
  list[5].config.num_shared_experts = 1;
  list[6].config.num_groups = 8;
  list[6].config.topk_groups = 3;
  list[6].config.num_shared_experts = 2;
  list[6].config.routed_scaling_factor = 16.0F;
  list[7].config.capacity = 5;
  return list;
}

// Logits with ties, NaN and infinities among them.
void fill_logits(OwnedTensor& t, uint64_t seed) {
  Rng rng(seed);
  for (int64_t r = 0; r < t.view.shape[0]; ++r) {
    for (int64_t c = 0; c < t.view.shape[1]; ++c) {
      const double dice = rng.unit();
      float v = static_cast<float>(rng.normal());
      if (dice < 0.05) v = 0.5F;
      if (dice > 0.995) v = NAN;
      if (dice > 0.9975) v = -INFINITY;
      t.set(r, c, v);
    }
  }
}

// One router with its tensors on both sides.
struct Routed {
  Routed(const RouterCase& router, int64_t token_count, ramp_dtype dtype, bool int64_ids)
      : slots(router.config.top_k + router.config.num_shared_experts),
        logits(dtype, {token_count, router.logits}),
        bias(RAMP_F32, {router.logits}),
        ids(int64_ids ? RAMP_I64 : RAMP_I32, {token_count, slots}),
        weights(RAMP_F32, {token_count, slots}),
        config(router.config),
        gpu_config(router.config) {
    fill_logits(logits, static_cast<uint64_t>(31 * token_count + router.logits));
    Rng rng(3);
    for (int64_t e = 0; e < router.logits; ++e)
      static_cast<float*>(bias.view.data)[e] = static_cast<float>(0.1 * rng.normal());
    if (router.bias) config.selection_bias = bias.view;
    require(ramp_route(cpu(), &config, &logits.view, &ids.view, &weights.view, nullptr));
    gpu_logits = OnDevice(gpu(), logits);
    if (router.bias) {
      gpu_bias = OnDevice(gpu(), bias);
      gpu_config.selection_bias = gpu_bias.view();
    }
    gpu_ids = OnDevice(gpu(), got_ids = OwnedTensor(int64_ids ? RAMP_I64 : RAMP_I32, {token_count, slots}));
    gpu_weights = OnDevice(gpu(), got_weights = OwnedTensor(RAMP_F32, {token_count, slots}));
  }
  void expect_same() const {
    memory(gpu()).synchronize_all();
    gpu_ids.download();
    gpu_weights.download();
    EXPECT_EQ(bytes_of(got_ids.view), bytes_of(ids.view)) << "ids";
    EXPECT_EQ(bytes_of(got_weights.view), bytes_of(weights.view)) << "weights";
    EXPECT_TRUE(gpu_ids.guard_intact());
    EXPECT_TRUE(gpu_weights.guard_intact());
  }
  int64_t slots;
  OwnedTensor logits, bias, ids, weights, got_ids, got_weights;
  ramp_router_config config, gpu_config;
  OnDevice gpu_logits, gpu_bias, gpu_ids, gpu_weights;
};

TEST(GpuRoute, GivesTheBitsOfTheCpu) {
  for (const RouterCase& router : routers()) {
    for (const int64_t tokens : {1, 33, 1024, 1500}) {
      for (const ramp_dtype dtype : {RAMP_F32, RAMP_BF16, RAMP_F16}) {
        SCOPED_TRACE(testing::Message() << router.name << ", T = " << tokens << ", " << dtype_name(dtype));
        Routed r(router, tokens, dtype, tokens == 33);
        require(ramp_route(gpu(), &r.gpu_config, &r.gpu_logits.view(), &r.gpu_ids.view(),
                           &r.gpu_weights.view(), nullptr));
        r.expect_same();
      }
    }
  }
}

TEST(GpuForward, RoutesAsTheCpuDoesAndComputesTheBlock) {
  for (const RouterCase& router : routers()) {
    for (const int64_t tokens : {1, 33, 1100}) {
      for (const bool given : {true, false}) {  // whether the routing is asked for
        SCOPED_TRACE(testing::Message() << router.name << ", T = " << tokens << ", outputs " << given);
        Routed r(router, tokens, RAMP_F32, false);
        CaseSpec s;
        s.tokens = tokens;
        s.experts = router.logits + router.config.num_shared_experts;
        s.top_k = r.slots;
        s.hidden = 96;
        s.intermediate = 64;
        s.format = tokens == 33 ? RAMP_FORMAT_BF16 : RAMP_FORMAT_FP8_BLOCK;
        s.shared_dtype = RAMP_BF16;
        BlockCase c(s);
        std::memcpy(c.ids.memory.data(), r.ids.memory.data(), r.ids.memory.size());
        std::memcpy(c.topk_weights.memory.data(), r.weights.memory.data(), r.weights.memory.size());
        const auto* const ids = static_cast<const int32_t*>(c.ids.view.data);
        c.expected_masked = std::count(ids, ids + tokens * r.slots, -1);
        const GpuWeights w = make_gpu_weights(gpu(), c.synthetic, RAMP_COPY, true);
        GpuBlock block(c, gpu());
        ramp_moe_forward_args a = ramp_moe_forward_args_init();
        a.weights = w.handle.get();
        a.router = r.gpu_config;
        a.x = block.x.view();
        a.router_logits = r.gpu_logits.view();
        a.shared_addend = block.shared_addend.view();
        a.y = block.y.view();
        a.counters = block.counters.view();
        if (given) {
          a.topk_ids_out = r.gpu_ids.view();
          a.topk_weights_out = r.gpu_weights.view();
        }
        uint64_t bytes = 0;
        require(ramp_moe_forward_workspace(gpu(), w.handle.get(), tokens, r.slots, router.logits, &bytes));
        const DeviceBuffer scratch(gpu(), bytes);
        const auto call = [&](void* stream) {
          require(ramp_moe_forward(gpu(), &a, scratch.data(), scratch.bytes(), stream));
        };
        const auto expect = [&] {
          block.finish();
          if (given) r.expect_same();
          EXPECT_TRUE(scratch.guard_intact());
          CheckOptions options = check_options();
          const std::vector<int64_t> sample = spread_tokens(tokens, 24);
          options.tokens = sample;
          const CheckResult result = c.check(options);
          EXPECT_TRUE(result.ok()) << result.text();
        };
        block.begin();
        call(nullptr);
        expect();
        cli::Graph graph(gpu(), call);
        scratch.poison();
        block.begin();
        graph.replay();
        expect();
      }
    }
  }
}

// Logits from x and the router's weight: fp32 sums in any order, so a choice may differ from the exact one
// only where the exact logits are closer than the error bounds of both (docs/numerics.md 3.1).
TEST(GpuForward, ComputesTheLogits) {
  for (const ramp_dtype dtype : {RAMP_BF16, RAMP_F16, RAMP_F32}) {
    for (const int64_t tokens : {1, 40, 1100}) {
      SCOPED_TRACE(testing::Message() << dtype_name(dtype) << ", T = " << tokens);
      CaseSpec s;
      s.tokens = tokens;
      s.experts = 60;
      s.top_k = 4;
      s.hidden = 576;
      s.intermediate = 32;
      s.format = RAMP_FORMAT_BF16;
      s.x_dtype = dtype;
      s.counters = false;
      BlockCase c(s);
      c.expected_masked = c.expected_out_of_range = 0;
      OwnedTensor router(dtype, {s.experts, s.hidden});
      fill_activations(router.view.data, dtype, s.experts, s.hidden, 17);
      const OnDevice gpu_router(gpu(), router);
      const GpuWeights w = make_gpu_weights(gpu(), c.synthetic, RAMP_COPY, true);
      GpuBlock block(c, gpu());
      ramp_moe_forward_args a = ramp_moe_forward_args_init();
      a.weights = w.handle.get();
      a.router.scoring = RAMP_SCORING_SOFTMAX;
      a.router.top_k = static_cast<int32_t>(s.top_k);
      a.router.renormalize = 1;
      a.x = block.x.view();
      a.router_weight = gpu_router.view();
      a.y = block.y.view();
      a.topk_ids_out = block.ids.view();
      a.topk_weights_out = block.topk_weights.view();
      block.begin();
      require(ramp_moe_forward(gpu(), &a, nullptr, 0, nullptr));
      block.finish();
      block.ids.download();
      block.topk_weights.download();
      const double nu = static_cast<double>(s.hidden) * 0x1p-24;
      for (const int64_t t : spread_tokens(tokens, 60)) {
        std::vector<double> logits(static_cast<size_t>(s.experts));
        double error = 0;
        for (int64_t e = 0; e < s.experts; ++e) {
          double size = 0;
          for (int64_t h = 0; h < s.hidden; ++h) {
            const double p = static_cast<double>(c.x.get(t, h)) * static_cast<double>(router.get(e, h));
            logits[static_cast<size_t>(e)] += p;
            size += std::fabs(p);
          }
          error = std::max(error, nu / (1 - nu) * size);
        }
        std::vector<bool> chosen(logits.size());
        double least = INFINITY;
        for (int64_t j = 0; j < s.top_k; ++j) {
          const int32_t id = static_cast<const int32_t*>(c.ids.view.data)[t * s.top_k + j];
          ASSERT_TRUE(id >= 0 && id < s.experts && !chosen[static_cast<size_t>(id)]) << t << " " << id;
          chosen[static_cast<size_t>(id)] = true;
          least = std::min(least, logits[static_cast<size_t>(id)]);
        }
        for (size_t e = 0; e < logits.size(); ++e) {
          if (!chosen[e]) {
            EXPECT_LE(logits[e], least + 2 * error) << "token " << t << ", expert " << e;
          }
        }
      }
      CheckOptions options = check_options();
      const std::vector<int64_t> sample = spread_tokens(tokens, 24);
      options.tokens = sample;
      const CheckResult result = c.check(options);
      EXPECT_TRUE(result.ok()) << result.text();
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
