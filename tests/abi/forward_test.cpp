// The fused forward is the same, bit for bit, as routing and then running the expert block on one backend:
// with every kind of router, with logits given or computed, an expert map, a capacity, shared experts and
// optional outputs; and the workspace query covers every router.
#include <algorithm>

#include "abi/support.hpp"

namespace abi_test {
namespace {

constexpr int64_t kT = 9, kE = 8, kH = 64, kI = 96, kK = 3;

struct RouterCase {
  const char* name;
  std::function<void(ramp_router_config&)> set;
  bool bias;
  int64_t shared;
};

std::vector<RouterCase> routers() {
  return {
      {"Softmax", [](auto&) {}, false, 0},
      {"Renormalised", [](auto& r) { r.renormalize = 1; }, false, 0},
      {"TopkSoftmax", [](auto& r) { r.scoring = RAMP_SCORING_TOPK_SOFTMAX; }, false, 0},
      {"SigmoidBiasScaled",
       [](auto& r) {
         r.scoring = RAMP_SCORING_SIGMOID;
         r.renormalize = 1;
         r.routed_scaling_factor = 2.5F;
       },
       true, 0},
      {"GroupsMax",
       [](auto& r) {
         r.num_groups = 4;
         r.topk_groups = 2;
       },
       false, 0},
      {"GroupsTop2Sum",
       [](auto& r) {
         r.scoring = RAMP_SCORING_SIGMOID;
         r.num_groups = 2;
         r.topk_groups = 1;
         r.group_score = RAMP_GROUP_SCORE_TOP2_SUM;
       },
       true, 0},
      {"Shared", [](auto& r) { r.num_shared_experts = 2; }, false, 2},
      {"Capacity", [](auto& r) { r.capacity = 2; }, false, 0},
      {"CapacityShared",
       [](auto& r) {
         r.capacity = 1;
         r.num_shared_experts = 1;
       },
       false, 1},
  };
}

struct World {
  int64_t slots;
  Context context;
  Model model;
  Weights weights;
  Array x{RAMP_BF16, {kT, kH}}, gate{RAMP_F32, {kE, kH}}, logits{RAMP_F32, {kT, kE}}, bias{RAMP_F32, {kE}};
  ramp_router_config router = ramp_router_config_init();

  World(ramp_backend backend, const RouterCase& c)
      : slots(kK + c.shared),
        context(make_context(backend)),
        model(RAMP_FORMAT_FP8_BLOCK, RAMP_ACTIVATION_SILU_AND_MUL, kE + c.shared, kH, kI, 31),
        weights(make_weights(context, model.desc(), true)) {
    // The gate's products are exact (small multiples of 1/8), so that logits are the same however they are
    // summed.
    for (int64_t i = 0; i < x.size(); ++i)
      x.set(i, static_cast<float>(std::round(8 * normal(1, static_cast<uint64_t>(i))) / 8));
    for (int64_t i = 0; i < gate.size(); ++i)
      gate.set(i, static_cast<float>(std::round(4 * normal(2, static_cast<uint64_t>(i))) / 32));
    for (int64_t t = 0; t < kT; ++t) {
      for (int64_t e = 0; e < kE; ++e) {
        double sum = 0;
        for (int64_t h = 0; h < kH; ++h) sum += static_cast<double>(x.get(t * kH + h)) * gate.get(e * kH + h);
        logits.set(t * kE + e, static_cast<float>(sum));
      }
    }
    for (int64_t i = 0; i < kE; ++i) bias.set(i, static_cast<float>(normal(4, static_cast<uint64_t>(i)) / 4));
    router.top_k = kK;
    c.set(router);
    if (c.bias) router.selection_bias = bias.view();
  }
};

class Forward : public testing::TestWithParam<std::tuple<ramp_backend, size_t>> {};

TEST_P(Forward, EqualsRouteThenBlock) {
  const auto [backend, index] = GetParam();
  World w(backend, routers()[index]);
  const Array addend = [] {
    Array a(RAMP_F16, {kT, kH});
    for (int64_t i = 0; i < a.size(); ++i) a.set(i, static_cast<float>(normal(9, static_cast<uint64_t>(i))));
    return a;
  }();
  // A permutation with one expert left out, where there is a map.
  Array map(RAMP_I32, {kE + w.router.num_shared_experts});
  for (int64_t e = 0; e < map.size(); ++e) map.set_int(e, e == 2 ? -1 : map.size() - 1 - e);

  for (const bool with_map : {false, true}) {
    for (const bool on_input : {false, true}) {
      // In two steps.
      Array ids(RAMP_I32, {kT, w.slots});
      Array weights(RAMP_F32, {kT, w.slots});
      const ramp_tensor l = w.logits.view();
      const ramp_tensor i = ids.view();
      const ramp_tensor p = weights.view();
      ASSERT_EQ(ramp_route(w.context.get(), &w.router, &l, &i, &p, nullptr), RAMP_OK) << ramp_last_error();
      Array want(RAMP_BF16, {kT, kH});
      Array want_counters(RAMP_I64, {2});
      ramp_expert_block_args b = ramp_expert_block_args_init();
      b.weights = w.weights.get();
      b.router_weight_on_input = on_input ? 1 : 0;
      b.x = w.x.view();
      b.topk_ids = i;
      b.topk_weights = p;
      b.shared_addend = addend.view();
      b.expert_map = with_map ? map.view() : ramp_tensor{};
      b.y = want.view();
      b.counters = want_counters.view();
      ASSERT_EQ(ramp_expert_block(w.context.get(), &b, nullptr, 0, nullptr), RAMP_OK) << ramp_last_error();

      // In one: logits given or computed, routing returned or not.
      for (const int variant : {0, 1, 2, 3}) {
        SCOPED_TRACE(testing::Message()
                     << "map " << with_map << " on_input " << on_input << " variant " << variant);
        Array y(RAMP_BF16, {kT, kH});
        Array counters(RAMP_I64, {2});
        Array ids_out(variant == 2 ? RAMP_I64 : RAMP_I32, {kT, w.slots});
        Array weights_out(RAMP_F32, {kT, w.slots});
        ramp_moe_forward_args a = ramp_moe_forward_args_init();
        a.weights = w.weights.get();
        a.router_weight_on_input = on_input ? 1 : 0;
        a.router = w.router;
        a.x = w.x.view();
        (variant % 2 == 0 ? a.router_logits : a.router_weight) =
            variant % 2 == 0 ? w.logits.view() : w.gate.view();
        a.shared_addend = addend.view();
        a.expert_map = with_map ? map.view() : ramp_tensor{};
        a.y = y.view();
        a.counters = counters.view();
        if (variant >= 2) {
          a.topk_ids_out = ids_out.view();
          a.topk_weights_out = weights_out.view();
        }
        uint64_t bytes = 0;
        ASSERT_EQ(ramp_moe_forward_workspace(w.context.get(), w.weights.get(), kT, w.slots, kE, &bytes),
                  RAMP_OK);
        const Scratch scratch(bytes + 512);
        auto* guard = static_cast<std::byte*>(scratch.data()) + bytes;
        std::memset(guard, 0x5a, 512);
        // The variants with the routing returned use the context's workspace.
        ASSERT_EQ(ramp_moe_forward(w.context.get(), &a, variant < 2 && bytes > 0 ? scratch.data() : nullptr,
                                   variant < 2 ? bytes : 0, nullptr),
                  RAMP_OK)
            << ramp_last_error();
        for (int n = 0; n < 512; ++n) ASSERT_EQ(guard[n], std::byte{0x5a}) << "written past the workspace";
        EXPECT_EQ(y.bytes, want.bytes);
        EXPECT_EQ(counters.bytes, want_counters.bytes);
        if (variant < 2) continue;
        for (int64_t n = 0; n < ids.size(); ++n) ASSERT_EQ(ids_out.get_int(n), ids.get_int(n)) << n;
        EXPECT_EQ(weights_out.bytes, weights.bytes);
      }
    }
  }
}

INSTANTIATE_TEST_SUITE_P(Routers, Forward,
                         testing::Combine(testing::Values(RAMP_BACKEND_REFERENCE, RAMP_BACKEND_CPU),
                                          testing::Range(size_t{0}, routers().size())),
                         [](const auto& info) {
                           return std::string(backend_name(std::get<0>(info.param))) + "_" +
                                  routers()[std::get<1>(info.param)].name;
                         });

// Every expert, including the shared ones, is used with the weight that the header promises.
TEST(ForwardMeaning, SharedExpertsGetWeightOneAndAreExemptFromCapacity) {
  const Context context = make_context(RAMP_BACKEND_CPU);
  const Model m(RAMP_FORMAT_F32, RAMP_ACTIVATION_RELU2, 3, 32, 32, 5, true);  // 2 routed, 1 shared
  const Weights weights = make_weights(context, m.desc());
  Call c(m, weights.get(), 4, 2, 3, true);
  Array logits(RAMP_F32, {4, 2});
  for (int64_t t = 0; t < 4; ++t) {
    logits.set(2 * t, 1.0F);
    logits.set(2 * t + 1, 1.0F);  // a tie: expert 0, weight 1/2
  }
  ramp_moe_forward_args a = ramp_moe_forward_args_init();
  a.weights = weights.get();
  a.router.top_k = 1;
  a.router.num_shared_experts = 1;
  a.router.capacity = 2;  // tokens 2 and 3 lose their routed expert
  a.x = c.x.view();
  a.router_logits = logits.view();
  a.y = c.y.view();
  ASSERT_EQ(ramp_moe_forward(context.get(), &a, nullptr, 0, nullptr), RAMP_OK) << ramp_last_error();
  for (int64_t t = 0; t < 4; ++t) {
    c.ids.set_int(2 * t, t < 2 ? 0 : -1);
    c.weights.set(2 * t, 0.5F);
    c.ids.set_int(2 * t + 1, 2);
    c.weights.set(2 * t + 1, 1.0F);
  }
  expect_equal(c.y, exact_combined(m, c));
}

TEST(ForwardMeaning, NoTokens) {
  const Context context = make_context(RAMP_BACKEND_CPU);
  const Model m(RAMP_FORMAT_F32, RAMP_ACTIVATION_RELU2, 3, 32, 32, 5, true);
  const Weights weights = make_weights(context, m.desc());
  ramp_moe_forward_args a = ramp_moe_forward_args_init();
  a.weights = weights.get();
  a.router.top_k = 1;
  a.x = a.y = view(nullptr, RAMP_F32, {0, 32});
  a.router_logits = view(nullptr, RAMP_F32, {0, 3});
  EXPECT_EQ(ramp_moe_forward(context.get(), &a, nullptr, 0, nullptr), RAMP_OK) << ramp_last_error();
}

TEST(ForwardWorkspace, QueryRefusesImpossibleSizes) {
  const Context context = make_context(RAMP_BACKEND_CPU);
  const Model m(RAMP_FORMAT_F32, RAMP_ACTIVATION_RELU2, 3, 32, 32, 5, true);
  const Weights weights = make_weights(context, m.desc());
  uint64_t bytes = 77;
  const auto ask = [&](int64_t tokens, int64_t slots, int64_t logits) {
    return ramp_moe_forward_workspace(context.get(), weights.get(), tokens, slots, logits, &bytes);
  };
  constexpr ramp_status kInvalid = RAMP_ERROR_INVALID_ARGUMENT;
  expect_error(ask(-1, 2, 3), kInvalid, {"max_tokens"});
  expect_error(ask(4, 0, 3), kInvalid, {"slots"});
  expect_error(ask(4, 2, 0), kInvalid, {"num_logits"});
  expect_error(ask(int64_t{1} << 30, 2, 3), kInvalid, {"max_tokens * slots"});
  EXPECT_EQ(bytes, 77U);
  EXPECT_EQ(ask(0, 2, 3), RAMP_OK);
  EXPECT_EQ(bytes, 0U);
  uint64_t previous = 0;
  for (const int64_t t : {1, 2, 7, 64, 500}) {
    ASSERT_EQ(ask(t, 2, 3), RAMP_OK);
    EXPECT_GE(bytes, previous);
    previous = bytes;
  }
}

}  // namespace
}  // namespace abi_test
