// check_router: defaults, and an error that names the field for everything out of range.
#include "base/test_support.hpp"
#include "routing/support.hpp"

namespace ramp::test {
namespace {

ramp_router_config valid() {
  return make_router(RAMP_SCORING_SIGMOID, 4, true);
}

TEST(RouterConfig, FillsDefaults) {
  const ramp_router_config r = check_router(valid(), 16);
  EXPECT_EQ(r.routed_scaling_factor, 1.0F);
  EXPECT_EQ(r.num_groups, 1);
  EXPECT_EQ(r.topk_groups, 1);
  EXPECT_EQ(router_slots(r), 4);
}
TEST(RouterConfig, KeepsWhatIsGiven) {
  std::vector<float> bias(16, 1.0F);
  ramp_router_config r = valid();
  r.num_groups = 4;
  r.topk_groups = 2;
  r.group_score = RAMP_GROUP_SCORE_TOP2_SUM;
  r.routed_scaling_factor = 2.5F;
  r.num_shared_experts = 2;
  r.capacity = 7;
  r.selection_bias.data = bias.data();
  r.selection_bias.dtype = RAMP_F32;
  r.selection_bias.ndim = 1;
  r.selection_bias.shape[0] = 16;
  const ramp_router_config c = check_router(r, 16);
  EXPECT_EQ(c.num_groups, 4);
  EXPECT_EQ(c.topk_groups, 2);
  EXPECT_EQ(c.routed_scaling_factor, 2.5F);
  EXPECT_EQ(c.capacity, 7);
  EXPECT_EQ(c.selection_bias.stride[0], 1);
  EXPECT_EQ(router_slots(c), 6);
  // Checking twice changes nothing.
  EXPECT_EQ(std::memcmp(&c, &static_cast<const ramp_router_config&>(check_router(c, 16)), sizeof c), 0);
}
TEST(RouterConfig, ScratchGrowsWithExpertsAndTopKAlone) {
  ramp_router_config r = valid();
  const int64_t plain = route_scratch_bytes(r, 256);
  r.num_groups = 8;
  r.topk_groups = 4;
  r.num_shared_experts = 4;
  EXPECT_EQ(route_scratch_bytes(r, 256), plain);
  EXPECT_LT(route_scratch_bytes(r, 128), plain);
  EXPECT_LE(plain, 256 * 32 + 64);  // O(E)
}

struct Bad {
  const char* name;
  void (*spoil)(ramp_router_config&);
  const char* field;
  int64_t experts = 16;
};
void PrintTo(const Bad& b, std::ostream* os) {
  *os << b.name;
}
class RouterConfigErrors : public testing::TestWithParam<Bad> {};
TEST_P(RouterConfigErrors, NameTheField) {
  ramp_router_config r = valid();
  GetParam().spoil(r);
  expect_error(RAMP_ERROR_INVALID_ARGUMENT, {GetParam().field, "got ", "expected "},
               [&] { check_router(r, GetParam().experts); });
}
std::vector<float>& short_bias() {
  static std::vector<float> bias(16, 0.0F);
  return bias;
}
const Bad kBad[] = {
    {"scoring", [](auto& r) { r.scoring = 3; }, "router.scoring"},
    {"negative_scoring", [](auto& r) { r.scoring = -1; }, "router.scoring"},
    {"zero_top_k", [](auto& r) { r.top_k = 0; }, "router.top_k"},
    {"negative_top_k", [](auto& r) { r.top_k = -2; }, "router.top_k"},
    {"top_k_above_experts", [](auto& r) { r.top_k = 17; }, "router.top_k"},
    {"renormalize", [](auto& r) { r.renormalize = 2; }, "router.renormalize"},
    {"negative_groups", [](auto& r) { r.num_groups = -1; }, "router.num_groups"},
    {"groups_not_dividing", [](auto& r) { r.num_groups = 3, r.topk_groups = 1; }, "router.num_groups"},
    {"groups_above_experts", [](auto& r) { r.num_groups = 32, r.topk_groups = 1; }, "router.num_groups"},
    {"no_topk_groups", [](auto& r) { r.num_groups = 4; }, "router.topk_groups"},
    {"topk_groups_above", [](auto& r) { r.num_groups = 4, r.topk_groups = 5; }, "router.topk_groups"},
    {"topk_groups_alone", [](auto& r) { r.topk_groups = 2; }, "router.topk_groups"},
    {"topk_groups_negative", [](auto& r) { r.topk_groups = -1; }, "router.topk_groups"},
    {"too_few_in_groups", [](auto& r) { r.num_groups = 8, r.topk_groups = 1; }, "router.top_k"},
    {"group_score", [](auto& r) { r.group_score = 2; }, "router.group_score"},
    {"nan_scaling", [](auto& r) { r.routed_scaling_factor = kNan; }, "router.routed_scaling_factor"},
    {"infinite_scaling", [](auto& r) { r.routed_scaling_factor = kInf; }, "router.routed_scaling_factor"},
    {"negative_scaling", [](auto& r) { r.routed_scaling_factor = -1; }, "router.routed_scaling_factor"},
    {"negative_shared", [](auto& r) { r.num_shared_experts = -1; }, "router.num_shared_experts"},
    {"shared_overflow", [](auto& r) { r.num_shared_experts = INT32_MAX; }, "router.num_shared_experts"},
    {"negative_capacity", [](auto& r) { r.capacity = -1; }, "router.capacity"},
    {"bias_dtype", [](auto& r) { r.selection_bias = make_tensor(short_bias().data(), RAMP_F16, {16}); },
     "router.selection_bias"},
    {"bias_length", [](auto& r) { r.selection_bias = make_tensor(short_bias().data(), RAMP_F32, {15}); },
     "router.selection_bias"},
    {"bias_rank",
     [](auto& r) {
       r.selection_bias = make_tensor(short_bias().data(), RAMP_F32, {1, 16});
     },
     "router.selection_bias"},
    {"bias_stride",
     [](auto& r) {
       r.selection_bias = make_tensor(short_bias().data(), RAMP_F32, {16});
       r.selection_bias.stride[0] = 2;
     },
     "router.selection_bias"},
    {"no_experts", [](auto&) {}, "logits", 0},
    {"negative_experts", [](auto&) {}, "logits", -5},
    {"experts_overflow", [](auto&) {}, "logits", int64_t{1} << 31},
};
INSTANTIATE_TEST_SUITE_P(Fields, RouterConfigErrors, testing::ValuesIn(kBad),
                         [](const auto& info) { return info.param.name; });

}  // namespace
}  // namespace ramp::test
