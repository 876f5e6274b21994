// apply_capacity: first come, first kept in (token, slot) order, counts conserved, the rest untouched.
#include "routing/support.hpp"

namespace ramp::test {
namespace {

class Capacity : public testing::TestWithParam<std::tuple<int64_t, ramp_dtype, Shape>> {};

TEST_P(Capacity, DropsInOrderAndConservesCounts) {
  const auto [capacity, id_type, shape] = GetParam();
  constexpr int64_t kTokens = 97;
  constexpr int64_t kShared = 1;
  ramp_router_config r = make_router(RAMP_SCORING_SOFTMAX, shape.top_k, true);
  r.num_shared_experts = kShared;
  Matrix logits(RAMP_F32, kTokens, shape.experts);
  fill_normal(logits, 1);
  for (int64_t t = 0; t < kTokens; ++t) logits.set(t, 0, logits.get(t, 0) + 1.0F);  // a hot expert
  Routed got = route(r, logits, id_type);
  const Routed before = got;
  std::vector<int64_t> counts(static_cast<size_t>(shape.experts), -7);
  apply_capacity(capacity, shape.experts, got.ids.view(), got.weights.view(), counts);
  EXPECT_TRUE(got.ids.padding_untouched());
  EXPECT_TRUE(got.weights.padding_untouched());

  std::vector<int64_t> seen(counts.size(), 0), kept(counts.size(), 0);
  for (int64_t t = 0; t < kTokens; ++t) {
    for (int64_t j = 0; j < shape.top_k + kShared; ++j) {
      const int64_t id = before.ids.id(t, j);
      const bool routed = id < shape.experts;
      const bool keep = !routed || seen[static_cast<size_t>(id)]++ < capacity;
      ASSERT_EQ(got.ids.id(t, j), keep ? id : -1) << "token " << t << " slot " << j;
      ASSERT_EQ(got.weights.get(t, j), keep ? before.weights.get(t, j) : 0.0F);
      if (routed && keep) ++kept[static_cast<size_t>(id)];
    }
  }
  EXPECT_EQ(counts, kept);
  for (size_t e = 0; e < counts.size(); ++e) EXPECT_EQ(counts[e], std::min(seen[e], capacity));
  // Applying it again changes nothing.
  const Routed once = got;
  apply_capacity(capacity, shape.experts, got.ids.view(), got.weights.view(), counts);
  EXPECT_EQ(got.ids.bytes(), once.ids.bytes());
  EXPECT_EQ(got.weights.bytes(), once.weights.bytes());
}
INSTANTIATE_TEST_SUITE_P(Grid, Capacity,
                         testing::Combine(testing::Values<int64_t>(1, 2, 5, 24, 97, int64_t{1} << 40),
                                          testing::Values(RAMP_I32, RAMP_I64),
                                          testing::Values(Shape{1, 1}, Shape{8, 2}, Shape{64, 8})));

TEST(Capacity, LeavesMaskedAndForeignIdsAlone) {
  Matrix ids(RAMP_I64, 2, 3), weights(RAMP_F32, 2, 3);
  const int64_t values[2][3] = {{-1, 0, int64_t{1} << 40}, {0, -5, 4}};
  for (int64_t t = 0; t < 2; ++t) {
    for (int64_t j = 0; j < 3; ++j) {
      ids.set_id(t, j, values[t][j]);
      weights.set(t, j, 0.5F);
    }
  }
  std::vector<int64_t> counts(4);
  apply_capacity(1, 4, ids.view(), weights.view(), counts);
  EXPECT_EQ(ids.id(0, 0), -1);
  EXPECT_EQ(ids.id(0, 1), 0);
  EXPECT_EQ(ids.id(0, 2), int64_t{1} << 40);
  EXPECT_EQ(ids.id(1, 0), -1);
  EXPECT_EQ(ids.id(1, 1), -5);
  EXPECT_EQ(ids.id(1, 2), 4);
  EXPECT_EQ(weights.get(0, 0), 0.5F);
  EXPECT_EQ(weights.get(1, 0), 0.0F);
  EXPECT_EQ(counts, (std::vector<int64_t>{1, 0, 0, 0}));
}
TEST(Capacity, ADuplicateIdCountsTwice) {
  Matrix ids(RAMP_I32, 1, 3), weights(RAMP_F32, 1, 3);
  for (int64_t j = 0; j < 3; ++j) {
    ids.set_id(0, j, 2);
    weights.set(0, j, 1.0F);
  }
  std::vector<int64_t> counts(4);
  apply_capacity(2, 4, ids.view(), weights.view(), counts);
  EXPECT_EQ(ids.id(0, 1), 2);
  EXPECT_EQ(ids.id(0, 2), -1);
}
TEST(Capacity, NoTokens) {
  const Matrix ids(RAMP_I32, 0, 2), weights(RAMP_F32, 0, 2);
  std::vector<int64_t> counts(4, 9);
  apply_capacity(1, 4, ids.view(), weights.view(), counts);
  EXPECT_EQ(counts, (std::vector<int64_t>(4, 0)));
}

}  // namespace
}  // namespace ramp::test
