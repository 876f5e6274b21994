// Routing and the fused forward: wrong arguments, and agreement of the pieces with the whole. What routers
// compute is the routing tests' subject; here it is that the ABI passes everything through.
#include <algorithm>

#include "abi/support.hpp"

namespace abi_test {
namespace {

constexpr ramp_status kInvalid = RAMP_ERROR_INVALID_ARGUMENT;

// ---------------------------------------------------------------- ramp_route

struct RouteWorld {
  static constexpr int64_t kTokens = 5, kExperts = 8;
  Context context = make_context(RAMP_BACKEND_CPU);
  Array logits{RAMP_F32, {kTokens, kExperts}}, bias{RAMP_F32, {kExperts}};
  Array ids{RAMP_I32, {kTokens, 3}}, weights{RAMP_F32, {kTokens, 3}};
  ramp_router_config router = ramp_router_config_init();
  ramp_tensor l, i, w;
  void* stream = nullptr;
  RouteWorld() {
    for (int64_t n = 0; n < logits.size(); ++n)
      logits.set(n, static_cast<float>(normal(4, static_cast<uint64_t>(n))));
    for (int64_t n = 0; n < kExperts; ++n) bias.set(n, static_cast<float>(n));
    router.top_k = 3;
    l = logits.view();
    i = ids.view();
    w = weights.view();
  }
  ramp_status run() { return ramp_route(context.get(), &router, &l, &i, &w, stream); }
};

struct BadRoute {
  const char* name;
  std::function<void(RouteWorld&)> spoil;
  ramp_status status;
  std::vector<std::string> message;
};

std::vector<BadRoute> bad_routes() {
  using W = RouteWorld;
  return {
      {"Scoring", [](W& w) { w.router.scoring = 3; }, kInvalid, {"scoring", "3"}},
      {"TopKZero", [](W& w) { w.router.top_k = 0; }, kInvalid, {"top_k", "0"}},
      {"TopKNegative", [](W& w) { w.router.top_k = -1; }, kInvalid, {"top_k"}},
      {"TopKAboveExperts", [](W& w) { w.router.top_k = 9; }, kInvalid, {"top_k", "9", "8"}},
      {"Renormalize", [](W& w) { w.router.renormalize = 2; }, kInvalid, {"renormalize"}},
      {"GroupsDoNotDivide",
       [](W& w) {
         w.router.num_groups = 3;
         w.router.topk_groups = 1;
       },
       kInvalid,
       {"num_groups", "3"}},
      {"GroupsNegative", [](W& w) { w.router.num_groups = -4; }, kInvalid, {"num_groups"}},
      {"TopkGroups",
       [](W& w) {
         w.router.num_groups = 4;
         w.router.topk_groups = 5;
       },
       kInvalid,
       {"topk_groups", "5"}},
      {"TooFewExpertsInGroups",
       [](W& w) {
         w.router.num_groups = 4;
         w.router.topk_groups = 1;
       },
       kInvalid,
       {"top_k"}},
      {"GroupScore", [](W& w) { w.router.group_score = 7; }, kInvalid, {"group_score"}},
      {"ScalingNan",
       [](W& w) { w.router.routed_scaling_factor = std::nanf(""); },
       kInvalid,
       {"routed_scaling_factor"}},
      {"SharedNegative", [](W& w) { w.router.num_shared_experts = -1; }, kInvalid, {"num_shared_experts"}},
      {"CapacityNegative", [](W& w) { w.router.capacity = -1; }, kInvalid, {"capacity"}},
      {"BiasShape",
       [](W& w) {
         w.router.selection_bias = w.bias.view();
         w.router.selection_bias.shape[0] = 7;
       },
       kInvalid,
       {"selection_bias", "[7]", "[8]"}},
      {"BiasDtype",
       [](W& w) {
         w.router.selection_bias = w.bias.view();
         w.router.selection_bias.dtype = RAMP_BF16;
       },
       kInvalid,
       {"selection_bias"}},
      {"BiasOnGpu",
       [](W& w) {
         w.router.selection_bias = w.bias.view();
         w.router.selection_bias.device.type = RAMP_DEVICE_CUDA;
       },
       kInvalid,
       {"selection_bias", "cuda:0"}},
      {"Reserved", [](W& w) { w.router.reserved[0] = 1; }, RAMP_ERROR_UNSUPPORTED, {"router.reserved"}},
      {"LogitsMissing", [](W& w) { w.l = ramp_tensor{}; }, kInvalid, {"logits: got no tensor"}},
      {"LogitsDtype", [](W& w) { w.l.dtype = RAMP_F64; }, kInvalid, {"logits: got f64"}},
      {"LogitsThreeDims", [](W& w) { w.l.ndim = 3; }, kInvalid, {"logits"}},
      {"LogitsNoExperts", [](W& w) { w.l.shape[1] = 0; }, kInvalid, {"logits"}},
      {"IdsSlots", [](W& w) { w.i.shape[1] = 2; }, kInvalid, {"topk_ids: got i32 [5, 2]", "[5, 3]"}},
      {"IdsSharedSlots",
       [](W& w) { w.router.num_shared_experts = 1; },
       kInvalid,
       {"topk_ids: got i32 [5, 3]", "[5, 4]"}},
      {"IdsDtype", [](W& w) { w.i.dtype = RAMP_U8; }, kInvalid, {"topk_ids: got u8"}},
      {"IdsBroadcast", [](W& w) { w.i.stride[1] = 1; }, kInvalid, {"topk_ids", "own memory"}},
      {"WeightsDtype", [](W& w) { w.w.dtype = RAMP_BF16; }, kInvalid, {"topk_weights: got bf16"}},
      {"WeightsRows", [](W& w) { w.w.shape[0] = 4; }, kInvalid, {"topk_weights", "[4, 3]"}},
      {"WeightsOverIds", [](W& w) { w.w.data = w.i.data; }, kInvalid, {"topk_weights", "overlap topk_ids"}},
      {"IdsOverLogits", [](W& w) { w.i.data = w.l.data; }, kInvalid, {"topk_ids", "overlap logits"}},
      {"Stream", [](W& w) { w.stream = &w; }, kInvalid, {"stream"}},
      {"TooManyRows",
       [](W& w) {
         w.l.shape[0] = int64_t{1} << 30;
         w.l.stride[1] = 1;
       },
       kInvalid,
       {"T * "}},
  };
}

class BadRouting : public testing::TestWithParam<size_t> {};

TEST_P(BadRouting, IsRefusedAndWritesNothing) {
  const BadRoute bad = bad_routes()[GetParam()];
  RouteWorld w;
  ASSERT_EQ(w.run(), RAMP_OK) << ramp_last_error();
  std::fill(w.ids.bytes.begin(), w.ids.bytes.end(), std::byte{0xff});
  std::fill(w.weights.bytes.begin(), w.weights.bytes.end(), std::byte{0xff});
  bad.spoil(w);
  const auto ids = w.ids.bytes;
  const auto weights = w.weights.bytes;
  const auto logits = w.logits.bytes;
  expect_error(w.run(), bad.status, bad.message);
  EXPECT_EQ(w.ids.bytes, ids);
  EXPECT_EQ(w.weights.bytes, weights);
  EXPECT_EQ(w.logits.bytes, logits);
}

INSTANTIATE_TEST_SUITE_P(All, BadRouting, testing::Range(size_t{0}, bad_routes().size()),
                         [](const auto& info) { return std::string(bad_routes()[info.param].name); });

TEST(Route, NullTensorPointers) {
  RouteWorld w;
  expect_error(ramp_route(w.context.get(), &w.router, nullptr, &w.i, &w.w, nullptr), kInvalid,
               {"logits: got NULL"});
  expect_error(ramp_route(w.context.get(), &w.router, &w.l, nullptr, &w.w, nullptr), kInvalid,
               {"topk_ids: got NULL"});
  expect_error(ramp_route(w.context.get(), &w.router, &w.l, &w.i, nullptr, nullptr), kInvalid,
               {"topk_weights: got NULL"});
}

// Exact probabilities: logits ln(2^n) give weights in ratios of two; ties go to the lower id.
TEST(Route, SoftmaxByHand) {
  for (const ramp_backend backend : {RAMP_BACKEND_REFERENCE, RAMP_BACKEND_CPU}) {
    for (const int32_t id_dtype : {RAMP_I32, RAMP_I64}) {
      RouteWorld w;
      w.context = make_context(backend);
      w.ids = Array(id_dtype, {5, 3});
      w.i = w.ids.view();
      const float values[8] = {0, 2, 1, 2, 0, 0, 0, -1};  // times ln 2: 1 4 2 4 1 1 1 1/2, sum 14.5
      for (int64_t t = 0; t < 5; ++t)
        for (int64_t e = 0; e < 8; ++e) w.logits.set(t * 8 + e, values[(e + t) % 8] * std::log(2.0F));
      ASSERT_EQ(w.run(), RAMP_OK) << ramp_last_error();
      for (int64_t t = 0; t < 5; ++t) {
        const int64_t first = std::min((1 - t + 8) % 8, (3 - t + 8) % 8);
        EXPECT_EQ(w.ids.get_int(t * 3), first);
        EXPECT_EQ(w.ids.get_int(t * 3 + 2), (2 - t + 8) % 8);
        // A few roundings of fp32 exp, sum and division.
        EXPECT_NEAR(w.weights.get(t * 3), 4 / 14.5, 16 * 0x1p-24);
        EXPECT_NEAR(w.weights.get(t * 3 + 2), 2 / 14.5, 16 * 0x1p-24);
      }
      w.router.renormalize = 1;
      w.router.routed_scaling_factor = 2.5F;
      ASSERT_EQ(w.run(), RAMP_OK);
      EXPECT_NEAR(w.weights.get(0), 2.5 * 0.4, 16 * 0x1p-24);
    }
  }
}

TEST(Route, NoTokens) {
  RouteWorld w;
  for (ramp_tensor* t : {&w.l, &w.i, &w.w}) {
    t->shape[0] = 0;
    t->data = nullptr;
  }
  EXPECT_EQ(w.run(), RAMP_OK) << ramp_last_error();
}

// ---------------------------------------------------------------- ramp_moe_forward

struct ForwardWorld {
  static constexpr int64_t kT = 6, kE = 8, kH = 64, kK = 2;
  Context context;
  Model model;
  Weights weights;
  Array x{RAMP_BF16, {kT, kH}}, y{RAMP_F32, {kT, kH}}, logits{RAMP_F32, {kT, kE}}, gate{RAMP_BF16, {kE, kH}};
  Array ids, topk_weights, bias{RAMP_F32, {kE}}, map;
  ramp_moe_forward_args args = ramp_moe_forward_args_init();
  void* workspace = nullptr;
  uint64_t workspace_bytes = 0;
  void* stream = nullptr;

  explicit ForwardWorld(ramp_backend backend = RAMP_BACKEND_CPU, int64_t experts = kE, int64_t slots = kK)
      : context(make_context(backend)),
        model(RAMP_FORMAT_F32, RAMP_ACTIVATION_SILU_AND_MUL, experts, kH, 96, 31),
        weights(make_weights(context, model.desc(), true)),
        ids(RAMP_I64, {kT, slots}),
        topk_weights(RAMP_F32, {kT, slots}) {
    for (int64_t i = 0; i < x.size(); ++i) x.set(i, static_cast<float>(normal(1, static_cast<uint64_t>(i))));
    for (int64_t i = 0; i < gate.size(); ++i)
      gate.set(i, static_cast<float>(normal(2, static_cast<uint64_t>(i))));
    for (int64_t i = 0; i < logits.size(); ++i)
      logits.set(i, static_cast<float>(normal(3, static_cast<uint64_t>(i))));
    for (int64_t i = 0; i < kE; ++i) bias.set(i, static_cast<float>(normal(4, static_cast<uint64_t>(i))));
    args.weights = weights.get();
    args.router.top_k = kK;
    args.x = x.view();
    args.y = y.view();
    args.router_logits = logits.view();
    args.topk_ids_out = ids.view();
    args.topk_weights_out = topk_weights.view();
  }
  ramp_status run() { return ramp_moe_forward(context.get(), &args, workspace, workspace_bytes, stream); }
};

struct BadForward {
  const char* name;
  std::function<void(ForwardWorld&)> spoil;
  ramp_status status;
  std::vector<std::string> message;
};

std::vector<BadForward> bad_forwards() {
  using W = ForwardWorld;
  static Scratch scratch(1 << 20);
  return {
      {"Determinism", [](W& w) { w.args.determinism = 4; }, kInvalid, {"determinism"}},
      {"WeightOnInput",
       [](W& w) { w.args.router_weight_on_input = 3; },
       kInvalid,
       {"router_weight_on_input"}},
      {"Config", [](W& w) { w.args.config = 1 << 24; }, kInvalid, {"config"}},
      {"Reserved", [](W& w) { w.args.reserved = 5; }, RAMP_ERROR_UNSUPPORTED, {"reserved"}},
      {"Stream", [](W& w) { w.stream = &w; }, kInvalid, {"stream"}},
      {"XFp8", [](W& w) { w.args.x.dtype = RAMP_E4M3; }, kInvalid, {"x: got e4m3"}},
      {"XShape", [](W& w) { w.args.x.shape[1] = 32; }, kInvalid, {"x: got bf16 [6, 32]"}},
      {"NeitherLogitsNorWeight",
       [](W& w) { w.args.router_logits = ramp_tensor{}; },
       kInvalid,
       {"router_logits, router_weight: got neither"}},
      {"BothLogitsAndWeight", [](W& w) { w.args.router_weight = w.gate.view(); }, kInvalid, {"got both"}},
      {"LogitsRows",
       [](W& w) { w.args.router_logits.shape[0] = 5; },
       kInvalid,
       {"router_logits: got f32 [5, 8]"}},
      {"LogitsFewerThanExperts",
       [](W& w) {
         w.args.router_logits.shape[1] = 7;
         w.args.router_logits.stride[0] = 8;
         w.args.router_logits.stride[1] = 1;
       },
       kInvalid,
       {"router_logits: got 7 logits", "8 in all", "expert_map"}},
      {"WeightShape",
       [](W& w) {
         w.args.router_logits = ramp_tensor{};
         w.args.router_weight = w.gate.view();
         w.args.router_weight.shape[1] = 32;
       },
       kInvalid,
       {"router_weight: got bf16 [8, 32]"}},
      {"WeightDtype",
       [](W& w) {
         w.args.router_logits = ramp_tensor{};
         w.args.router_weight = w.gate.view();
         w.args.router_weight.dtype = RAMP_E4M3;
       },
       kInvalid,
       {"router_weight: got e4m3"}},
      {"TopKAboveExperts", [](W& w) { w.args.router.top_k = 9; }, kInvalid, {"top_k", "9"}},
      {"SharedWithoutRoomInWeights",
       [](W& w) { w.args.router.num_shared_experts = 1; },
       kInvalid,
       {"8 logits and 1 shared experts", "8 in all"}},
      {"MapLength",
       [](W& w) {
         w.map = Array(RAMP_I32, {7});
         w.args.expert_map = w.map.view();
       },
       kInvalid,
       {"expert_map: got i32 [7]", "[8]"}},
      {"YShape", [](W& w) { w.args.y.shape[0] = 5; }, kInvalid, {"y: got f32 [5, 64]"}},
      {"IdsOutShape", [](W& w) { w.args.topk_ids_out.shape[1] = 3; }, kInvalid, {"topk_ids_out", "[6, 2]"}},
      {"IdsOutDtype",
       [](W& w) { w.args.topk_ids_out.dtype = RAMP_F64; },
       kInvalid,
       {"topk_ids_out: got f64"}},
      {"WeightsOutDtype",
       [](W& w) { w.args.topk_weights_out.dtype = RAMP_F16; },
       kInvalid,
       {"topk_weights_out: got f16"}},
      {"YOverLogits",
       // Both in memory of their own: y is longer than the logits, so y at the logits' own address could also
       // reach whatever the allocator placed behind them, and the message names the first overlap found.
       [](W& w) { w.args.y.data = w.args.router_logits.data = scratch.data(); },
       kInvalid,
       {"y", "overlap router_logits"}},
      {"IdsOutOverY",
       [](W& w) { w.args.topk_ids_out.data = w.args.y.data; },
       kInvalid,
       {"topk_ids_out", "overlap y"}},
      {"BiasOverY",
       [](W& w) {
         w.args.router.selection_bias = w.bias.view();
         w.args.router.selection_bias.data = w.args.y.data;
       },
       kInvalid,
       {"y", "overlap router.selection_bias"}},
      {"WorkspaceSmall",
       [](W& w) {
         w.workspace = scratch.data();
         w.workspace_bytes = 256;
       },
       RAMP_ERROR_WORKSPACE_TOO_SMALL,
       {"at least", "ramp_moe_forward_workspace"}},
      {"WorkspaceMisaligned",
       [](W& w) {
         w.workspace = static_cast<std::byte*>(scratch.data()) + 8;
         w.workspace_bytes = 1 << 19;
       },
       kInvalid,
       {"workspace", "256"}},
      {"XInWorkspace",
       [](W& w) {
         w.workspace = scratch.data();
         w.workspace_bytes = scratch.bytes();
         w.args.x.data = scratch.data();
       },
       kInvalid,
       {"workspace", "overlap x"}},
  };
}

class BadForwarding : public testing::TestWithParam<size_t> {};

TEST_P(BadForwarding, IsRefusedAndWritesNothing) {
  const BadForward bad = bad_forwards()[GetParam()];
  ForwardWorld w;
  ASSERT_EQ(w.run(), RAMP_OK) << ramp_last_error();
  std::fill(w.y.bytes.begin(), w.y.bytes.end(), std::byte{0xff});
  std::fill(w.ids.bytes.begin(), w.ids.bytes.end(), std::byte{0xff});
  bad.spoil(w);
  const auto y = w.y.bytes;
  const auto ids = w.ids.bytes;
  const auto logits = w.logits.bytes;
  expect_error(w.run(), bad.status, bad.message);
  EXPECT_EQ(w.y.bytes, y);
  EXPECT_EQ(w.ids.bytes, ids);
  EXPECT_EQ(w.logits.bytes, logits);
}

INSTANTIATE_TEST_SUITE_P(All, BadForwarding, testing::Range(size_t{0}, bad_forwards().size()),
                         [](const auto& info) { return std::string(bad_forwards()[info.param].name); });

}  // namespace
}  // namespace abi_test
