// The expert block does what the header says, option by option, on both host backends. The models are exact:
// results are known to the last bit.
#include "abi/support.hpp"

namespace abi_test {
namespace {

void expect_ok(ramp_status status) {
  ASSERT_EQ(status, RAMP_OK) << ramp_last_error();
}

// ---------------------------------------------------------------- options, exactly

class Block : public testing::TestWithParam<std::tuple<ramp_backend, int32_t>> {
 protected:
  static constexpr int64_t kT = 7, kK = 3, kE = 5, kH = 96, kI = 64;
  Context context = make_context(std::get<0>(GetParam()));
  Model model{std::get<1>(GetParam()), RAMP_ACTIVATION_RELU2, kE, kH, kI, 17, true};
  Weights weights = make_weights(context, model.desc(), true);
  void run(Call& c) { expect_ok(ramp_expert_block(context.get(), &c.args, nullptr, 0, nullptr)); }
};

TEST_P(Block, Combined) {
  Call c(model, weights.get(), kT, kK, 23, true);
  run(c);
  expect_equal(c.y, exact_combined(model, c));
}

TEST_P(Block, PerSlot) {
  Call c(model, weights.get(), kT, kK, 23, true);
  c.per_slot();
  run(c);
  expect_equal(c.y, exact_slots(model, c));
}

TEST_P(Block, RouterWeightOnInput) {
  Call c(model, weights.get(), kT, kK, 23, true);
  c.args.router_weight_on_input = 1;
  run(c);
  expect_equal(c.y, exact_combined(model, c));
  c.per_slot();
  run(c);
  expect_equal(c.y, exact_slots(model, c));
}

TEST_P(Block, EveryTypeOfXAndIdsAndY) {
  for (const int32_t x : {RAMP_F32, RAMP_BF16, RAMP_F16}) {
    for (const int32_t id : {RAMP_I32, RAMP_I64}) {
      for (const int32_t y : {RAMP_F32, RAMP_BF16, RAMP_F16}) {
        Call c(model, weights.get(), kT, kK, 23, true, x, id, y);
        run(c);
        expect_equal(c.y, exact_combined(model, c));
      }
    }
  }
}

TEST_P(Block, EveryDeterminism) {
  for (int32_t d = RAMP_REPEATABLE; d <= RAMP_FAST; ++d) {
    Call c(model, weights.get(), kT, kK, 23, true);
    c.args.determinism = d;
    run(c);
    expect_equal(c.y, exact_combined(model, c));
  }
}

TEST_P(Block, SharedAddend) {
  Call c(model, weights.get(), kT, kK, 23, true);
  std::vector<double> want = exact_combined(model, c);
  Array addend(RAMP_BF16, {kT, kH});
  for (int64_t i = 0; i < addend.size(); ++i) {
    addend.set(i, static_cast<float>(i % 17) - 8.0F);
    want[static_cast<size_t>(i)] += addend.get(i);
  }
  c.args.shared_addend = addend.view();
  run(c);
  expect_equal(c.y, want);
}

TEST_P(Block, StridedTensors) {
  // All of it in one padded matrix: x in the left columns, y right beside it in the same rows. Interleaved
  // views are no overlap.
  Call c(model, weights.get(), kT, kK, 23, true);
  const std::vector<double> want = exact_combined(model, c);
  const int64_t pitch = 2 * kH + 8;
  Array sheet(RAMP_F32, {kT, pitch});
  for (int64_t t = 0; t < kT; ++t)
    for (int64_t h = 0; h < kH; ++h) sheet.set(t * pitch + h, c.x.get(t * kH + h));
  const auto columns = [&](int64_t first) {
    ramp_tensor v = view(sheet.bytes.data() + 4 * first, RAMP_F32, {kT, kH});
    v.stride[0] = pitch;
    v.stride[1] = 1;
    return v;
  };
  Array wide_ids(RAMP_I32, {kT, kK + 2});
  Array wide_weights(RAMP_F32, {kT, kK + 1});
  for (int64_t t = 0; t < kT; ++t) {
    for (int64_t j = 0; j < kK; ++j) {
      wide_ids.set_int(t * (kK + 2) + j, c.ids.get_int(t * kK + j));
      wide_weights.set(t * (kK + 1) + j, c.weights.get(t * kK + j));
    }
  }
  c.args.x = columns(0);
  c.args.y = columns(kH);
  c.args.topk_ids.data = wide_ids.bytes.data();
  c.args.topk_ids.stride[0] = kK + 2;
  c.args.topk_ids.stride[1] = 1;
  c.args.topk_weights.data = wide_weights.bytes.data();
  c.args.topk_weights.stride[0] = kK + 1;
  c.args.topk_weights.stride[1] = 1;
  run(c);
  Array y(RAMP_F32, {kT, kH});
  for (int64_t t = 0; t < kT; ++t) {
    for (int64_t h = 0; h < kH; ++h) y.set(t * kH + h, sheet.get(t * pitch + kH + h));
    for (int64_t h = 2 * kH; h < pitch; ++h)
      ASSERT_TRUE(std::isnan(sheet.get(t * pitch + h))) << "padding written";
  }
  expect_equal(y, want);
}

TEST_P(Block, PerSlotWithTransposedStrides) {
  // y in memory as [k][T][H].
  Call c(model, weights.get(), kT, kK, 23, true);
  c.per_slot();
  c.args.y.stride[0] = kH;
  c.args.y.stride[1] = kT * kH;
  c.args.y.stride[2] = 1;
  run(c);
  const std::vector<double> want = exact_slots(model, c);
  for (int64_t t = 0; t < kT; ++t)
    for (int64_t j = 0; j < kK; ++j)
      for (int64_t h = 0; h < kH; ++h)
        ASSERT_EQ(c.y.get((j * kT + t) * kH + h), want[static_cast<size_t>((t * kK + j) * kH + h)]);
}

TEST_P(Block, MaskedAndOutOfRangeIdsContributeNothingAndAreCounted) {
  for (const int32_t id_dtype : {RAMP_I32, RAMP_I64}) {
    Call c(model, weights.get(), kT, kK, 23, true, RAMP_F32, id_dtype);
    Array counters(RAMP_I64, {2});
    counters.set_int(0, 100);
    counters.set_int(1, 200);
    c.args.counters = counters.view();
    c.ids.set_int(0, -1);
    c.ids.set_int(kK, -1);
    c.ids.set_int(2 * kK, kE);
    c.ids.set_int(2 * kK + 1, INT32_MAX);
    c.ids.set_int(2 * kK + 2, INT32_MIN);  // a token with no valid slot at all
    c.ids.set_int(3 * kK, -2);
    if (id_dtype == RAMP_I64) c.ids.set_int(3 * kK + 1, (int64_t{1} << 32) + 1);  // must not wrap to expert 1
    run(c);
    expect_equal(c.y, exact_combined(model, c));
    EXPECT_EQ(counters.get_int(0), 102);
    EXPECT_EQ(counters.get_int(1), id_dtype == RAMP_I64 ? 205 : 204);
    c.per_slot();
    run(c);
    expect_equal(c.y, exact_slots(model, c));  // masked rows are zero, not left alone
  }
}

TEST_P(Block, WeightsOfMaskedSlotsAreNotRead) {
  Call c(model, weights.get(), kT, kK, 23, true);
  c.ids.set_int(1, -1);
  c.weights.set(1, 1.0F);
  const std::vector<double> want = exact_combined(model, c);
  c.weights.set(1, std::numeric_limits<float>::quiet_NaN());
  run(c);
  expect_equal(c.y, want);
}

TEST_P(Block, ExpertMap) {
  // 8 global experts, of which this rank holds five, in another order; global 3 and 6 live elsewhere, and the
  // map's entry for 5 is nonsense.
  const std::vector<int32_t> map = {4, 2, 0, -1, 1, 77, -1, 3};
  Array map_array(RAMP_I32, {8});
  for (int64_t i = 0; i < 8; ++i) map_array.set_int(i, map[static_cast<size_t>(i)]);
  Call c(model, weights.get(), kT, kK, 23, true);
  for (int64_t s = 0; s < kT * kK; ++s) c.ids.set_int(s, (s * 5 + 1) % 9);  // 8 is out of the map's range
  Array counters(RAMP_I64, {2});
  counters.set_int(0, 0);
  counters.set_int(1, 0);
  int64_t masked = 0;
  int64_t out_of_range = 0;
  for (int64_t s = 0; s < kT * kK; ++s) {
    const int64_t id = c.ids.get_int(s);
    masked += id == 3 || id == 6 ? 1 : 0;
    out_of_range += id == 8 || id == 5 ? 1 : 0;
  }
  c.args.expert_map = map_array.view();
  c.args.counters = counters.view();
  run(c);
  expect_equal(c.y, exact_combined(model, c, map));
  EXPECT_EQ(counters.get_int(0), masked);
  EXPECT_EQ(counters.get_int(1), out_of_range);
}

TEST_P(Block, RepeatedExpertsAndMoreSlotsThanExperts) {
  Call c(model, weights.get(), kT, kE + 2, 23, true);  // ids repeat within a token
  run(c);
  expect_equal(c.y, exact_combined(model, c));
}

TEST_P(Block, OneExpertTakesEverything) {
  Call c(model, weights.get(), 40, 1, 23, true);
  for (int64_t t = 0; t < 40; ++t) c.ids.set_int(t, 2);
  run(c);
  expect_equal(c.y, exact_combined(model, c));
}

TEST_P(Block, NoTokens) {
  Call c(model, weights.get(), kT, kK, 23, true);
  Array counters(RAMP_I64, {2});
  c.args.counters = counters.view();
  for (ramp_tensor* t : {&c.args.x, &c.args.topk_ids, &c.args.topk_weights, &c.args.y}) {
    t->shape[0] = 0;
    t->data = nullptr;
  }
  run(c);
  EXPECT_EQ(counters.get_int(0), -1);
  EXPECT_EQ(ramp_expert_block(context.get(), &c.args, Scratch(256).data(), 0, nullptr), RAMP_OK);
  c.args.x.shape[1] = 32;  // still checked
  expect_error(ramp_expert_block(context.get(), &c.args, nullptr, 0, nullptr), RAMP_ERROR_INVALID_ARGUMENT,
               {"x: got"});
}

TEST_P(Block, NanWeightsAndInputsPropagate) {
  const auto nan = std::numeric_limits<float>::quiet_NaN();
  Model poisoned = model;
  poisoned.w2.set((2 * kH + 5) * kI + 7, nan);  // expert 2, row 5
  const Weights w = make_weights(context, poisoned.desc(), true);
  Call c(poisoned, w.get(), kT, 1, 23, true);
  for (int64_t t = 0; t < kT; ++t) c.ids.set_int(t, t % 3);
  c.x.set(6 * kH + 11, nan);
  run(c);
  Call clean(model, weights.get(), kT, 1, 23, true);
  for (int64_t t = 0; t < kT; ++t) clean.ids.set_int(t, t % 3);
  const std::vector<double> want = exact_combined(model, clean);
  for (int64_t t = 0; t < 6; ++t) {
    for (int64_t h = 0; h < kH; ++h) {
      if (t % 3 == 2 && h == 5) {
        EXPECT_TRUE(std::isnan(c.y.get(t * kH + h))) << t;
      } else {
        ASSERT_EQ(c.y.get(t * kH + h), want[static_cast<size_t>(t * kH + h)]) << t << " " << h;
      }
    }
  }
  bool any =
      false;  // relu2 of NaN and the zeros of sparse weights leave the number of NaNs open, not their being
  for (int64_t h = 0; h < kH; ++h) any = any || std::isnan(c.y.get(6 * kH + h));
  EXPECT_TRUE(any);
}

TEST_P(Block, OwnWorkspaceAndContextWorkspaceGiveTheSameBits) {
  uint64_t bytes = 0;
  expect_ok(ramp_expert_block_workspace(context.get(), weights.get(), 64, kK, &bytes));
  for (const int64_t tokens : {1, 5, 64}) {
    Call a(model, weights.get(), tokens, kK, 23, true);
    Call b(model, weights.get(), tokens, kK, 23, true);
    const Scratch scratch(bytes);
    expect_ok(ramp_expert_block(context.get(), &a.args, scratch.data(), scratch.bytes(), nullptr));
    expect_ok(ramp_expert_block(context.get(), &b.args, nullptr, 0, nullptr));
    EXPECT_EQ(a.y.bytes, b.y.bytes);
    expect_equal(a.y, exact_combined(model, a));
  }
}

TEST_P(Block, UsesNoMoreThanTheWorkspaceItAskedFor) {
  for (const int64_t tokens : {1, 6, 33}) {
    Call c(model, weights.get(), tokens, kK, 23, true);
    uint64_t bytes = 0;
    expect_ok(ramp_expert_block_workspace(context.get(), weights.get(), tokens, kK, &bytes));
    const Scratch scratch(bytes + 4096);
    auto* guard = static_cast<std::byte*>(scratch.data()) + bytes;
    std::memset(guard, 0x5a, 4096);
    expect_ok(ramp_expert_block(context.get(), &c.args, scratch.data(), bytes, nullptr));
    for (int i = 0; i < 4096; ++i)
      ASSERT_EQ(guard[i], std::byte{0x5a}) << "byte " << i << " past the workspace";
  }
}

INSTANTIATE_TEST_SUITE_P(Exact, Block,
                         testing::Combine(testing::Values(RAMP_BACKEND_REFERENCE, RAMP_BACKEND_CPU),
                                          testing::Values(RAMP_FORMAT_F32, RAMP_FORMAT_BF16, RAMP_FORMAT_F16,
                                                          RAMP_FORMAT_FP8_TENSOR)),
                         [](const auto& info) {
                           return std::string(backend_name(std::get<0>(info.param))) + "_" +
                                  format_name(std::get<1>(info.param));
                         });

}  // namespace
}  // namespace abi_test
