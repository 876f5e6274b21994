// The prefill kernels' fast mode (config ..._sum): GEMM 2 adds rows to fp32 sums. Against the checker told
// that rows are never rounded (numerics.md, 3.5); with two slots per token against itself, since the sum of
// two fp32 numbers has no order, and in fp16, whose rows are fp32 anyway, against the repeatable bits. Around
// tile sizes, masked, duplicate and out-of-range slots, empty experts; addends, dtypes and strides of y;
// graphs whose routing changes, and two calls in a row that share a workspace. What cannot be added up (one
// slot per token, per-slot and batched outputs, other modes) gives the bits of the config without sums.
#include <algorithm>
#include <string>

#include "abi/handles.hpp"
#include "base/tensor.hpp"
#include "cli/gpu.hpp"
#include "gpu/support.hpp"

namespace ramp::core::test {
namespace {

class GpuFast : public testing::TestWithParam<ramp_format> {
 protected:
  void SetUp() override {
    ramp_context_info info = ramp_context_info_init();
    require(ramp_context_get_info(gpu(), &info));
    if (std::string(info.isa) != "sm90")
      GTEST_SKIP() << "the prefill kernels need sm_90a, this is " << info.isa;
    context_of(gpu()).whole_space = true;  // the configs do not ship
  }
  void TearDown() override { context_of(gpu()).whole_space = false; }
};
INSTANTIATE_TEST_SUITE_P(Formats, GpuFast,
                         testing::Values(RAMP_FORMAT_FP8_BLOCK, RAMP_FORMAT_BF16, RAMP_FORMAT_F16,
                                         RAMP_FORMAT_FP8_TENSOR, RAMP_FORMAT_FP8_CHANNEL),
                         [](const auto& p) { return std::string(format_name(p.param)); });

CaseSpec fast_spec(ramp_format format, int64_t experts, int64_t top_k, int64_t tokens, int64_t hidden,
                   int64_t intermediate) {
  CaseSpec s;
  s.format = format;
  s.experts = experts;
  s.top_k = top_k;
  s.tokens = tokens;
  s.hidden = hidden;
  s.intermediate = intermediate;
  s.determinism = RAMP_FAST;
  s.seed = static_cast<uint64_t>(experts + 5 * tokens + hidden);
  return s;
}

// Of the shipped shape; with sums or without.
int32_t config_of(const ramp_weights* w, ramp_format format, bool sums) {
  const bool half = format == RAMP_FORMAT_BF16 || format == RAMP_FORMAT_F16;
  const std::string name =
      std::string(half ? "m128_n256_k64_s4_t384" : "m128_n256_k128_s4_t384") + (sums ? "_sum" : "");
  for (int32_t n = 0;; ++n) {
    const char* const one = ramp_config_name(gpu(), w, n);
    if (one == nullptr) break;
    if (name == one) return n + 1;
  }
  ADD_FAILURE() << "got no config " << name;
  return 1;
}

// In a workspace that is all NaN.
std::vector<uint8_t> run_config(BlockCase& c, GpuBlock& block, const ramp_weights* w, int32_t config) {
  const DeviceBuffer scratch = block.workspace(w);
  scratch.poison();
  block.begin();
  ramp_expert_block_args a = block.args(w);
  a.config = config;
  require(ramp_expert_block(gpu(), &a, scratch.data(), scratch.bytes(), nullptr));
  block.finish();
  EXPECT_TRUE(scratch.guard_intact()) << c.spec;
  return c.y_bits();
}

// As sums are made: no row is rounded on the way.
void check_sums(BlockCase& c) {
  constexpr int64_t kMostProducts = 50'000'000;
  CheckOptions options = check_options();
  options.slot_rows = RAMP_F32;
  const std::vector<int64_t> tokens = spread_tokens(
      c.spec.tokens,
      std::max<int64_t>(6, kMostProducts / (c.spec.top_k * 3 * c.spec.hidden * c.spec.intermediate)));
  options.tokens = tokens;
  const CheckResult result = c.check(options);
  EXPECT_TRUE(result.ok()) << result.text();
}

// For compute-sanitizer (tests/gpu/run.sh): a shared pair of row tiles and a tail, an odd number of slices.
class GpuSmallFast : public GpuFast {};
INSTANTIATE_TEST_SUITE_P(Formats, GpuSmallFast,
                         testing::Values(RAMP_FORMAT_FP8_BLOCK, RAMP_FORMAT_BF16, RAMP_FORMAT_F16,
                                         RAMP_FORMAT_FP8_TENSOR, RAMP_FORMAT_FP8_CHANNEL),
                         [](const auto& p) { return std::string(format_name(p.param)); });
TEST_P(GpuSmallFast, Block) {
  for (const Ids ids : {Ids::kSingle, Ids::kMasked, Ids::kDuplicates}) {
    CaseSpec s = fast_spec(GetParam(), 2, 2, 145, 384, 128);
    s.ids = ids;
    SCOPED_TRACE(case_name(s));
    BlockCase c(s);
    const GpuWeights w = make_gpu_weights(gpu(), c.synthetic, RAMP_COPY, true);
    GpuBlock block(c, gpu());
    run_config(c, block, w.handle.get(), config_of(w.handle.get(), GetParam(), true));
    check_sums(c);
  }
}

// Rows of two experts around the tile sizes; every token has one of each. The sum of two has no order.
TEST_P(GpuFast, RowsAroundTheTileSizes) {
  CaseSpec s = fast_spec(GetParam(), 4, 2, 1, 384, 256);
  s.ids = Ids::kSingle;
  const BlockCase first(s);
  const GpuWeights w = make_gpu_weights(gpu(), first.synthetic, RAMP_COPY, true);
  const int32_t sums = config_of(w.handle.get(), GetParam(), true);
  const int32_t rows_config = config_of(w.handle.get(), GetParam(), false);
  for (const int64_t rows : {1, 7, 8, 9, 16, 17, 63, 64, 65, 80, 127, 128, 129, 191, 192, 193, 257, 300}) {
    SCOPED_TRACE(rows);
    s.tokens = rows;
    BlockCase c(s);
    GpuBlock block(c, gpu());
    const std::vector<uint8_t> bits = run_config(c, block, w.handle.get(), sums);
    check_sums(c);
    EXPECT_EQ(run_config(c, block, w.handle.get(), sums), bits);
    const std::vector<uint8_t> stored = run_config(c, block, w.handle.get(), rows_config);
    if (GetParam() == RAMP_FORMAT_F16) {
      EXPECT_EQ(stored, bits);
    }
  }
}

TEST_P(GpuFast, ShapesAndRoutings) {
  struct Shape {
    int64_t experts, top_k, tokens, hidden, intermediate;
    Ids ids;
  };
  // As block_prefill.cpp's: odd numbers of slices, more row tiles than pass a slice together, more units than
  // clusters; x gathered and in order.
  const Shape shapes[] = {
      {4, 4, 129, 384, 1152, Ids::kSingle},    {8, 2, 300, 256, 640, Ids::kSkewed},
      {2, 2, 1300, 256, 256, Ids::kSingle},    {16, 4, 500, 1152, 384, Ids::kMasked},
      {8, 2, 33, 256, 256, Ids::kAllMasked},   {8, 3, 200, 384, 256, Ids::kOutOfRange},
      {3, 8, 90, 256, 384, Ids::kDuplicates},  {128, 8, 1300, 256, 384, Ids::kDistinct},
      {64, 8, 700, 256, 640, Ids::kSkewed},    {300, 4, 1000, 128, 128, Ids::kDistinct},
      {2, 6, 200, 128, 128, Ids::kDuplicates},
  };
  for (const Shape& shape : shapes) {
    CaseSpec s =
        fast_spec(GetParam(), shape.experts, shape.top_k, shape.tokens, shape.hidden, shape.intermediate);
    s.ids = shape.ids;
    SCOPED_TRACE(case_name(s));
    BlockCase c(s);
    const GpuWeights w = make_gpu_weights(gpu(), c.synthetic, RAMP_COPY, true);
    GpuBlock block(c, gpu());
    const int32_t sums = config_of(w.handle.get(), GetParam(), true);
    for (int i = 0; i < 2; ++i) {
      run_config(c, block, w.handle.get(), sums);
      check_sums(c);
    }
  }
}

TEST_P(GpuFast, Options) {
  for (int variant = 0; variant < 7; ++variant) {
    CaseSpec s = fast_spec(GetParam(), 4, 2, 190, 384, 256);
    s.router_weight_on_input = variant == 0;
    s.strided = variant == 1 || variant == 5;
    s.expert_map = variant == 2;
    if (variant == 2) s.ids = Ids::kMasked;
    if (variant == 3) s.y_dtype = RAMP_F32;
    if (variant == 4 || variant == 5) s.shared_dtype = variant == 4 ? RAMP_BF16 : RAMP_F32;
    if (variant == 5) s.y_dtype = RAMP_F16;
    if (variant == 6) s.int64_ids = true;
    SCOPED_TRACE(case_name(s));
    BlockCase c(s);
    const GpuWeights w = make_gpu_weights(gpu(), c.synthetic, RAMP_COPY, true);
    GpuBlock block(c, gpu());
    run_config(c, block, w.handle.get(), config_of(w.handle.get(), GetParam(), true));
    check_sums(c);
  }
}

TEST_P(GpuFast, WhatIsNotAddedUpRunsWithRows) {
  for (int variant = 0; variant < 4; ++variant) {
    CaseSpec s = fast_spec(GetParam(), 4, variant == 0 ? 1 : 3, 150, 256, 256);
    if (variant == 1) s.output = RAMP_OUTPUT_PER_SLOT;
    if (variant == 2) s.determinism = RAMP_REPEATABLE;
    if (variant == 3) s.determinism = RAMP_BATCH_INVARIANT;
    SCOPED_TRACE(case_name(s));
    BlockCase c(s);
    const GpuWeights w = make_gpu_weights(gpu(), c.synthetic, RAMP_COPY, true);
    GpuBlock block(c, gpu());
    const std::vector<uint8_t> expected =
        run_config(c, block, w.handle.get(), config_of(w.handle.get(), GetParam(), false));
    EXPECT_EQ(run_config(c, block, w.handle.get(), config_of(w.handle.get(), GetParam(), true)), expected);
  }
  const auto batched = [&](bool sums) {
    BatchedCase c(fast_spec(GetParam(), 3, 1, 130, 256, 256));
    const GpuWeights w = make_gpu_weights(gpu(), c.synthetic, RAMP_COPY, true);
    GpuBatched(c, gpu()).run(w.handle.get(), config_of(w.handle.get(), GetParam(), sums));
    return c.y_bits();
  };
  EXPECT_EQ(batched(true), batched(false));
}

// One graph over changing routings: sums are zeroed in every replay. Two calls in it share the workspace, so
// that the second one's zeros meet the first one's conversion.
TEST_P(GpuFast, GraphsFollowTheRouting) {
  CaseSpec spec = fast_spec(GetParam(), 16, 4, 700, 512, 384);
  BlockCase c(spec);
  BlockCase other_call(spec);
  const GpuWeights w = make_gpu_weights(gpu(), c.synthetic, RAMP_COPY, true);
  GpuBlock block(c, gpu());
  GpuBlock other_block(other_call, gpu());
  const DeviceBuffer scratch = block.workspace(w.handle.get());
  ramp_expert_block_args a = block.args(w.handle.get());
  ramp_expert_block_args b = other_block.args(w.handle.get());
  a.config = b.config = config_of(w.handle.get(), GetParam(), true);
  cli::Graph graph(gpu(), [&](void* stream) {
    require(ramp_expert_block(gpu(), &a, scratch.data(), scratch.bytes(), stream));
    require(ramp_expert_block(gpu(), &b, scratch.data(), scratch.bytes(), stream));
  });
  const Ids routings[] = {Ids::kDistinct, Ids::kSingle, Ids::kMasked, Ids::kAllMasked, Ids::kDuplicates};
  for (size_t i = 0; i < std::size(routings); ++i) {
    SCOPED_TRACE(i);
    CaseSpec other = spec;
    other.seed = 100 + i;
    other.ids = routings[i];
    const BlockCase from(other);
    std::copy_n(static_cast<const int32_t*>(from.ids.view.data), spec.tokens * spec.top_k,
                static_cast<int32_t*>(c.ids.view.data));
    c.expected_masked = from.expected_masked;
    block.upload();
    scratch.poison();
    block.begin();
    other_block.begin();
    graph.replay();
    block.finish();
    other_block.finish();
    EXPECT_TRUE(scratch.guard_intact());
    check_sums(c);
    check_sums(other_call);
  }
}

}  // namespace
}  // namespace ramp::core::test
