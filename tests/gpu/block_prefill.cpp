// The prefill kernels (packed weights of every format but f32): every number of rows an expert can have
// around the tile sizes, against the stream kernels bit by bit; depths beyond the ring and below it, odd
// numbers of slices, more row tiles than pass a slice at once, empty experts, one for all, skew; graphs whose
// routing changes. (block_stream.cpp runs all configs, this one included, over options and odd values.)
#include <algorithm>
#include <string>

#include "base/tensor.hpp"
#include "cli/gpu.hpp"
#include "gpu/runs.hpp"

namespace ramp::core::test {
namespace {

constexpr int64_t kMostProducts = 50'000'000;  // of a check

class GpuPrefill : public Sm90<testing::TestWithParam<ramp_format>> {};
class GpuPrefillInOrder : public Sm90<> {};

INSTANTIATE_TEST_SUITE_P(Formats, GpuPrefill,
                         testing::Values(RAMP_FORMAT_FP8_BLOCK, RAMP_FORMAT_BF16, RAMP_FORMAT_F16,
                                         RAMP_FORMAT_FP8_TENSOR, RAMP_FORMAT_FP8_CHANNEL),
                         [](const auto& p) { return std::string(format_name(p.param)); });

// 1 + the index of the config whose tiles have 128 rows: the prefill kernel's.
int32_t prefill_config_of(const ramp_weights* w) {
  for (int32_t n = 0;; ++n) {
    const char* const name = ramp_config_name(gpu(), w, n);
    if (name == nullptr) break;
    if (std::string(name).starts_with("m128_n256")) return n + 1;
  }
  ADD_FAILURE() << "got no config m128_n256..., expected one among the configs of packed weights";
  return 0;
}

// Every row goes to one expert of four, fewer than are put in order first: GEMM 1 gathers. The checker has a
// look around the tile sizes.
TEST_P(GpuPrefill, EveryNumberOfRowsGivesTheStreamKernelsBits) {
  CaseSpec s = block_spec(GetParam(), 4, 1, 1, 384, 256);
  s.ids = Ids::kSingle;
  const BlockCase first(s);
  const GpuWeights w = make_gpu_weights(gpu(), first.synthetic, RAMP_COPY, true);
  const int32_t prefill = prefill_config_of(w.handle.get());
  for (int64_t rows = 1; rows <= 300; ++rows) {
    SCOPED_TRACE(rows);
    s.tokens = rows;
    BlockCase c(s);
    GpuBlock block(c, gpu());
    const std::vector<uint8_t> expected = run_block(gpu(), c, block, w.handle.get(), 1);
    ASSERT_EQ(run_block(gpu(), c, block, w.handle.get(), prefill), expected);
    if (rows % 64 <= 1) check_some(c, kMostProducts);
  }
}

// fp8_block, as many tokens for two experts as are put in order first, of which so many reach one.
TEST_F(GpuPrefillInOrder, EveryNumberOfRows) {
  CaseSpec s = block_spec(RAMP_FORMAT_FP8_BLOCK, 2, 1, 300, 384, 256);
  s.ids = Ids::kSingle;
  BlockCase c(s);
  const GpuWeights w = make_gpu_weights(gpu(), c.synthetic, RAMP_COPY, true);
  GpuBlock block(c, gpu());
  const int32_t prefill = prefill_config_of(w.handle.get());
  auto* const ids = static_cast<int32_t*>(c.ids.view.data);
  for (int64_t rows = s.tokens; rows >= 0; --rows) {
    SCOPED_TRACE(rows);
    if (rows < s.tokens) ids[rows] = -1;
    c.expected_masked = s.tokens - rows;
    block.upload();
    const std::vector<uint8_t> expected = run_block(gpu(), c, block, w.handle.get(), 1);
    ASSERT_EQ(run_block(gpu(), c, block, w.handle.get(), prefill), expected);
    if (rows % 64 <= 1) check_some(c, kMostProducts);
  }
}

TEST_P(GpuPrefill, ShapesAndRoutings) {
  struct Shape {
    int64_t experts, top_k, tokens, hidden, intermediate;
    Ids ids;
  };
  // 9 steps are more than the ring holds, 1 is fewer; H = 384 and 1152 have an odd number of slices; 2200
  // rows of one expert are more row tiles than pass a slice together; 128 experts are more items than blocks.
  const Shape shapes[] = {
      {1, 1, 1, 128, 128, Ids::kSingle},      {1, 1, 128, 1152, 128, Ids::kSingle},
      {4, 4, 129, 384, 1152, Ids::kSingle},   {8, 2, 300, 256, 640, Ids::kSkewed},
      {2, 1, 2200, 256, 256, Ids::kSingle},   {16, 4, 500, 1152, 384, Ids::kMasked},
      {8, 2, 33, 256, 256, Ids::kAllMasked},  {8, 3, 200, 384, 256, Ids::kOutOfRange},
      {3, 8, 90, 256, 384, Ids::kDuplicates}, {128, 8, 1300, 256, 384, Ids::kDistinct},
      {64, 8, 1500, 256, 640, Ids::kSkewed},  {300, 4, 1000, 128, 128, Ids::kDistinct},
  };
  for (const Shape& shape : shapes) {
    CaseSpec s =
        block_spec(GetParam(), shape.experts, shape.top_k, shape.tokens, shape.hidden, shape.intermediate);
    s.ids = shape.ids;
    SCOPED_TRACE(case_name(s));
    BlockCase c(s);
    const GpuWeights w = make_gpu_weights(gpu(), c.synthetic, RAMP_COPY, true);
    GpuBlock block(c, gpu());
    const int32_t prefill = prefill_config_of(w.handle.get());
    const std::vector<uint8_t> expected = run_block(gpu(), c, block, w.handle.get(), 1);
    for (int i = 0; i < 5; ++i)
      ASSERT_EQ(run_block(gpu(), c, block, w.handle.get(), prefill), expected) << "repetition " << i;
    check_some(c, kMostProducts);
  }
}

// An intermediate size that is an odd number of 64 columns, which 16-bit formats may have: GEMM 1's last pair
// of slices is one.
TEST_P(GpuPrefill, OddNumberOfSlicesInW13) {
  if (is_fp8(GetParam())) GTEST_SKIP() << "I must be a multiple of 128";
  // I = 64 is the least: one slice in GEMM 1, one step in GEMM 2.
  for (const auto& [tokens, intermediate] :
       {std::pair{50, 320}, std::pair{200, 320}, std::pair{390, 320}, std::pair{700, 64}}) {
    CaseSpec s = block_spec(GetParam(), 2, 1, tokens, intermediate == 64 ? 128 : 256, intermediate);
    s.ids = Ids::kSingle;
    SCOPED_TRACE(case_name(s));
    BlockCase c(s);
    const GpuWeights w = make_gpu_weights(gpu(), c.synthetic, RAMP_COPY, true);
    GpuBlock block(c, gpu());
    const std::vector<uint8_t> expected = run_block(gpu(), c, block, w.handle.get(), 1);
    ASSERT_EQ(run_block(gpu(), c, block, w.handle.get(), prefill_config_of(w.handle.get())), expected);
    check_some(c, kMostProducts);
  }
}

// Gates of some hundreds: silu's denominator overflows, its quotients come near the smallest normal numbers,
// and both gelus reach the ends of erf and tanh; tiny ones, where they are straight lines. The bits, since
// fp16 overflows; silu's values too in bf16.
TEST_P(GpuPrefill, GatesOfEveryMagnitude) {
  for (const ramp_activation activation :
       {RAMP_ACTIVATION_SILU_AND_MUL, RAMP_ACTIVATION_GELU_AND_MUL, RAMP_ACTIVATION_GELU_TANH_AND_MUL}) {
    for (const float factor : {1e-6F, 0.1F, 8.0F, 64.0F, 512.0F, 1e8F}) {
      SCOPED_TRACE(factor);
      CaseSpec s = block_spec(GetParam(), 2, 1, 300, 256, 256);
      s.activation = activation;
      SCOPED_TRACE(case_name(s));
      BlockCase c(s);
      for (int64_t t = 0; t < s.tokens; ++t)
        for (int64_t h = 0; h < s.hidden; ++h) c.x.set(t, h, factor * c.x.get(t, h));
      const GpuWeights w = make_gpu_weights(gpu(), c.synthetic, RAMP_COPY, true);
      GpuBlock block(c, gpu());
      const std::vector<uint8_t> expected = run_block(gpu(), c, block, w.handle.get(), 1);
      ASSERT_EQ(run_block(gpu(), c, block, w.handle.get(), prefill_config_of(w.handle.get())), expected);
      if (GetParam() == RAMP_FORMAT_BF16 && activation == RAMP_ACTIVATION_SILU_AND_MUL && factor > 1)
        check_some(c, kMostProducts);
    }
  }
}

TEST_P(GpuPrefill, Activations) {
  for (const ramp_activation activation : {RAMP_ACTIVATION_GELU_AND_MUL, RAMP_ACTIVATION_GELU_TANH_AND_MUL}) {
    for (const int64_t rows : {1, 63, 65, 128, 129, 192, 193, 300}) {
      CaseSpec s = block_spec(GetParam(), 2, 1, rows, 384, 256);
      s.ids = Ids::kSingle;
      s.activation = activation;
      SCOPED_TRACE(case_name(s));
      BlockCase c(s);
      const GpuWeights w = make_gpu_weights(gpu(), c.synthetic, RAMP_COPY, true);
      GpuBlock block(c, gpu());
      const std::vector<uint8_t> expected = run_block(gpu(), c, block, w.handle.get(), 1);
      ASSERT_EQ(run_block(gpu(), c, block, w.handle.get(), prefill_config_of(w.handle.get())), expected);
      if (rows == 193) check_some(c, kMostProducts);
    }
  }
}

// Options that change where rows and their values come from.
TEST_P(GpuPrefill, Options) {
  for (int variant = 0; variant < 4; ++variant) {
    CaseSpec s = block_spec(GetParam(), 4, 2, 190, 384, 256);
    s.router_weight_on_input = variant == 0;
    s.strided = variant == 1;
    s.expert_map = variant == 2;
    if (variant == 2) s.ids = Ids::kMasked;
    s.output = variant == 3 ? RAMP_OUTPUT_PER_SLOT : RAMP_OUTPUT_COMBINED;
    if (variant == 1 && is_fp8(GetParam())) s.x_dtype = RAMP_E4M3;
    if (variant == 3) s.x_dtype = RAMP_F32;
    SCOPED_TRACE(case_name(s));
    BlockCase c(s);
    const GpuWeights w = make_gpu_weights(gpu(), c.synthetic, RAMP_COPY, true);
    GpuBlock block(c, gpu());
    const std::vector<uint8_t> expected = run_block(gpu(), c, block, w.handle.get(), 1);
    ASSERT_EQ(run_block(gpu(), c, block, w.handle.get(), prefill_config_of(w.handle.get())), expected);
    check_some(c, kMostProducts);
  }
}

// Counts around the tile sizes; the first of the experts has none.
TEST_P(GpuPrefill, Batched) {
  const int32_t counts[] = {0, 63, 64, 65, 128, 129, 192, 193, 200};
  CaseSpec s = block_spec(GetParam(), std::size(counts), 1, 200, 256, 384);
  const auto run = [&](bool prefill) {
    BatchedCase c(s);
    std::copy(std::begin(counts), std::end(counts), static_cast<int32_t*>(c.counts.view.data));
    const GpuWeights w = make_gpu_weights(gpu(), c.synthetic, RAMP_COPY, true);
    GpuBatched(c, gpu()).run(w.handle.get(), prefill ? prefill_config_of(w.handle.get()) : 1);
    const CheckResult result = c.check(check_options());
    EXPECT_TRUE(result.ok()) << result.text();
    return c.y_bits();
  };
  ASSERT_EQ(run(true), run(false));
}

TEST_P(GpuPrefill, GraphsFollowTheRouting) {
  BlockCase c(block_spec(GetParam(), 16, 4, 700, 512, 384));
  const GpuWeights w = make_gpu_weights(gpu(), c.synthetic, RAMP_COPY, true);
  GpuBlock one(c, gpu());
  expect_graph_follows_routing(gpu(), c, w.handle.get(), prefill_config_of(w.handle.get()),
                               [&](const std::vector<uint8_t>& replayed) {
                                 check_some(c, kMostProducts);
                                 one.upload();
                                 EXPECT_EQ(run_block(gpu(), c, one, w.handle.get(), 1), replayed);
                               });
}

}  // namespace
}  // namespace ramp::core::test
