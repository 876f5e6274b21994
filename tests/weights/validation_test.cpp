// Every field of a weights descriptor spoilt, one at a time: the error names the field, what was got and what
// was expected.
#include <gtest/gtest.h>

#include <limits>

#include "base/float_types.hpp"
#include "base/tensor.hpp"
#include "weights/support.hpp"

namespace ramp::core::test {
namespace {

using Spoil = std::function<void(ramp_weights_desc&)>;

void expect_rejected(ramp_format format, const Spoil& spoil, std::initializer_list<const char*> parts,
                     ramp_activation activation = RAMP_ACTIVATION_SILU_AND_MUL,
                     ramp_status status = RAMP_ERROR_INVALID_ARGUMENT) {
  SyntheticWeights s = values(format, activation);
  ASSERT_NO_THROW(make_expert_weights(s.desc, {}));
  spoil(s.desc);
  expect_parts(message_of([&] { make_expert_weights(s.desc, {}); }, status), parts);
}

TEST(Validation, Enumerations) {
  expect_rejected(RAMP_FORMAT_BF16, [](auto& d) { d.format = 0; }, {"desc.format", "got 0", "fp8_block"});
  expect_rejected(RAMP_FORMAT_BF16, [](auto& d) { d.format = 7; }, {"desc.format", "got 7"});
  expect_rejected(RAMP_FORMAT_BF16, [](auto& d) { d.format = -1; }, {"desc.format", "got -1"});
  expect_rejected(
      RAMP_FORMAT_BF16, [](auto& d) { d.format = 32; }, {"desc.format", "got 32"},
      RAMP_ACTIVATION_SILU_AND_MUL, RAMP_ERROR_UNSUPPORTED);
  expect_rejected(RAMP_FORMAT_BF16, [](auto& d) { d.activation = 4; }, {"desc.activation", "got 4"});
  expect_rejected(RAMP_FORMAT_BF16, [](auto& d) { d.activation = -1; }, {"desc.activation", "got -1"});
  expect_rejected(RAMP_FORMAT_BF16, [](auto& d) { d.ownership = 3; }, {"desc.ownership", "got 3"});
  expect_rejected(
      RAMP_FORMAT_BF16, [](auto& d) { d.reserved = 1; }, {"desc.reserved"}, RAMP_ACTIVATION_SILU_AND_MUL,
      RAMP_ERROR_UNSUPPORTED);
}

TEST(Validation, Extents) {
  for (const ramp_format f : kFormats) {
    expect_rejected(f, [](auto& d) { d.num_experts = 0; }, {"desc.num_experts", "got 0"});
    expect_rejected(f, [](auto& d) { d.num_experts = -3; }, {"desc.num_experts", "got -3"});
    expect_rejected(f, [](auto& d) { d.hidden = 0; }, {"desc.hidden", "got 0"});
    expect_rejected(f, [](auto& d) { d.hidden = 168; }, {"desc.hidden", "got 168", "multiple of 32", "192"});
    expect_rejected(f, [](auto& d) { d.intermediate = 100; },
                    {"desc.intermediate", "got 100", "multiple of 32"});
    expect_rejected(f, [](auto& d) { d.intermediate = 16; }, {"desc.intermediate", "got 16"});
    expect_rejected(f, [](auto& d) { d.intermediate = int64_t{1} << 62; }, {"desc.intermediate"});
    expect_rejected(f, [](auto& d) { d.hidden = std::numeric_limits<int64_t>::min(); }, {"desc.hidden"});
    // Right numbers, tensors of another shape.
    expect_rejected(f, [](auto& d) { d.hidden = 192; }, {"desc.w13", "[3, 192, 160]", "[3, 192, 192]"});
    expect_rejected(f, [](auto& d) { d.num_experts = 4; }, {"desc.w13", "[4, 192, 160]"});
  }
}

TEST(Validation, WeightTensors) {
  for (const ramp_format f : kFormats) {
    expect_rejected(f, [](auto& d) { d.w13 = {}; }, {"desc.w13", "no tensor", "[3, 192, 160]"});
    expect_rejected(f, [](auto& d) { d.w2 = {}; }, {"desc.w2", "no tensor", "[3, 160, 96]"});
    expect_rejected(f, [](auto& d) { d.w13.data = nullptr; }, {"desc.w13", "NULL"});
    expect_rejected(f, [](auto& d) { d.w2.data = nullptr; }, {"desc.w2", "NULL"});
    expect_rejected(f, [](auto& d) { d.w13.dtype = RAMP_I32; }, {"desc.w13", "i32"});
    expect_rejected(f, [](auto& d) { d.w2.dtype = 77; }, {"desc.w2", "dtype(77)"});
    expect_rejected(f, [](auto& d) { d.w13.ndim = 2; }, {"desc.w13"});
    expect_rejected(f, [](auto& d) { d.w13.ndim = 9; }, {"desc.w13", "ndim 9"});
    expect_rejected(f, [](auto& d) { std::swap(d.w2.shape[1], d.w2.shape[2]); }, {"desc.w2", "[3, 96, 160]"});
    expect_rejected(f, [](auto& d) { d.w13.shape[1] = 96; }, {"desc.w13", "[3, 96, 160]", "[3, 192, 160]"});
    expect_rejected(f, [](auto& d) { d.w13.stride[2] = 2; }, {"desc.w13", "stride"});
    expect_rejected(f, [](auto& d) { d.w13.stride[1] = -160; }, {"desc.w13", "strides"});
    expect_rejected(f, [](auto& d) { d.w13.stride[0] = int64_t{1} << 62; }, {"desc.w13"});
    expect_rejected(f, [](auto& d) { d.w13.device.type = RAMP_DEVICE_CUDA; }, {"desc.w13", "cuda:0", "cpu"});
  }
  expect_rejected(RAMP_FORMAT_BF16, [](auto& d) { d.w13.data = static_cast<char*>(d.w13.data) + 1; },
                  {"desc.w13", "multiple of the element size"});
}

TEST(Validation, RowsDependOnTheActivation) {
  for (const ramp_format f : kFormats) {
    expect_rejected(f, [](auto& d) { d.activation = RAMP_ACTIVATION_RELU2; },
                    {"desc.w13", "[3, 192, 160]", "[3, 96, 160]"});
    expect_rejected(
        f, [](auto& d) { d.activation = RAMP_ACTIVATION_GELU_AND_MUL; },
        {"desc.w13", "[3, 96, 160]", "[3, 192, 160]"}, RAMP_ACTIVATION_RELU2);
  }
}

TEST(Validation, ScalesAreRequiredExactlyWhereTheFormatHasThem) {
  for (const ramp_format f : kFormats) {
    const bool fp8 = weight_dtype(f) == RAMP_E4M3;
    if (fp8) {
      expect_rejected(f, [](auto& d) { d.w13_scale = {}; }, {"desc.w13_scale", "no tensor"});
      expect_rejected(f, [](auto& d) { d.w2_scale = {}; }, {"desc.w2_scale", "no tensor"});
      expect_rejected(f, [](auto& d) { d.w13_scale.dtype = RAMP_BF16; }, {"desc.w13_scale", "bf16", "f32"});
      expect_rejected(f, [](auto& d) { d.w2_scale.dtype = RAMP_F64; }, {"desc.w2_scale", "f64", "f32"});
      expect_rejected(f, [](auto& d) { d.w2_scale.shape[0] = 2; }, {"desc.w2_scale", "[2"});
      expect_rejected(f,
                      [](auto& d) {
                        d.w13_scale.ndim = 4;
                        d.w13_scale.shape[3] = 1;
                      },
                      {"desc.w13_scale"});
    } else {
      expect_rejected(f, [](auto& d) { d.w13_scale = make_tensor(d.w13.data, RAMP_F32, {3}); },
                      {"desc.w13_scale", "no tensor", format_name(f)});
      expect_rejected(f, [](auto& d) { d.w2_scale = make_tensor(d.w2.data, RAMP_F32, {3}); },
                      {"desc.w2_scale", "no tensor"});
    }
    if (f == RAMP_FORMAT_FP8_TENSOR) continue;
    expect_rejected(f, [](auto& d) { d.w13_input_scale = make_tensor(d.w13.data, RAMP_F32, {1}); },
                    {"desc.w13_input_scale", "no tensor"});
    expect_rejected(f, [](auto& d) { d.w2_input_scale = make_tensor(d.w13.data, RAMP_F32, {1}); },
                    {"desc.w2_input_scale", "no tensor"});
  }
}

TEST(Validation, ScaleShapes) {
  // H = 160, I = 96: w13 [3, 2, 2], w2 [3, 2, 1]. Not rounded down, not gate and up together.
  expect_rejected(RAMP_FORMAT_FP8_BLOCK, [](auto& d) { d.w13_scale.shape[2] = 1; },
                  {"desc.w13_scale", "[3, 2, 1]", "[3, 2, 2]"});
  expect_rejected(RAMP_FORMAT_FP8_BLOCK, [](auto& d) { d.w13_scale.shape[1] = 1; },
                  {"desc.w13_scale", "[3, 2, 2]"});
  expect_rejected(RAMP_FORMAT_FP8_BLOCK, [](auto& d) { std::swap(d.w2_scale.shape[1], d.w2_scale.shape[2]); },
                  {"desc.w2_scale", "[3, 1, 2]", "[3, 2, 1]"});
  expect_rejected(RAMP_FORMAT_FP8_CHANNEL, [](auto& d) { d.w13_scale.shape[1] = 96; },
                  {"desc.w13_scale", "[3, 96]", "[3, 192]"});
  expect_rejected(RAMP_FORMAT_FP8_CHANNEL, [](auto& d) { d.w2_scale.shape[1] = 96; },
                  {"desc.w2_scale", "[3, 160]"});
  expect_rejected(RAMP_FORMAT_FP8_TENSOR, [](auto& d) { d.w13_scale.shape[1] = 3; },
                  {"desc.w13_scale", "[3, 3]", "[3, 2]"});
  expect_rejected(RAMP_FORMAT_FP8_TENSOR, [](auto& d) { d.w2_scale = d.w13_scale; },
                  {"desc.w2_scale", "[3, 2]", "[3]"});
  // relu2 has no up half to scale apart.
  expect_rejected(
      RAMP_FORMAT_FP8_TENSOR,
      [](auto& d) {
        d.w13_scale.ndim = 2;
        d.w13_scale.shape[1] = 2;
        d.w13_scale.stride[0] = 2;
        d.w13_scale.stride[1] = 1;
      },
      {"desc.w13_scale", "[3, 2]", "[3]"}, RAMP_ACTIVATION_RELU2);
}

TEST(Validation, InputScales) {
  const ramp_format f = RAMP_FORMAT_FP8_TENSOR;
  expect_rejected(f, [](auto& d) { d.w13_input_scale = {}; }, {"desc.w13_input_scale", "no tensor"});
  expect_rejected(f, [](auto& d) { d.w2_input_scale = {}; }, {"desc.w2_input_scale", "no tensor"});
  expect_rejected(f, [](auto& d) { d.w2_input_scale.shape[0] = 3; }, {"desc.w2_input_scale", "[3]", "[1]"});
  for (const float bad :
       {0.0F, -1.0F, std::numeric_limits<float>::infinity(), std::numeric_limits<float>::quiet_NaN()}) {
    expect_rejected(f, [bad](auto& d) { *static_cast<float*>(d.w13_input_scale.data) = bad; },
                    {"desc.w13_input_scale", "a finite scale > 0"});
    expect_rejected(f, [bad](auto& d) { *static_cast<float*>(d.w2_input_scale.data) = bad; },
                    {"desc.w2_input_scale", "a finite scale > 0"});
  }
}

TEST(Validation, InPlaceNeedsMemoryOfItsOwn) {
  SyntheticWeights s = values(RAMP_FORMAT_FP8_BLOCK);
  s.desc.ownership = RAMP_IN_PLACE;
  ASSERT_NO_THROW(make_expert_weights(s.desc, {}));
  ramp_weights_desc d = s.desc;
  d.w2.data = static_cast<char*>(d.w13.data) + 3 * 192 * 160 - 1;
  expect_parts(message_of([&] { make_expert_weights(d, {}); }), {"desc.w2", "overlap desc.w13"});
  d = s.desc;
  d.w2_scale.data = d.w13_scale.data;
  expect_parts(message_of([&] { make_expert_weights(d, {}); }), {"desc.w2_scale", "overlap desc.w13_scale"});
  d = s.desc;
  d.w13_scale.data = d.w2.data;
  expect_parts(message_of([&] { make_expert_weights(d, {}); }), {"desc.w13_scale", "overlap desc.w2"});
  d = s.desc;
  d.w13.stride[0] = 0;  // one expert seen three times
  expect_parts(message_of([&] { make_expert_weights(d, {}); }), {"desc.w13", "contiguous"});
  // Reading them is fine.
  d.ownership = RAMP_BORROW;
  EXPECT_NO_THROW(make_expert_weights(d, {}));
}

TEST(Validation, NanWeightsAndScalesAreAccepted) {
  SyntheticWeights s = values(RAMP_FORMAT_FP8_BLOCK);
  s.w13.as<uint8_t>()[0] = 0x7f;
  s.w13_scale[1] = std::numeric_limits<float>::quiet_NaN();
  EXPECT_NO_THROW(make_expert_weights(s.desc, {}));
}

}  // namespace
}  // namespace ramp::core::test
