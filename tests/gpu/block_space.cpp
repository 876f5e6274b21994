// Configs that do not ship (`ramp profile` searches them, fits name them): widths, depths of the ring, blocks
// per SM and group sizes beyond the shipped ones give the shipped kernels' bits, whatever the rows per
// expert, and are brought in when they are first asked for, also inside a capture.
#include <string>

#include "cli/gpu.hpp"
#include "gpu/runs.hpp"

namespace ramp::core::test {
namespace {

class GpuSpace : public Sm90<> {};

int32_t number_of(const ramp_weights* w, const std::string& name) {
  for (int32_t n = 0;; ++n) {
    const char* const one = ramp_config_name(gpu(), w, n);
    if (one == nullptr) break;
    if (name == one) return n + 1;
  }
  ADD_FAILURE() << "got no config " << name;
  return 1;
}

CaseSpec spec_of(ramp_format format, int64_t tokens) {
  CaseSpec s = block_spec(format, 6, 2, tokens, 512, 256);
  s.seed = static_cast<uint64_t>(tokens);
  return s;
}

// y by these configs is what the first one, the narrowest stream kernel, makes of it.
void expect_shipped_bits(const CaseSpec& spec, const std::vector<std::string>& names) {
  SCOPED_TRACE(case_name(spec));
  BlockCase c(spec);
  const GpuWeights w = make_gpu_weights(gpu(), c.synthetic, RAMP_COPY, true);
  GpuBlock block(c, gpu());
  const std::vector<uint8_t> expected = run_block(gpu(), c, block, w.handle.get(), 1);
  CheckOptions options = check_options();
  const std::vector<int64_t> some = spread_tokens(spec.tokens, 16);
  options.tokens = some;
  const CheckResult result = c.check(options);
  ASSERT_TRUE(result.ok()) << result.text();
  for (const std::string& name : names)
    EXPECT_EQ(run_block(gpu(), c, block, w.handle.get(), number_of(w.handle.get(), name)), expected) << name;
}
void expect_shipped_bits(ramp_format format, const std::vector<std::string>& names) {
  const WholeSpace whole(gpu());
  for (const int64_t tokens : {1, 5, 23, 64, 131, 400, 1111})
    expect_shipped_bits(spec_of(format, tokens), names);
}

TEST_F(GpuSpace, StreamAndPrefillConfigsGiveTheShippedBits) {
  expect_shipped_bits(
      RAMP_FORMAT_FP8_BLOCK,
      {"m8_n128_k128_s7_t320", "m8_n128_k128_s13_t320", "m8_n128_k128_s2_t320", "m16_n128_k128_s3_t320",
       "m24_n128_k128_s6_t320", "m24_n128_k128_s3_t320", "m24_n128_k128_s2_t320_b1",
       "m32_n128_k128_s2_t320_b2", "m40_n128_k128_s5_t320", "m48_n128_k128_s4_t320", "m56_n128_k128_s4_t320",
       "m56_n128_k128_s9_t320", "m64_n128_k128_s9_t320", "m128_n256_k128_s2_t384",
       "m128_n256_k128_s3_t384_g2", "m128_n256_k128_s4_t384_g2", "m128_n256_k128_s4_t384_g64"});
}

// Groups matter where an expert has more couples of row tiles (256 rows) than there are in one: 1, 4, 8 where
// the name says nothing, 32. Whole groups alone (2048 rows), and a part of one behind them, with a short last
// tile that is left over (2210) and a longer one that has no partner (600, 1100, 2400). Odd numbers of
// slices.
TEST_F(GpuSpace, GroupsOfRowTilesGiveTheShippedBits) {
  const WholeSpace whole(gpu());
  for (const int64_t rows : {600, 1100, 2048, 2210, 2400}) {
    CaseSpec s = block_spec(RAMP_FORMAT_FP8_BLOCK, 2, 1, rows, 384, 384);
    s.ids = Ids::kSingle;
    expect_shipped_bits(s, {"m128_n256_k128_s4_t384", "m128_n256_k128_s4_t384_g2",
                            "m128_n256_k128_s4_t384_g8", "m128_n256_k128_s4_t384_g64"});
  }
}

// Row tiles of 192 rows, 64 to a math warpgroup: every number of warpgroups with work, tiles that end in the
// middle of one, one row more than a tile, and groups of 2, 16 and 64 tiles with a part of one behind them.
TEST_F(GpuSpace, TallTilesGiveTheShippedBits) {
  const WholeSpace whole(gpu());
  const std::vector<std::string> tall = {"m192_n128_k128_s4_t512", "m192_n128_k128_s2_t512",
                                         "m192_n128_k128_s3_t512_g2", "m192_n128_k128_s4_t512_g64"};
  for (const int64_t tokens : {1, 64, 400, 1111})
    expect_shipped_bits(spec_of(RAMP_FORMAT_FP8_BLOCK, tokens), tall);
  for (const int64_t rows : {1, 63, 64, 65, 127, 129, 191, 192, 193, 257, 600, 3100}) {
    CaseSpec s = block_spec(RAMP_FORMAT_FP8_BLOCK, 2, 1, rows, 384, 384);
    s.ids = Ids::kSingle;
    expect_shipped_bits(s, tall);
  }
}

// Experts with many rows and with few by turns: none of one kind, all of one, one against all others, masked
// slots; more experts than lanes and fewer; tiles of both heights.
TEST_F(GpuSpace, MixedOrderGivesTheShippedBits) {
  const WholeSpace whole(gpu());
  const std::vector<std::string> mixed = {"m128_n256_k128_s4_t384_mix", "m128_n256_k128_s3_t384_mix",
                                          "m192_n128_k128_s4_t512_mix"};
  for (const int64_t tokens : {0, 1, 64, 400, 1111})
    expect_shipped_bits(spec_of(RAMP_FORMAT_FP8_BLOCK, tokens), mixed);
  for (const Ids ids : {Ids::kSkewed, Ids::kSingle, Ids::kMasked, Ids::kAllMasked}) {
    CaseSpec s = block_spec(RAMP_FORMAT_FP8_BLOCK, 40, 2, 700, 384, 256);
    s.ids = ids;
    expect_shipped_bits(s, mixed);
  }
  CaseSpec many = block_spec(RAMP_FORMAT_FP8_BLOCK, 1023, 2, 900, 128, 128);
  many.ids = Ids::kSkewed;
  expect_shipped_bits(many, mixed);
}

// Options that change where rows and their values come from, activations, and a plan without tiles.
TEST_F(GpuSpace, TallTilesTakeOptions) {
  const WholeSpace whole(gpu());
  for (int variant = 0; variant < 7; ++variant) {
    CaseSpec s = block_spec(RAMP_FORMAT_FP8_BLOCK, 4, 2, 190, 384, 256);
    s.activation = static_cast<ramp_activation>(variant % 3);
    s.router_weight_on_input = variant == 0;
    s.strided = variant == 1;
    s.expert_map = variant == 2;
    if (variant == 2) s.ids = Ids::kMasked;
    s.output = variant == 3 ? RAMP_OUTPUT_PER_SLOT : RAMP_OUTPUT_COMBINED;
    s.x_dtype = variant == 1 ? RAMP_E4M3 : variant == 3 ? RAMP_F32 : RAMP_BF16;
    s.ids = variant == 4 ? Ids::kAllMasked : variant == 5 ? Ids::kDuplicates : s.ids;
    if (variant == 6) s.tokens = 0;
    expect_shipped_bits(s, {"m192_n128_k128_s4_t512"});
  }
}

// Small enough for compute-sanitizer (tests/gpu/run.sh) and for CI's emulated GPU: tiles of one, two and
// three warpgroups, more depth than the ring holds, an odd number of slices and of pairs, no rows.
class GpuSmallSpace : public Sm90<> {};
TEST_F(GpuSmallSpace, TallTilesAndMixedOrder) {
  const WholeSpace whole(gpu());
  const std::vector<std::string> names = {"m192_n128_k128_s4_t512", "m192_n128_k128_s4_t512_mix",
                                          "m128_n256_k128_s4_t384_mix"};
  for (const auto& [hidden, intermediate] : {std::pair{640, 128}, std::pair{128, 640}}) {
    CaseSpec s = block_spec(RAMP_FORMAT_FP8_BLOCK, 5, 1, 330, hidden, intermediate);
    s.ids = Ids::kSkewed;
    expect_shipped_bits(s, names);
    s.tokens = 0;
    expect_shipped_bits(s, names);
  }
}

TEST_F(GpuSpace, FlatConfigsGiveTheShippedBits) {
  expect_shipped_bits(RAMP_FORMAT_BF16,
                      {"m16_n128_k64_s4_t320", "m48_n128_k64_s4_t320", "m32_n64_k64_s6_t192",
                       "m64_n256_k64_s4_t576", "m96_n128_k64_s4_t320", "m8_n128_k64_s12_t320"});
}

TEST_F(GpuSpace, IsBroughtInInsideACapture) {
  const WholeSpace whole(gpu());
  BlockCase c(spec_of(RAMP_FORMAT_FP8_BLOCK, 37));
  const GpuWeights w = make_gpu_weights(gpu(), c.synthetic, RAMP_COPY, true);
  GpuBlock block(c, gpu());
  const std::vector<uint8_t> expected = run_block(gpu(), c, block, w.handle.get(), 1);
  const DeviceBuffer scratch = block.workspace(w.handle.get());
  // Of these nothing has run, nor does any other test run them.
  for (const char* const name :
       {"m40_n128_k128_s7_t320", "m128_n256_k128_s2_t384_g8", "m192_n128_k128_s2_t512_g8"}) {
    ramp_expert_block_args a = block.args(w.handle.get());
    a.config = number_of(w.handle.get(), name);
    scratch.poison();
    block.begin();
    cli::GraphRounds rounds(gpu());
    rounds.capture(
        7,
        [&](void* stream) { require(ramp_expert_block(gpu(), &a, scratch.data(), scratch.bytes(), stream)); },
        false);
    EXPECT_TRUE(rounds.has(7));
    const std::vector<size_t> keys = {7, 7};
    const std::vector<double> us = rounds.time(keys);
    ASSERT_EQ(us.size(), 2U);
    EXPECT_GT(us[0], 0);
    block.y.download();
    EXPECT_EQ(c.y_bits(), expected) << name;
    rounds.clear();
    EXPECT_FALSE(rounds.has(7));
  }
}

TEST_F(GpuSpace, IsNumberedWhenAskedForAlone) {
  const BlockCase c(spec_of(RAMP_FORMAT_FP8_BLOCK, 3));
  const GpuWeights w = make_gpu_weights(gpu(), c.synthetic, RAMP_COPY, true);
  int32_t shipped = 0;
  while (ramp_config_name(gpu(), w.handle.get(), shipped) != nullptr) ++shipped;
  const WholeSpace whole(gpu());
  int32_t all = 0;
  while (ramp_config_name(gpu(), w.handle.get(), all) != nullptr) ++all;
  EXPECT_GE(all, 134);
  EXPECT_LT(shipped, all);
}

}  // namespace
}  // namespace ramp::core::test
