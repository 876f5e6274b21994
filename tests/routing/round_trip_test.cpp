// Permute and unpermute through the sorted row index: rows gathered by `slots` lie expert by expert and are
// copies of their tokens, bit for bit; combined by `positions` with the router's weights they give back the
// weighted sum, in the same order of additions whatever the routing; masked slots contribute nothing.
#include "routing/sorted_rows.hpp"
#include "routing/support.hpp"

namespace ramp::test {
namespace {

struct Index {
  std::vector<int32_t> offsets, slots, positions;
  int64_t masked = 0, out_of_range = 0;
  Index(const Matrix& ids, int64_t experts)
      : offsets(static_cast<size_t>(experts + 1)),
        slots(static_cast<size_t>(ids.rows() * ids.columns())),
        positions(slots.size()) {
    SortedRows out{offsets, slots, positions};
    sort_rows(ids.view(), {}, experts, out);
    masked = out.masked;
    out_of_range = out.out_of_range;
    slots.resize(static_cast<size_t>(offsets.back()));
  }
};

// rows[p] = x[token of slots[p]].
std::vector<float> permute(const Matrix& x, const Index& index, int64_t top_k) {
  const int64_t hidden = x.columns();
  std::vector<float> rows;
  rows.reserve(index.slots.size() * static_cast<size_t>(hidden));
  for (const int32_t slot : index.slots) {
    const float* const row = static_cast<const float*>(x.view().data) + slot / top_k * x.view().stride[0];
    rows.insert(rows.end(), row, row + hidden);
  }
  return rows;
}
// y[t] = sum over slots, in order, of weight * rows[position].
std::vector<float> unpermute(const std::vector<float>& rows, const Index& index, const Matrix& weights,
                             int64_t hidden) {
  std::vector<float> y(static_cast<size_t>(weights.rows() * hidden), 0.0F);
  for (int64_t t = 0; t < weights.rows(); ++t) {
    float* const out = y.data() + t * hidden;
    for (int64_t j = 0; j < weights.columns(); ++j) {
      const int32_t p = index.positions[static_cast<size_t>(t * weights.columns() + j)];
      if (p < 0) continue;
      const float w = weights.get(t, j);
      for (int64_t h = 0; h < hidden; ++h) out[h] += w * rows[static_cast<size_t>(p * hidden + h)];
    }
  }
  return y;
}

using Case = std::tuple<int64_t, Shape, int64_t>;  // T, E and k, H
class RoundTrip : public testing::TestWithParam<Case> {
 protected:
  RoundTrip()
      : tokens_(std::get<0>(GetParam())),
        hidden_(std::get<2>(GetParam())),
        shape_(std::get<1>(GetParam())),
        x_(RAMP_F32, tokens_, hidden_) {
    for (int64_t t = 0; t < tokens_; ++t) {
      for (int64_t h = 0; h < hidden_; ++h)
        x_.set(t, h, static_cast<float>(random_unit(3, static_cast<uint64_t>(t * hidden_ + h))) - 0.5F);
    }
    Matrix logits(RAMP_F32, tokens_, shape_.experts);
    fill_normal(logits, 9);
    const Routed r = route(make_router(RAMP_SCORING_SOFTMAX, shape_.top_k, true), logits, RAMP_I32, 0);
    routed_ = std::make_unique<Routed>(r);
  }
  // Ids drawn with replacement: a token may name an expert twice.
  [[nodiscard]] Matrix random_ids() const {
    Matrix ids(RAMP_I32, tokens_, shape_.top_k);
    for (int64_t t = 0; t < tokens_; ++t) {
      for (int64_t j = 0; j < shape_.top_k; ++j)
        ids.set_id(t, j,
                   static_cast<int64_t>(random_u64(4, static_cast<uint64_t>(t * shape_.top_k + j)) %
                                        static_cast<uint64_t>(shape_.experts)));
    }
    return ids;
  }
  [[nodiscard]] const float* x_row(int64_t t) const {
    return static_cast<const float*>(x_.view().data) + t * hidden_;
  }
  // y[t] is the sum over slots with an id, in order, of weight * (factor * x[t]), to the bit.
  void expect_weighted_sum(const std::vector<float>& y, float factor, const Matrix& ids) const {
    std::vector<float> expected(static_cast<size_t>(hidden_));
    for (int64_t t = 0; t < tokens_; ++t) {
      std::fill(expected.begin(), expected.end(), 0.0F);
      for (int64_t j = 0; j < shape_.top_k; ++j) {
        if (ids.id(t, j) < 0) continue;
        const float w = routed_->weights.get(t, j);
        for (int64_t h = 0; h < hidden_; ++h) expected[static_cast<size_t>(h)] += w * (factor * x_row(t)[h]);
      }
      ASSERT_TRUE(std::equal(expected.begin(), expected.end(), y.begin() + t * hidden_)) << "token " << t;
    }
  }
  int64_t tokens_, hidden_;
  Shape shape_;
  Matrix x_;
  std::unique_ptr<Routed> routed_;
};

TEST_P(RoundTrip, PermutedRowsAreCopiesExpertByExpert) {
  for (const Matrix& ids : {routed_->ids, random_ids()}) {
    const Index index(ids, shape_.experts);
    ASSERT_EQ(index.offsets.front(), 0);
    ASSERT_EQ(index.offsets.back(), tokens_ * shape_.top_k);
    const std::vector<float> rows = permute(x_, index, shape_.top_k);
    ASSERT_EQ(rows.size(), static_cast<size_t>(tokens_ * shape_.top_k * hidden_));
    for (size_t e = 0; e < static_cast<size_t>(shape_.experts); ++e) {
      ASSERT_LE(index.offsets[e], index.offsets[e + 1]);
      for (int32_t p = index.offsets[e]; p < index.offsets[e + 1]; ++p) {
        const int32_t slot = index.slots[static_cast<size_t>(p)];
        ASSERT_EQ(ids.id(slot / shape_.top_k, slot % shape_.top_k), static_cast<int64_t>(e));
        if (p > index.offsets[e]) {
          ASSERT_LT(index.slots[static_cast<size_t>(p - 1)], slot) << "not stable";
        }
        ASSERT_EQ(index.positions[static_cast<size_t>(slot)], p) << "not inverse";
        const auto* const source = static_cast<const float*>(x_.view().data) + slot / shape_.top_k * hidden_;
        ASSERT_EQ(std::memcmp(source, rows.data() + p * hidden_, static_cast<size_t>(hidden_) * 4), 0);
      }
    }
  }
}

TEST_P(RoundTrip, UnpermuteIsTheWeightedSum) {
  for (const Matrix& ids : {routed_->ids, random_ids()}) {
    const Index index(ids, shape_.experts);
    std::vector<float> rows = permute(x_, index, shape_.top_k);
    for (float& v : rows) v *= 2.0F;  // the "expert": exact, so that the result is known to the bit
    const std::vector<float> y = unpermute(rows, index, routed_->weights, hidden_);
    expect_weighted_sum(y, 2.0F, ids);
    // The weights sum to 1, so the token itself comes back; k products and sums round.
    const double tolerance = 4.0 * kU * static_cast<double>(shape_.top_k + 8);
    double worst = 0.0;
    for (int64_t t = 0; t < tokens_; ++t) {
      const float* const row = x_row(t);
      for (int64_t h = 0; h < hidden_; ++h)
        worst = std::max(worst, std::fabs(y[static_cast<size_t>(t * hidden_ + h)] - 2.0 * row[h]));
    }
    EXPECT_LE(worst, tolerance);
  }
}

TEST_P(RoundTrip, MaskedSlotsContributeNothing) {
  Matrix ids = routed_->ids;
  int64_t masked = 0;
  for (int64_t t = 0; t < tokens_; ++t) {
    for (int64_t j = 0; j < shape_.top_k; ++j) {
      if (random_u64(8, static_cast<uint64_t>(t * shape_.top_k + j)) % 3 != 0) continue;
      ids.set_id(t, j, -1);
      ++masked;
    }
  }
  const Index index(ids, shape_.experts);
  EXPECT_EQ(index.masked, masked);
  EXPECT_EQ(index.offsets.back(), tokens_ * shape_.top_k - masked);
  const std::vector<float> y = unpermute(permute(x_, index, shape_.top_k), index, routed_->weights, hidden_);
  expect_weighted_sum(y, 1.0F, ids);
}

// The grids of the portable Triton kernel's permute and unpermute tests and more (docs/testing.md).
std::string case_name(const testing::TestParamInfo<Case>& info) {
  const auto& [tokens, shape, hidden] = info.param;
  return fmt::format("T{}E{}k{}H{}", tokens, shape.experts, shape.top_k, hidden);
}
INSTANTIATE_TEST_SUITE_P(Grid, RoundTrip,
                         testing::Combine(testing::Values<int64_t>(1, 32, 64, 128, 256, 512),
                                          testing::Values(Shape{8, 2}, Shape{64, 4}, Shape{256, 8}),
                                          testing::Values<int64_t>(128, 256, 512)),
                         case_name);
INSTANTIATE_TEST_SUITE_P(Wide, RoundTrip,
                         testing::Combine(testing::Values<int64_t>(1, 32, 128, 256, 512),
                                          testing::Values(Shape{8, 2}, Shape{64, 4}),
                                          testing::Values<int64_t>(1024, 4096)),
                         case_name);
// Mixtral-8x7B, -8x22B, Qwen2-57B and DeepSeek-V3 at their own widths.
INSTANTIATE_TEST_SUITE_P(Models, RoundTrip,
                         testing::Values(Case{128, {8, 2}, 4096}, Case{1024, {8, 2}, 4096},
                                         Case{128, {8, 2}, 6144}, Case{128, {64, 4}, 3584},
                                         Case{32, {256, 8}, 7168}),
                         case_name);

}  // namespace
}  // namespace ramp::test
