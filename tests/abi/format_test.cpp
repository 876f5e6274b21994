// Every format and activation against the reference backend, activations quantised by the caller,
// determinism.
#include <algorithm>

#include "abi/support.hpp"

namespace abi_test {
namespace {

void expect_ok(ramp_status status) {
  ASSERT_EQ(status, RAMP_OK) << ramp_last_error();
}

// ---------------------------------------------------------------- every format and activation

struct GridPoint {
  int32_t format, activation;
  bool packed;
};

std::vector<GridPoint> grid() {
  std::vector<GridPoint> points;
  for (int32_t f = RAMP_FORMAT_FP8_BLOCK; f <= RAMP_FORMAT_FP8_CHANNEL; ++f)
    for (int32_t a = RAMP_ACTIVATION_SILU_AND_MUL; a <= RAMP_ACTIVATION_RELU2; ++a)
      for (const bool packed : {false, true}) points.push_back({f, a, packed});
  return points;
}

class Formats : public testing::TestWithParam<GridPoint> {};

// y starts as NaN, so what was not written fails as well. x dtype and id dtype rotate through the grid (each
// pair of them occurs; the full product is left to the numerics tests).
TEST_P(Formats, AgreeWithTheReference) {
  const GridPoint p = GetParam();
  const int pick = p.format + 2 * p.activation + (p.packed ? 1 : 0);
  const int32_t x_dtype = std::vector<int32_t>{RAMP_BF16, RAMP_F32, RAMP_F16}[static_cast<size_t>(pick % 3)];
  const int32_t id_dtype = pick % 2 == 0 ? RAMP_I32 : RAMP_I64;
  const Context cpu = make_context(RAMP_BACKEND_CPU);
  const Context reference = make_context(RAMP_BACKEND_REFERENCE);
  const Model m(p.format, p.activation, 5, 160, 96, 3);
  const Weights w = make_weights(cpu, m.desc(), p.packed);
  const Weights plain = make_weights(reference, m.desc());
  for (const bool on_input : {false, true}) {
    Call a(m, w.get(), 11, 3, 21, false, x_dtype, id_dtype);
    Call b(m, plain.get(), 11, 3, 21, false, x_dtype, id_dtype);
    a.args.router_weight_on_input = b.args.router_weight_on_input = on_input ? 1 : 0;
    expect_ok(ramp_expert_block(cpu.get(), &a.args, nullptr, 0, nullptr));
    expect_ok(ramp_expert_block(reference.get(), &b.args, nullptr, 0, nullptr));
    EXPECT_LE(distance(a.y, b.y), tolerance(m, 11, 3)) << "router_weight_on_input " << on_input;
    // Per slot, then summed by hand, gives the same up to fp32 sums and one rounding per slot.
    a.per_slot();
    expect_ok(ramp_expert_block(cpu.get(), &a.args, nullptr, 0, nullptr));
    Array sum(RAMP_F32, {11, 160});
    for (int64_t i = 0; i < sum.size(); ++i) {
      float total = 0;
      for (int64_t j = 0; j < 3; ++j) total += a.y.get((i / 160 * 3 + j) * 160 + i % 160);
      sum.set(i, total);
    }
    EXPECT_LE(distance(sum, b.y), tolerance(m, 11, 3));
  }
}

INSTANTIATE_TEST_SUITE_P(Grid, Formats, testing::ValuesIn(grid()), [](const auto& info) {
  return std::string(format_name(info.param.format)) + "_" + activation_name(info.param.activation) +
         (info.param.packed ? "_packed" : "_plain");
});

// x given as e4m3 codes and scales, made by the documented rule, is the same as letting the library quantise:
// bit for bit on one backend.
class Prequantised : public testing::TestWithParam<std::tuple<ramp_backend, int32_t>> {};

TEST_P(Prequantised, EqualsQuantisingInside) {
  const auto [backend, format] = GetParam();
  const Context context = make_context(backend);
  const int64_t tokens = 6;
  const int64_t hidden = 160;
  const Model m(format, RAMP_ACTIVATION_SILU_AND_MUL, 4, hidden, 96, 3);
  const Weights w = make_weights(context, m.desc());
  Call inside(m, w.get(), tokens, 2, 9);
  Call outside(m, w.get(), tokens, 2, 9);
  const int64_t group = format == RAMP_FORMAT_FP8_BLOCK ? 128 : hidden;
  const int64_t groups = (hidden + group - 1) / group;
  Array codes(RAMP_E4M3, {tokens, hidden});
  Array scales(RAMP_F32, {tokens, groups});
  for (int64_t t = 0; t < tokens; ++t) {
    for (int64_t g = 0; g < groups; ++g) {
      float amax = 0;
      for (int64_t c = g * group; c < std::min(hidden, (g + 1) * group); ++c)
        amax = std::max(amax, std::fabs(inside.x.get(t * hidden + c)));
      const float s =
          format == RAMP_FORMAT_FP8_TENSOR ? m.w13_input_scale.get(0) : std::max(amax, 1e-10F) / 448.0F;
      scales.set(t * groups + g, s);
      for (int64_t c = g * group; c < std::min(hidden, (g + 1) * group); ++c)
        codes.set(t * hidden + c, inside.x.get(t * hidden + c) / s);
    }
  }
  outside.args.x = codes.view();
  if (format != RAMP_FORMAT_FP8_TENSOR) outside.args.x_scale = scales.view();
  expect_ok(ramp_expert_block(context.get(), &inside.args, nullptr, 0, nullptr));
  expect_ok(ramp_expert_block(context.get(), &outside.args, nullptr, 0, nullptr));
  EXPECT_EQ(inside.y.bytes, outside.y.bytes);
}

INSTANTIATE_TEST_SUITE_P(Fp8, Prequantised,
                         testing::Combine(testing::Values(RAMP_BACKEND_REFERENCE, RAMP_BACKEND_CPU),
                                          testing::Values(RAMP_FORMAT_FP8_BLOCK, RAMP_FORMAT_FP8_TENSOR,
                                                          RAMP_FORMAT_FP8_CHANNEL)),
                         [](const auto& info) {
                           return std::string(backend_name(std::get<0>(info.param))) + "_" +
                                  format_name(std::get<1>(info.param));
                         });

// Same inputs, same bits, whatever ran before and however many threads there are; batch-invariant: the bits
// of a token do not depend on its neighbours.
TEST(Determinism, RepeatableAndBatchInvariant) {
  const Model m(RAMP_FORMAT_FP8_BLOCK, RAMP_ACTIVATION_SILU_AND_MUL, 6, 160, 96, 5);
  std::vector<std::byte> first;
  for (const int32_t threads : {1, 2, 3}) {
    const Context context = make_context(RAMP_BACKEND_CPU, threads);
    const Weights w = make_weights(context, m.desc(), true);
    for (int repeat = 0; repeat < 3; ++repeat) {
      Call c(m, w.get(), 17, 3, 5);
      expect_ok(ramp_expert_block(context.get(), &c.args, nullptr, 0, nullptr));
      if (first.empty()) first = c.y.bytes;
      EXPECT_EQ(c.y.bytes, first) << threads << " threads";
    }
    Call all(m, w.get(), 17, 3, 5);
    all.args.determinism = RAMP_BATCH_INVARIANT;
    expect_ok(ramp_expert_block(context.get(), &all.args, nullptr, 0, nullptr));
    for (const int64_t t : {0, 8, 16}) {
      Call one(m, w.get(), 17, 3, 5);
      one.args.determinism = RAMP_BATCH_INVARIANT;
      for (ramp_tensor* v : {&one.args.x, &one.args.topk_ids, &one.args.topk_weights, &one.args.y}) {
        v->data = static_cast<std::byte*>(v->data) + t * v->shape[1] * 4;
        v->shape[0] = 1;
      }
      expect_ok(ramp_expert_block(context.get(), &one.args, nullptr, 0, nullptr));
      EXPECT_EQ(std::memcmp(one.y.bytes.data() + t * 160 * 4, all.y.bytes.data() + t * 160 * 4, 160 * 4), 0)
          << t;
    }
  }
}

}  // namespace
}  // namespace abi_test
