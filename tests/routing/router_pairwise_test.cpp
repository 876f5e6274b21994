// Every router option against every other: scoring x renormalize x groups x bias x scaling as test cases;
// inside each, shared experts x logit type x id type x row padding x spread of the logits. The product is run
// in full (at a small number of tokens it is cheap), so it covers every pair and more.
#include "routing/support.hpp"

namespace ramp::test {
namespace {

struct Groups {
  const char* name;
  int32_t count, kept;
  ramp_group_score score;
};
void PrintTo(const Groups& g, std::ostream* os) {
  *os << g.name;
}
const Groups kGroups[] = {{"none", 0, 0, RAMP_GROUP_SCORE_MAX},
                          {"8to4max", 8, 4, RAMP_GROUP_SCORE_MAX},
                          {"8to4top2", 8, 4, RAMP_GROUP_SCORE_TOP2_SUM},
                          {"4to1max", 4, 1, RAMP_GROUP_SCORE_MAX},
                          {"64to9top2", 64, 9, RAMP_GROUP_SCORE_TOP2_SUM}};  // groups of one expert

using Options = std::tuple<ramp_scoring, bool, Groups, bool, float>;
class RouterOptions : public testing::TestWithParam<Options> {};

TEST_P(RouterOptions, MatchesOracle) {
  constexpr int64_t kTokens = 9;
  constexpr int64_t kExperts = 64;
  const auto& [scoring, renormalize, groups, with_bias, scaling] = GetParam();
  std::vector<float> bias(kExperts);
  for (size_t e = 0; e < bias.size(); ++e) bias[e] = 0.2F * static_cast<float>(random_normal(21, e));
  ramp_router_config r = make_router(scoring, 8, renormalize);
  r.num_groups = groups.count;
  r.topk_groups = groups.kept;
  r.group_score = groups.score;
  r.routed_scaling_factor = scaling;
  if (with_bias) r.selection_bias = make_tensor(bias.data(), RAMP_F32, {kExperts});
  uint64_t seed = 0;
  Comparison all;
  for (const int32_t shared : {0, 2}) {
    for (const ramp_dtype dtype : {RAMP_F32, RAMP_F16, RAMP_BF16}) {
      for (const ramp_dtype id_type : {RAMP_I32, RAMP_I64}) {
        for (const int64_t padding : {0, 5}) {
          for (const float spread : {1.0F, 20.0F}) {
            r.num_shared_experts = shared;
            Matrix logits(dtype, kTokens, kExperts, padding);
            fill_normal(logits, ++seed, spread);
            const Routed got = route(r, logits, id_type, padding);
            const Comparison c = compare_with_oracle(r, logits, got);
            if (spread == 1.0F) {  // wide logits saturate scores: ties of rounded keys are normal there
              all.exact += c.exact;
              all.near_ties += c.near_ties;
            }
            if (HasFailure()) return;
          }
        }
      }
    }
  }
  expect_mostly_exact(all);
}
INSTANTIATE_TEST_SUITE_P(Product, RouterOptions,
                         testing::Combine(testing::Values(RAMP_SCORING_SOFTMAX, RAMP_SCORING_TOPK_SOFTMAX,
                                                          RAMP_SCORING_SIGMOID),
                                          testing::Bool(), testing::ValuesIn(kGroups), testing::Bool(),
                                          testing::Values(0.0F, 2.5F)));

}  // namespace
}  // namespace ramp::test
