// Packing: the same bytes come back, wherever they came from; updates keep the packing; ownership is
// respected.
#include <gtest/gtest.h>

#include <cstring>
#include <vector>

#include "backend/cpu/panels.hpp"
#include "base/error.hpp"
#include "base/tensor.hpp"
#include "numerics/cpu_support.hpp"

namespace ramp::core::test {
namespace {

constexpr ramp_format kFormats[] = {RAMP_FORMAT_FP8_BLOCK, RAMP_FORMAT_BF16,       RAMP_FORMAT_F16,
                                    RAMP_FORMAT_F32,       RAMP_FORMAT_FP8_TENSOR, RAMP_FORMAT_FP8_CHANNEL};

CaseSpec spec_of(ramp_format format, ramp_activation activation, int64_t hidden, int64_t intermediate) {
  CaseSpec s;
  s.format = format;
  s.activation = activation;
  s.experts = 5;
  s.hidden = hidden;
  s.intermediate = intermediate;
  s.tokens = 9;
  return s;
}

struct Unpacked {
  OwnedTensor w13, w2;
};
Unpacked unpack(const ExpertWeights& w, Backend& backend, int64_t gap) {
  const ramp_dtype dtype = weight_dtype(w.format);
  Unpacked u{OwnedTensor(dtype, {w.experts, w.rows13(), w.hidden}, gap),
             OwnedTensor(dtype, {w.experts, w.hidden, w.intermediate}, gap)};
  backend.unpack(w, u.w13.view, u.w2.view, nullptr);
  EXPECT_TRUE(u.w13.gaps_intact() && u.w2.gaps_intact());
  return u;
}

void expect_same(const Unpacked& u, const SyntheticWeights& values) {
  EXPECT_EQ(bytes_of(u.w13.view), bytes_of(with_strides(values.desc.w13)));
  EXPECT_EQ(bytes_of(u.w2.view), bytes_of(with_strides(values.desc.w2)));
}

class Packing : public testing::TestWithParam<std::tuple<ramp_format, ramp_activation>> {};
INSTANTIATE_TEST_SUITE_P(All, Packing,
                         testing::Combine(testing::ValuesIn(kFormats),
                                          testing::Values(RAMP_ACTIVATION_SILU_AND_MUL,
                                                          RAMP_ACTIVATION_RELU2)));

TEST_P(Packing, RoundTripsBitExactly) {
  const auto [format, activation] = GetParam();
  for (const int32_t threads : {1, 3}) {
    Backend& backend = cpu_backend("", threads);
    for (const auto& [h, i] : {std::pair<int64_t, int64_t>{32, 32}, {96, 160}, {160, 96}, {64, 352}}) {
      BlockCase c(spec_of(format, activation, h, i));
      // Every bit pattern must survive, NaN codes included: values are moved, not converted.
      for (size_t b = 0; b < c.synthetic.w13.size(); ++b) {
        c.synthetic.w13.as<uint8_t>()[b] = static_cast<uint8_t>(b * 37 + b / 251);
      }
      for (const Hold hold :
           {Hold::kPackedCopy, Hold::kPackedInPlace, Hold::kPackedBorrow, Hold::kCopy, Hold::kBorrow}) {
        const auto w = make_held(c, hold, backend);
        SCOPED_TRACE(hold_name(hold));
        expect_same(unpack(*w, backend, 0), c.synthetic);
        expect_same(unpack(*w, backend, 40), c.synthetic);  // into strided tensors
      }
    }
  }
}

// The layout itself: element (row r, depth k) of a panel at [k / pack][r][k % pack].
TEST_P(Packing, PutsEveryElementWhereKernelsReadIt) {
  const auto [format, activation] = GetParam();
  BlockCase c(spec_of(format, activation, 96, 64));
  const auto w = make_held(c, Hold::kPackedInPlace, cpu_backend());
  EXPECT_EQ(w->w13.data, nullptr);
  EXPECT_EQ(w->w2.data, nullptr);
  EXPECT_EQ(w->packed->bytes(), 5 * (w->rows13() * 96 + 96 * 64) * dtype_bytes(weight_dtype(format)));
  const auto check = [&](const WeightMatrix& m, const ramp_tensor& source) {
    for (int64_t e = 0; e < m.experts; ++e) {
      for (int64_t p = 0; p < m.panels(); ++p) {
        for (int64_t lane = 0; lane < kPanelRows; ++lane) {
          const int64_t row = lane < kHalfPanel ? m.first_row(p) + lane : m.second_row(p) + lane - kHalfPanel;
          for (int64_t k = 0; k < m.depth; ++k) {
            const int64_t pack = m.dtype == RAMP_E4M3 ? 4 : m.dtype == RAMP_BF16 ? 2 : 1;
            ASSERT_EQ(std::memcmp(m.panel(e, p, k / pack * pack) + (lane * pack + k % pack) * m.width,
                                  static_cast<const std::byte*>(source.data) +
                                      ((e * m.rows + row) * m.depth + k) * m.width,
                                  static_cast<size_t>(m.width)),
                      0);
          }
        }
      }
    }
  };
  check(w13_matrix(*w), c.synthetic.desc.w13);
  check(w2_matrix(*w), c.synthetic.desc.w2);
}

TEST_P(Packing, UpdatesKeepThePackingAndTheOtherExperts) {
  const auto [format, activation] = GetParam();
  Backend& backend = cpu_backend();
  CaseSpec spec = spec_of(format, activation, 96, 160);
  spec.split_tensor_scale = false;
  BlockCase c(spec);
  spec.seed = 77;
  BlockCase other(spec);
  // Experts 1 and 2 of `other` go to places 3 and 4.
  ramp_weights_desc desc = other.synthetic.desc;
  desc.num_experts = 2;
  for (ramp_tensor* t : {&desc.w13, &desc.w2, &desc.w13_scale, &desc.w2_scale}) {
    *t = expert_range(with_strides(*t), 1, 2);
  }
  desc.w13_input_scale = desc.w2_input_scale = {};
  for (const Hold hold : {Hold::kPackedCopy, Hold::kPackedInPlace, Hold::kPackedBorrow, Hold::kCopy}) {
    SCOPED_TRACE(hold_name(hold));
    const auto w = make_held(c, hold, backend);
    const bool packed = w->packed != nullptr;
    backend.update(*w, 3, check_update(*w, 3, desc), nullptr);
    EXPECT_EQ(w->packed != nullptr, packed);
    const Unpacked u = unpack(*w, backend, 0);
    const auto compare = [&](const ramp_tensor& got, const ramp_tensor& old, const ramp_tensor& fresh) {
      EXPECT_EQ(bytes_of(expert_range(got, 0, 3)), bytes_of(expert_range(with_strides(old), 0, 3)));
      EXPECT_EQ(bytes_of(expert_range(got, 3, 2)), bytes_of(expert_range(with_strides(fresh), 1, 2)));
    };
    compare(u.w13.view, c.synthetic.desc.w13, other.synthetic.desc.w13);
    compare(u.w2.view, c.synthetic.desc.w2, other.synthetic.desc.w2);
    for (int64_t row = 0; row < w->rows13(); ++row) {
      EXPECT_EQ(w13_scale_at(*w, 4, row, 40), w13_scale_at(*other.weights, 2, row, 40));
      EXPECT_EQ(w13_scale_at(*w, 2, row, 40), w13_scale_at(*c.weights, 2, row, 40));
    }
    // The result is that of a handle made from the new values at once.
    c.run(backend, *w);
    const std::vector<uint8_t> bits = c.y_bits();
    SyntheticWeights merged = clone(c.synthetic, RAMP_BORROW);
    const auto put = [&](const ramp_tensor& to, const ramp_tensor& from) {
      if (to.data != nullptr)
        copy_elements(expert_range(with_strides(from), 1, 2), expert_range(with_strides(to), 3, 2));
    };
    put(merged.desc.w13, other.synthetic.desc.w13);
    put(merged.desc.w2, other.synthetic.desc.w2);
    put(merged.desc.w13_scale, other.synthetic.desc.w13_scale);
    put(merged.desc.w2_scale, other.synthetic.desc.w2_scale);
    const auto fresh = make_expert_weights(merged.desc, {});
    c.run(backend, *fresh);
    EXPECT_EQ(c.y_bits(), bits);
  }
}

TEST(PackingOwnership, BorrowedBuffersAreNeverWritten) {
  Backend& backend = cpu_backend();
  BlockCase c(spec_of(RAMP_FORMAT_FP8_BLOCK, RAMP_ACTIVATION_SILU_AND_MUL, 96, 160));
  const SyntheticWeights before = clone(c.synthetic, RAMP_BORROW);
  const auto w = make_held(c, Hold::kPackedBorrow, backend);
  BlockCase other(spec_of(RAMP_FORMAT_FP8_BLOCK, RAMP_ACTIVATION_SILU_AND_MUL, 96, 160));
  backend.update(*w, 0, check_update(*w, 0, other.synthetic.desc), nullptr);
  EXPECT_EQ(std::memcmp(c.synthetic.w13.data(), before.w13.data(), before.w13.size()), 0);
  EXPECT_EQ(std::memcmp(c.synthetic.w2.data(), before.w2.data(), before.w2.size()), 0);
  EXPECT_EQ(c.synthetic.w13_scale, before.w13_scale);
}

TEST(PackingOwnership, UpdatingABorrowedUnpackedHandleIsRefused) {
  Backend& backend = cpu_backend();
  BlockCase c(spec_of(RAMP_FORMAT_BF16, RAMP_ACTIVATION_SILU_AND_MUL, 96, 160));
  const auto w = make_held(c, Hold::kBorrow, backend);
  try {
    backend.update(*w, 0, check_update(*w, 0, c.synthetic.desc), nullptr);
    ADD_FAILURE() << "no error";
  } catch (const Error& e) {
    EXPECT_EQ(e.status(), RAMP_ERROR_UNSUPPORTED);
  }
}

TEST(PackingOwnership, PackingTwiceIsPackingOnce) {
  Backend& backend = cpu_backend();
  BlockCase c(spec_of(RAMP_FORMAT_BF16, RAMP_ACTIVATION_SILU_AND_MUL, 96, 160));
  const auto w = make_held(c, Hold::kPackedInPlace, backend);
  backend.pack(*w, nullptr);
  expect_same(unpack(*w, backend, 0), c.synthetic);
}

}  // namespace
}  // namespace ramp::core::test
