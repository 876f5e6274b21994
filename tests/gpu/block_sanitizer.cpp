// What runs under compute-sanitizer (tests/gpu/run.sh): every kernel once on shapes small enough for its
// pace, with tails in every dimension. The tools judge; the results are checked as well.
#include <algorithm>

#include "cli/gpu.hpp"
#include "gpu/support.hpp"

namespace ramp::core::test {
namespace {

class GpuSmall : public testing::TestWithParam<ramp_format> {};
INSTANTIATE_TEST_SUITE_P(Formats, GpuSmall, testing::ValuesIn(kAllFormats),
                         [](const auto& p) { return std::string(format_name(p.param)); });

CaseSpec small_spec(ramp_format format, int64_t tokens) {
  CaseSpec s;
  s.format = format;
  s.tokens = tokens;
  s.experts = 4;
  s.top_k = 2;
  s.hidden = 160;
  s.intermediate = 96;
  s.ids = Ids::kMasked;
  s.seed = 2;
  return s;
}

TEST_P(GpuSmall, Block) {
  for (const int64_t tokens : {1, 5, 150}) {
    for (const int variant : {0, 1, 2, 3}) {
      CaseSpec s = small_spec(GetParam(), tokens);
      s.determinism = variant == 1 ? RAMP_FAST : RAMP_REPEATABLE;
      s.output = variant == 2 ? RAMP_OUTPUT_PER_SLOT : RAMP_OUTPUT_COMBINED;
      s.router_weight_on_input = variant == 3;
      s.strided = variant == 3;
      s.expert_map = variant == 2;
      s.x_dtype = variant == 2 && is_fp8(GetParam()) ? RAMP_E4M3 : RAMP_BF16;
      s.y_dtype = variant == 1 ? RAMP_F32 : RAMP_BF16;
      s.activation = static_cast<ramp_activation>(variant);
      if (variant < 2) s.shared_dtype = RAMP_BF16;
      BlockCase c(s);
      const GpuWeights w = make_gpu_weights(gpu(), c.synthetic, RAMP_COPY, true);
      GpuBlock(c, gpu()).run(w.handle.get());
      const CheckResult result = c.check(check_options());
      EXPECT_TRUE(result.ok()) << case_name(s) << result.text();
    }
  }
}

TEST_P(GpuSmall, Batched) {
  CaseSpec s = small_spec(GetParam(), 70);
  s.top_k = 1;
  BatchedCase c(s);
  const GpuWeights w = make_gpu_weights(gpu(), c.synthetic, RAMP_COPY, true);
  GpuBatched(c, gpu()).run(w.handle.get());
  const CheckResult result = c.check(check_options());
  EXPECT_TRUE(result.ok()) << result.text();
}

// The stream kernels in every config: more depth than the ring holds, tiles that are not full, two slices for
// the cluster's blocks; and, of the configs with small tiles, several tiles per expert.
class GpuSmallStream : public testing::TestWithParam<ramp_format> {};
INSTANTIATE_TEST_SUITE_P(Formats, GpuSmallStream,
                         testing::Values(RAMP_FORMAT_FP8_BLOCK, RAMP_FORMAT_BF16, RAMP_FORMAT_F16,
                                         RAMP_FORMAT_FP8_TENSOR, RAMP_FORMAT_FP8_CHANNEL),
                         [](const auto& p) { return std::string(format_name(p.param)); });

TEST_P(GpuSmallStream, EveryConfig) {
  for (const auto& [hidden, intermediate] : {std::pair{1152, 128}, std::pair{128, 1152}}) {
    CaseSpec s = small_spec(GetParam(), 11);
    s.hidden = hidden;
    s.intermediate = intermediate;
    s.ids = Ids::kSkewed;
    BlockCase c(s);
    const GpuWeights w = make_gpu_weights(gpu(), c.synthetic, RAMP_COPY, true);
    GpuBlock block(c, gpu());
    const DeviceBuffer scratch = block.workspace(w.handle.get());
    for (int32_t n = 0; ramp_config_name(gpu(), w.handle.get(), n) != nullptr; ++n) {
      SCOPED_TRACE(ramp_config_name(gpu(), w.handle.get(), n));
      ramp_expert_block_args a = block.args(w.handle.get());
      a.config = n + 1;
      block.begin();
      require(ramp_expert_block(gpu(), &a, scratch.data(), scratch.bytes(), nullptr));
      block.finish();
      const CheckResult result = c.check(check_options());
      EXPECT_TRUE(result.ok()) << result.text();
    }
  }
}

// The few-token kernels: items divided among blocks and blocks with several items, both tile widths, an
// expert with two tiles.
TEST(GpuSmallFew, FewTokens) {
  for (const int64_t tokens : {1, 3, 7, 11}) {
    for (const auto& [hidden, intermediate] : {std::pair{1152, 128}, std::pair{256, 1152}}) {
      for (const Ids ids : {Ids::kSkewed, Ids::kDuplicates, Ids::kOutOfRange}) {
        CaseSpec s = small_spec(RAMP_FORMAT_FP8_BLOCK, tokens);
        s.hidden = hidden;
        s.intermediate = intermediate;
        s.ids = ids;
        s.experts = 3;
        BlockCase c(s);
        const GpuWeights w = make_gpu_weights(gpu("sm90_few"), c.synthetic, RAMP_COPY, true);
        GpuBlock block(c, gpu("sm90_few"));
        const DeviceBuffer scratch = block.workspace(w.handle.get());
        const ramp_expert_block_args a = block.args(w.handle.get());
        block.begin();
        require(ramp_expert_block(gpu("sm90_few"), &a, scratch.data(), scratch.bytes(), nullptr));
        block.finish();
        const CheckResult result = c.check(check_options());
        EXPECT_TRUE(result.ok()) << case_name(s) << result.text();
      }
    }
  }
}

// The prefill kernel where it shares weights in a cluster (two row tiles of more than 64 rows) and where it
// does not (a tail), with more depth than the ring holds in one GEMM or the other and an odd number of
// slices; fp8_block puts x in order (145 rows per expert) or gathers it (72). On other GPUs, and without its
// config, what runs by default.
TEST_P(GpuSmallStream, ManyRows) {
  struct Shape {
    int64_t experts, hidden, intermediate;
  };
  for (const auto& [experts, hidden, intermediate] :
       {Shape{2, 640, 128}, Shape{2, 128, 640}, Shape{4, 640, 128}}) {
    CaseSpec s = small_spec(GetParam(), 290);
    s.experts = experts;
    s.top_k = 1;
    s.hidden = hidden;
    s.intermediate = intermediate;
    s.ids = Ids::kSingle;
    BlockCase c(s);
    const GpuWeights w = make_gpu_weights(gpu(), c.synthetic, RAMP_COPY, true);
    GpuBlock(c, gpu()).run(w.handle.get());  // by default
    CheckOptions options = check_options();
    const std::vector<int64_t> sample = spread_tokens(s.tokens, 40);
    options.tokens = sample;
    const CheckResult result = c.check(options);
    EXPECT_TRUE(result.ok()) << result.text();
  }
}

TEST_P(GpuSmallStream, Batched) {
  CaseSpec s = small_spec(GetParam(), 20);
  s.top_k = 1;
  s.hidden = 256;
  s.intermediate = 128;
  BatchedCase c(s);
  const GpuWeights w = make_gpu_weights(gpu(), c.synthetic, RAMP_IN_PLACE, true);
  GpuBatched(c, gpu()).run(w.handle.get());
  const CheckResult result = c.check(check_options());
  EXPECT_TRUE(result.ok()) << result.text();
}

// More ids than one block sorts, so that the row index takes its other way; few columns.
TEST(GpuSmallRows, ManyIds) {
  CaseSpec s = small_spec(RAMP_FORMAT_FP8_BLOCK, 1500);
  s.experts = 32;
  s.top_k = 8;
  s.hidden = s.intermediate = 32;
  BlockCase c(s);
  const GpuWeights w = make_gpu_weights(gpu(), c.synthetic, RAMP_COPY, true);
  GpuBlock(c, gpu()).run(w.handle.get());
  CheckOptions options = check_options();
  const std::vector<int64_t> sample = spread_tokens(s.tokens, 20);
  options.tokens = sample;
  const CheckResult result = c.check(options);
  EXPECT_TRUE(result.ok()) << result.text();
}

TEST(GpuSmallRows, Forward) {
  for (const int64_t tokens : {7, 1100}) {
    CaseSpec s = small_spec(RAMP_FORMAT_BF16, tokens);
    s.experts = 16;
    s.hidden = s.intermediate = 32;
    s.ids = Ids::kDistinct;
    BlockCase c(s);
    const GpuWeights w = make_gpu_weights(gpu(), c.synthetic, RAMP_COPY, true);
    GpuBlock block(c, gpu());
    OwnedTensor logits(RAMP_F32, {tokens, s.experts});
    fill_activations(logits.view.data, RAMP_F32, tokens, s.experts, 3);
    OwnedTensor router(RAMP_BF16, {s.experts, s.hidden});
    fill_activations(router.view.data, RAMP_BF16, s.experts, s.hidden, 4);
    const OnDevice gpu_logits(gpu(), logits);
    const OnDevice gpu_router(gpu(), router);
    for (const bool with_logits : {true, false}) {
      ramp_moe_forward_args a = ramp_moe_forward_args_init();
      a.weights = w.handle.get();
      a.router.top_k = static_cast<int32_t>(s.top_k);
      a.x = block.x.view();
      if (with_logits) {
        a.router_logits = gpu_logits.view();
      } else {
        a.router_weight = gpu_router.view();
      }
      a.y = block.y.view();
      a.topk_ids_out = block.ids.view();
      a.topk_weights_out = block.topk_weights.view();
      uint64_t bytes = 0;
      require(ramp_moe_forward_workspace(gpu(), w.handle.get(), tokens, s.top_k, s.experts, &bytes));
      const DeviceBuffer scratch(gpu(), bytes);
      require(ramp_moe_forward(gpu(), &a, scratch.data(), scratch.bytes(), nullptr));
      memory(gpu()).synchronize_all();
      block.y.download();
      block.ids.download();
      block.topk_weights.download();
      CheckOptions options = check_options();
      const std::vector<int64_t> sample = spread_tokens(tokens, 20);
      options.tokens = sample;
      const CheckResult result = c.check(options);
      EXPECT_TRUE(result.ok()) << result.text();
      EXPECT_TRUE(scratch.guard_intact());
    }
  }
}

// A kernel of each kind of router; ids against the CPU's (prologue_route_test.cpp has the bits).
TEST(GpuSmallRows, Routers) {
  constexpr int64_t kTokens = 9;
  constexpr int64_t kExperts = 64;
  constexpr int64_t kTopK = 4;
  OwnedTensor logits(RAMP_F32, {kTokens, kExperts});
  fill_activations(logits.view.data, RAMP_F32, kTokens, kExperts, 5);
  OwnedTensor bias(RAMP_F32, {kExperts});
  fill_activations(bias.view.data, RAMP_F32, 1, kExperts, 6);
  const OnDevice gpu_logits(gpu(), logits);
  const OnDevice gpu_bias(gpu(), bias);
  struct Kind {
    ramp_scoring scoring;
    int32_t renormalize, groups;
    bool bias;
  };
  for (const Kind& kind : {Kind{RAMP_SCORING_SOFTMAX, 1, 1, false}, Kind{RAMP_SCORING_SOFTMAX, 0, 1, false},
                           Kind{RAMP_SCORING_SIGMOID, 1, 1, true}, Kind{RAMP_SCORING_SIGMOID, 1, 2, true},
                           Kind{RAMP_SCORING_SOFTMAX, 0, 4, true}}) {
    SCOPED_TRACE(testing::Message() << "scoring " << kind.scoring << ", groups " << kind.groups);
    ramp_router_config r = ramp_router_config_init();
    r.top_k = kTopK;
    r.scoring = kind.scoring;
    r.renormalize = kind.renormalize;
    if (kind.groups > 1) {
      r.num_groups = kind.groups;
      r.topk_groups = kind.groups / 2;
      r.group_score = RAMP_GROUP_SCORE_TOP2_SUM;
    }
    OwnedTensor want_ids(RAMP_I32, {kTokens, kTopK});
    OwnedTensor want(RAMP_F32, {kTokens, kTopK});
    if (kind.bias) r.selection_bias = bias.view;
    require(ramp_route(cpu(), &r, &logits.view, &want_ids.view, &want.view, nullptr));
    OwnedTensor ids(RAMP_I32, {kTokens, kTopK});
    OwnedTensor weights(RAMP_F32, {kTokens, kTopK});
    const OnDevice gpu_ids(gpu(), ids);
    const OnDevice gpu_weights(gpu(), weights);
    if (kind.bias) r.selection_bias = gpu_bias.view();
    require(ramp_route(gpu(), &r, &gpu_logits.view(), &gpu_ids.view(), &gpu_weights.view(), nullptr));
    memory(gpu()).synchronize_all();
    gpu_ids.download();
    EXPECT_TRUE(std::equal(want_ids.memory.as<uint8_t>(),
                           want_ids.memory.as<uint8_t>() + want_ids.memory.size(), ids.memory.as<uint8_t>()));
    EXPECT_TRUE(gpu_ids.guard_intact());
    EXPECT_TRUE(gpu_weights.guard_intact());
  }
}

TEST(GpuSmallRows, GeneratedWeights) {
  const ModelShape model{"", 3, 1, 96, 64};
  for (const ramp_format format : {RAMP_FORMAT_FP8_BLOCK, RAMP_FORMAT_BF16, RAMP_FORMAT_F32}) {
    const cli::DeviceWeights d =
        cli::fill_on_device(gpu(), make_synthetic_recipe(model, format, RAMP_ACTIVATION_SILU_AND_MUL));
    EXPECT_NE(d.desc.w13.data, nullptr);
  }
}

}  // namespace
}  // namespace ramp::core::test
