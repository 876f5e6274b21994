// Workload specs and generated routing: the grammar and its errors, distinct experts, loads and popularity as
// promised, determinism, weights; and the formulas of the statistics.
#include "routing/workload.hpp"

#include <map>
#include <set>

#include "base/test_support.hpp"
#include "routing/sorted_rows.hpp"
#include "routing/stable_math.hpp"
#include "routing/support.hpp"

namespace ramp::test {
namespace {

const char* const kSpecs[] = {"balanced",  "uniform",         "zipf:0",        "zipf:1.2",
                              "zipf:1000", "dirichlet:0.001", "dirichlet:0.3", "dirichlet:50",
                              "ddist:0",   "ddist:0.7",       "ddist:1",       "single"};

std::vector<int32_t> loads(const Routing& r) {
  std::vector<int32_t> counts(static_cast<size_t>(r.experts), -1);
  histogram(make_tensor(r.ids.data(), RAMP_I32, {r.tokens, r.top_k}), {}, counts);
  return counts;
}
Routing make(std::string_view spec, int64_t experts, int64_t top_k, int64_t tokens, uint64_t seed = 0) {
  return make_routing(parse_workload(spec), experts, top_k, tokens, seed);
}

class Workload : public testing::TestWithParam<std::tuple<const char*, Shape>> {};

TEST_P(Workload, TokensHaveDistinctExpertsAndProperWeights) {
  const auto [spec, shape] = GetParam();
  for (const int64_t tokens : {0, 1, 33, 200}) {
    const Routing r = make(spec, shape.experts, shape.top_k, tokens, 5);
    ASSERT_EQ(r.tokens, tokens);
    ASSERT_EQ(r.top_k, shape.top_k);
    ASSERT_EQ(r.experts, shape.experts);
    ASSERT_EQ(r.ids.size(), static_cast<size_t>(tokens * shape.top_k));
    ASSERT_EQ(r.weights.size(), r.ids.size());
    for (int64_t t = 0; t < tokens; ++t) {
      std::set<int32_t> seen;
      double sum = 0.0;
      for (int64_t j = 0; j < shape.top_k; ++j) {
        const auto at = static_cast<size_t>(t * shape.top_k + j);
        ASSERT_GE(r.ids[at], 0);
        ASSERT_LT(r.ids[at], shape.experts);
        ASSERT_TRUE(seen.insert(r.ids[at]).second) << "expert twice in token " << t;
        ASSERT_GT(r.weights[at], 0.0F);
        if (j > 0) {
          ASSERT_LE(r.weights[at], r.weights[at - 1]);
        }
        sum += r.weights[at];
      }
      ASSERT_NEAR(sum, 1.0, 0.5 * kU * static_cast<double>(shape.top_k));
    }
    std::vector<int32_t> counts = loads(r);
    EXPECT_EQ(std::accumulate(counts.begin(), counts.end(), int64_t{0}), tokens * shape.top_k);
  }
}

TEST_P(Workload, SameSeedSameRoutingOtherSeedOther) {
  const auto [spec, shape] = GetParam();
  const Routing a = make(spec, shape.experts, shape.top_k, 64, 11);
  const Routing b = make(spec, shape.experts, shape.top_k, 64, 11);
  const Routing c = make(spec, shape.experts, shape.top_k, 64, 12);
  EXPECT_EQ(a.ids, b.ids);
  EXPECT_EQ(a.weights, b.weights);
  if (shape.top_k > 1) {
    EXPECT_NE(a.weights, c.weights);
  }
  const std::string_view name = spec;
  if (shape.experts > 8 && name != "single") {
    EXPECT_NE(a.ids, c.ids);
  }
  // The first tokens do not depend on how many follow.
  if (name != "balanced" && !name.starts_with("ddist")) {
    const Routing longer = make(spec, shape.experts, shape.top_k, 100, 11);
    EXPECT_TRUE(std::equal(a.ids.begin(), a.ids.end(), longer.ids.begin()));
    EXPECT_TRUE(std::equal(a.weights.begin(), a.weights.end(), longer.weights.begin()));
  }
}
INSTANTIATE_TEST_SUITE_P(Specs, Workload,
                         testing::Combine(testing::ValuesIn(kSpecs),
                                          testing::Values(Shape{1, 1}, Shape{8, 2}, Shape{8, 8}, Shape{60, 4},
                                                          Shape{512, 10})));

class Balanced : public testing::TestWithParam<std::tuple<Shape, int64_t>> {};
TEST_P(Balanced, LoadsDifferByAtMostOne) {
  const auto [shape, tokens] = GetParam();
  const std::vector<int32_t> counts = loads(make("balanced", shape.experts, shape.top_k, tokens, 3));
  const auto [low, high] = std::minmax_element(counts.begin(), counts.end());
  EXPECT_LE(*high - *low, 1);
}
INSTANTIATE_TEST_SUITE_P(Shapes, Balanced,
                         testing::Combine(testing::ValuesIn(shapes()),
                                          testing::Values<int64_t>(0, 1, 2, 33, 512, 2048)));

TEST(WorkloadLaw, UniformIsFlat) {
  // 8192 tokens x 8 of 64: loads are binomial, mean 1024, variance below 1024; six sigma is 192.
  for (const int32_t c : loads(make("uniform", 64, 8, 8192, 1))) EXPECT_NEAR(c, 1024, 192);
  // Every pair of experts meets about equally often: 8192 * (4*3)/(16*15) = 409.6, sigma < 21.
  const Routing r = make("uniform", 16, 4, 8192, 2);
  std::map<std::pair<int32_t, int32_t>, int> pairs;
  for (size_t t = 0; t < 8192; ++t)
    for (size_t i = 0; i < 4; ++i)
      for (size_t j = 0; j < 4; ++j)
        if (r.ids[t * 4 + i] < r.ids[t * 4 + j]) ++pairs[{r.ids[t * 4 + i], r.ids[t * 4 + j]}];
  EXPECT_EQ(pairs.size(), 120U);
  for (const auto& [pair, count] : pairs) EXPECT_NEAR(count, 409.6, 6 * 21.0);
}

TEST(WorkloadLaw, SlotsAreExchangeableInUniform) {
  // Expert 3 lands in each of the 4 slots equally often: 8192/16 = 512 per slot, sigma 22.
  const Routing r = make("uniform", 16, 4, 8192, 4);
  std::vector<int> at(4, 0);
  for (size_t i = 0; i < r.ids.size(); ++i) at[i % 4] += r.ids[i] == 3 ? 1 : 0;
  for (const int n : at) EXPECT_NEAR(n, 512, 6 * 22);
}

// The first draw of a token is in exact proportion to p_e = rank^-s / sum: within six sigma for every rank.
class Zipf : public testing::TestWithParam<double> {};
TEST_P(Zipf, FirstDrawFollowsTheLaw) {
  const double s = GetParam();
  constexpr int64_t kTokens = 20000;
  constexpr size_t kExperts = 32;
  const Routing r = make_routing({WorkloadKind::kZipf, s, {}}, kExperts, 4, kTokens, 9);
  std::vector<int> first(kExperts, 0);
  for (size_t t = 0; t < kTokens; ++t) ++first[static_cast<size_t>(r.ids[t * 4])];
  std::sort(first.rbegin(), first.rend());  // the ranks are shuffled: most popular first
  double sum = 0.0;
  for (size_t i = 1; i <= kExperts; ++i) sum += std::pow(static_cast<double>(i), -s);
  for (size_t i = 0; i < kExperts; ++i) {
    const double expected = kTokens * std::pow(static_cast<double>(i + 1), -s) / sum;
    // Sorting by observed counts can move neighbours by as much again.
    EXPECT_NEAR(first[i], expected, 6.0 * std::sqrt(expected) + 3.0) << "rank " << i + 1;
  }
}
INSTANTIATE_TEST_SUITE_P(Exponents, Zipf, testing::Values(0.6, 1.0, 1.2, 2.0, 4.0));

TEST(WorkloadLaw, ZipfSkewGrowsWithTheExponent) {
  double last_entropy = 2.0;
  for (const char* spec : {"zipf:0", "zipf:0.5", "zipf:1", "zipf:1.5", "zipf:2", "zipf:4"}) {
    const HistogramStats s = describe(loads(make(spec, 128, 8, 2048, 3)));
    EXPECT_LT(s.normalised_entropy, last_entropy) << spec;
    last_entropy = s.normalised_entropy;
  }
}
TEST(WorkloadLaw, ExtremeZipfTakesTheTopRanks) {
  // p falls by 2^1000 from rank 1 to 2: every token takes ranks 1..4 in order.
  const Routing r = make("zipf:1000", 16, 4, 50, 3);
  for (size_t i = 0; i < r.ids.size(); ++i) EXPECT_EQ(r.ids[i], r.ids[i % 4]);
}
TEST(WorkloadLaw, ZipfShufflesRanksBySeed) {
  std::set<int32_t> hottest;
  for (uint64_t seed = 0; seed < 20; ++seed) {
    const std::vector<int32_t> c = loads(make("zipf:3", 64, 2, 200, seed));
    hottest.insert(static_cast<int32_t>(std::max_element(c.begin(), c.end()) - c.begin()));
  }
  EXPECT_GT(hottest.size(), 10U);
}
TEST(WorkloadLaw, DirichletMomentsOfFirstDraws) {
  // Popularity p ~ Dirichlet(a) over E experts: E[sum p^2] = (a+1)/(aE+1). Over 400 seeds the mean square of
  // the first-draw shares of 200 tokens estimates it, up to sampling (each share adds p(1-p)/200).
  for (const double a : {0.1, 1.0, 10.0}) {
    constexpr int64_t kExperts = 8;
    double squares = 0.0;
    for (uint64_t seed = 0; seed < 400; ++seed) {
      const Routing r = make_routing({WorkloadKind::kDirichlet, a, {}}, kExperts, 1, 200, seed);
      for (const int32_t c : loads(r)) squares += c * c / (200.0 * 200.0) / 400.0;
    }
    const double exact = (a + 1) / (a * kExperts + 1);
    const double expected = exact + (1 - exact) / 200;
    // sum p^2 lies in [1/8, 1] with standard deviation below 0.27: six sigma over 400 seeds.
    EXPECT_NEAR(squares, expected, 6 * 0.27 / 20) << a;
  }
}
TEST(WorkloadLaw, DdistSendsAFractionToTheSameExperts) {
  for (const double x : {0.0, 0.25, 0.7, 1.0}) {
    const Routing r = make_routing({WorkloadKind::kDdist, x, {}}, 64, 4, 1000, 8);
    std::map<std::vector<int32_t>, int> sets;
    for (size_t t = 0; t < 1000; ++t) ++sets[std::vector<int32_t>(&r.ids[t * 4], &r.ids[t * 4] + 4)];
    int most = 0;
    for (const auto& [ids, count] : sets) most = std::max(most, count);
    // The rest is uniform over 15 million ordered quadruples: a repeat of the hot one is out of the question.
    if (x == 0.0) {
      EXPECT_LE(most, 2);
    } else {
      EXPECT_EQ(most, static_cast<int>(x * 1000));
    }
  }
}
TEST(WorkloadLaw, SingleUsesTheFirstExperts) {
  const std::vector<int32_t> c = loads(make("single", 16, 4, 100));
  for (size_t e = 0; e < c.size(); ++e) EXPECT_EQ(c[e], e < 4 ? 100 : 0);
}
TEST(WorkloadLaw, LargestDemandedSize) {
  // T = 8192, E = 512, k = 10 has to take less than half a second; the bound here is loose for slow machines.
  const Routing r = make("zipf:1.2", 512, 10, 8192, 1);
  EXPECT_EQ(r.ids.size(), 81920U);
  EXPECT_GT(describe(loads(r)).max_over_mean, 10.0);
}
// Known answers: the generators must not change between versions or machines.
TEST(WorkloadLaw, KnownAnswers) {
  std::map<std::string, uint64_t> hashes;
  for (const char* spec : kSpecs) {
    const Routing r = make(spec, 60, 4, 256, 42);
    uint64_t h = 0;
    for (size_t i = 0; i < r.ids.size(); ++i)
      h = mix64(h ^ (static_cast<uint64_t>(r.ids[i]) << 32U ^ std::bit_cast<uint32_t>(r.weights[i])));
    hashes[spec] = h;
  }
  const std::map<std::string, uint64_t> expected = {
      {"balanced", 5638838508554802613ULL},         {"ddist:0", 12042807180562323248ULL},
      {"ddist:0.7", 6592746242778291954ULL},        {"ddist:1", 11935054315448945696ULL},
      {"dirichlet:0.001", 11242079564939331462ULL}, {"dirichlet:0.3", 3247799811750323303ULL},
      {"dirichlet:50", 17313661393336473712ULL},    {"single", 17822242877284382655ULL},
      {"uniform", 12042807180562323248ULL},         {"zipf:0", 12977503935846003394ULL},
      {"zipf:1.2", 3615079469936734913ULL},         {"zipf:1000", 2716887458507261254ULL}};
  EXPECT_EQ(hashes, expected);
}
TEST(StableLog, AgreesWithLibm) {
  for (uint64_t i = 0; i < 200000; ++i) {
    const double u = random_unit(1, i);
    const double x = i % 2 == 0 ? u : std::exp(1400.0 * (u - 0.5));
    // Both round a few times: 3 units in the last place of the result, or of the summands near x = 1.
    ASSERT_NEAR(stable_log(x), std::log(x), 3 * 0x1p-53 * std::fabs(std::log(x)) + 0x1p-55)
        << std::hexfloat << x;
  }
  EXPECT_EQ(stable_log(1.0), 0.0);
}

// --- grammar ---------------------------------------------------------------------------------------------
TEST(WorkloadSpec, NamesReadBack) {
  for (const char* spec : kSpecs) EXPECT_EQ(workload_name(parse_workload(spec)), spec);
  EXPECT_EQ(workload_name(parse_workload("dir/trace.npy")), "dir/trace.npy");
  EXPECT_EQ(parse_workload("dir/a:b.npy").kind, WorkloadKind::kTrace);
  EXPECT_EQ(parse_workload("zipf:1e0").parameter, 1.0);
}
class BadSpec : public testing::TestWithParam<const char*> {};
TEST_P(BadSpec, ShowsWhatIsExpected) {
  expect_error(RAMP_ERROR_INVALID_ARGUMENT, {"routing", "expected "}, [] { parse_workload(GetParam()); });
}
INSTANTIATE_TEST_SUITE_P(Grammar, BadSpec,
                         testing::Values("", "zipff:1", "zipf", "zipf:", "zipf:x", "zipf:1x", "zipf:-1",
                                         "zipf:nan", "zipf:inf", "zipf:1001", "zipf: 1", "dirichlet:0",
                                         "dirichlet:-1", "dirichlet:1e9", "ddist:1.01", "ddist:-0.1",
                                         "ddist:nan", "uniform:1", "balanced:", "single:2", "trace.npz",
                                         "UNIFORM"));
TEST(BadSpec, GrammarIsInTheMessage) {
  expect_error(RAMP_ERROR_INVALID_ARGUMENT,
               {"'gaussian'", "balanced", "zipf:S", "dirichlet:A", "ddist:X", ".npy"},
               [] { parse_workload("gaussian"); });
}
TEST(BadRouting, ArgumentsAreNamed) {
  const auto bad = [](const char* field, const WorkloadSpec& spec, int64_t e, int64_t k, int64_t t) {
    expect_error(RAMP_ERROR_INVALID_ARGUMENT, {field}, [&] { make_routing(spec, e, k, t, 0); });
  };
  bad("top_k", {}, 8, 9, 1);
  bad("top_k", {}, 8, 0, 1);
  bad("experts", {}, 0, 1, 1);
  bad("experts", {}, -3, 1, 1);
  bad("experts", {}, int64_t{1} << 40, 1, 1);
  bad("tokens", {}, 8, 2, -1);
  bad("tokens", {}, 8, 2, int64_t{1} << 30);
  bad("routing", {WorkloadKind::kZipf, -1.0, {}}, 8, 2, 1);
  bad("routing", {WorkloadKind::kDirichlet, 0.0, {}}, 8, 2, 1);
  bad("routing", {WorkloadKind::kDdist, std::nan(""), {}}, 8, 2, 1);
}

// --- statistics ------------------------------------------------------------------------------------------
TEST(Describe, Formulas) {
  const std::vector<int32_t> h = {4, 0, 2, 2};
  const HistogramStats s = describe(h);
  EXPECT_EQ(s.experts, 4);
  EXPECT_EQ(s.rows, 8);
  EXPECT_EQ(s.active, 3);
  EXPECT_EQ(s.max_load, 4);
  EXPECT_DOUBLE_EQ(s.max_over_mean, 2.0);
  EXPECT_DOUBLE_EQ(s.imbalance, 1.5);              // 4 over 8 rows of three experts
  EXPECT_NEAR(s.normalised_entropy, 0.75, 1e-15);  // 1.5 bits of 2
}
TEST(Describe, Extremes) {
  const std::vector<int32_t> even(64, 7), one = {0, 5, 0}, empty(4, 0), single = {9}, single_empty = {0},
                                          none;
  EXPECT_NEAR(describe(even).normalised_entropy, 1.0, 1e-14);
  EXPECT_LE(describe(even).normalised_entropy, 1.0);
  EXPECT_DOUBLE_EQ(describe(even).max_over_mean, 1.0);
  EXPECT_EQ(describe(one).normalised_entropy, 0.0);
  EXPECT_DOUBLE_EQ(describe(one).max_over_mean, 3.0);
  EXPECT_EQ(describe(empty).normalised_entropy, 0.0);
  EXPECT_EQ(describe(empty).max_over_mean, 0.0);
  EXPECT_EQ(describe(single).normalised_entropy, 1.0);
  EXPECT_EQ(describe(single_empty).normalised_entropy, 0.0);
  EXPECT_EQ(describe(none).rows, 0);
  // T = 1 with top-8 of 64: ln 8 / ln 64 = 0.5.
  std::vector<int32_t> token(64, 0);
  std::fill_n(token.begin(), 8, 1);
  EXPECT_NEAR(describe(token).normalised_entropy, 0.5, 1e-15);
}
TEST(Describe, DoesNotOverflow) {
  const std::vector<int32_t> h(4, INT32_MAX);
  EXPECT_EQ(describe(h).rows, 4 * int64_t{INT32_MAX});
  EXPECT_DOUBLE_EQ(describe(h).max_over_mean, 1.0);
}

}  // namespace
}  // namespace ramp::test
