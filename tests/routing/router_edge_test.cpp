// Routers at the edges: ties, NaN and infinite logits, rows without any finite logit, k = E, one expert,
// large k, saturated and underflowing scores, empty batches, no allocation.
#include "routing/support.hpp"

size_t count_allocations();  // allocations.cpp

namespace ramp::test {
namespace {

using Rows = std::vector<std::vector<float>>;
Matrix matrix(const Rows& rows, ramp_dtype dtype = RAMP_F32) {
  Matrix m(dtype, static_cast<int64_t>(rows.size()), static_cast<int64_t>(rows[0].size()));
  for (size_t t = 0; t < rows.size(); ++t)
    for (size_t e = 0; e < rows[t].size(); ++e)
      m.set(static_cast<int64_t>(t), static_cast<int64_t>(e), rows[t][e]);
  return m;
}
std::vector<int64_t> ids_of(const Routed& r, int64_t t = 0) {
  std::vector<int64_t> ids;
  for (int64_t j = 0; j < r.ids.columns(); ++j) ids.push_back(r.ids.id(t, j));
  return ids;
}
std::vector<float> weights_of(const Routed& r, int64_t t = 0) {
  std::vector<float> w;
  for (int64_t j = 0; j < r.weights.columns(); ++j) w.push_back(r.weights.get(t, j));
  return w;
}
using Ids = std::vector<int64_t>;
using Weights = std::vector<float>;

const ramp_scoring kScorings[] = {RAMP_SCORING_SOFTMAX, RAMP_SCORING_TOPK_SOFTMAX, RAMP_SCORING_SIGMOID};

class RouterEdges : public testing::TestWithParam<std::tuple<ramp_scoring, bool>> {
 protected:
  static ramp_router_config router(int64_t top_k) {
    return make_router(std::get<0>(GetParam()), top_k, std::get<1>(GetParam()));
  }
  // Ids, and agreement with the oracle in everything.
  static void expect_ids(const ramp_router_config& r, const Matrix& logits, const Ids& expected) {
    const Routed got = route(r, logits);
    EXPECT_EQ(ids_of(got), expected);
    EXPECT_EQ(compare_with_oracle(r, logits, got).near_ties, 0);
    for (const float w : weights_of(got)) EXPECT_TRUE(std::isfinite(w) && w >= 0.0F) << w;
  }
};

TEST_P(RouterEdges, TiesGoToTheLowerId) {
  expect_ids(router(3), matrix({{1, 2, 2, 2, 1, 2, 0, 2}}), {1, 2, 3});
  expect_ids(router(6), matrix({{1, 2, 2, 2, 1, 2, 0, 2}}), {1, 2, 3, 5, 7, 0});
  expect_ids(router(4), matrix({{5, 5, 5, 5, 5, 5, 5, 5}}), {0, 1, 2, 3});
  expect_ids(router(2), matrix({{-1.0F, 0.0F, -0.0F, 0.0F}}), {1, 2});  // -0 and +0 tie
  expect_ids(router(2), matrix({{-1.0F, -0.0F, 0.0F, -0.0F}}), {1, 2});
}
TEST_P(RouterEdges, AllEqualLogitsShareEqually) {
  for (const float v : {0.0F, -3.0F, 88.0F, -120.0F}) {
    for (const ramp_dtype dtype : {RAMP_F32, RAMP_F16, RAMP_BF16}) {
      const Matrix logits = matrix({std::vector<float>(64, v)}, dtype);
      const Routed got = route(router(8), logits);
      EXPECT_EQ(ids_of(got), (Ids{0, 1, 2, 3, 4, 5, 6, 7}));
      for (const float w : weights_of(got)) EXPECT_EQ(w, got.weights.get(0, 0));
      compare_with_oracle(router(8), logits, got);
    }
  }
}
TEST_P(RouterEdges, NanSortsAfterEverything) {
  expect_ids(router(3), matrix({{kNan, -kInf, kNan, 1.0F, -kInf}}), {3, 1, 4});
  expect_ids(router(5), matrix({{kNan, -kInf, kNan, 1.0F, -kInf}}), {3, 1, 4, 0, 2});
  expect_ids(router(2), matrix({{-kNan, kNan, kNan, -1000.0F, kNan}}), {3, 0});
  const Routed got = route(router(2), matrix({{kNan, kNan, 7.0F}}));
  EXPECT_EQ(got.weights.get(0, 1), 0.0F);
  EXPECT_GT(got.weights.get(0, 0), 0.99F);
}
TEST_P(RouterEdges, NanInHalfTypes) {
  for (const ramp_dtype dtype : {RAMP_F16, RAMP_BF16})
    expect_ids(router(3), matrix({{kNan, 1.0F, kInf, 2.0F, -kInf}}, dtype), {2, 3, 1});
}
TEST_P(RouterEdges, PlusInfinitiesShareEqually) {
  const Matrix logits = matrix({{1.0F, kInf, 2.0F, kInf, kNan, 3.0F}});
  expect_ids(router(3), logits, {1, 3, 5});
  const Routed got = route(router(3), logits);
  if (std::get<0>(GetParam()) != RAMP_SCORING_SIGMOID) {
    EXPECT_EQ(weights_of(got), (Weights{0.5F, 0.5F, 0.0F}));
  } else {
    EXPECT_EQ(got.weights.get(0, 0), got.weights.get(0, 1));
  }
  // More of them than slots: a softmax over all experts counts those not chosen too.
  const Routed many = route(router(2), matrix({std::vector<float>(4, kInf)}));
  EXPECT_EQ(ids_of(many), (Ids{0, 1}));
  const bool over_all = std::get<0>(GetParam()) == RAMP_SCORING_SOFTMAX && !std::get<1>(GetParam());
  const bool alone = std::get<0>(GetParam()) == RAMP_SCORING_SIGMOID && !std::get<1>(GetParam());
  EXPECT_EQ(many.weights.get(0, 0), over_all ? 0.25F : alone ? 1.0F : 0.5F);
}
TEST_P(RouterEdges, RowsWithoutAnyLogitGetZeroWeights) {
  for (const float scale : {0.0F, 2.5F}) {
    ramp_router_config r = router(2);
    r.routed_scaling_factor = scale;
    for (const Rows& rows :
         {Rows{{kNan, kNan, kNan}}, Rows{{-kInf, -kInf, -kInf}}, Rows{{kNan, -kInf, kNan}}}) {
      const Matrix logits = matrix(rows);
      const Routed got = route(r, logits);
      EXPECT_EQ(weights_of(got), (Weights{0.0F, 0.0F}));
      compare_with_oracle(r, logits, got);
    }
  }
  expect_ids(router(2), matrix({{kNan, kNan, kNan}}), {0, 1});
  expect_ids(router(2), matrix({{kNan, -kInf, kNan}}), {1, 0});
}
TEST_P(RouterEdges, ANanRowDoesNotTouchItsNeighbours) {
  Matrix logits(RAMP_F32, 5, 16);
  fill_normal(logits, 2);
  const Routed clean = route(router(4), logits);
  for (int64_t e = 0; e < 16; ++e) logits.set(2, e, kNan);
  const Routed got = route(router(4), logits);
  for (const int64_t t : {0, 1, 3, 4}) {
    EXPECT_EQ(ids_of(got, t), ids_of(clean, t));
    EXPECT_EQ(weights_of(got, t), weights_of(clean, t));
  }
}
TEST_P(RouterEdges, AllExperts) {
  for (const int64_t experts : {1, 2, 6, 16, 64, 65, 100, 512}) {
    Matrix logits(RAMP_F32, 3, experts);
    fill_normal(logits, 3);
    const ramp_router_config r = router(experts);
    const Routed got = route(r, logits);
    EXPECT_EQ(compare_with_oracle(r, logits, got).near_ties, 0) << experts;
    double sum = 0.0;
    for (const float w : weights_of(got)) sum += w;
    if (std::get<0>(GetParam()) != RAMP_SCORING_SIGMOID || std::get<1>(GetParam())) {
      EXPECT_NEAR(sum, 1.0, (8.0 + static_cast<double>(experts) / 32) * kU * 2);
    }
  }
}
TEST_P(RouterEdges, LargeKUsesTheOtherSelection) {
  // 64 is the last k of the insertion, 65 the first of introselect; ties across the border.
  for (const int64_t k : {63, 64, 65, 128, 299}) {
    Matrix logits(RAMP_F32, 4, 300);
    for (int64_t t = 0; t < 4; ++t)
      for (int64_t e = 0; e < 300; ++e)
        logits.set(t, e, static_cast<float>(random_u64(31, static_cast<uint64_t>(t * 300 + e)) % 7));
    const ramp_router_config r = router(k);
    EXPECT_EQ(compare_with_oracle(r, logits, route(r, logits)).near_ties, 0) << k;
  }
}
TEST_P(RouterEdges, OneExpert) {
  for (const float v : {0.0F, 100.0F, -100.0F, kInf}) {
    const Matrix logits = matrix({{v}});
    const Routed got = route(router(1), logits);
    EXPECT_EQ(ids_of(got), Ids{0});
    compare_with_oracle(router(1), logits, got);
    if (std::get<0>(GetParam()) != RAMP_SCORING_SIGMOID || std::get<1>(GetParam())) {
      EXPECT_EQ(got.weights.get(0, 0), 1.0F);
    }
  }
}
TEST_P(RouterEdges, LargeAndTinyLogits) {
  for (const float spread : {1e-30F, 1e-8F, 1e-4F, 100.0F, 1e4F, 1e30F}) {
    Matrix logits(RAMP_F32, 32, 8);
    fill_normal(logits, 4, spread);
    const ramp_router_config r = router(2);
    const Routed got = route(r, logits);
    EXPECT_EQ(compare_with_oracle(r, logits, got).near_ties, 0) << spread;
    for (int64_t t = 0; t < 32; ++t)
      for (const float w : weights_of(got, t)) EXPECT_TRUE(std::isfinite(w) && w >= 0.0F);
  }
  expect_ids(router(2), matrix({{3e38F, -3e38F, 3.4e38F, 0.0F}}), {2, 0});
}
TEST_P(RouterEdges, NoTokens) {
  const Matrix logits(RAMP_F32, 0, 16);
  const Routed got = route(router(4), logits);
  EXPECT_EQ(got.ids.rows(), 0);
}
TEST_P(RouterEdges, NoAllocation) {
  Matrix logits(RAMP_BF16, 64, 256);
  fill_normal(logits, 5);
  std::vector<float> bias(256, 0.25F);
  ramp_router_config r = router(8);
  r.num_groups = 8;
  r.topk_groups = 4;
  r.group_score = RAMP_GROUP_SCORE_TOP2_SUM;
  r.selection_bias = make_tensor(bias.data(), RAMP_F32, {256});
  r = check_router(r, 256);
  Matrix ids(RAMP_I64, 64, 8), weights(RAMP_F32, 64, 8);
  std::vector<unsigned char> scratch(static_cast<size_t>(route_scratch_bytes(r, 256)));
  std::vector<int64_t> counts(256);
  const size_t before = count_allocations();
  route_tokens(r, logits.view(), ids.view(), weights.view(), 0, 64, scratch.data());
  apply_capacity(1, 256, ids.view(), weights.view(), counts);
  EXPECT_EQ(count_allocations(), before);
  EXPECT_GT(before, 0U);
}
INSTANTIATE_TEST_SUITE_P(Scorings, RouterEdges,
                         testing::Combine(testing::ValuesIn(kScorings), testing::Bool()));

TEST(RouterSelection, LogitsDecideWhereScoresSaturate) {
  // sigmoid(40) = sigmoid(50) = 1 and softmax terms below e^-104 are 0 in fp32; the logits still rank.
  const Matrix high = matrix({{40.0F, 60.0F, 50.0F, 45.0F}});
  EXPECT_EQ(ids_of(route(make_router(RAMP_SCORING_SIGMOID, 3), high)), (Ids{1, 2, 3}));
  const Matrix low = matrix({{0.0F, -300.0F, -200.0F, -250.0F}});
  EXPECT_EQ(ids_of(route(make_router(RAMP_SCORING_SOFTMAX, 3), low)), (Ids{0, 2, 3}));
  // Groups by their best logit, too.
  ramp_router_config r = make_router(RAMP_SCORING_SIGMOID, 1);
  r.num_groups = 2;
  r.topk_groups = 1;
  EXPECT_EQ(ids_of(route(r, high)), (Ids{1}));
  EXPECT_EQ(ids_of(route(r, matrix({{40.0F, 60.0F, 70.0F, 45.0F}}))), (Ids{2}));
}

TEST(RouterSelection, RenormalisedSigmoidsDoNotUnderflow) {
  for (const float offset : {-60.0F, -63.9F, -64.1F, -70.0F, -90.0F, -110.0F, -1000.0F}) {
    const Matrix logits = matrix({{offset, offset - 1, offset - 2, offset - 30, offset - 40}});
    const ramp_router_config r = make_router(RAMP_SCORING_SIGMOID, 3, true);
    const Routed got = route(r, logits);
    EXPECT_EQ(compare_with_oracle(r, logits, got).exact, 1);
    EXPECT_NEAR(got.weights.get(0, 0), 0.6652409557748219, 1e-5) << offset;  // 1/(1+e^-1+e^-2)
  }
}

TEST(RouterBias, SelectsButDoesNotWeigh) {
  const std::vector<float> bias = {0.0F, 0.0F, 1.0F, 0.0F};
  const Matrix logits = matrix({{2.0F, 1.0F, -1.0F, 0.0F}});
  ramp_router_config r = make_router(RAMP_SCORING_SIGMOID, 2, false);
  r.selection_bias = make_tensor(bias.data(), RAMP_F32, {4});
  const Routed got = route(r, logits);
  EXPECT_EQ(ids_of(got), (Ids{2, 0}));  // keys 1.27 and 0.88
  EXPECT_EQ(got.weights.get(0, 0), sigmoid_f32(-1.0F));
  EXPECT_EQ(got.weights.get(0, 1), sigmoid_f32(2.0F));
  compare_with_oracle(r, logits, got);
}
TEST(RouterBias, ZeroBiasChangesNothingThatRoundingDoesNot) {
  const std::vector<float> zero(64, 0.0F);
  Matrix logits(RAMP_BF16, 200, 64);
  fill_normal(logits, 6);
  for (const ramp_scoring scoring : kScorings) {
    ramp_router_config r = make_router(scoring, 8, true);
    const Routed plain = route(r, logits);
    r.selection_bias = make_tensor(zero.data(), RAMP_F32, {64});
    const Routed biased = route(r, logits);
    EXPECT_EQ(plain.ids.bytes(), biased.ids.bytes()) << scoring;
    EXPECT_EQ(plain.weights.bytes(), biased.weights.bytes()) << scoring;
  }
}
TEST(RouterBias, NanLogitsStayLastWhateverTheBias) {
  const std::vector<float> bias = {100.0F, 0.0F, 0.0F, -5.0F};
  for (const ramp_scoring scoring : kScorings) {
    ramp_router_config r = make_router(scoring, 3, true);
    r.selection_bias = make_tensor(bias.data(), RAMP_F32, {4});
    const Matrix logits = matrix({{kNan, 1.0F, 0.5F, 0.25F}});
    const Routed got = route(r, logits);
    EXPECT_EQ(ids_of(got), (Ids{1, 2, 3})) << scoring;
    compare_with_oracle(r, logits, got);
    const Matrix infinite = matrix({{kNan, -kInf, -kInf, kInf}});
    const Routed other = route(r, infinite);
    compare_with_oracle(r, infinite, other);
    for (const float w : weights_of(other)) EXPECT_TRUE(std::isfinite(w));
  }
}
TEST(RouterBias, InfiniteAndNanBias) {
  const std::vector<float> bias = {-kInf, kInf, kNan, 0.0F, 0.0F};
  for (const ramp_scoring scoring : kScorings) {
    ramp_router_config r = make_router(scoring, 4, true);
    r.selection_bias = make_tensor(bias.data(), RAMP_F32, {5});
    const Routed got = route(r, matrix({{9.0F, -9.0F, 9.0F, 1.0F, 2.0F}}));
    EXPECT_EQ(ids_of(got), (Ids{1, 4, 3, 0})) << scoring;  // NaN keys last
    for (const float w : weights_of(got)) EXPECT_TRUE(std::isfinite(w) && w >= 0.0F);
  }
}
TEST(RouterBias, StridedViewOfOneExpert) {
  const std::vector<float> bias = {0.5F};
  ramp_router_config r = make_router(RAMP_SCORING_SIGMOID, 1, true);
  r.selection_bias = make_tensor(bias.data(), RAMP_F32, {1});
  const Routed got = route(r, matrix({{3.0F}}));
  EXPECT_EQ(ids_of(got), Ids{0});
  EXPECT_EQ(got.weights.get(0, 0), 1.0F);
}

TEST(RouterGroups, TiesOfGroupsGoToTheLowerGroup) {
  ramp_router_config r = make_router(RAMP_SCORING_SOFTMAX, 2);
  r.num_groups = 4;
  r.topk_groups = 2;
  for (const int32_t score : {RAMP_GROUP_SCORE_MAX, RAMP_GROUP_SCORE_TOP2_SUM}) {
    r.group_score = score;
    EXPECT_EQ(ids_of(route(r, matrix({{1, 1, 2, 1, 2, 1, 1, 2}}))), (Ids{2, 4}));
    EXPECT_EQ(ids_of(route(r, matrix({{1, 1, 1, 1, 1, 1, 1, 1}}))), (Ids{0, 1}));
  }
}
TEST(RouterGroups, MaxAndTopTwoSumDiffer) {
  // Group 0 has the single best expert, group 1 the better pair.
  const Matrix logits = matrix({{3.0F, -9.0F, 2.0F, 2.0F}});
  ramp_router_config r = make_router(RAMP_SCORING_SIGMOID, 2);
  r.num_groups = 2;
  r.topk_groups = 1;
  r.group_score = RAMP_GROUP_SCORE_MAX;
  EXPECT_EQ(ids_of(route(r, logits)), (Ids{0, 1}));
  r.group_score = RAMP_GROUP_SCORE_TOP2_SUM;
  EXPECT_EQ(ids_of(route(r, logits)), (Ids{2, 3}));
}
TEST(RouterGroups, ExpertsOfDroppedGroupsAreNeverChosen) {
  ramp_router_config r = make_router(RAMP_SCORING_SIGMOID, 4);
  r.num_groups = 4;
  r.topk_groups = 1;
  // Group 2 wins; its members beat nobody outside it.
  EXPECT_EQ(ids_of(route(r, matrix({{5, 5, 5, 5, 5, 5, 5, 5, 6, -9, -8, -7, 5, 5, 5, 5}}))),
            (Ids{8, 11, 10, 9}));
}
TEST(RouterGroups, NanInGroups) {
  for (const int32_t score : {RAMP_GROUP_SCORE_MAX, RAMP_GROUP_SCORE_TOP2_SUM}) {
    for (const ramp_scoring scoring : kScorings) {
      ramp_router_config r = make_router(scoring, 2, true);
      r.num_groups = 3;
      r.topk_groups = 1;
      r.group_score = score;
      for (const Rows& rows :
           {Rows{{kNan, kNan, -kInf, kNan, kNan, -4.0F}}, Rows{{kNan, kNan, kNan, kNan, kNan, kNan}},
            Rows{{kNan, 1.0F, 0.9F, 0.8F, 0.7F, 0.6F}}, Rows{{kInf, -kInf, 5.0F, 5.0F, kNan, kInf}}}) {
        const Matrix logits = matrix(rows);
        const Routed got = route(r, logits);
        EXPECT_EQ(compare_with_oracle(r, logits, got).near_ties, 0);
        for (const float w : weights_of(got)) EXPECT_TRUE(std::isfinite(w) && w >= 0.0F);
      }
      EXPECT_EQ(ids_of(route(r, matrix({{kNan, kNan, kNan, kNan, kNan, -4.0F}}))), (Ids{5, 4}));
    }
  }
}

TEST(RouterShared, SlotsAfterTheRouted) {
  ramp_router_config r = make_router(RAMP_SCORING_SIGMOID, 2, true);
  r.num_shared_experts = 3;
  r.routed_scaling_factor = 2.5F;
  const Routed got = route(r, matrix({{0.0F, 1.0F, 1.0F, -1.0F}}), RAMP_I64);
  EXPECT_EQ(ids_of(got), (Ids{1, 2, 4, 5, 6}));
  EXPECT_EQ(weights_of(got), (Weights{1.25F, 1.25F, 1.0F, 1.0F, 1.0F}));
}

TEST(RouterOracle, ByHand) {
  // softmax(0, ln 3) = 1/4, 3/4.
  const std::vector<double> x = {0.0, std::log(3.0)};
  std::vector<int64_t> ids(2);
  std::vector<double> w(2);
  double gap = -1.0;
  route_token_f64(make_router(RAMP_SCORING_SOFTMAX, 2), x, ids, w, &gap);
  EXPECT_EQ(ids, (Ids{1, 0}));
  EXPECT_NEAR(w[0], 0.75, 1e-15);
  EXPECT_NEAR(w[1], 0.25, 1e-15);
  EXPECT_EQ(gap, std::numeric_limits<double>::infinity());
  route_token_f64(make_router(RAMP_SCORING_SOFTMAX, 1), x, ids, w, &gap);
  EXPECT_NEAR(w[0], 0.75, 1e-15);
  EXPECT_NEAR(gap, std::log(3.0), 1e-15);
  route_token_f64(make_router(RAMP_SCORING_TOPK_SOFTMAX, 1), x, ids, w, &gap);
  EXPECT_EQ(w[0], 1.0);
  route_token_f64(make_router(RAMP_SCORING_SIGMOID, 1), x, ids, w, &gap);
  EXPECT_NEAR(w[0], 0.75, 1e-15);
  const std::vector<double> tied = {1.0, 1.0};
  route_token_f64(make_router(RAMP_SCORING_SIGMOID, 1), tied, ids, w, &gap);
  EXPECT_EQ(ids[0], 0);
  EXPECT_EQ(gap, 0.0);
}

}  // namespace
}  // namespace ramp::test
