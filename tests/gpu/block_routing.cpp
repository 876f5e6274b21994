// Routing on the GPU and the fused forward: ids and weights are the CPU's bit for bit, y is right by the
// checker, captured as well.
#include <algorithm>
#include <cmath>
#include <cstring>

#include "base/rng.hpp"
#include "base/tensor.hpp"
#include "cli/gpu.hpp"
#include "gpu/support.hpp"

namespace ramp::core::test {
namespace {

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

}  // namespace
}  // namespace ramp::core::test
