// The guard's semantics, the dispatcher's promises (no allocation, any number of threads), and the regret
// bars on the measured data through the dispatcher as users call it.
#include "dispatch/dispatcher.hpp"

#include <fmt/format.h>

#include <limits>
#include <thread>

#include "cost/evaluate.hpp"
#include "support.hpp"

namespace ramp::core {
namespace {

constexpr float kInf = std::numeric_limits<float>::infinity();

Guard guard_of(const Dataset& d, int32_t declared = -1) {
  return Guard(d, 0, select_points(d, 0, true), declared);
}

const std::vector<int32_t> kSmall = {1, 1, 1, 1, 1, 1, 1, 1};
const std::vector<int32_t> kLarge = {64, 64, 0, 0, 0, 0, 0, 0};

// Two token counts, two skews, four configs; timings by hand.
Dataset by_hand() {
  Dataset d;
  d.configs = toy_configs(4);
  d.models = {toy_model()};
  d.points = {point("t4_even", 4, kSmall, 0.0), point("t4_hot", 4, {4, 4, 0, 0, 0, 0, 0, 0}, 1.2),
              point("t64_even", 64, {16, 16, 16, 16, 16, 16, 16, 16}, 0.0),
              point("t64_hot", 64, kLarge, 1.2)};
  // Against config 0: 1 is never faster by more than 1.5% (noise); 2 by 25%, 3 by 2.6%, each at one point.
  d.us = {10,   11,   20, 30,  // default at 4 tokens: 0
          10,   9.85, 8,  30,  //
          40.5, 40,   41, 60,  // default at 64 tokens: 1
          40,   40,   45, 39};
  d.us_repeat.assign(d.us.size(), std::nan(""));
  return d;
}

TEST(Guard, DefaultsAreTheBalancedBestAtTheNearestTokenCount) {
  const Guard g = guard_of(by_hand());
  ASSERT_TRUE(g.active());
  ASSERT_EQ(g.defaults().size(), 2U);
  EXPECT_EQ(g.defaults()[0].tokens, 4);
  EXPECT_EQ(g.defaults()[0].config, 0);
  EXPECT_EQ(g.defaults()[1].tokens, 64);
  EXPECT_EQ(g.defaults()[1].config, 1);
  // sqrt(4*64) = 16 tokens = 32 rows still belong to the smaller.
  EXPECT_EQ(g.row(0), 0U);
  EXPECT_EQ(g.row(8), 0U);
  EXPECT_EQ(g.row(32), 0U);
  EXPECT_EQ(g.row(33), 1U);
  EXPECT_EQ(g.row(int64_t{1} << 40), 1U);
  EXPECT_DOUBLE_EQ(g.noise_margin(), kDefaultNoiseMargin);
}

// As evaluate.hpp's policy static_uniform has it, at every point of the measured data.
TEST(Guard, DefaultsAgreeWithTheStaticUniformPolicy) {
  const Dataset d = read_dataset(RAMP_SOURCE_DIR "/tests/data/alpha_moe_h200");
  for (size_t m = 0; m < d.models.size(); ++m) {
    const auto model = static_cast<int32_t>(m);
    const Guard g(d, model, select_points(d, model, true));
    const Chooser policy = make_policy(d, model, Policy::kStaticUniform);
    for (const size_t p : select_points(d, model, false)) {
      EXPECT_EQ(g.default_config(g.row(d.points[p].tokens * d.models[m].top_k)), policy(p))
          << d.points[p].name;
    }
  }
}

TEST(Guard, EvidenceIsTheBestMeasuredRatio) {
  const Guard g = guard_of(by_hand());
  EXPECT_EQ(g.evidence(0, 0), Evidence::kFaster);  // the default itself
  EXPECT_EQ(g.evidence(0, 1), Evidence::kTied);
  EXPECT_EQ(g.evidence(0, 2), Evidence::kFaster);
  EXPECT_EQ(g.evidence(0, 3), Evidence::kFaster);
  EXPECT_DOUBLE_EQ(g.best_speedup(0, 1), 10 / 9.85);
  EXPECT_DOUBLE_EQ(g.best_speedup(0, 2), 10.0 / 8);
  EXPECT_DOUBLE_EQ(g.best_speedup(0, 3), 40.0 / 39);
  EXPECT_EQ(g.evidence(1, 0), Evidence::kFaster);  // 11/10 at t4_even
  Dataset d = by_hand();
  for (size_t p = 0; p < 4; ++p) d.us[p * 4 + 1] = 1.03 * d.us[p * 4];  // always 3% slower than 0
  EXPECT_EQ(guard_of(d).evidence(0, 1), Evidence::kSlower);
  d.us[1] = 1.015 * d.us[0];
  EXPECT_EQ(guard_of(d).evidence(0, 1), Evidence::kTied);
}

TEST(Guard, FasterNeedsAPredictedGainTiedNeedsMoreThanTheMargin) {
  const Guard g = guard_of(by_hand());
  EXPECT_TRUE(g.allows(0, 2, 9.99F, 10.0F));
  EXPECT_FALSE(g.allows(0, 2, 10.0F, 10.0F));
  EXPECT_FALSE(g.allows(0, 1, 9.9F, 10.0F));
  EXPECT_TRUE(g.allows(0, 1, 9.7F, 10.0F));
  EXPECT_FALSE(Guard::keep(4, 2, 2).allows(0, 1, 1.0F, 10.0F));
}

TEST(Guard, ADeclaredDefaultRulesEverywhere) {
  const Guard g = guard_of(by_hand(), 3);
  ASSERT_EQ(g.defaults().size(), 1U);
  for (const int64_t rows : {0, 8, 1000}) EXPECT_EQ(g.default_config(g.row(rows)), 3U);
  EXPECT_EQ(g.evidence(0, 0), Evidence::kFaster);
  const Guard keep = Guard::keep(4, 2, 2);
  for (size_t c = 0; c < 4; ++c)
    EXPECT_EQ(keep.evidence(0, c), c == 2 ? Evidence::kFaster : Evidence::kSlower);
}

TEST(Guard, NoiseMarginComesFromRepeats) {
  Dataset d = by_hand();
  d.has_repeat = true;
  for (size_t i = 0; i < d.us.size(); ++i) d.us_repeat[i] = d.us[i] * 1.30;
  const Guard g = guard_of(d);
  EXPECT_NEAR(g.noise_margin(), 0.30, 1e-12);
  EXPECT_EQ(g.evidence(0, 2), Evidence::kTied);  // 25% is noise now
}

TEST(Guard, WithoutASkewColumnTheMostBalancedPointDecides) {
  Dataset d = by_hand();
  for (WorkPoint& p : d.points) p.zipf = std::nan("");
  std::swap(d.points[0], d.points[1]);  // the hot one first
  for (size_t c = 0; c < 4; ++c) std::swap(d.us[c], d.us[4 + c]);
  EXPECT_EQ(guard_of(d).defaults()[0].config, 0);
}

TEST(Guard, MissingTimings) {
  Dataset d = by_hand();
  for (size_t p = 0; p < 4; ++p) d.us[p * 4 + 2] = std::nan("");  // failed everywhere
  d.us[0] = std::nan("");                                         // 0 was not measured at t4_even
  const Guard g = guard_of(d);
  EXPECT_EQ(g.defaults()[0].config, 1);
  EXPECT_EQ(g.evidence(0, 2), Evidence::kSlower);
  EXPECT_EQ(g.best_speedup(0, 2), 0);
  d.us.assign(d.us.size(), std::nan(""));
  expect_has(error_of([&] { (void)guard_of(d); }, RAMP_ERROR_INVALID_ARGUMENT), {"no point with a timing"});
}

TEST(Guard, TestRowsAreNotRead) {
  Dataset d = by_hand();
  d.points[1].train = d.points[3].train = false;
  const nlohmann::json before = guard_of(d).to_json();
  for (size_t c = 0; c < 4; ++c) d.us[4 + c] = d.us[12 + c] = 1e6 / static_cast<double>(c + 1);
  EXPECT_EQ(guard_of(d).to_json(), before);
}

TEST(Dispatcher, TakesTheAllowedPredictionElseTheBestAllowedElseTheDefault) {
  const auto choose = [](std::vector<float> us, const std::vector<int32_t>& h) {
    const Dispatcher d(std::make_shared<ToyPredictor>(std::move(us)), guard_of(by_hand()));
    const Decision why = d.decide(h);
    EXPECT_EQ(why.config, d.choose(h));
    EXPECT_TRUE(why.guarded);
    EXPECT_EQ(why.overruled, why.config != why.predictor_choice);
    return d.choose(h);
  };
  EXPECT_EQ(choose({5, 6, 4, 9}, kSmall), 2U);             // shown faster and predicted fastest
  EXPECT_EQ(choose({5, 4.95F, 6, 9}, kSmall), 0U);         // tied: 1% is not enough
  EXPECT_EQ(choose({5, 4.95F, 4.97F, 9}, kSmall), 2U);     // ... for 1, but 2 was shown to be faster
  EXPECT_EQ(choose({5, 4.5F, 4.97F, 9}, kSmall), 1U);      // tied and predicted 10% faster
  EXPECT_EQ(choose({5, 4.95F, 5, 9}, kSmall), 0U);         // a tie of predictions is no reason to leave
  EXPECT_EQ(choose({5, 4.95F, kInf, 4.96F}, kSmall), 3U);  // barred by the predictor
  EXPECT_EQ(choose({5, 3, 6, 9}, kLarge), 1U);             // the default there
  // No guard: the predictor's word.
  const Dispatcher free(std::make_shared<ToyPredictor>(std::vector<float>{5, 3, 6, 9}));
  EXPECT_EQ(free.choose(kSmall), 1U);
  EXPECT_FALSE(free.decide(kSmall).guarded);
}

TEST(Dispatcher, RefusesScratchBeyondItsStack) {
  auto big = std::make_shared<ToyPredictor>(std::vector<float>{1, 2, 3, 4});
  big->scratch = Dispatcher::kMaxScratch;
  expect_has(error_of([&] { Dispatcher d(big); }, RAMP_ERROR_UNSUPPORTED), {"toy", "scratch"});
}

TEST(Dispatcher, FitsThePaperSizedTable) {
  Dataset d = synthetic_dataset(268);
  d.models[0].experts = 256;
  for (WorkPoint& p : d.points) p.histogram.resize(256);
  const Fit fit = fit_dataset(d, "wave", h200(), {});
  const Dispatcher dispatcher(fit.models[0]);
  EXPECT_LT(dispatcher.choose(d.points[0].histogram), 268U);
}

TEST(Dispatcher, DegenerateHistograms) {
  const Fit fit = fit_dataset(synthetic_dataset(), "wave", h200(), {});
  const Dispatcher d(fit.models[0]);
  const std::vector<std::vector<int32_t>> all = {
      {0, 0, 0, 0, 0, 0, 0, 0}, {INT32_MAX, 0, 0, 0, 0, 0, 0, 0}, std::vector<int32_t>(8, INT32_MAX)};
  for (const auto& h : all) {
    EXPECT_LT(d.choose(h), d.configs());
    std::vector<float> us(d.configs());
    d.predict(h, us);
    for (const float v : us) EXPECT_TRUE(std::isfinite(v) && v >= 0) << v;
  }
}

TEST(Dispatcher, NeitherAllocatesNorDiffersBetweenThreads) {
  const Dataset data = read_dataset(RAMP_SOURCE_DIR "/tests/data/alpha_moe_h200");
  for (const std::string_view model : cost_model_names()) {
    const Fit fit = fit_dataset(data, model, h200(), {});
    const Dispatcher d(fit.models[0]);
    const std::vector<size_t> points = select_points(data, 0, false);
    std::vector<size_t> expected;
    for (const size_t p : points) expected.push_back(d.decide(data.points[p].histogram).config);
    const size_t before = count_allocations();
    size_t wrong = 0;
    for (size_t i = 0; i < points.size(); ++i)
      wrong += d.choose(data.points[points[i]].histogram) != expected[i] ? 1U : 0U;
    EXPECT_EQ(count_allocations(), before) << model;
    EXPECT_EQ(wrong, 0U) << model;
    std::vector<std::thread> threads;
    std::vector<size_t> errors(4);
    for (size_t t = 0; t < errors.size(); ++t) {
      threads.emplace_back([&, t] {
        for (int round = 0; round < 20; ++round) {
          for (size_t i = 0; i < points.size(); ++i)
            errors[t] += d.choose(data.points[points[i]].histogram) != expected[i] ? 1U : 0U;
        }
      });
    }
    for (std::thread& t : threads) t.join();
    for (const size_t e : errors) EXPECT_EQ(e, 0U);
  }
}

// The bars of the part (mean <= 1.2% over the models, each <= 1.6%, no point above 12%), with the guard on.
TEST(Dispatcher, RegretBarsHoldThroughTheDispatcher) {
  const Dataset d = read_dataset(RAMP_SOURCE_DIR "/tests/data/alpha_moe_h200");
  const Fit fit = fit_dataset(d, kDefaultCostModel, h200(), {});
  double sum = 0;
  for (size_t m = 0; m < d.models.size(); ++m) {
    const Dispatcher dispatcher(fit.models[m]);
    const std::vector<size_t> test = select_points(d, static_cast<int32_t>(m), false);
    size_t overruled = 0;
    for (const size_t p : test) overruled += dispatcher.decide(d.points[p].histogram).overruled ? 1U : 0U;
    const RegretStats r = regret(d, test, [&](size_t p) { return dispatcher.choose(d.points[p].histogram); });
    const std::string line =
        fmt::format("{}: mean {:.3f}% max {:.2f}% at {}; guard overruled {} of {}", d.models[m].name,
                    100 * r.mean, 100 * r.max, d.points[r.worst_point].name, overruled, test.size());
    RecordProperty(d.models[m].name, line);
    EXPECT_LE(r.mean, 0.016) << line;
    EXPECT_LE(r.max, 0.12) << line;
    sum += r.mean;
  }
  EXPECT_LE(sum / static_cast<double>(d.models.size()), 0.012);
}

}  // namespace
}  // namespace ramp::core
