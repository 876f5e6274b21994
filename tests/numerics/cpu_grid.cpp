// The big grid: formats x activations x every option x shapes x routings on the CPU backend, against the
// checker.
//
// The full product has some 10^9 points; here each *pair* of levels of any two factors occurs at least once
// per seed (a covering array), with two seeds, so most triples occur too. Shapes are small (H, I <= 384,
// smaller still with many experts) so that every element of every case is checked; cpu_models.cpp has the
// real ones.
#include <gtest/gtest.h>

#include <algorithm>
#include <array>

#include "base/rng.hpp"
#include "numerics/cpu_support.hpp"
#include "numerics/grid_levels.hpp"

namespace ramp::core::test {
namespace {

struct GridCase {
  CaseSpec spec;
  Hold hold = Hold::kPackedCopy;
  size_t isa = 0;  // index into isa_levels(), modulo their number
  int32_t threads = 2;
  uint64_t config = 0;  // 0: the backend's choice; else a legal one
  friend std::ostream& operator<<(std::ostream& out, const GridCase& g) {
    return out << case_name(g.spec) << "_" << hold_name(g.hold) << "_isa" << g.isa << "_t" << g.threads
               << "_c" << g.config;
  }
};

// Around the row counts at which kernels and tiles change: 1, the register block, 4, 8, 16, 32, 64 and 128.
constexpr std::array<int64_t, 15> kTokens = {0, 1, 2, 3, 5, 7, 8, 9, 12, 13, 31, 33, 63, 65, 130};
constexpr std::array<std::array<int64_t, 2>, 9> kShapes = {
    {{32, 32}, {64, 96}, {96, 160}, {128, 128}, {160, 32}, {256, 288}, {384, 64}, {224, 256}, {512, 192}}};
constexpr std::array kHolds = {Hold::kPackedCopy, Hold::kPackedInPlace, Hold::kPackedBorrow, Hold::kBorrow,
                               Hold::kCopy};
constexpr std::array<int32_t, 4> kThreads = {1, 2, 3, 5};

// Weights of all experts stay below this many elements, and rows times weights below that many
// multiplications, by taking a smaller shape (or fewer tokens) where E (or T) is large.
constexpr int64_t kMostWeights = 40'000'000;
constexpr int64_t kMostProducts = 200'000'000;

std::vector<GridCase> grid() {
  std::vector<GridCase> cases;
  for (const uint64_t seed : {1U, 2U}) {
    const auto rows = pairwise({kFormats.size(),
                                kActivations.size(),
                                kX.size(),
                                kY.size(),
                                kShared.size(),
                                kIds.size(),
                                kDeterminism.size(),
                                kExperts.size(),
                                kTokens.size(),
                                kShapes.size(),
                                kHolds.size(),
                                kThreads.size(),
                                3,
                                2,
                                2,
                                2,
                                2,
                                2,
                                2,
                                6},
                               seed);
    for (const std::vector<int32_t>& r : rows) {
      const auto pick = [&](const auto& levels, size_t factor) {
        return levels.at(static_cast<size_t>(r[factor]));
      };
      GridCase g;
      CaseSpec& s = g.spec;
      s.format = pick(kFormats, 0);
      s.activation = pick(kActivations, 1);
      s.x_dtype = pick(kX, 2);
      s.y_dtype = pick(kY, 3);
      s.shared_dtype = pick(kShared, 4);
      s.ids = pick(kIds, 5);
      s.determinism = pick(kDeterminism, 6);
      s.experts = pick(kExperts, 7)[0];
      s.top_k = pick(kExperts, 7)[1];
      s.tokens = pick(kTokens, 8);
      size_t shape = static_cast<size_t>(r[9]);
      const auto weights = [&] { return s.experts * 3 * kShapes.at(shape)[0] * kShapes.at(shape)[1]; };
      while (weights() > kMostWeights) shape = (shape + 1) % kShapes.size();
      s.hidden = kShapes.at(shape)[0];
      s.intermediate = kShapes.at(shape)[1];
      while (s.tokens * s.top_k * 3 * s.hidden * s.intermediate > kMostProducts) s.tokens /= 2;
      g.hold = pick(kHolds, 10);
      g.threads = pick(kThreads, 11);
      g.isa = static_cast<size_t>(r[12]);
      s.output = r[13] != 0 ? RAMP_OUTPUT_PER_SLOT : RAMP_OUTPUT_COMBINED;
      s.router_weight_on_input = r[14] != 0;
      s.expert_map = r[15] != 0;
      s.int64_ids = r[16] != 0;
      s.strided = r[17] != 0;
      s.split_tensor_scale = r[18] != 0;
      // One in three lets the backend choose; else a legal config, spread over the list.
      g.config = r[19] < 2 ? 0 : random_u64(seed, cases.size()) | 1U;
      // Combinations that the API does not have.
      const bool fp8 = s.format == RAMP_FORMAT_FP8_BLOCK || s.format == RAMP_FORMAT_FP8_TENSOR ||
                       s.format == RAMP_FORMAT_FP8_CHANNEL;
      if (s.x_dtype == RAMP_E4M3 && !fp8) s.x_dtype = RAMP_BF16;
      if (s.output == RAMP_OUTPUT_PER_SLOT) s.shared_dtype = RAMP_DTYPE_NONE;
      s.seed = seed * 1000 + cases.size();
      cases.push_back(g);
    }
  }
  return cases;
}

class CpuGrid : public testing::TestWithParam<GridCase> {};
INSTANTIATE_TEST_SUITE_P(Pairwise, CpuGrid, testing::ValuesIn(grid()));

TEST_P(CpuGrid, AgreesWithTheReference) {
  const GridCase& g = GetParam();
  Backend& backend = cpu_backend(isa_levels()[g.isa % isa_levels().size()], g.threads);
  BlockCase c(g.spec);
  const auto w = make_held(c, g.hold, backend);
  const ModelShape shape{"", g.spec.experts, g.spec.top_k, g.spec.hidden, g.spec.intermediate};
  const ConfigList configs = backend.configs(shape, g.spec.format, g.spec.activation, false);
  const KernelConfig* config = g.config == 0 ? nullptr : &configs.legal[g.config % configs.legal.size()];
  SCOPED_TRACE(config != nullptr ? config_name(*config) : "chosen config");
  c.run(backend, *w, config);
  const CheckResult result = c.check(check_options());
  EXPECT_TRUE(result.ok()) << result.text();
}

// The batched entry, thinned to pairs in the same way.
std::vector<GridCase> batched_grid() {
  std::vector<GridCase> cases;
  constexpr std::array<int64_t, 5> kE = {1, 4, 6, 16, 60};
  constexpr std::array<int64_t, 6> kMaxTokens = {1, 4, 9, 17, 33, 65};
  const auto rows =
      pairwise({kFormats.size(), kActivations.size(), kX.size(), kY.size(), kE.size(), kMaxTokens.size(),
                kShapes.size() - 2, kHolds.size(), kThreads.size(), 3, 2, 2, 2, 3},
               5);
  for (const std::vector<int32_t>& r : rows) {
    const auto pick = [&](const auto& levels, size_t factor) {
      return levels.at(static_cast<size_t>(r[factor]));
    };
    GridCase g;
    CaseSpec& s = g.spec;
    s.format = pick(kFormats, 0);
    s.activation = pick(kActivations, 1);
    s.x_dtype = pick(kX, 2);
    s.y_dtype = pick(kY, 3);
    s.experts = pick(kE, 4);
    s.tokens = pick(kMaxTokens, 5);
    s.hidden = pick(kShapes, 6)[0];
    s.intermediate = pick(kShapes, 6)[1];
    while (s.experts * s.tokens * 3 * s.hidden * s.intermediate > kMostProducts) s.tokens /= 2;
    g.hold = pick(kHolds, 7);
    g.threads = pick(kThreads, 8);
    g.isa = static_cast<size_t>(r[9]);
    s.int64_ids = r[10] != 0;
    s.strided = r[11] != 0;
    s.router_weight_on_input = r[12] != 0;
    g.config = r[13] == 0 ? 0 : random_u64(7, cases.size()) | 1U;
    if (s.x_dtype == RAMP_E4M3 && s.format != RAMP_FORMAT_FP8_BLOCK && s.format != RAMP_FORMAT_FP8_TENSOR &&
        s.format != RAMP_FORMAT_FP8_CHANNEL) {
      s.x_dtype = RAMP_BF16;
    }
    s.top_k = 1;
    s.seed = 5000 + cases.size();
    cases.push_back(g);
  }
  return cases;
}

class CpuBatchedGrid : public testing::TestWithParam<GridCase> {};
INSTANTIATE_TEST_SUITE_P(Pairwise, CpuBatchedGrid, testing::ValuesIn(batched_grid()));

TEST_P(CpuBatchedGrid, AgreesWithTheReference) {
  const GridCase& g = GetParam();
  Backend& backend = cpu_backend(isa_levels()[g.isa % isa_levels().size()], g.threads);
  BatchedCase c(g.spec, g.spec.seed % 3 != 0);
  const auto w = make_held(c, g.hold, backend);
  const ModelShape shape{"", g.spec.experts, 1, g.spec.hidden, g.spec.intermediate};
  const ConfigList configs = backend.configs(shape, g.spec.format, g.spec.activation, false);
  c.run(backend, *w, g.config == 0 ? nullptr : &configs.legal[g.config % configs.legal.size()]);
  const CheckResult result = c.check(check_options());
  EXPECT_TRUE(result.ok()) << result.text();
}

}  // namespace
}  // namespace ramp::core::test
