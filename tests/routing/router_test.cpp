// route_tokens against the fp64 oracle over shapes and token counts, for every scoring; real models' routers;
// and the properties that hold for every router: purity, independence of neighbours, bitwise repeatability.
#include "routing/support.hpp"

namespace ramp::test {
namespace {

struct Variant {
  const char* name;
  ramp_scoring scoring;
  bool renormalize, bias;
};
const Variant kVariants[] = {
    {"softmax", RAMP_SCORING_SOFTMAX, false, false},
    {"softmax_renorm", RAMP_SCORING_SOFTMAX, true, false},
    {"topk_softmax", RAMP_SCORING_TOPK_SOFTMAX, false, false},
    {"sigmoid", RAMP_SCORING_SIGMOID, false, false},
    {"sigmoid_bias", RAMP_SCORING_SIGMOID, true, true},
    {"softmax_bias", RAMP_SCORING_SOFTMAX, true, true},
};
const ramp_dtype kLogitTypes[] = {RAMP_F32, RAMP_F16, RAMP_BF16};

std::vector<float> random_bias(int64_t experts) {
  std::vector<float> bias(static_cast<size_t>(experts));
  for (size_t e = 0; e < bias.size(); ++e) bias[e] = 0.1F * static_cast<float>(random_normal(77, e));
  return bias;
}
ramp_router_config configure(const Variant& v, int64_t top_k, const std::vector<float>& bias) {
  ramp_router_config r = make_router(v.scoring, top_k, v.renormalize);
  if (v.bias) r.selection_bias = make_tensor(bias.data(), RAMP_F32, {static_cast<int64_t>(bias.size())});
  return r;
}

// Shapes x token counts in full; every case runs all variants, the types of logits and ids rotating.
class RouterGrid : public testing::TestWithParam<std::tuple<Shape, int64_t>> {};

TEST_P(RouterGrid, MatchesOracle) {
  const auto [shape, tokens] = GetParam();
  const std::vector<float> bias = random_bias(shape.experts);
  auto turn = static_cast<size_t>(shape.experts + tokens);
  for (const Variant& v : kVariants) {
    SCOPED_TRACE(v.name);
    ++turn;
    Matrix logits(kLogitTypes[turn % 3], tokens, shape.experts, static_cast<int64_t>(turn % 4));
    fill_normal(logits, turn);
    const ramp_router_config r = configure(v, shape.top_k, bias);
    const Routed got = route(r, logits, turn % 2 == 0 ? RAMP_I32 : RAMP_I64);
    expect_mostly_exact(compare_with_oracle(r, logits, got));
    if (HasFailure()) return;
  }
}
INSTANTIATE_TEST_SUITE_P(Shapes, RouterGrid,
                         testing::Combine(testing::ValuesIn(shapes()), testing::ValuesIn(token_counts())),
                         grid_name);

// Logits as they come from hidden states [T,hidden] and a router weight [E,hidden] of f16 normals: wide
// (sigma = sqrt(hidden)), rounded to f16, so with ties.
class RouterFromHiddenStates : public testing::TestWithParam<std::tuple<int64_t, Shape, ramp_scoring>> {};

TEST_P(RouterFromHiddenStates, MatchesOracle) {
  const auto [tokens, shape, scoring] = GetParam();
  constexpr int64_t kHidden = 256;
  Matrix x(RAMP_F16, tokens, kHidden), w(RAMP_F16, shape.experts, kHidden);
  fill_normal(x, 1);
  fill_normal(w, 2);
  std::vector<float> xs, ws;
  for (int64_t t = 0; t < tokens; ++t)
    for (int64_t h = 0; h < kHidden; ++h) xs.push_back(x.get(t, h));
  for (int64_t e = 0; e < shape.experts; ++e)
    for (int64_t h = 0; h < kHidden; ++h) ws.push_back(w.get(e, h));
  Matrix logits(RAMP_F16, tokens, shape.experts);
  for (int64_t t = 0; t < tokens; ++t) {
    for (int64_t e = 0; e < shape.experts; ++e) {
      float dot = 0.0F;
      for (int64_t h = 0; h < kHidden; ++h)
        dot += xs[static_cast<size_t>(t * kHidden + h)] * ws[static_cast<size_t>(e * kHidden + h)];
      logits.set(t, e, dot);
    }
  }
  for (const bool renormalize : {false, true}) {
    const ramp_router_config r = make_router(scoring, shape.top_k, renormalize);
    const Routed got = route(r, logits, RAMP_I64);
    const Comparison c = compare_with_oracle(r, logits, got);
    EXPECT_EQ(c.near_ties, 0);
    for (int64_t t = 0; t < tokens; ++t) {
      double sum = 0.0;
      for (int64_t j = 0; j < shape.top_k; ++j) {
        EXPECT_GE(got.weights.get(t, j), 0.0F);
        sum += got.weights.get(t, j);
      }
      EXPECT_GT(got.weights.get(t, 0), 0.0F);
      if (renormalize) {
        EXPECT_NEAR(sum, 1.0, 8 * kU * static_cast<double>(shape.top_k));
      } else if (scoring == RAMP_SCORING_SOFTMAX) {
        EXPECT_LE(sum, 1.0 + 8 * kU * static_cast<double>(shape.top_k));
      }
    }
  }
}
INSTANTIATE_TEST_SUITE_P(Models, RouterFromHiddenStates,
                         testing::Combine(testing::Values<int64_t>(1, 32, 64, 128, 256, 512),
                                          testing::Values(Shape{8, 2}, Shape{64, 4}, Shape{256, 8}),
                                          testing::Values(RAMP_SCORING_SOFTMAX, RAMP_SCORING_SIGMOID)));

// The routers of real models, by their published configs.
struct Model {
  const char* name;
  Shape shape;
  Variant router;
  int32_t groups, kept;
  ramp_group_score group_score;
  float scale;
  int32_t shared;
};
void PrintTo(const Model& m, std::ostream* os) {
  *os << m.name;
}
class RouterModels : public testing::TestWithParam<std::tuple<Model, int64_t>> {};

TEST_P(RouterModels, MatchesOracle) {
  const auto& [m, tokens] = GetParam();
  const std::vector<float> bias = random_bias(m.shape.experts);
  ramp_router_config r = configure(m.router, m.shape.top_k, bias);
  r.num_groups = m.groups;
  r.topk_groups = m.kept;
  r.group_score = m.group_score;
  r.routed_scaling_factor = m.scale;
  r.num_shared_experts = m.shared;
  for (const ramp_dtype dtype : kLogitTypes) {
    Matrix logits(dtype, tokens, m.shape.experts);
    fill_normal(logits, 5, 2.0F);
    expect_mostly_exact(compare_with_oracle(r, logits, route(r, logits)));
  }
}
INSTANTIATE_TEST_SUITE_P(
    Published, RouterModels,
    testing::Combine(
        testing::Values(
            Model{"mixtral_8x7b", {8, 2}, kVariants[1], 0, 0, RAMP_GROUP_SCORE_MAX, 0, 0},
            Model{"mixtral_8x22b", {8, 2}, kVariants[1], 0, 0, RAMP_GROUP_SCORE_MAX, 0, 0},
            Model{"olmoe", {64, 8}, kVariants[0], 0, 0, RAMP_GROUP_SCORE_MAX, 0, 0},
            Model{"qwen2_57b", {64, 8}, kVariants[0], 0, 0, RAMP_GROUP_SCORE_MAX, 0, 1},
            Model{"qwen2_moe_top4", {64, 4}, kVariants[0], 0, 0, RAMP_GROUP_SCORE_MAX, 0, 0},
            Model{"qwen3_30b", {128, 8}, kVariants[1], 0, 0, RAMP_GROUP_SCORE_MAX, 0, 0},
            Model{"gpt_oss_120b", {128, 4}, kVariants[2], 0, 0, RAMP_GROUP_SCORE_MAX, 0, 0},
            Model{"deepseek_v2", {160, 6}, kVariants[0], 8, 3, RAMP_GROUP_SCORE_MAX, 16.0F, 2},
            Model{"deepseek_v3", {256, 8}, kVariants[4], 8, 4, RAMP_GROUP_SCORE_TOP2_SUM, 2.5F, 1},
            Model{"kimi_k2", {384, 8}, kVariants[4], 1, 1, RAMP_GROUP_SCORE_TOP2_SUM, 2.827F, 1},
            Model{"glm_4_5_air", {128, 8}, kVariants[4], 1, 1, RAMP_GROUP_SCORE_TOP2_SUM, 1.0F, 1}),
        testing::Values<int64_t>(1, 32, 128, 1024)));

// What holds for every variant.
class RouterProperties : public testing::TestWithParam<std::tuple<size_t, Shape>> {
 protected:
  RouterProperties() : bias_(random_bias(std::get<1>(GetParam()).experts)) {
    const auto& [variant, shape] = GetParam();
    router_ = configure(kVariants[variant], shape.top_k, bias_);
    experts_ = shape.experts;
  }
  std::vector<float> bias_;
  ramp_router_config router_{};
  int64_t experts_ = 0;
};

TEST_P(RouterProperties, PermutingTokensPermutesOutputs) {
  constexpr int64_t kTokens = 61;
  Matrix logits(RAMP_BF16, kTokens, experts_), shuffled(RAMP_BF16, kTokens, experts_);
  fill_normal(logits, 3);
  const auto source = [](int64_t t) { return (t * 17 + 5) % kTokens; };
  for (int64_t t = 0; t < kTokens; ++t)
    for (int64_t e = 0; e < experts_; ++e) shuffled.set(t, e, logits.get(source(t), e));
  const Routed a = route(router_, logits);
  const Routed b = route(router_, shuffled);
  for (int64_t t = 0; t < kTokens; ++t) {
    for (int64_t j = 0; j < router_.top_k; ++j) {
      ASSERT_EQ(b.ids.id(t, j), a.ids.id(source(t), j));
      ASSERT_EQ(b.weights.get(t, j), a.weights.get(source(t), j));
    }
  }
}

TEST_P(RouterProperties, ChunksAndRepeatsGiveTheSameBits) {
  constexpr int64_t kTokens = 45;
  Matrix logits(RAMP_F32, kTokens, experts_, 1);
  fill_normal(logits, 4);
  const ramp_router_config r = check_router(router_, experts_);
  const Routed whole = route(router_, logits);
  const Routed again = route(router_, logits);
  EXPECT_EQ(whole.ids.bytes(), again.ids.bytes());
  EXPECT_EQ(whole.weights.bytes(), again.weights.bytes());
  // In chunks, each with scratch of other content; tokens outside a chunk are not written.
  Routed parts{Matrix(RAMP_I32, kTokens, r.top_k, 3), Matrix(RAMP_F32, kTokens, r.top_k, 3)};
  const int64_t bounds[] = {0, 1, 8, 8, 40, kTokens};
  for (size_t i = 0; i + 1 < std::size(bounds); ++i) {
    std::vector<unsigned char> scratch(static_cast<size_t>(route_scratch_bytes(r, experts_)),
                                       static_cast<unsigned char>(i * 40));
    const std::vector<std::byte> before = parts.ids.bytes();
    route_tokens(r, logits.view(), parts.ids.view(), parts.weights.view(), bounds[i], bounds[i + 1],
                 scratch.data());
    const auto row = static_cast<size_t>((r.top_k + 3) * 4);
    for (size_t b = static_cast<size_t>(bounds[i + 1]) * row; b < before.size(); ++b)
      ASSERT_EQ(parts.ids.bytes()[b], before[b]) << "written beyond the chunk";
  }
  EXPECT_EQ(parts.ids.bytes(), whole.ids.bytes());
  EXPECT_EQ(parts.weights.bytes(), whole.weights.bytes());
}

TEST_P(RouterProperties, WeightsFallAndSumAsDocumented) {
  Matrix logits(RAMP_F32, 50, experts_);
  fill_normal(logits, 6);
  const Routed got = route(router_, logits);
  const bool sums_to_one = router_.renormalize == 1 || router_.scoring == RAMP_SCORING_TOPK_SOFTMAX;
  for (int64_t t = 0; t < 50; ++t) {
    double sum = 0.0;
    for (int64_t j = 0; j < router_.top_k; ++j) {
      const float w = got.weights.get(t, j);
      EXPECT_GT(w, 0.0F);
      EXPECT_LE(w, 1.0F);
      sum += w;
      // Without a bias the order of the slots is the order of the weights.
      if (j > 0 && !present(router_.selection_bias)) {
        EXPECT_LE(w, got.weights.get(t, j - 1));
      }
    }
    // Each weight is a rounded quotient by a rounded sum (depth 6 for k <= 32).
    if (sums_to_one) {
      EXPECT_NEAR(sum, 1.0, 8 * kU);
    }
    if (router_.scoring == RAMP_SCORING_SOFTMAX) {
      EXPECT_LE(sum, 1.0 + 32 * kU);
    }
  }
}

INSTANTIATE_TEST_SUITE_P(Variants, RouterProperties,
                         testing::Combine(testing::Range<size_t>(0, std::size(kVariants)),
                                          testing::Values(Shape{1, 1}, Shape{8, 2}, Shape{60, 4},
                                                          Shape{256, 8})));

TEST(RouterProperties, RenormalisedSoftmaxIsTopKSoftmax) {
  Matrix logits(RAMP_F32, 100, 128);
  fill_normal(logits, 8, 3.0F);
  const Routed a = route(make_router(RAMP_SCORING_SOFTMAX, 8, true), logits);
  const Routed b = route(make_router(RAMP_SCORING_TOPK_SOFTMAX, 8, false), logits);
  const Routed c = route(make_router(RAMP_SCORING_TOPK_SOFTMAX, 8, true), logits);
  EXPECT_EQ(a.ids.bytes(), b.ids.bytes());
  EXPECT_EQ(a.weights.bytes(), b.weights.bytes());
  EXPECT_EQ(b.weights.bytes(), c.weights.bytes());
}

TEST(RouterProperties, TypesOfLogitsAndIdsDoNotMatter) {
  // Values that f16, bf16 and f32 all hold exactly give the same bits everywhere.
  Matrix f32(RAMP_F32, 40, 64), f16(RAMP_F16, 40, 64), bf16(RAMP_BF16, 40, 64);
  for (int64_t t = 0; t < 40; ++t) {
    for (int64_t e = 0; e < 64; ++e) {
      const float v =
          static_cast<float>(random_u64(9, static_cast<uint64_t>(t * 64 + e)) % 128) / 16.0F - 4.0F;
      for (Matrix* m : {&f32, &f16, &bf16}) m->set(t, e, v);
    }
  }
  for (const Variant& v : kVariants) {
    const std::vector<float> bias = random_bias(64);
    const ramp_router_config r = configure(v, 6, bias);
    const Routed a = route(r, f32);
    for (const Matrix* m : {&f16, &bf16}) {
      const Routed b = route(r, *m, RAMP_I64);
      EXPECT_EQ(a.weights.bytes(), b.weights.bytes()) << v.name;
      for (int64_t t = 0; t < 40; ++t)
        for (int64_t j = 0; j < 6; ++j) ASSERT_EQ(a.ids.id(t, j), b.ids.id(t, j)) << v.name;
    }
  }
}

}  // namespace
}  // namespace ramp::test
