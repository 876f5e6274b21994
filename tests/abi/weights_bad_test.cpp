// Weights: every wrong descriptor is refused with a message that names the field; ownership, strides,
// packing, update, unpacking and facts.
#include "abi/support.hpp"

namespace abi_test {
namespace {

constexpr int64_t kE = 3;
constexpr int64_t kH = 160;  // two scale blocks, the second one short
constexpr int64_t kI = 96;

struct BadDesc {
  const char* name;
  int32_t format;
  std::function<void(ramp_weights_desc&)> spoil;
  ramp_status status;
  std::vector<std::string> message;
};

std::vector<BadDesc> bad_descs() {
  constexpr ramp_status kInvalid = RAMP_ERROR_INVALID_ARGUMENT;
  constexpr int32_t kBf16 = RAMP_FORMAT_BF16;
  constexpr int32_t kBlock = RAMP_FORMAT_FP8_BLOCK;
  constexpr int32_t kTensor = RAMP_FORMAT_FP8_TENSOR;
  constexpr int32_t kChannel = RAMP_FORMAT_FP8_CHANNEL;
  static float nan_scale = std::numeric_limits<float>::quiet_NaN();
  static float zero_scale = 0.0F;
  return {
      {"FormatNone", kBf16, [](auto& d) { d.format = RAMP_FORMAT_NONE; }, kInvalid, {"desc.format"}},
      {"FormatUnknown", kBf16, [](auto& d) { d.format = 17; }, kInvalid, {"desc.format", "17"}},
      {"FormatOfTheFuture",
       kBf16,
       [](auto& d) { d.format = 40; },
       RAMP_ERROR_UNSUPPORTED,
       {"desc.format", "40"}},
      {"FormatNegative", kBf16, [](auto& d) { d.format = -1; }, kInvalid, {"desc.format"}},
      {"Activation", kBf16, [](auto& d) { d.activation = 4; }, kInvalid, {"desc.activation", "4"}},
      {"ActivationNegative", kBf16, [](auto& d) { d.activation = -1; }, kInvalid, {"desc.activation"}},
      {"Ownership", kBf16, [](auto& d) { d.ownership = 3; }, kInvalid, {"desc.ownership", "3"}},
      {"Reserved", kBf16, [](auto& d) { d.reserved = 1; }, RAMP_ERROR_UNSUPPORTED, {"desc.reserved"}},
      {"NoExperts", kBf16, [](auto& d) { d.num_experts = 0; }, kInvalid, {"desc.num_experts", "0"}},
      {"ExpertsNegative", kBf16, [](auto& d) { d.num_experts = -1; }, kInvalid, {"desc.num_experts"}},
      {"ExpertsHuge", kBf16, [](auto& d) { d.num_experts = INT64_MAX; }, kInvalid, {"desc.num_experts"}},
      {"HiddenZero", kBf16, [](auto& d) { d.hidden = 0; }, kInvalid, {"desc.hidden", "0"}},
      {"HiddenNotMultipleOf32",
       kBf16,
       [](auto& d) { d.hidden = 100; },
       kInvalid,
       {"desc.hidden", "100", "multiple of 32", "128"}},
      {"HiddenNegative", kBf16, [](auto& d) { d.hidden = -32; }, kInvalid, {"desc.hidden"}},
      {"HiddenHuge", kBf16, [](auto& d) { d.hidden = INT64_MAX - 31; }, kInvalid, {"desc.hidden"}},
      {"IntermediateNotMultipleOf32",
       kBf16,
       [](auto& d) { d.intermediate = 97; },
       kInvalid,
       {"desc.intermediate", "97", "multiple of 32"}},
      {"W13Missing", kBf16, [](auto& d) { d.w13 = ramp_tensor{}; }, kInvalid, {"desc.w13", "no tensor"}},
      {"W13NullData", kBf16, [](auto& d) { d.w13.data = nullptr; }, kInvalid, {"desc.w13", "NULL"}},
      {"W13Dtype", kBf16, [](auto& d) { d.w13.dtype = RAMP_F16; }, kInvalid, {"desc.w13", "f16", "bf16"}},
      {"W13DtypeUnknown", kBf16, [](auto& d) { d.w13.dtype = 99; }, kInvalid, {"desc.w13", "dtype(99)"}},
      {"W13Rows",
       kBf16,
       [](auto& d) { d.w13.shape[1] = kI; },
       kInvalid,
       {"desc.w13", "[3, 96, 160]", "[3, 192, 160]"}},
      {"W13Transposed",
       kBf16,
       [](auto& d) { std::swap(d.w13.shape[1], d.w13.shape[2]); },
       kInvalid,
       {"desc.w13"}},
      {"W13TwoDims", kBf16, [](auto& d) { d.w13.ndim = 2; }, kInvalid, {"desc.w13", "[3, 192]"}},
      {"W13FiveDims", kBf16, [](auto& d) { d.w13.ndim = 5; }, kInvalid, {"desc.w13", "ndim 5"}},
      {"W13NegativeDims", kBf16, [](auto& d) { d.w13.ndim = -1; }, kInvalid, {"desc.w13", "ndim -1"}},
      {"W13NegativeShape", kBf16, [](auto& d) { d.w13.shape[0] = -3; }, kInvalid, {"desc.w13", "-3"}},
      {"W13LastStride",
       kBf16,
       [](auto& d) {
         d.w13.stride[0] = 2 * kI * kH;
         d.w13.stride[1] = 1;
         d.w13.stride[2] = 2 * kI;
       },
       kInvalid,
       {"desc.w13", "stride"}},
      {"W13NegativeStride",
       kBf16,
       [](auto& d) {
         d.w13.stride[0] = -2 * kI * kH;
         d.w13.stride[1] = kH;
         d.w13.stride[2] = 1;
       },
       kInvalid,
       {"desc.w13", "stride"}},
      {"W13OverflowingStride",
       kBf16,
       [](auto& d) {
         d.w13.stride[0] = INT64_MAX / 2;
         d.w13.stride[1] = kH;
         d.w13.stride[2] = 1;
       },
       kInvalid,
       {"desc.w13", "address space"}},
      {"W13Unaligned",
       kBf16,
       [](auto& d) { d.w13.data = static_cast<std::byte*>(d.w13.data) + 1; },
       kInvalid,
       {"desc.w13", "multiple of the element size"}},
      {"W13WrongDevice",
       kBf16,
       [](auto& d) {
         d.w13.device = {RAMP_DEVICE_CUDA, 0};
       },
       kInvalid,
       {"desc.w13", "cuda:0", "cpu"}},
      {"W13UnknownDevice",
       kBf16,
       [](auto& d) {
         d.w13.device = {9, 3};
       },
       kInvalid,
       {"desc.w13", "type 9"}},
      {"W2Missing", kBf16, [](auto& d) { d.w2 = ramp_tensor{}; }, kInvalid, {"desc.w2", "no tensor"}},
      {"W2Swapped",
       kBf16,
       [](auto& d) { std::swap(d.w2.shape[1], d.w2.shape[2]); },
       kInvalid,
       {"desc.w2", "[3, 96, 160]", "[3, 160, 96]"}},
      {"W2Experts", kBf16, [](auto& d) { d.w2.shape[0] = 4; }, kInvalid, {"desc.w2"}},
      {"W2Dtype", kBf16, [](auto& d) { d.w2.dtype = RAMP_F32; }, kInvalid, {"desc.w2", "f32"}},
      {"ScaleWithoutFp8",
       kBf16,
       [](auto& d) { d.w13_scale = view(&zero_scale, RAMP_F32, {1}); },
       kInvalid,
       {"desc.w13_scale", "bf16"}},
      {"BlockScaleMissing",
       kBlock,
       [](auto& d) { d.w13_scale = ramp_tensor{}; },
       kInvalid,
       {"desc.w13_scale", "[3, 2, 2]"}},
      {"BlockScaleRows",
       kBlock,
       [](auto& d) { d.w13_scale.shape[1] = 1; },
       kInvalid,
       {"desc.w13_scale", "[3, 2, 2]"}},
      {"BlockScaleFloorInsteadOfCeil",
       kBlock,
       [](auto& d) { d.w13_scale.shape[2] = 1; },
       kInvalid,
       {"desc.w13_scale"}},
      {"BlockScaleDtype",
       kBlock,
       [](auto& d) { d.w2_scale.dtype = RAMP_BF16; },
       kInvalid,
       {"desc.w2_scale", "bf16", "f32"}},
      {"BlockScaleW2",
       kBlock,
       [](auto& d) { std::swap(d.w2_scale.shape[1], d.w2_scale.shape[2]); },
       kInvalid,
       {"desc.w2_scale", "[3, 2, 1]"}},
      {"BlockInputScale",
       kBlock,
       [](auto& d) { d.w13_input_scale = view(&zero_scale, RAMP_F32, {1}); },
       kInvalid,
       {"desc.w13_input_scale"}},
      {"TensorScaleShape", kTensor, [](auto& d) { d.w13_scale.shape[1] = 3; }, kInvalid, {"desc.w13_scale"}},
      {"TensorW2ScalePerRow",
       kTensor,
       [](auto& d) {
         d.w2_scale.ndim = 2;
         d.w2_scale.shape[1] = kH;
       },
       kInvalid,
       {"desc.w2_scale"}},
      {"TensorInputScaleMissing",
       kTensor,
       [](auto& d) { d.w2_input_scale = ramp_tensor{}; },
       kInvalid,
       {"desc.w2_input_scale", "f32 [1]"}},
      {"TensorInputScaleNan",
       kTensor,
       [](auto& d) { d.w13_input_scale = view(&nan_scale, RAMP_F32, {1}); },
       kInvalid,
       {"desc.w13_input_scale", "nan"}},
      {"TensorInputScaleZero",
       kTensor,
       [](auto& d) { d.w2_input_scale = view(&zero_scale, RAMP_F32, {1}); },
       kInvalid,
       {"desc.w2_input_scale"}},
      {"ChannelScaleShape",
       kChannel,
       [](auto& d) { d.w13_scale.shape[1] = kH; },
       kInvalid,
       {"desc.w13_scale", "[3, 192]"}},
      {"ChannelScaleW2",
       kChannel,
       [](auto& d) { d.w2_scale.shape[1] = kI; },
       kInvalid,
       {"desc.w2_scale", "[3, 160]"}},
      {"InPlaceWithGaps",
       kBf16,
       [](auto& d) {
         d.ownership = RAMP_IN_PLACE;
         d.w2.stride[0] = kH * kI + kI;
         d.w2.stride[1] = kI;
         d.w2.stride[2] = 1;
       },
       kInvalid,
       {"desc.w2", "contiguous"}},
      {"InPlaceOverlap",
       kBf16,
       [](auto& d) {
         d.ownership = RAMP_IN_PLACE;
         d.w2.data = d.w13.data;
       },
       kInvalid,
       {"desc.w2", "overlap"}},
  };
}

class BadWeights : public testing::TestWithParam<size_t> {};

TEST_P(BadWeights, AreRefused) {
  const BadDesc bad = bad_descs()[GetParam()];
  const Context context = make_context(RAMP_BACKEND_REFERENCE, 1);
  const Model m(bad.format, RAMP_ACTIVATION_SILU_AND_MUL, kE, kH, kI, 1);
  ramp_weights_desc d = m.desc();
  bad.spoil(d);
  ramp_weights* out = nullptr;
  expect_error(ramp_weights_create(context.get(), &d, nullptr, &out), bad.status, bad.message);
  EXPECT_EQ(out, nullptr);
  ramp_weights_destroy(out);
}

INSTANTIATE_TEST_SUITE_P(All, BadWeights, testing::Range(size_t{0}, bad_descs().size()),
                         [](const auto& info) { return std::string(bad_descs()[info.param].name); });

TEST(WeightsTest, StreamMustBeNullOnTheCpu) {
  const Context context = make_context(RAMP_BACKEND_REFERENCE, 1);
  const Model m(RAMP_FORMAT_F32, RAMP_ACTIVATION_RELU2, kE, 32, 32, 1, true);
  const ramp_weights_desc d = m.desc();
  int stream = 0;
  ramp_weights* out = nullptr;
  expect_error(ramp_weights_create(context.get(), &d, &stream, &out), RAMP_ERROR_INVALID_ARGUMENT,
               {"stream", "NULL"});
  const Weights w = make_weights(context, d);
  expect_error(ramp_weights_pack(context.get(), w.get(), &stream), RAMP_ERROR_INVALID_ARGUMENT, {"stream"});
  expect_error(ramp_weights_update(context.get(), w.get(), 0, &d, &stream), RAMP_ERROR_INVALID_ARGUMENT,
               {"stream"});
  expect_error(ramp_weights_unpack(context.get(), w.get(), nullptr, nullptr, &stream),
               RAMP_ERROR_INVALID_ARGUMENT, {"stream"});
}

}  // namespace
}  // namespace abi_test
