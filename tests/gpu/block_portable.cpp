// The portable kernels, forced (isa "portable"): every config in every format, on shapes with tails in H, in
// I and in both; every number of rows of one expert; every kind of routing; orders of tiles and repetitions
// give the same bits; layers one behind the other in one workspace, where dependent launches overlap.
#include <algorithm>
#include <array>
#include <cmath>
#include <map>
#include <memory>

#include "abi/handles.hpp"
#include "base/tensor.hpp"
#include "cli/gpu.hpp"
#include "geometry/config.hpp"
#include "gpu/runs.hpp"

namespace ramp::core::test {
namespace {

constexpr std::array kFormats = {RAMP_FORMAT_FP8_BLOCK, RAMP_FORMAT_BF16, RAMP_FORMAT_F16,
                                 RAMP_FORMAT_FP8_TENSOR, RAMP_FORMAT_FP8_CHANNEL};

ramp_context* portable() {
  return gpu("portable");
}

std::vector<std::string> configs_of(const ramp_weights* w) {
  std::vector<std::string> names;
  const char* name = nullptr;
  while ((name = ramp_config_name(portable(), w, static_cast<int32_t>(names.size()))) != nullptr)
    names.emplace_back(name);
  return names;
}

CaseSpec make_spec(ramp_format format, int64_t experts, int64_t top_k, int64_t tokens, int64_t hidden,
                   int64_t intermediate) {
  CaseSpec s = block_spec(format, experts, top_k, tokens, hidden, intermediate);
  s.seed += 1000 * static_cast<uint64_t>(format);
  return s;
}

// config: from 1; 0 is the automatic choice.
void run_config(BlockCase& c, GpuBlock& block, const ramp_weights* w, int32_t config) {
  const DeviceBuffer scratch = block.workspace(w);
  scratch.poison();
  block.begin();
  ramp_expert_block_args a = block.args(w);
  a.config = config;
  require(ramp_expert_block(portable(), &a, scratch.data(), scratch.bytes(), nullptr));
  block.finish();
  EXPECT_TRUE(scratch.guard_intact()) << c.spec;
}

void check_some(BlockCase& c, int64_t products = 10'000'000) {
  const int64_t per_token = c.spec.top_k * 3 * c.spec.hidden * c.spec.intermediate;
  CheckOptions options = check_options();
  const std::vector<int64_t> tokens =
      spread_tokens(c.spec.tokens, std::max<int64_t>(4, products / per_token));
  options.tokens = tokens;
  const CheckResult result = c.check(options);
  EXPECT_TRUE(result.ok()) << result.text();
}

// The same, once per result: many configs give the same bits.
void check_new(BlockCase& c, std::vector<std::vector<uint8_t>>& seen) {
  std::vector<uint8_t> bits = c.y_bits();
  if (std::find(seen.begin(), seen.end(), bits) != seen.end()) return;
  check_some(c);
  seen.push_back(std::move(bits));
}

class GpuPortable : public testing::TestWithParam<ramp_format> {};
INSTANTIATE_TEST_SUITE_P(Formats, GpuPortable, testing::ValuesIn(kFormats),
                         [](const auto& p) { return std::string(format_name(p.param)); });

TEST_P(GpuPortable, IsWhatRuns) {
  ramp_context_info info = ramp_context_info_init();
  require(ramp_context_get_info(portable(), &info));
  EXPECT_STREQ(info.isa, "portable");
  BlockCase c(make_spec(GetParam(), 2, 1, 3, 64, 32));
  const GpuWeights w = make_gpu_weights(portable(), c.synthetic, RAMP_COPY, true);
  EXPECT_GE(configs_of(w.handle.get()).size(), 9U);
}

// Every config gives the right result, and the same bits whenever it splits the depth alike: in every order
// of tiles and at every repetition.
TEST_P(GpuPortable, EveryConfigIsRight) {
  struct Shape {
    int64_t experts, top_k, tokens, hidden, intermediate;
    Ids ids;
  };
  // Depths beyond every ring; tails of 32, 64 and 96 columns; more units than blocks; I = 192.
  constexpr Shape kShapes[] = {
      {8, 2, 1, 2080, 192, Ids::kDistinct},   {1, 1, 1, 32, 32, Ids::kSingle},
      {4, 4, 9, 1152, 1056, Ids::kSingle},    {6, 2, 41, 352, 640, Ids::kSkewed},
      {16, 4, 130, 512, 416, Ids::kMasked},   {8, 2, 33, 256, 96, Ids::kAllMasked},
      {8, 3, 33, 224, 256, Ids::kOutOfRange}, {3, 8, 50, 192, 384, Ids::kDuplicates},
      {64, 8, 500, 288, 160, Ids::kDistinct}, {16, 4, 1500, 160, 320, Ids::kSkewed},
  };
  for (const Shape& p : kShapes) {
    CaseSpec s = make_spec(GetParam(), p.experts, p.top_k, p.tokens, p.hidden, p.intermediate);
    s.ids = p.ids;
    s.activation = static_cast<ramp_activation>(p.tokens % 4);
    SCOPED_TRACE(case_name(s));
    BlockCase c(s);
    const GpuWeights w = make_gpu_weights(portable(), c.synthetic, RAMP_COPY, true);
    GpuBlock block(c, portable());
    const std::vector<std::string> names = configs_of(w.handle.get());
    std::vector<std::vector<uint8_t>> seen;
    std::map<bool, std::vector<uint8_t>> unsplit;  // ... that do not split the depth; fp8_block's m128 apart
    std::map<std::string, std::vector<uint8_t>> all;  // ... and of each without its order
    for (size_t n = 0; n < names.size(); ++n) {
      SCOPED_TRACE(names[n]);
      run_config(c, block, w.handle.get(), static_cast<int32_t>(n) + 1);
      check_new(c, seen);
      const std::vector<uint8_t> bits = c.y_bits();
      const bool split = names[n].find("_sk") != std::string::npos;
      std::string without_order = names[n];
      for (const char* const order : {"_row", "_g8"})
        if (const size_t at = without_order.rfind(order); at != std::string::npos) without_order.resize(at);
      EXPECT_EQ(all.emplace(without_order, bits).first->second, bits)
          << "the order of tiles must leave no trace";
      if (!split) {
        const bool units = GetParam() == RAMP_FORMAT_FP8_BLOCK && names[n].starts_with("m128");
        EXPECT_EQ(unsplit.emplace(units, bits).first->second, bits) << "one order of sums";
      }
      for (int i = 0; i < 2; ++i) {
        run_config(c, block, w.handle.get(), static_cast<int32_t>(n) + 1);
        ASSERT_EQ(c.y_bits(), bits) << "repetition " << i;
      }
    }
  }
}

// Every number of rows of one expert, in every config: tiles that are full, begun, one row short.
TEST_P(GpuPortable, EveryNumberOfRows) {
  const bool all = GetParam() == RAMP_FORMAT_FP8_BLOCK || GetParam() == RAMP_FORMAT_BF16;
  for (int64_t tokens = 1; tokens <= 129; tokens += all ? 1 : 16) {
    CaseSpec s = make_spec(GetParam(), 1, 1, tokens, 160, 96);
    s.ids = Ids::kSingle;
    s.router_weight_on_input = tokens % 5 == 4;
    SCOPED_TRACE(case_name(s));
    BlockCase c(s);
    const GpuWeights w = make_gpu_weights(portable(), c.synthetic, RAMP_COPY, false);
    GpuBlock block(c, portable());
    std::vector<std::vector<uint8_t>> seen;
    const auto configs = static_cast<int32_t>(configs_of(w.handle.get()).size());
    for (int32_t n = 0; n <= configs / 3;
         ++n) {  // 0: automatic; behind the first third come the other orders
      run_config(c, block, w.handle.get(), n);
      check_new(c, seen);
    }
  }
}

TEST_P(GpuPortable, TakesEveryOption) {
  for (int variant = 0; variant < 8; ++variant) {
    CaseSpec s = make_spec(GetParam(), 8, 3, 37, 416, 224);
    s.activation = static_cast<ramp_activation>(variant % 4);
    s.ids = Ids::kMasked;
    s.x_dtype = variant % 4 == 0 && is_fp8(s.format) ? RAMP_E4M3 : variant == 5 ? RAMP_F32 : RAMP_BF16;
    s.y_dtype = variant == 1 ? RAMP_F16 : variant == 2 ? RAMP_F32 : RAMP_BF16;
    s.router_weight_on_input = variant >= 4;
    s.output = variant == 2 ? RAMP_OUTPUT_PER_SLOT : RAMP_OUTPUT_COMBINED;
    s.shared_dtype = variant == 6 ? RAMP_F32 : RAMP_DTYPE_NONE;
    s.strided = variant % 2 == 1;
    s.expert_map = variant == 5;
    s.split_tensor_scale = variant >= 3;
    s.determinism = static_cast<ramp_determinism>(variant % 3);
    SCOPED_TRACE(case_name(s));
    BlockCase c(s);
    const GpuWeights w = make_gpu_weights(portable(), c.synthetic,
                                          variant % 2 == 0 ? RAMP_BORROW : RAMP_IN_PLACE, variant % 3 != 0);
    GpuBlock block(c, portable());
    std::vector<std::vector<uint8_t>> seen;
    const auto configs = static_cast<int32_t>(configs_of(w.handle.get()).size());
    for (int32_t n = 0; n <= configs / 3; ++n) {
      run_config(c, block, w.handle.get(), n);
      check_new(c, seen);
    }
  }
}

TEST_P(GpuPortable, Batched) {
  for (const int64_t max_tokens : {1, 8, 65, 130}) {
    CaseSpec s = make_spec(GetParam(), 6, 1, max_tokens, 352, 224);
    s.x_dtype = max_tokens == 65 && is_fp8(s.format) ? RAMP_E4M3 : RAMP_BF16;
    s.router_weight_on_input = max_tokens == 8;
    s.strided = max_tokens == 130;
    BatchedCase c(s);
    const GpuWeights w = make_gpu_weights(portable(), c.synthetic, RAMP_COPY, true);
    GpuBatched(c, portable()).run(w.handle.get());
    const CheckResult result = c.check(check_options());
    EXPECT_TRUE(result.ok()) << case_name(s) << result.text();
  }
}

// A token's bits do not depend on how many others there are.
TEST_P(GpuPortable, BatchInvariantBits) {
  CaseSpec s = make_spec(GetParam(), 4, 2, 300, 544, 288);
  s.determinism = RAMP_BATCH_INVARIANT;
  s.y_dtype = RAMP_F32;
  BlockCase c(s);
  const GpuWeights w = make_gpu_weights(portable(), c.synthetic, RAMP_COPY, true);
  GpuBlock block(c, portable());
  run_config(c, block, w.handle.get(), 0);
  const std::vector<uint8_t> expected = c.y_bits();
  const DeviceBuffer scratch = block.workspace(w.handle.get());
  for (const int64_t count : {1, 5, 60, 299}) {
    block.begin();
    ramp_expert_block_args a = block.args(w.handle.get());
    a.counters = {};
    for (ramp_tensor* const part : {&a.x, &a.topk_ids, &a.topk_weights, &a.y}) part->shape[0] = count;
    require(ramp_expert_block(portable(), &a, scratch.data(), scratch.bytes(), nullptr));
    memory(portable()).synchronize_all();
    block.y.download();
    const std::vector<uint8_t> bits = c.y_bits();
    const auto bytes = static_cast<std::ptrdiff_t>(count * s.hidden * 4);
    EXPECT_TRUE(std::equal(bits.begin(), bits.begin() + bytes, expected.begin())) << count << " tokens";
  }
}

// H and I of gpt-oss-120b (no multiples of 128), and I = 192 behind a deep H.
TEST_P(GpuPortable, RealShapes) {
  for (const auto& [hidden, intermediate] : {std::pair{2880, 2880}, std::pair{4096, 192}}) {
    for (const int64_t tokens : {1, 19}) {
      CaseSpec s = make_spec(GetParam(), 2, 2, tokens, hidden, intermediate);
      SCOPED_TRACE(case_name(s));
      BlockCase c(s);
      const GpuWeights w = make_gpu_weights(portable(), c.synthetic, RAMP_COPY, true);
      GpuBlock block(c, portable());
      std::vector<std::vector<uint8_t>> seen;
      const auto configs = static_cast<int32_t>(configs_of(w.handle.get()).size());
      for (int32_t n = 1; n <= configs / 3; ++n) {
        run_config(c, block, w.handle.get(), n);
        check_new(c, seen);
      }
    }
  }
}

// Block scales that are no ordinary numbers, of weights and of x: right results, and the same bits as without
// them in the tokens that have none.
TEST(GpuPortableScales, OddOnes) {
  CaseSpec s = make_spec(RAMP_FORMAT_FP8_BLOCK, 3, 2, 70, 672, 416);
  s.x_dtype = RAMP_E4M3;
  s.y_dtype = RAMP_F32;
  BlockCase c(s);
  const auto is_odd = [](int64_t token) { return token % 9 == 4; };
  for (const bool weights_too : {false, true}) {
    SCOPED_TRACE(weights_too);
    if (weights_too) {
      constexpr std::array kValues = {0.0F, 1e-30F, 70.0F, -0.01F, 1e-9F};
      for (size_t i = 2; i < c.synthetic.w13_scale.size(); i += 7) c.synthetic.w13_scale[i] = kValues[i % 5];
      for (size_t i = 1; i < c.synthetic.w2_scale.size(); i += 5) c.synthetic.w2_scale[i] = kValues[i % 5];
    }
    const GpuWeights w = make_gpu_weights(portable(), c.synthetic, RAMP_COPY, true);
    const auto configs = static_cast<int32_t>(configs_of(w.handle.get()).size());
    std::vector<std::vector<uint8_t>> plain;
    GpuBlock ordinary(c, portable());
    for (int32_t n = 1; n <= configs / 3; ++n) {
      run_config(c, ordinary, w.handle.get(), n);
      check_some(c);
      plain.push_back(c.y_bits());
    }
    if (weights_too) break;
    constexpr std::array kScales = {0.0F, 1e-30F, 1e20F, 5000.0F, -0.5F, INFINITY, NAN};
    for (int64_t t = 0; t < s.tokens; ++t)
      for (int64_t g = t % 3; is_odd(t) && g < 6; g += 2)
        c.x_scale.set(t, g, kScales[static_cast<size_t>(t / 9 + g) % kScales.size()]);
    GpuBlock block(c, portable());
    for (int32_t n = 1; n <= configs / 3; ++n) {
      SCOPED_TRACE(n);
      run_config(c, block, w.handle.get(), n);
      check_some(c);
      const std::vector<uint8_t> bits = c.y_bits();
      const auto row = static_cast<std::ptrdiff_t>(s.hidden * 4);
      for (int64_t t = 0; t < s.tokens; ++t) {
        if (is_odd(t)) continue;
        EXPECT_TRUE(std::equal(bits.begin() + t * row, bits.begin() + (t + 1) * row,
                               plain[static_cast<size_t>(n) - 1].begin() + t * row))
            << "token " << t;
      }
    }
    // ... and back for the second round.
    for (int64_t t = 0; t < s.tokens; ++t)
      for (int64_t g = t % 3; is_odd(t) && g < 6; g += 2) c.x_scale.set(t, g, 0.01F);
  }
}

// Layers with weights and routing of their own, each reading what the one before wrote, all in one workspace:
// what overlapping launches compute is what layers that wait for each other give.
TEST_P(GpuPortable, LayersInOneWorkspace) {
  for (const int64_t tokens : {1, 8, 96}) {
    SCOPED_TRACE(tokens);
    expect_layers_agree(portable(), make_spec(GetParam(), 16, 4, tokens, 544, 352), 100);
  }
}

// For compute-sanitizer: every config once, with tails in every dimension and more depth than a ring holds.
class GpuSmallPortable : public testing::TestWithParam<ramp_format> {};
INSTANTIATE_TEST_SUITE_P(Formats, GpuSmallPortable, testing::ValuesIn(kFormats),
                         [](const auto& p) { return std::string(format_name(p.param)); });

TEST_P(GpuSmallPortable, EveryConfig) {
  CaseSpec s = make_spec(GetParam(), 3, 2, 41, 1184, 96);
  s.ids = Ids::kMasked;
  for (const ramp_activation activation : {RAMP_ACTIVATION_SILU_AND_MUL, RAMP_ACTIVATION_RELU2}) {
    s.activation = activation;
    BlockCase c(s);
    const GpuWeights w = make_gpu_weights(portable(), c.synthetic, RAMP_COPY, true);
    GpuBlock block(c, portable());
    std::vector<std::vector<uint8_t>> seen;
    const auto configs = static_cast<int32_t>(configs_of(w.handle.get()).size());
    for (int32_t n = 1; n <= configs / 3; ++n) {
      SCOPED_TRACE(ramp_config_name(portable(), w.handle.get(), n - 1));
      run_config(c, block, w.handle.get(), n);
      check_new(c, seen);
    }
  }
}

// Variants on trial (the space beyond what ships): fragments carried over from step to step, places of tiles
// changed from wave to wave, codes and scales out of GEMM 1. They give the bits of the shipped tile with as
// many tokens (larger ones: of the largest), in every order of tiles.
// Returns how many there were; in column order alone, if asked.
int32_t expect_twins_bits(BlockCase& c, bool every_order = true) {
  const WholeSpace whole(portable());
  const GpuWeights w = make_gpu_weights(portable(), c.synthetic, RAMP_COPY, true);
  GpuBlock block(c, portable());
  const std::vector<std::string> names = configs_of(w.handle.get());
  std::map<int32_t, std::vector<uint8_t>> shipped;  // by tokens of a tile
  int32_t trials = 0;
  for (size_t n = 0; n < names.size(); ++n) {
    const KernelConfig config = parse_config(names[n]);
    SCOPED_TRACE(names[n]);
    if ((config.warps_n == 0 || !every_order) && config.order != TaskOrder::kColumnMajor) continue;
    run_config(c, block, w.handle.get(), static_cast<int32_t>(n) + 1);
    const std::vector<uint8_t> bits = c.y_bits();
    if (config.warps_n == 0) {
      check_some(c);
      shipped[config.tile_m] = bits;
      continue;
    }
    ++trials;
    EXPECT_EQ(shipped.at(std::min(config.tile_m, 128)), bits);
  }
  return trials;
}

TEST_P(GpuPortable, TrialsGiveTheShippedBits) {
  struct Shape {
    int64_t experts, top_k, tokens, hidden, intermediate;
    Ids ids;
  };
  // One pass of two, a tail in the first and in the second, several groups; tiles of an expert from 1 to 20.
  constexpr Shape kShapes[] = {{8, 2, 1, 2080, 192, Ids::kDistinct},  {1, 1, 129, 32, 32, Ids::kSingle},
                               {4, 4, 9, 1152, 1056, Ids::kSingle},   {6, 2, 141, 352, 608, Ids::kSkewed},
                               {16, 4, 130, 512, 416, Ids::kMasked},  {8, 2, 33, 256, 96, Ids::kAllMasked},
                               {3, 2, 700, 192, 384, Ids::kSkewed},   {8, 2, 512, 288, 256, Ids::kDistinct},
                               {2, 1, 2500, 160, 320, Ids::kDistinct}};
  for (const Shape& p : kShapes) {
    CaseSpec s = make_spec(GetParam(), p.experts, p.top_k, p.tokens, p.hidden, p.intermediate);
    s.ids = p.ids;
    s.activation = static_cast<ramp_activation>(p.tokens % 4);
    SCOPED_TRACE(case_name(s));
    BlockCase c(s);
    EXPECT_GE(expect_twins_bits(c), 6);
  }
}

class GpuSmallPortableTrials : public testing::TestWithParam<ramp_format> {};
INSTANTIATE_TEST_SUITE_P(Formats, GpuSmallPortableTrials,
                         testing::Values(RAMP_FORMAT_FP8_BLOCK, RAMP_FORMAT_BF16, RAMP_FORMAT_FP8_CHANNEL),
                         [](const auto& p) { return std::string(format_name(p.param)); });

TEST_P(GpuSmallPortableTrials, GiveTheShippedBits) {
  for (const auto& [tokens, hidden, intermediate] : {std::tuple{150, 544, 224}, std::tuple{9, 96, 416}}) {
    CaseSpec s = make_spec(GetParam(), 2, 2, tokens, hidden, intermediate);
    s.ids = Ids::kMasked;
    BlockCase c(s);
    EXPECT_GE(expect_twins_bits(c, false), 2);
  }
}

// h with infinities and NaNs in it, from scales that are no ordinary numbers: the codes and scales that
// requantisation by itself gives.
TEST(GpuSmallPortableTrials, OddScales) {
  CaseSpec s = make_spec(RAMP_FORMAT_FP8_BLOCK, 3, 2, 40, 288, 224);
  s.x_dtype = RAMP_E4M3;
  s.y_dtype = RAMP_F32;
  BlockCase c(s);
  constexpr std::array kScales = {0.0F, 1e-30F, 1e20F, 5000.0F, -0.5F, INFINITY, NAN, 1e38F};
  for (int64_t t = 0; t < s.tokens; t += 3)
    c.x_scale.set(t, t % 3, kScales[static_cast<size_t>(t / 3) % kScales.size()]);
  EXPECT_GE(expect_twins_bits(c, false), 2);
}

}  // namespace
}  // namespace ramp::core::test
