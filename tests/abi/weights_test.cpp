// Weights: ownership, strides, packing, update, unpacking and facts.
#include "abi/support.hpp"

namespace abi_test {
namespace {

constexpr int64_t kE = 3;
constexpr int64_t kH = 160;  // two scale blocks, the second one short
constexpr int64_t kI = 96;

// ---------------------------------------------------------------- what a handle does, per backend

class WeightsOn : public testing::TestWithParam<ramp_backend> {
 protected:
  Context context = make_context(GetParam());
  void expect_runs(const Model& m, const Weights& w) {
    Call c(m, w.get(), 5, 2, 11, true);
    ASSERT_EQ(ramp_expert_block(context.get(), &c.args, nullptr, 0, nullptr), RAMP_OK) << ramp_last_error();
    expect_equal(c.y, exact_combined(m, c));
  }
  void expect_unpacks(const Model& m, const Weights& w) {
    Array w13(m.w13.dtype, m.w13.shape);
    Array w2(m.w2.dtype, m.w2.shape);
    const ramp_tensor v13 = w13.view();
    const ramp_tensor v2 = w2.view();
    ASSERT_EQ(ramp_weights_unpack(context.get(), w.get(), &v13, &v2, nullptr), RAMP_OK) << ramp_last_error();
    EXPECT_EQ(w13.bytes, m.w13.bytes);
    EXPECT_EQ(w2.bytes, m.w2.bytes);
  }
};

TEST_P(WeightsOn, CopyDoesNotNeedTheCallersBuffers) {
  const Model kept(RAMP_FORMAT_BF16, RAMP_ACTIVATION_RELU2, kE, 64, 96, 1, true);
  Weights w;
  {
    const Model gone = kept;
    w = make_weights(context, gone.desc());
  }
  expect_runs(kept, w);
  ASSERT_EQ(ramp_weights_pack(context.get(), w.get(), nullptr), RAMP_OK) << ramp_last_error();
  expect_runs(kept, w);
  expect_unpacks(kept, w);
}

TEST_P(WeightsOn, BorrowReadsInPlaceAndNeverWrites) {
  Model m(RAMP_FORMAT_F32, RAMP_ACTIVATION_RELU2, kE, 64, 96, 1, true);
  const auto w13 = m.w13.bytes;
  const auto w2 = m.w2.bytes;
  const Weights w = make_weights(context, m.desc(RAMP_BORROW));
  expect_runs(m, w);
  m.w2.set(3, 5.0F);  // seen at once: nothing was copied
  expect_runs(m, w);
  m.w2.bytes = w2;
  ASSERT_EQ(ramp_weights_pack(context.get(), w.get(), nullptr), RAMP_OK) << ramp_last_error();
  expect_runs(m, w);
  EXPECT_EQ(m.w13.bytes, w13);
  EXPECT_EQ(m.w2.bytes, w2);
}

TEST_P(WeightsOn, InPlacePacksAndUnpacksExactly) {
  for (const int32_t format : {RAMP_FORMAT_BF16, RAMP_FORMAT_FP8_BLOCK, RAMP_FORMAT_F32}) {
    const Model original(format, RAMP_ACTIVATION_SILU_AND_MUL, kE, kH, kI, 3);
    const Model buffers = original;
    const Weights w = make_weights(context, buffers.desc(RAMP_IN_PLACE), true);
    expect_unpacks(original, w);
    Call a(original, w.get(), 6, 2, 11);
    const Context reference = make_context(RAMP_BACKEND_REFERENCE);
    const Weights plain = make_weights(reference, original.desc());
    Call b(original, plain.get(), 6, 2, 11);
    ASSERT_EQ(ramp_expert_block(context.get(), &a.args, nullptr, 0, nullptr), RAMP_OK) << ramp_last_error();
    ASSERT_EQ(ramp_expert_block(reference.get(), &b.args, nullptr, 0, nullptr), RAMP_OK) << ramp_last_error();
    EXPECT_LE(distance(a.y, b.y), tolerance(original, 6, 2)) << format_name(format);
  }
}

TEST_P(WeightsOn, StridedWeights) {
  // Both matrices in one buffer with padded rows, as some checkpoints map them.
  const Model m(RAMP_FORMAT_F32, RAMP_ACTIVATION_RELU2, kE, 64, 96, 1, true);
  const int64_t pitch = 64 + 8;
  Array padded(RAMP_F32, {kE, 96 + 1, pitch});
  for (int64_t e = 0; e < kE; ++e)
    for (int64_t r = 0; r < 96; ++r)
      for (int64_t c = 0; c < 64; ++c) padded.set((e * 97 + r) * pitch + c, m.w13.get((e * 96 + r) * 64 + c));
  ramp_weights_desc d = m.desc();
  d.w13 = view(padded.bytes.data(), RAMP_F32, {kE, 96, 64});
  d.w13.stride[0] = 97 * pitch;
  d.w13.stride[1] = pitch;
  d.w13.stride[2] = 1;
  for (const int32_t ownership : {RAMP_COPY, RAMP_BORROW}) {
    d.ownership = ownership;
    expect_runs(m, make_weights(context, d));
    expect_runs(m, make_weights(context, d, true));
  }
}

TEST_P(WeightsOn, Update) {
  for (const bool packed : {false, true}) {
    for (const int32_t ownership : {RAMP_COPY, RAMP_IN_PLACE, RAMP_BORROW}) {
      if (ownership == RAMP_BORROW && !packed) continue;
      SCOPED_TRACE(testing::Message() << "packed " << packed << " ownership " << ownership);
      Model old(RAMP_FORMAT_FP8_TENSOR, RAMP_ACTIVATION_RELU2, 4, 64, 96, 1, true);
      const Model next(RAMP_FORMAT_FP8_TENSOR, RAMP_ACTIVATION_RELU2, 2, 64, 96, 99, true);
      Model merged = old;
      const Weights w = make_weights(context, old.desc(ownership), packed);
      const ramp_weights_desc d = next.desc();
      ASSERT_EQ(ramp_weights_update(context.get(), w.get(), 1, &d, nullptr), RAMP_OK) << ramp_last_error();
      const auto merge = [](Array& into, const Array& from, int64_t experts) {
        const size_t per = into.bytes.size() / static_cast<size_t>(experts);
        std::memcpy(into.bytes.data() + per, from.bytes.data(), 2 * per);
      };
      merge(merged.w13, next.w13, 4);
      merge(merged.w2, next.w2, 4);
      merge(merged.w13_scale, next.w13_scale, 4);
      merge(merged.w2_scale, next.w2_scale, 4);
      expect_runs(merged, w);
      ramp_weights_info info = ramp_weights_info_init();
      ASSERT_EQ(ramp_weights_get_info(w.get(), &info), RAMP_OK);
      EXPECT_EQ(info.packed != 0, packed);
    }
  }
}

TEST_P(WeightsOn, UpdateRefusesWhatDoesNotFit) {
  const Model m(RAMP_FORMAT_F32, RAMP_ACTIVATION_RELU2, 4, 64, 96, 1, true);
  const Model part(RAMP_FORMAT_F32, RAMP_ACTIVATION_RELU2, 2, 64, 96, 99, true);
  const Weights w = make_weights(context, m.desc());
  const auto update = [&](int64_t first, const ramp_weights_desc& d) {
    return ramp_weights_update(context.get(), w.get(), first, &d, nullptr);
  };
  constexpr ramp_status kInvalid = RAMP_ERROR_INVALID_ARGUMENT;
  expect_error(update(3, part.desc()), kInvalid, {"num_experts", "2"});
  expect_error(update(4, part.desc()), kInvalid, {"first_expert", "4"});
  expect_error(update(-1, part.desc()), kInvalid, {"first_expert", "-1"});
  expect_error(update(INT64_MAX, part.desc()), kInvalid, {"first_expert"});
  expect_error(update(0, Model(RAMP_FORMAT_BF16, RAMP_ACTIVATION_RELU2, 2, 64, 96, 1, true).desc()), kInvalid,
               {"format"});
  expect_error(update(0, Model(RAMP_FORMAT_F32, RAMP_ACTIVATION_RELU2, 2, 96, 96, 1, true).desc()), kInvalid,
               {"hidden", "96", "64"});
  expect_error(update(0, Model(RAMP_FORMAT_F32, RAMP_ACTIVATION_RELU2, 2, 64, 64, 1, true).desc()), kInvalid,
               {"intermediate"});
  expect_error(update(0, Model(RAMP_FORMAT_F32, RAMP_ACTIVATION_SILU_AND_MUL, 2, 64, 96, 1).desc()), kInvalid,
               {"activation"});
  ramp_weights_desc d = part.desc();
  d.w2.data = nullptr;
  expect_error(update(0, d), kInvalid, {"desc.w2"});
  expect_runs(m, w);  // nothing was written by any of them

  const Weights borrowed = make_weights(context, m.desc(RAMP_BORROW));
  d = part.desc();
  expect_error(ramp_weights_update(context.get(), borrowed.get(), 0, &d, nullptr), RAMP_ERROR_UNSUPPORTED,
               {"borrow"});

  const Model own = m;
  const Weights in_place = make_weights(context, own.desc(RAMP_IN_PLACE));
  d = own.desc();
  expect_error(ramp_weights_update(context.get(), in_place.get(), 0, &d, nullptr), kInvalid, {"overlap"});
}

TEST_P(WeightsOn, UnpackRefusesWhatDoesNotFit) {
  const Model m(RAMP_FORMAT_F32, RAMP_ACTIVATION_RELU2, kE, 64, 96, 1, true);
  const Weights w = make_weights(context, m.desc(RAMP_BORROW), true);
  Array out(RAMP_F32, {kE, 64, 96});
  ramp_tensor t = out.view();
  constexpr ramp_status kInvalid = RAMP_ERROR_INVALID_ARGUMENT;
  expect_error(ramp_weights_unpack(context.get(), w.get(), &t, nullptr, nullptr), kInvalid,
               {"w13", "[3, 96, 64]"});
  t.dtype = RAMP_BF16;
  expect_error(ramp_weights_unpack(context.get(), w.get(), nullptr, &t, nullptr), kInvalid,
               {"w2", "bf16", "f32"});
  t = m.w2.view();
  expect_error(ramp_weights_unpack(context.get(), w.get(), nullptr, &t, nullptr), kInvalid,
               {"w2", "overlap"});
  t = out.view();
  t.stride[1] = 96;
  t.stride[2] = 1;  // all experts in one place
  expect_error(ramp_weights_unpack(context.get(), w.get(), nullptr, &t, nullptr), kInvalid,
               {"w2", "own memory"});
  t = out.view();
  EXPECT_EQ(ramp_weights_unpack(context.get(), w.get(), nullptr, &t, nullptr), RAMP_OK) << ramp_last_error();
  EXPECT_EQ(out.bytes, m.w2.bytes);
}

TEST_P(WeightsOn, PackIsIdempotentAndInfoTells) {
  const Model m(RAMP_FORMAT_FP8_BLOCK, RAMP_ACTIVATION_SILU_AND_MUL, kE, kH, kI, 1);
  const Weights w = make_weights(context, m.desc());
  ramp_weights_info info = ramp_weights_info_init();
  ASSERT_EQ(ramp_weights_get_info(w.get(), &info), RAMP_OK);
  EXPECT_EQ(info.format, RAMP_FORMAT_FP8_BLOCK);
  EXPECT_EQ(info.activation, RAMP_ACTIVATION_SILU_AND_MUL);
  EXPECT_EQ(info.ownership, RAMP_COPY);
  EXPECT_EQ(info.packed, 0);
  EXPECT_EQ(info.num_experts, kE);
  EXPECT_EQ(info.hidden, kH);
  EXPECT_EQ(info.intermediate, kI);
  EXPECT_EQ(info.bytes, kE * (3 * kH * kI + 4 * (2 * 2 + 2 * 1)));
  for (int i = 0; i < 2; ++i) {
    ASSERT_EQ(ramp_weights_pack(context.get(), w.get(), nullptr), RAMP_OK) << ramp_last_error();
    ASSERT_EQ(ramp_weights_get_info(w.get(), &info), RAMP_OK);
    EXPECT_EQ(info.packed, 1);
    EXPECT_GE(info.bytes, kE * 3 * kH * kI);
  }
  expect_unpacks(m, w);
}

INSTANTIATE_TEST_SUITE_P(Backends, WeightsOn, testing::Values(RAMP_BACKEND_REFERENCE, RAMP_BACKEND_CPU),
                         [](const auto& info) { return std::string(backend_name(info.param)); });

TEST(WeightsTest, PackedWeightsStayWithTheirBackend) {
  const Context cpu = make_context(RAMP_BACKEND_CPU);
  const Context reference = make_context(RAMP_BACKEND_REFERENCE);
  const Model m(RAMP_FORMAT_F32, RAMP_ACTIVATION_RELU2, kE, 64, 96, 1, true);
  const Weights w = make_weights(cpu, m.desc());
  Call c(m, w.get(), 4, 2, 1, true);
  EXPECT_EQ(ramp_expert_block(reference.get(), &c.args, nullptr, 0, nullptr), RAMP_OK) << ramp_last_error();
  expect_equal(c.y, exact_combined(m, c));
  ASSERT_EQ(ramp_weights_pack(cpu.get(), w.get(), nullptr), RAMP_OK);
  expect_error(ramp_expert_block(reference.get(), &c.args, nullptr, 0, nullptr), RAMP_ERROR_INVALID_ARGUMENT,
               {"weights", "packed by another backend"});
}

}  // namespace
}  // namespace abi_test
