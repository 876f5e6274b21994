// The expert block on the GPU against the fp64 checker: every (E, k) with every T in every format, and all
// options against each other in pairs.
//
// Shapes are small (H, I <= 512) because the checker runs on the host: real ones are in big_test.cpp. The
// first grid is full in (E, k) x T x format, with H and I, the kind of ids and the options varying along; of
// large T it checks a sample of tokens. The second has each *pair* of levels of any two factors at least once
// (a covering array); the full product has some 10^9 points.
#include <array>

#include "base/rng.hpp"
#include "gpu/support.hpp"
#include "numerics/grid_levels.hpp"

namespace ramp::core::test {
namespace {

constexpr std::array kOwnership = {RAMP_COPY, RAMP_BORROW, RAMP_IN_PLACE};
constexpr std::array<int64_t, 9> kTokens = {0, 1, 2, 32, 63, 64, 65, 128, 512};
// Whole tiles of 64, multiples of 128, and tails in H, in I and in both.
constexpr std::array<std::array<int64_t, 2>, 9> kShapes = {
    {{64, 64}, {128, 128}, {96, 160}, {256, 288}, {384, 64}, {160, 32}, {224, 256}, {512, 192}, {32, 96}}};

// Weights of all experts stay below this many elements, by taking another shape where E is large.
constexpr int64_t kMostWeights = 30'000'000;
// Multiplications of the checker per case.
constexpr int64_t kMostProducts = 150'000'000;

void set_shape(CaseSpec& s, size_t shape) {
  while (s.experts * 3 * kShapes.at(shape)[0] * kShapes.at(shape)[1] > kMostWeights)
    shape = (shape + 1) % kShapes.size();
  s.hidden = kShapes.at(shape)[0];
  s.intermediate = kShapes.at(shape)[1];
}

void check_sample(BlockCase& c) {
  const int64_t per_token = c.spec.top_k * 3 * c.spec.hidden * c.spec.intermediate;
  const std::vector<int64_t> tokens =
      spread_tokens(c.spec.tokens, std::max<int64_t>(8, kMostProducts / per_token));
  CheckOptions options = check_options();
  options.tokens = tokens;
  const CheckResult result = c.check(options);
  EXPECT_TRUE(result.ok()) << result.text();
}

struct ShapeCase {
  ramp_format format;
  size_t experts;
  friend std::ostream& operator<<(std::ostream& out, const ShapeCase& s) {
    return out << format_name(s.format) << "_E" << kExperts.at(s.experts)[0];
  }
};
std::vector<ShapeCase> shape_cases() {
  std::vector<ShapeCase> list;
  for (const ramp_format f : kAllFormats)
    for (size_t e = 0; e < kExperts.size(); ++e) list.push_back({f, e});
  return list;
}

class GpuShapes : public testing::TestWithParam<ShapeCase> {};
INSTANTIATE_TEST_SUITE_P(All, GpuShapes, testing::ValuesIn(shape_cases()));

TEST_P(GpuShapes, AgreeWithTheReference) {
  const auto [format, experts] = GetParam();
  for (size_t t = 0; t < kTokens.size(); ++t) {
    CaseSpec s;
    s.format = format;
    s.experts = kExperts.at(experts)[0];
    s.top_k = kExperts.at(experts)[1];
    s.tokens = kTokens.at(t);
    set_shape(s, (experts + t) % kShapes.size());
    s.ids = kIds.at((experts + t) % 4);
    s.activation = kActivations.at((experts + t / 2) % 4);
    s.determinism = kDeterminism.at(t % 3);
    s.seed = 100 * experts + t + 1;
    SCOPED_TRACE(case_name(s));
    BlockCase c(s);
    const GpuWeights w = make_gpu_weights(gpu(), c.synthetic, RAMP_COPY, t % 2 == 0);
    GpuBlock(c, gpu()).run(w.handle.get());
    check_sample(c);
  }
}

struct GridCase {
  CaseSpec spec;
  ramp_ownership ownership = RAMP_COPY;
  bool pack = true, own_workspace = false;
  std::string isa;
  friend std::ostream& operator<<(std::ostream& out, const GridCase& g) {
    return out << case_name(g.spec) << "_own" << g.ownership << (g.pack ? "_packed" : "")
               << (g.own_workspace ? "_ws" : "") << "_" << g.isa;
  }
};

std::vector<GridCase> grid() {
  const auto rows = pairwise({std::size(kAllFormats),
                              kActivations.size(),
                              kX.size(),
                              kY.size(),
                              kShared.size(),
                              kIds.size(),
                              kDeterminism.size(),
                              kExperts.size(),
                              kTokens.size(),
                              kShapes.size(),
                              kOwnership.size(),
                              2,
                              2,
                              2,
                              2,
                              2,
                              2,
                              2,
                              2,
                              3},
                             3);
  std::vector<GridCase> cases;
  for (const std::vector<int32_t>& r : rows) {
    const auto pick = [&](const auto& levels, size_t factor) {
      return levels[static_cast<size_t>(r[factor])];
    };
    GridCase g;
    CaseSpec& s = g.spec;
    s.format = pick(kAllFormats, 0);
    s.activation = pick(kActivations, 1);
    s.x_dtype = pick(kX, 2);
    s.y_dtype = pick(kY, 3);
    s.shared_dtype = pick(kShared, 4);
    s.ids = pick(kIds, 5);
    s.determinism = pick(kDeterminism, 6);
    s.experts = pick(kExperts, 7)[0];
    s.top_k = pick(kExperts, 7)[1];
    s.tokens = pick(kTokens, 8);
    set_shape(s, static_cast<size_t>(r[9]));
    g.ownership = pick(kOwnership, 10);
    g.pack = r[11] != 0;
    g.own_workspace = r[12] != 0;
    s.output = r[13] != 0 ? RAMP_OUTPUT_PER_SLOT : RAMP_OUTPUT_COMBINED;
    s.router_weight_on_input = r[14] != 0;
    s.expert_map = r[15] != 0;
    s.int64_ids = r[16] != 0;
    s.strided = r[17] != 0;
    s.split_tensor_scale = r[18] != 0;
    g.isa = r[19] == 2 ? "plain_f64" : "";
    // Combinations that the API does not have.
    if (s.x_dtype == RAMP_E4M3 && !is_fp8(s.format)) s.x_dtype = RAMP_BF16;
    if (s.output == RAMP_OUTPUT_PER_SLOT) s.shared_dtype = RAMP_DTYPE_NONE;
    s.seed = 3000 + cases.size();
    cases.push_back(g);
  }
  return cases;
}

class GpuGrid : public testing::TestWithParam<GridCase> {};
INSTANTIATE_TEST_SUITE_P(Pairwise, GpuGrid, testing::ValuesIn(grid()));

TEST_P(GpuGrid, AgreesWithTheReference) {
  const GridCase& g = GetParam();
  ramp_context* const context = gpu(g.isa);
  BlockCase c(g.spec);
  const GpuWeights w = make_gpu_weights(context, c.synthetic, g.ownership, g.pack);
  GpuBlock(c, context).run(w.handle.get(), nullptr, g.own_workspace);
  check_sample(c);
}

// The batched entry, in pairs as well.
std::vector<GridCase> batched_grid() {
  constexpr std::array<int64_t, 5> kE = {1, 4, 6, 16, 60};
  constexpr std::array<int64_t, 7> kMaxTokens = {1, 4, 17, 63, 64, 65, 130};
  const auto rows =
      pairwise({std::size(kAllFormats), kActivations.size(), kX.size(), kY.size(), kE.size(),
                kMaxTokens.size(), kShapes.size(), kOwnership.size(), kDeterminism.size(), 2, 2, 2, 2},
               4);
  std::vector<GridCase> cases;
  for (const std::vector<int32_t>& r : rows) {
    const auto pick = [&](const auto& levels, size_t factor) {
      return levels[static_cast<size_t>(r[factor])];
    };
    GridCase g;
    CaseSpec& s = g.spec;
    s.format = pick(kAllFormats, 0);
    s.activation = pick(kActivations, 1);
    s.x_dtype = pick(kX, 2);
    s.y_dtype = pick(kY, 3);
    s.experts = pick(kE, 4);
    s.tokens = pick(kMaxTokens, 5);
    set_shape(s, static_cast<size_t>(r[6]));
    g.ownership = pick(kOwnership, 7);
    s.determinism = pick(kDeterminism, 8);
    g.pack = r[9] != 0;
    s.int64_ids = r[10] != 0;
    s.strided = r[11] != 0;
    s.router_weight_on_input = r[12] != 0;
    if (s.x_dtype == RAMP_E4M3 && !is_fp8(s.format)) s.x_dtype = RAMP_BF16;
    s.top_k = 1;
    s.seed = 5000 + cases.size();
    cases.push_back(g);
  }
  return cases;
}

class GpuBatchedGrid : public testing::TestWithParam<GridCase> {};
INSTANTIATE_TEST_SUITE_P(Pairwise, GpuBatchedGrid, testing::ValuesIn(batched_grid()));

TEST_P(GpuBatchedGrid, AgreesWithTheReference) {
  const GridCase& g = GetParam();
  // Without weights there is nothing that could multiply the input.
  BatchedCase c(g.spec, g.spec.router_weight_on_input || g.spec.seed % 3 != 0);
  const GpuWeights w = make_gpu_weights(gpu(), c.synthetic, g.ownership, g.pack);
  GpuBatched(c, gpu()).run(w.handle.get());
  CheckOptions options = check_options();
  const std::vector<int64_t> rows = spread_tokens(g.spec.experts * g.spec.tokens, 200);
  options.tokens = rows;
  const CheckResult result = c.check(options);
  EXPECT_TRUE(result.ok()) << result.text();
}

}  // namespace
}  // namespace ramp::core::test
