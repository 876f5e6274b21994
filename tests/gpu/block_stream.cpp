// The stream kernels (packed weights of every format but f32): every config, with depths beyond the ring
// and more items than blocks, so that rings, barriers and the clusters' exchange go round several times; the
// same bits from every config; layers one behind the other in one workspace, where dependent launches
// overlap.
#include <cmath>
#include <cstring>
#include <limits>

#include "base/tensor.hpp"
#include "cli/gpu.hpp"
#include "gpu/runs.hpp"

namespace ramp::core::test {
namespace {

constexpr int64_t kMostProducts = 100'000'000;  // of a check

// Number of configs of these weights; each is then 1 + its index in a call.
int32_t configs_of(const ramp_weights* w) {
  int32_t n = 0;
  while (ramp_config_name(gpu(), w, n) != nullptr) ++n;
  return n;
}

constexpr ramp_format kStreamFormats[] = {RAMP_FORMAT_FP8_BLOCK, RAMP_FORMAT_BF16, RAMP_FORMAT_F16,
                                          RAMP_FORMAT_FP8_TENSOR, RAMP_FORMAT_FP8_CHANNEL};

struct StreamCase {
  const char* name;
  int64_t experts, top_k, tokens, hidden, intermediate;
  Ids ids;
  ramp_format format = RAMP_FORMAT_FP8_BLOCK;
};
// 9 depth steps are more than any ring holds; 128 experts in tiles of 8 rows are more items than blocks.
constexpr StreamCase kCases[] = {
    {"one_token", 8, 2, 1, 1152, 128, Ids::kDistinct},
    {"one_expert", 1, 1, 1, 128, 128, Ids::kSingle},
    {"one_expert_full_tiles", 1, 1, 64, 256, 128, Ids::kSingle},
    {"one_expert_one_row_more", 1, 1, 65, 128, 256, Ids::kSingle},
    {"seven", 16, 4, 7, 256, 1152, Ids::kDistinct},
    {"nine_each", 4, 4, 9, 1152, 1152, Ids::kSingle},
    {"tails", 6, 2, 41, 384, 640, Ids::kSkewed},
    {"masked", 16, 4, 130, 512, 384, Ids::kMasked},
    {"all_masked", 8, 2, 33, 256, 256, Ids::kAllMasked},
    {"out_of_range", 8, 3, 33, 256, 256, Ids::kOutOfRange},
    {"duplicates", 3, 8, 50, 256, 384, Ids::kDuplicates},
    {"many_items", 128, 8, 500, 256, 384, Ids::kDistinct},
    {"many_rows", 32, 8, 1500, 256, 640, Ids::kSkewed},
    // I a multiple of 64 alone: 16-bit weights.
    {"half_group", 1, 1, 3, 128, 64, Ids::kSingle},
    {"odd_groups", 6, 2, 41, 384, 192, Ids::kSkewed},
};

std::vector<StreamCase> stream_cases() {
  std::vector<StreamCase> list;
  for (const ramp_format format : kStreamFormats) {
    for (StreamCase c : kCases) {
      c.format = format;
      if (!is_fp8(format) || c.intermediate % 128 == 0) list.push_back(c);
    }
  }
  return list;
}

class GpuStream : public testing::TestWithParam<StreamCase> {
 protected:
  void SetUp() override {
    ramp_context_info info = ramp_context_info_init();
    require(ramp_context_get_info(gpu(), &info));
    if (std::string(info.isa) != "sm90")
      GTEST_SKIP() << "the stream kernels need sm_90a, this is " << info.isa;
  }
};
INSTANTIATE_TEST_SUITE_P(All, GpuStream, testing::ValuesIn(stream_cases()), [](const auto& p) {
  return std::string(format_name(p.param.format)) + "_" + p.param.name;
});

TEST_P(GpuStream, EveryConfigIsRightAndGivesTheSameBits) {
  const StreamCase& p = GetParam();
  CaseSpec s = block_spec(p.format, p.experts, p.top_k, p.tokens, p.hidden, p.intermediate);
  s.ids = p.ids;
  BlockCase c(s);
  const GpuWeights w = make_gpu_weights(gpu(), c.synthetic, RAMP_COPY, true);
  GpuBlock block(c, gpu());
  const int32_t configs = configs_of(w.handle.get());
  ASSERT_GT(configs, 1) << "the stream kernels should be what runs";
  std::vector<uint8_t> first;
  for (int32_t n = 1; n <= configs; ++n) {
    SCOPED_TRACE(ramp_config_name(gpu(), w.handle.get(), n - 1));
    run_block(gpu(), c, block, w.handle.get(), n);
    check_some(c, kMostProducts);
    if (n == 1) first = c.y_bits();
    EXPECT_EQ(c.y_bits(), first) << "the config depends on T, the bits must not";
    for (int i = 0; i < 10; ++i) {
      run_block(gpu(), c, block, w.handle.get(), n);
      ASSERT_EQ(c.y_bits(), first) << "repetition " << i;
    }
  }
}

class GpuStreamOptions : public testing::TestWithParam<ramp_format> {};
INSTANTIATE_TEST_SUITE_P(All, GpuStreamOptions, testing::ValuesIn(kStreamFormats),
                         [](const auto& p) { return std::string(format_name(p.param)); });

// Every number of rows that an expert can have up to more than the widest tile: the first config against the
// checker, the others against its bits.
TEST_P(GpuStreamOptions, EveryNumberOfRows) {
  for (int64_t rows = 1; rows <= 129; ++rows) {
    CaseSpec s = block_spec(GetParam(), 1, 1, rows, 256, 128);
    s.ids = Ids::kSingle;
    BlockCase c(s);
    const GpuWeights w = make_gpu_weights(gpu(), c.synthetic, RAMP_COPY, true);
    GpuBlock block(c, gpu());
    std::vector<uint8_t> first;
    for (int32_t n = 1; n <= configs_of(w.handle.get()); ++n) {
      run_block(gpu(), c, block, w.handle.get(), n);
      if (n == 1) {
        check_some(c, kMostProducts);
        first = c.y_bits();
      }
      ASSERT_EQ(c.y_bits(), first) << rows << " rows, " << ramp_config_name(gpu(), w.handle.get(), n - 1);
    }
  }
}

TEST_P(GpuStreamOptions, EveryConfigTakesThem) {
  const ramp_dtype quantised = is_fp8(GetParam()) ? RAMP_E4M3 : RAMP_F16;
  for (int variant = 0; variant < 6; ++variant) {
    CaseSpec s = block_spec(GetParam(), 8, 3, 37, 384, 256);
    s.activation = static_cast<ramp_activation>(variant % 3);
    s.ids = Ids::kMasked;
    s.x_dtype = variant == 0 || variant == 3 ? quantised : variant == 4 ? RAMP_F32 : RAMP_BF16;
    s.y_dtype = variant == 1 ? RAMP_F16 : variant == 2 ? RAMP_F32 : RAMP_BF16;
    s.router_weight_on_input = variant >= 3;
    s.output = variant == 2 ? RAMP_OUTPUT_PER_SLOT : RAMP_OUTPUT_COMBINED;
    s.shared_dtype = variant == 5 ? RAMP_F32 : RAMP_DTYPE_NONE;
    s.strided = variant % 2 == 1;
    s.expert_map = variant == 4;
    SCOPED_TRACE(case_name(s));
    BlockCase c(s);
    const GpuWeights w = make_gpu_weights(gpu(), c.synthetic, RAMP_IN_PLACE, true);
    GpuBlock block(c, gpu());
    for (int32_t n = 1; n <= configs_of(w.handle.get()); ++n) {
      run_block(gpu(), c, block, w.handle.get(), n);
      check_some(c, kMostProducts);
    }
  }
}

TEST_P(GpuStreamOptions, Batched) {
  for (const int64_t max_tokens : {1, 8, 65, 130}) {
    CaseSpec s = block_spec(GetParam(), 6, 1, max_tokens, 384, 256);
    s.x_dtype = max_tokens == 65 && is_fp8(GetParam()) ? RAMP_E4M3 : RAMP_BF16;
    s.router_weight_on_input = max_tokens == 8;
    s.strided = max_tokens == 130;
    BatchedCase c(s);
    const GpuWeights w = make_gpu_weights(gpu(), c.synthetic, RAMP_COPY, true);
    GpuBatched(c, gpu()).run(w.handle.get());
    const CheckResult result = c.check(check_options());
    EXPECT_TRUE(result.ok()) << result.text();
  }
}

// Up to 64 slots narrow configs make the plan in every block, and of one token the rows of x too; wide ones
// have the prologue do it: the same bits and counters.
TEST_P(GpuStreamOptions, FewSlots) {
  for (const int64_t tokens : {1, 2, 3, 7, 8, 13}) {
    for (const int64_t k : {1, 2, 5, 8, 21, 33, 64}) {
      if (tokens * k > 66) continue;
      CaseSpec s = block_spec(GetParam(), k % 2 == 0 ? 70 : 9, k, tokens, 384, 256);
      s.ids = k > 9 && k % 2 == 1 ? Ids::kDuplicates
              : tokens == 7       ? Ids::kSkewed
              : k == 8            ? Ids::kOutOfRange
              : k == 5            ? Ids::kMasked
                                  : Ids::kDistinct;
      s.int64_ids = tokens % 2 == 0;
      s.expert_map = k == 2 || k == 8;
      s.counters = true;
      s.x_dtype = tokens == 3 ? RAMP_F32 : RAMP_BF16;
      s.router_weight_on_input = tokens == 1 && k == 2;
      SCOPED_TRACE(case_name(s));
      BlockCase c(s);
      const GpuWeights w = make_gpu_weights(gpu(), c.synthetic, RAMP_COPY, true);
      GpuBlock block(c, gpu());
      std::vector<uint8_t> first;
      for (int32_t n = 1; n <= configs_of(w.handle.get()); ++n) {
        run_block(gpu(), c, block, w.handle.get(), n);
        if (n == 1) {
          check_some(c, kMostProducts);
          first = c.y_bits();
        }
        ASSERT_EQ(c.y_bits(), first) << ramp_config_name(gpu(), w.handle.get(), n - 1);
      }
    }
  }
}

// With one row its stride is never used, whatever it is.
TEST_P(GpuStreamOptions, OneRowOfAnyStride) {
  CaseSpec s = block_spec(GetParam(), 4, 2, 1, 256, 128);
  if (is_fp8(GetParam())) s.x_dtype = RAMP_E4M3;
  BlockCase c(s);
  const GpuWeights w = make_gpu_weights(gpu(), c.synthetic, RAMP_COPY, true);
  GpuBlock block(c, gpu());
  const DeviceBuffer scratch = block.workspace(w.handle.get());
  ramp_expert_block_args a = block.args(w.handle.get());
  a.x = with_strides(a.x);
  a.x.stride[0] = s.hidden + 3;
  block.begin();
  ASSERT_EQ(ramp_expert_block(gpu(), &a, scratch.data(), scratch.bytes(), nullptr), RAMP_OK)
      << ramp_last_error();
  block.finish();
  check_some(c, kMostProducts);
}

// A NaN stays in its group's tokens; an infinity makes all of its token that its group reaches NaN; 0 * NaN
// is NaN; slots without an expert do not even give that.
TEST_P(GpuStreamOptions, NaNAndInfinityStayWithTheirToken) {
  CaseSpec s = block_spec(GetParam(), 4, 2, 40, 384, 256);
  s.y_dtype = RAMP_F32;
  BlockCase c(s);
  const GpuWeights w = make_gpu_weights(gpu(), c.synthetic, RAMP_COPY, true);
  for (int32_t n = 1; n <= configs_of(w.handle.get()); ++n) {
    SCOPED_TRACE(n);
    BlockCase clean(s);
    GpuBlock before(clean, gpu());
    run_block(gpu(), clean, before, w.handle.get(), n);
    BlockCase odd(s);
    odd.x.set(3, 130, std::numeric_limits<float>::quiet_NaN());
    odd.x.set(5, 0, std::numeric_limits<float>::infinity());
    odd.x.set(7, 1, std::numeric_limits<float>::quiet_NaN());
    for (int64_t j = 0; j < s.top_k; ++j) {
      odd.topk_weights.set(7, j, 0.0F);
      static_cast<int32_t*>(odd.ids.view.data)[9 * s.top_k + j] = -1;
    }
    odd.x.set(9, 1, std::numeric_limits<float>::quiet_NaN());
    odd.expected_masked = s.top_k;
    GpuBlock block(odd, gpu());
    run_block(gpu(), odd, block, w.handle.get(), n);
    for (int64_t t = 0; t < s.tokens; ++t) {
      for (int64_t h = 0; h < s.hidden; ++h) {
        const float got = odd.y.get(t, h);
        // A static scale saturates infinity.
        if (t == 5 && GetParam() == RAMP_FORMAT_FP8_TENSOR) {
          ASSERT_TRUE(std::isfinite(got)) << t << ", " << h << ": " << got;
        } else if (t == 3 || t == 5 || t == 7) {
          ASSERT_TRUE(std::isnan(got)) << t << ", " << h << ": " << got;
        } else {
          ASSERT_EQ(got, t == 9 ? 0.0F : clean.y.get(t, h)) << t << ", " << h;
        }
      }
    }
  }
}

// Layers with weights and routing of their own, each reading what the one before wrote, all in one workspace:
// prologue, GEMMs and combine of neighbours overlap as far as dependent launches let them. What comes out is
// what layers that wait for each other give.
TEST_P(GpuStreamOptions, LayersInOneWorkspace) {
  for (const int64_t tokens : {1, 8, 96}) {
    SCOPED_TRACE(tokens);
    expect_layers_agree(gpu(), block_spec(GetParam(), 16, 4, tokens, 512, 384), 200);
  }
}

}  // namespace
}  // namespace ramp::core::test
