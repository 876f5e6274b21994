// Updates: what check_update accepts and refuses, and update_scales for each kind of ownership.
#include <gtest/gtest.h>

#include "base/float_types.hpp"
#include "base/tensor.hpp"
#include "weights/support.hpp"

namespace ramp::core::test {
namespace {

TEST(Update, ChecksAgainstTheHandle) {
  const SyntheticWeights s = values(RAMP_FORMAT_FP8_BLOCK);
  const auto w = make_expert_weights(s.desc, {});
  const SyntheticWeights two = values(RAMP_FORMAT_FP8_BLOCK, RAMP_ACTIVATION_SILU_AND_MUL, 2, 160, 96, 9);
  const ramp_weights_desc d = check_update(*w, 1, two.desc);
  EXPECT_EQ(d.num_experts, 2);
  EXPECT_EQ(d.w13.data, two.w13.data());
  const auto rejects = [&](int64_t first, const std::function<void(ramp_weights_desc&)>& spoil,
                           std::initializer_list<const char*> parts) {
    ramp_weights_desc bad = two.desc;
    spoil(bad);
    expect_parts(message_of([&] { check_update(*w, first, bad); }), parts);
  };
  const auto nothing = [](ramp_weights_desc&) {};
  rejects(2, nothing, {"desc.num_experts", "2 from expert 2 on", "at most 1"});
  rejects(3, nothing, {"first_expert", "got 3", "0..2"});
  rejects(-1, nothing, {"first_expert", "got -1"});
  rejects(0, [](auto& b) { b.format = RAMP_FORMAT_BF16; }, {"desc.format", "got 2", "1"});
  rejects(0, [](auto& b) { b.activation = RAMP_ACTIVATION_RELU2; }, {"desc.activation"});
  rejects(0, [](auto& b) { b.hidden = 128; }, {"desc.hidden", "got 128", "160"});
  rejects(0, [](auto& b) { b.intermediate = 64; }, {"desc.intermediate", "got 64", "96"});
  rejects(0, [](auto& b) { b.w13.data = nullptr; }, {"desc.w13", "NULL"});
  rejects(0, [](auto& b) { b.w13_scale.shape[0] = 3; }, {"desc.w13_scale"});
}

TEST(Update, OwnershipIsIgnoredAndInputScalesAreOptional) {
  const SyntheticWeights s = values(RAMP_FORMAT_FP8_TENSOR);
  const auto w = make_expert_weights(s.desc, {});
  ramp_weights_desc d = values(RAMP_FORMAT_FP8_TENSOR).desc;
  const SyntheticWeights u = values(RAMP_FORMAT_FP8_TENSOR, RAMP_ACTIVATION_SILU_AND_MUL, 1, 160, 96, 5);
  d = u.desc;
  d.ownership = 99;
  d.w13_input_scale = {};
  d.w2_input_scale = {};
  const ramp_weights_desc c = check_update(*w, 2, d);
  update_scales(*w, 2, c);
  EXPECT_EQ(w->w13_input_scale, s.w13_input_scale[0]);
  update_scales(*w, 2, check_update(*w, 2, u.desc));
  EXPECT_EQ(w->w13_input_scale, u.w13_input_scale[0]);
  EXPECT_EQ(w->w2_input_scale, u.w2_input_scale[0]);
}

TEST(Update, TensorScalesKeepTheirColumns) {
  const SyntheticWeights s = values(RAMP_FORMAT_FP8_TENSOR);  // [3, 2]
  const auto w = make_expert_weights(s.desc, {});
  SyntheticWeightsOptions o;
  o.split_tensor_scale = false;
  const SyntheticWeights one = make_synthetic_weights({"test", 1, 1, 160, 96}, RAMP_FORMAT_FP8_TENSOR,
                                                      RAMP_ACTIVATION_SILU_AND_MUL, o);
  expect_parts(message_of([&] { check_update(*w, 0, one.desc); }), {"desc.w13_scale", "[1]", "[n, 2]"});
}

TEST(Update, ScalesOfEachOwnership) {
  for (const ramp_format format : {RAMP_FORMAT_FP8_BLOCK, RAMP_FORMAT_FP8_TENSOR, RAMP_FORMAT_FP8_CHANNEL}) {
    for (const ramp_ownership ownership : {RAMP_COPY, RAMP_BORROW, RAMP_IN_PLACE}) {
      SyntheticWeights s = values(format);
      s.desc.ownership = ownership;
      const auto w = make_expert_weights(s.desc, {});
      const std::vector<float> before = s.w13_scale;
      const SyntheticWeights u = values(format, RAMP_ACTIVATION_SILU_AND_MUL, 2, 160, 96, 11);
      const auto other = make_expert_weights(u.desc, {});
      update_scales(*w, 1, check_update(*w, 1, u.desc));
      for (int64_t r = 0; r < 192; r += 5) {
        EXPECT_EQ(w13_scale_at(*w, 1, r, 130), w13_scale_at(*other, 0, r, 130));
        EXPECT_EQ(w13_scale_at(*w, 2, r, 130), w13_scale_at(*other, 1, r, 130));
      }
      for (int64_t r = 0; r < 160; r += 5)
        EXPECT_EQ(w2_scale_at(*w, 2, r, 90), w2_scale_at(*other, 1, r, 90));
      EXPECT_EQ(w13_scale_at(*w, 0, 0, 0), before[0]);
      // The caller's buffers are written for IN_PLACE alone.
      EXPECT_EQ(s.w13_scale == before, ownership != RAMP_IN_PLACE);
    }
  }
}

}  // namespace
}  // namespace ramp::core::test
