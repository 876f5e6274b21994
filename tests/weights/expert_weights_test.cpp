// Building handles: the three kinds of ownership, strided sources, and the accessors for every format,
// including the scale rows of gate and up where I is not a multiple of 128.
#include <gtest/gtest.h>

#include <cmath>
#include <cstring>

#include "base/float_types.hpp"
#include "base/tensor.hpp"
#include "weights/support.hpp"

namespace ramp::core::test {
namespace {

TEST(ExpertWeights, ScaleShapes) {
  const auto shape = [](const ScaleShape& s) { return std::vector<int64_t>(s.dims, s.dims + s.ndim); };
  const auto gated = RAMP_ACTIVATION_SILU_AND_MUL;
  const auto relu2 = RAMP_ACTIVATION_RELU2;
  using V = std::vector<int64_t>;
  EXPECT_EQ(shape(w13_scale_shape(RAMP_FORMAT_FP8_BLOCK, gated, 3, 160, 96)), (V{3, 2, 2}));
  EXPECT_EQ(shape(w13_scale_shape(RAMP_FORMAT_FP8_BLOCK, relu2, 3, 160, 96)), (V{3, 1, 2}));
  EXPECT_EQ(shape(w13_scale_shape(RAMP_FORMAT_FP8_BLOCK, gated, 3, 128, 288)), (V{3, 6, 1}));
  EXPECT_EQ(shape(w2_scale_shape(RAMP_FORMAT_FP8_BLOCK, 3, 160, 96)), (V{3, 2, 1}));
  EXPECT_EQ(shape(w13_scale_shape(RAMP_FORMAT_FP8_TENSOR, gated, 3, 160, 96)), (V{3}));
  EXPECT_EQ(shape(w2_scale_shape(RAMP_FORMAT_FP8_TENSOR, 3, 160, 96)), (V{3}));
  EXPECT_EQ(shape(w13_scale_shape(RAMP_FORMAT_FP8_CHANNEL, gated, 3, 160, 96)), (V{3, 192}));
  EXPECT_EQ(shape(w13_scale_shape(RAMP_FORMAT_FP8_CHANNEL, relu2, 3, 160, 96)), (V{3, 96}));
  EXPECT_EQ(shape(w2_scale_shape(RAMP_FORMAT_FP8_CHANNEL, 3, 160, 96)), (V{3, 160}));
  EXPECT_EQ(w13_scale_shape(RAMP_FORMAT_BF16, gated, 3, 160, 96).ndim, 0);
  EXPECT_EQ(w2_scale_shape(RAMP_FORMAT_F32, 3, 160, 96).ndim, 0);
}

TEST(ExpertWeights, CopyOutlivesItsSource) {
  for (const ramp_format format : kFormats) {
    std::unique_ptr<ExpertWeights> w;
    double before = 0;
    {
      SyntheticWeights s = values(format);
      s.desc.ownership = RAMP_COPY;
      w = make_expert_weights(s.desc, {});
      before = w13_at(*w, 2, 100, 33);
      EXPECT_NE(w->w13.data, s.w13.data());
      std::memset(s.w13.data(), 0xff, s.w13.size());
      std::fill(s.w13_scale.begin(), s.w13_scale.end(), -1.0F);
    }
    EXPECT_EQ(w13_at(*w, 2, 100, 33), before);
    EXPECT_TRUE(std::isfinite(before));
    EXPECT_EQ(w->rows13(), 192);
    EXPECT_TRUE(w->gated());
  }
}

TEST(ExpertWeights, BorrowAndInPlaceReferToTheSource) {
  for (const ramp_ownership ownership : {RAMP_BORROW, RAMP_IN_PLACE}) {
    SyntheticWeights s = values(RAMP_FORMAT_FP8_BLOCK);
    s.desc.ownership = ownership;
    const auto w = make_expert_weights(s.desc, {});
    EXPECT_EQ(w->w13.data, s.w13.data());
    EXPECT_EQ(w->w2.data, s.w2.data());
    EXPECT_EQ(w->w13_scale.data, s.w13_scale.data());
    EXPECT_EQ(w->ownership, ownership);
    s.w13_scale[0] *= 2.0F;
    EXPECT_EQ(w13_scale_at(*w, 0, 0, 0), s.w13_scale[0]);
  }
}

// Every element of every format and activation against plain index arithmetic.
TEST(ExpertWeights, AccessorsFindTheirScales) {
  for (const ramp_format format : kFormats) {
    for (const ramp_activation activation : {RAMP_ACTIVATION_SILU_AND_MUL, RAMP_ACTIVATION_RELU2}) {
      const int64_t h = 160;
      const int64_t i = 288;  // three scale blocks, the last of 32 rows
      SyntheticWeights s = values(format, activation, 2, h, i);
      const auto w = make_expert_weights(s.desc, {});
      const int64_t rows = activation == RAMP_ACTIVATION_RELU2 ? i : 2 * i;
      const ramp_dtype dtype = weight_dtype(format);
      for (int64_t e = 0; e < 2; ++e) {
        for (int64_t r = 0; r < rows; r += 7) {
          for (int64_t c = 0; c < h; c += 3) {
            float scale = 1.0F;
            const int64_t up = r >= i ? 1 : 0;
            if (format == RAMP_FORMAT_FP8_BLOCK)
              scale = s.w13_scale[static_cast<size_t>((e * (rows / i) * 3 + up * 3 + (r - up * i) / 128) * 2 +
                                                      c / 128)];
            if (format == RAMP_FORMAT_FP8_TENSOR)
              scale = s.w13_scale[static_cast<size_t>(rows == i ? e : 2 * e + up)];
            if (format == RAMP_FORMAT_FP8_CHANNEL) scale = s.w13_scale[static_cast<size_t>(e * rows + r)];
            ASSERT_EQ(w13_scale_at(*w, e, r, c), scale);
            const double value = load_f32(s.w13.data(), dtype, (e * rows + r) * h + c);
            ASSERT_EQ(w13_at(*w, e, r, c), value * static_cast<double>(scale));
          }
        }
        for (int64_t r = 0; r < h; r += 3) {
          for (int64_t c = 0; c < i; c += 5) {
            float scale = 1.0F;
            if (format == RAMP_FORMAT_FP8_BLOCK)
              scale = s.w2_scale[static_cast<size_t>((e * 2 + r / 128) * 3 + c / 128)];
            if (format == RAMP_FORMAT_FP8_TENSOR) scale = s.w2_scale[static_cast<size_t>(e)];
            if (format == RAMP_FORMAT_FP8_CHANNEL) scale = s.w2_scale[static_cast<size_t>(e * h + r)];
            ASSERT_EQ(w2_scale_at(*w, e, r, c), scale);
            const double value = load_f32(s.w2.data(), dtype, (e * h + r) * i + c);
            ASSERT_EQ(w2_at(*w, e, r, c), value * static_cast<double>(scale));
          }
        }
      }
    }
  }
}

TEST(ExpertWeights, OneScaleForGateAndUp) {
  SyntheticWeightsOptions o;
  o.split_tensor_scale = false;
  const SyntheticWeights s =
      make_synthetic_weights({"test", 3, 1, 64, 32}, RAMP_FORMAT_FP8_TENSOR, RAMP_ACTIVATION_SILU_AND_MUL, o);
  const auto w = make_expert_weights(s.desc, {});
  EXPECT_EQ(w->w13_scale.ndim, 1);
  EXPECT_EQ(w13_scale_at(*w, 2, 0, 0), s.w13_scale[2]);
  EXPECT_EQ(w13_scale_at(*w, 2, 63, 0), s.w13_scale[2]);
  EXPECT_EQ(w->w13_input_scale, s.w13_input_scale[0]);
  EXPECT_EQ(w->w2_input_scale, s.w2_input_scale[0]);
}

// A source with gaps between rows and experts, and with experts in reverse order as far as strides allow.
TEST(ExpertWeights, StridedSourcesGiveTheSameValues) {
  for (const ramp_format format : kFormats) {
    const SyntheticWeights s = values(format);
    const auto plain = make_expert_weights(s.desc, {});
    const int64_t width = dtype_bytes(weight_dtype(format));
    const int64_t row = 160 + 32;
    const int64_t expert = 192 * row + 64;
    AlignedBuffer gaps(static_cast<uint64_t>(3 * expert * width));
    std::memset(gaps.data(), 0xff, gaps.size());
    ramp_weights_desc d = s.desc;
    d.w13.data = gaps.data();
    d.w13.stride[0] = expert;
    d.w13.stride[1] = row;
    copy_elements(s.desc.w13, d.w13);
    for (const ramp_ownership ownership : {RAMP_COPY, RAMP_BORROW}) {
      d.ownership = ownership;
      const auto w = make_expert_weights(d, {});
      EXPECT_EQ(is_contiguous(w->w13), ownership == RAMP_COPY);
      for (int64_t r = 0; r < 192; r += 5) {
        for (int64_t c = 0; c < 160; c += 7) ASSERT_EQ(w13_at(*w, 1, r, c), w13_at(*plain, 1, r, c));
      }
    }
    d.ownership = RAMP_IN_PLACE;
    expect_parts(message_of([&] { make_expert_weights(d, {}); }), {"desc.w13", "contiguous"});
  }
}

TEST(ExpertWeights, CopyElementsHandlesFourDimensions) {
  std::vector<float> from(2 * 3 * 4 * 8);
  for (size_t i = 0; i < from.size(); ++i) from[i] = static_cast<float>(i);
  const ramp_tensor a = make_tensor(from.data(), RAMP_F32, {2, 3, 4, 8});
  std::vector<float> to(2 * 3 * 4 * 11, -1.0F);
  ramp_tensor b = make_tensor(to.data(), RAMP_F32, {2, 3, 4, 8});
  b.stride[0] = 3 * 4 * 11;
  b.stride[1] = 4 * 11;
  b.stride[2] = 11;
  copy_elements(a, b);
  for (size_t row = 0; row < 24; ++row) {
    for (size_t c = 0; c < 11; ++c)
      ASSERT_EQ(to[row * 11 + c], c < 8 ? static_cast<float>(row * 8 + c) : -1.0F);
  }
}

}  // namespace
}  // namespace ramp::core::test
