// The C++ header: RAII, defaults, tensor helpers and exceptions do what the C calls under them do.
#include <array>
#include <span>
#include <vector>

#include "abi/support.hpp"
#include "ramp/ramp.hpp"

namespace {
struct my_bfloat16 {  // as a framework would bring it
  uint16_t bits;
};
}  // namespace
template <>
inline constexpr ramp_dtype ramp::dtype_of<my_bfloat16> = RAMP_BF16;

namespace abi_test {
namespace {

static_assert(!std::is_copy_constructible_v<ramp::Context> &&
              std::is_nothrow_move_constructible_v<ramp::Context>);
static_assert(!std::is_copy_constructible_v<ramp::Weights> &&
              std::is_nothrow_move_constructible_v<ramp::Weights>);
static_assert(!std::is_copy_constructible_v<ramp::Checkpoint>);
// Views of temporaries that own their elements do not compile.
template <typename R>
concept CanView = requires(R r) {
  ramp::tensor(std::forward<R>(r), {1});
};
static_assert(CanView<std::vector<float>&> && CanView<std::span<float>> && !CanView<std::vector<float>>);

TEST(Hpp, TensorHelpers) {
  const std::array<int64_t, 6> values{};
  const ramp::Tensor t = ramp::tensor(values, {2, 3});
  EXPECT_EQ(t.data, values.data());
  EXPECT_EQ(t.dtype, RAMP_I64);
  EXPECT_EQ(t.ndim, 2);
  EXPECT_EQ(t.shape[1], 3);
  EXPECT_EQ(t.stride[0], 0);
  EXPECT_EQ(ramp::strided(t, {8, 1}).stride[0], 8);
  my_bfloat16 own[4]{};
  EXPECT_EQ(ramp::tensor(own, {4}).dtype, RAMP_BF16);
  EXPECT_EQ(ramp::tensor(&own[0], {4}).dtype, RAMP_BF16);
  EXPECT_EQ(ramp::tensor(RAMP_E4M3, own, {8}).dtype, RAMP_E4M3);
  EXPECT_EQ(ramp::tensor(own, {4}, {RAMP_DEVICE_CUDA, 1}).device.index, 1);
  EXPECT_THROW(ramp::tensor(values, {2, 2}), ramp::Error);
  EXPECT_THROW(ramp::tensor(values, {1, 1, 1, 1, 6}), ramp::Error);
  EXPECT_THROW(ramp::strided(t, {1}), ramp::Error);
}

TEST(Hpp, ErrorsCarryStatusAndMessage) {
  try {
    ramp::Context context({.backend = RAMP_BACKEND_CUDA});
    FAIL();
  } catch (const ramp::Error& e) {
    EXPECT_EQ(e.status(), RAMP_ERROR_INVALID_ARGUMENT);
    EXPECT_NE(std::string(e.what()).find("options.backend"), std::string::npos) << e.what();
  }
  EXPECT_THROW(ramp::Checkpoint("/nonexistent/ramp"), ramp::Error);
}

TEST(Hpp, OptionsReachTheContext) {
  const ramp::Context context({.backend = RAMP_BACKEND_CPU, .num_threads = 2});
  EXPECT_EQ(context.info().num_workers, 2);
  EXPECT_EQ(ramp::Context().info().backend, RAMP_BACKEND_CPU);
}

TEST(Hpp, TracesAndCounters) {
  ramp::Context context({.backend = RAMP_BACKEND_REFERENCE});
  EXPECT_THROW(context.trace(8), ramp::Error) << "only where the host does not see histograms";
  EXPECT_THROW(context.time_trace(true), ramp::Error);
  int records = 0;
  context.read_trace([&](const ramp_trace_record&) { ++records; });
  const auto count = [&](const ramp_trace_record&) { ++records; };
  context.read_trace(count);
  EXPECT_EQ(records, 0);
  const ramp_context_counters counters = context.counters();
  EXPECT_EQ(counters.records, 0U);
  EXPECT_EQ(counters.error_sum, 0);
}

TEST(Hpp, WeightsAndBlock) {
  ramp::Context context({.num_threads = 2});
  const Model m(RAMP_FORMAT_F32, RAMP_ACTIVATION_RELU2, 4, 64, 32, 5, true);
  // E, H and I come from w2.
  ramp::Weights weights(context, {.format = RAMP_FORMAT_F32,
                                  .activation = RAMP_ACTIVATION_RELU2,
                                  .w13 = m.w13.view(),
                                  .w2 = m.w2.view()});
  EXPECT_EQ(weights.info().num_experts, 4);
  EXPECT_EQ(weights.info().intermediate, 32);
  weights.pack(context);
  EXPECT_EQ(weights.info().packed, 1);
  EXPECT_NE(context.config_name(weights, 0), nullptr);

  Call c(m, weights.get(), 5, 2, 3, true);
  ramp::BlockArgs args{
      .x = c.x.view(), .topk_ids = c.ids.view(), .topk_weights = c.weights.view(), .y = c.y.view()};
  context.expert_block(weights, args);
  expect_equal(c.y, exact_combined(m, c));
  const ramp::HostWorkspace workspace(context.expert_block_workspace(weights, 5, 2));
  c.y = Array(RAMP_F32, {5, 2, 64});
  args.y = c.y.view();
  args.output = RAMP_OUTPUT_PER_SLOT;
  context.expert_block(weights, args, workspace);
  expect_equal(c.y, exact_slots(m, c));
  args.router_weight_on_input = true;
  c.args.router_weight_on_input = 1;
  context.expert_block(weights, args, workspace);
  expect_equal(c.y, exact_slots(m, c));

  Array w2(RAMP_F32, {4, 64, 32});
  weights.unpack(context, {}, w2.view());
  EXPECT_EQ(w2.bytes, m.w2.bytes);
  const Model next(RAMP_FORMAT_F32, RAMP_ACTIVATION_RELU2, 1, 64, 32, 77, true);
  weights.update(context, 3,
                 {.format = RAMP_FORMAT_F32,
                  .activation = RAMP_ACTIVATION_RELU2,
                  .w13 = next.w13.view(),
                  .w2 = next.w2.view()});
  weights.unpack(context, {}, w2.view());
  EXPECT_EQ(std::memcmp(w2.bytes.data() + 3 * 64 * 32 * 4, next.w2.bytes.data(), next.w2.bytes.size()), 0);
}

TEST(Hpp, BatchedRouteAndForward) {
  const ramp::Context context({.num_threads = 2});
  const Model m(RAMP_FORMAT_F32, RAMP_ACTIVATION_RELU2, 3, 32, 32, 5, true);
  ramp::Weights weights(const_cast<ramp::Context&>(context), {.format = RAMP_FORMAT_F32,
                                                              .activation = RAMP_ACTIVATION_RELU2,
                                                              .w13 = m.w13.view(),
                                                              .w2 = m.w2.view()});
  Call c(m, weights.get(), 4, 2, 3, true);

  std::vector<float> logits(4 * 3);
  for (size_t i = 0; i < logits.size(); ++i) logits[i] = static_cast<float>(i % 5);
  context.route({.scoring = RAMP_SCORING_TOPK_SOFTMAX, .top_k = 2}, ramp::tensor(logits, {4, 3}),
                c.ids.view(), c.weights.view());
  context.expert_block(
      weights,
      {.x = c.x.view(), .topk_ids = c.ids.view(), .topk_weights = c.weights.view(), .y = c.y.view()});
  Array y(RAMP_F32, {4, 32});
  const ramp::HostWorkspace workspace(context.moe_forward_workspace(weights, 4, 2, 3));
  context.moe_forward(weights,
                      {.router = ramp::Router{.scoring = RAMP_SCORING_TOPK_SOFTMAX, .top_k = 2}.c_struct(),
                       .x = c.x.view(),
                       .router_logits = ramp::tensor(logits, {4, 3}),
                       .y = y.view()},
                      workspace);
  EXPECT_EQ(y.bytes, c.y.bytes);

  Array slabs(RAMP_F32, {3, 2, 32});
  for (int64_t i = 0; i < slabs.size(); ++i) slabs.set(i, 1.0F);
  Array out(RAMP_F32, {3, 2, 32});
  const std::vector<int32_t> counts = {1, 0, 2};
  const ramp::HostWorkspace batched(context.expert_block_batched_workspace(weights, 2));
  context.expert_block_batched(
      weights, {.x = slabs.view(), .counts = ramp::tensor(counts, {3}), .y = out.view()}, batched);
  EXPECT_FALSE(std::isnan(out.get(0)));
  EXPECT_TRUE(std::isnan(out.get(32)));
}

}  // namespace
}  // namespace abi_test
