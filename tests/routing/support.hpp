// Shared by the routing tests: the shapes, logits, owned tensors with padding and poison, and the comparison
// of route_tokens with the fp64 oracle under derived tolerances.
#pragma once

#include <fmt/format.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <limits>
#include <numeric>
#include <string>
#include <vector>

#include "base/float_types.hpp"
#include "base/rng.hpp"
#include "base/tensor.hpp"
#include "routing/router.hpp"
#include "routing/score_math.hpp"

namespace ramp::test {

using namespace ramp::core;  // NOLINT(google-build-using-namespace)

inline constexpr float kInf = std::numeric_limits<float>::infinity();
inline constexpr float kNan = std::numeric_limits<float>::quiet_NaN();
inline constexpr double kU = 0x1p-24;  // half the spacing of floats at 1: one rounding

struct Shape {
  int64_t experts, top_k;
};
inline void PrintTo(const Shape& s, std::ostream* os) {
  *os << "E" << s.experts << "k" << s.top_k;
}
inline const std::vector<Shape>& shapes() {
  static const std::vector<Shape> list = {{1, 1},  {6, 2},   {8, 2},   {16, 4},  {60, 4},  {64, 4},
                                          {64, 8}, {128, 8}, {160, 6}, {256, 8}, {384, 8}, {512, 10}};
  return list;
}
inline const std::vector<int64_t>& token_counts() {
  static const std::vector<int64_t> list = {0, 1, 2, 31, 32, 33, 128, 512, 1024, 2048};
  return list;
}

// Names of shapes x token counts.
inline std::string grid_name(const testing::TestParamInfo<std::tuple<Shape, int64_t>>& info) {
  const auto& [shape, tokens] = info.param;
  return fmt::format("E{}k{}T{}", shape.experts, shape.top_k, tokens);
}

// A row-major matrix of `dtype` whose rows are `pitch` elements apart; the padding and the initial content
// are all ones bits (NaN for floats, -1 for integers).
class Matrix {
 public:
  Matrix(ramp_dtype dtype, int64_t rows, int64_t columns, int64_t padding = 0)
      : bytes_(static_cast<size_t>(rows * (columns + padding) * dtype_bytes(dtype)), std::byte{0xff}) {
    view_.dtype = dtype;
    view_.ndim = 2;
    view_.shape[0] = rows;
    view_.shape[1] = columns;
    view_.stride[0] = columns + padding;
    view_.stride[1] = 1;
    view_.data = rows == 0 ? nullptr : bytes_.data();
  }
  Matrix(const Matrix& other) : bytes_(other.bytes_), view_(other.view_) {
    view_.data = view_.shape[0] == 0 ? nullptr : bytes_.data();
  }
  Matrix& operator=(const Matrix&) = delete;
  ~Matrix() = default;

  [[nodiscard]] const ramp_tensor& view() const { return view_; }
  [[nodiscard]] int64_t rows() const { return view_.shape[0]; }
  [[nodiscard]] int64_t columns() const { return view_.shape[1]; }
  void set(int64_t r, int64_t c, float v) { store_f32(view_.data, dtype(), at(r, c), v); }
  [[nodiscard]] float get(int64_t r, int64_t c) const { return load_f32(view_.data, dtype(), at(r, c)); }
  void set_id(int64_t r, int64_t c, int64_t id) {
    if (view_.dtype == RAMP_I64) {
      static_cast<int64_t*>(view_.data)[at(r, c)] = id;
    } else {
      static_cast<int32_t*>(view_.data)[at(r, c)] = static_cast<int32_t>(id);
    }
  }
  [[nodiscard]] int64_t id(int64_t r, int64_t c) const {
    return view_.dtype == RAMP_I64 ? static_cast<const int64_t*>(view_.data)[at(r, c)]
                                   : static_cast<const int32_t*>(view_.data)[at(r, c)];
  }
  // True when the padding still holds its initial bytes.
  [[nodiscard]] bool padding_untouched() const {
    const auto width = static_cast<size_t>(dtype_bytes(dtype()));
    for (int64_t r = 0; r < rows(); ++r) {
      const auto* const row = bytes_.data() + static_cast<size_t>(r * view_.stride[0]) * width;
      for (size_t b = static_cast<size_t>(columns()) * width;
           b < static_cast<size_t>(view_.stride[0]) * width; ++b) {
        if (row[b] != std::byte{0xff}) return false;
      }
    }
    return true;
  }
  [[nodiscard]] const std::vector<std::byte>& bytes() const { return bytes_; }

 private:
  [[nodiscard]] ramp_dtype dtype() const { return static_cast<ramp_dtype>(view_.dtype); }
  [[nodiscard]] int64_t at(int64_t r, int64_t c) const { return r * view_.stride[0] + c; }
  std::vector<std::byte> bytes_;
  ramp_tensor view_{};
};

// Normal logits times `scale`, rounded to the matrix's type.
inline void fill_normal(Matrix& m, uint64_t seed, float scale = 1.0F) {
  for (int64_t r = 0; r < m.rows(); ++r) {
    for (int64_t c = 0; c < m.columns(); ++c)
      m.set(r, c,
            scale * static_cast<float>(random_normal(seed, static_cast<uint64_t>(r * m.columns() + c))));
  }
}

inline ramp_router_config make_router(ramp_scoring scoring, int64_t top_k, bool renormalize = false) {
  ramp_router_config r = ramp_router_config_init();
  r.scoring = scoring;
  r.top_k = static_cast<int32_t>(top_k);
  r.renormalize = renormalize ? 1 : 0;
  return r;
}

struct Routed {
  Matrix ids, weights;
};
// Checks the config, routes every token into padded, poisoned outputs with scratch of exactly the size asked
// for, at an odd address.
inline Routed route(const ramp_router_config& router, const Matrix& logits, ramp_dtype id_type = RAMP_I32,
                    int64_t padding = 3) {
  const ramp_router_config r = check_router(router, logits.columns());
  Routed out{Matrix(id_type, logits.rows(), router_slots(r), padding),
             Matrix(RAMP_F32, logits.rows(), router_slots(r), padding)};
  const auto size = static_cast<size_t>(route_scratch_bytes(r, logits.columns()));
  std::vector<unsigned char> scratch(size + 1, 0xff);
  route_tokens(r, logits.view(), out.ids.view(), out.weights.view(), 0, logits.rows(), scratch.data() + 1);
  return out;
}

// Bound on the error of a softmax weight relative to itself. x: its logit, m: the largest logit of the
// softmax, n: how many are summed. In units of u: the rounding of x - m, which is an exponent (|x - m|), and
// exp; the same of the sum, where the average of the distances d weighted by the terms e^-d is their entropy
// minus the logarithm of their sum, so at most ln n; the sum's depth (n/32 in a lane, 5 between lanes);
// quotient; scaling.
inline double softmax_tolerance(double x, double m, int64_t n) {
  const double distance = std::isfinite(x - m) ? std::fabs(x - m) : 0.0;  // infinite ones have exact terms
  const double depth = std::ceil(static_cast<double>(n) / 32.0) + 5.0;
  return (distance + kExpMaxError + std::log(static_cast<double>(n)) + kExpMaxError + depth + 2.0) * kU;
}
// The same of a sigmoid, alone (n = 0) or divided by the sum of n.
inline double sigmoid_tolerance(int64_t n) {
  const double depth = std::ceil(static_cast<double>(n) / 32.0) + 5.0;
  return (n == 0 ? kSigmoidMaxError + 1.0 : 2.0 * kSigmoidMaxError + depth + 2.0) * kU;
}

// How far an fp32 selection key may be from its exact value: below this distance the order of two keys (and
// of two group scores, sums of two) is open. 0 where logits are compared. A softmax score is at most 1 and
// its error at most softmax_tolerance with d e^-d <= 0.37 for the distance; adding the bias and a top-2 sum
// round once each.
inline double key_error(const ramp_router_config& r, int64_t experts, double largest_logit) {
  const bool bias = present(r.selection_bias);
  const bool sums = r.num_groups > 1 && r.group_score == RAMP_GROUP_SCORE_TOP2_SUM;
  if (!bias && !sums) return 0.0;
  double largest_bias = 0.0;
  if (bias) {
    for (int64_t e = 0; e < experts; ++e)
      largest_bias =
          std::max(largest_bias, std::fabs(double{static_cast<const float*>(r.selection_bias.data)[e]}));
  }
  double score = 1.0;
  double score_error = kSigmoidMaxError * kU;
  if (r.scoring == RAMP_SCORING_SOFTMAX) score_error = softmax_tolerance(0.37, 0.0, experts);
  if (r.scoring == RAMP_SCORING_TOPK_SOFTMAX) {
    score = largest_logit;
    score_error = 0.0;
  }
  const double key = score_error + (bias ? (score + largest_bias) * kU : 0.0);
  return sums ? 2.0 * key + 2.0 * (score + largest_bias) * kU : key;
}

struct Comparison {
  int64_t exact = 0;      // tokens whose ids equal the oracle's, slot by slot
  int64_t near_ties = 0;  // tokens with other ids or another order, excused by keys within their error
};

// The exact selection keys of all experts: the oracle's plain scores plus the bias.
inline std::vector<double> exact_keys(const ramp_router_config& r, const std::vector<double>& x) {
  ramp_router_config all = make_router(static_cast<ramp_scoring>(r.scoring), static_cast<int64_t>(x.size()));
  std::vector<int64_t> ids(x.size());
  std::vector<double> scores(x.size());
  route_token_f64(all, x, ids, scores);
  std::vector<double> keys(x.size());
  for (size_t j = 0; j < ids.size(); ++j) {
    const auto e = static_cast<size_t>(ids[j]);
    keys[e] = r.scoring == RAMP_SCORING_TOPK_SOFTMAX ? x[e] : scores[j];
    if (present(r.selection_bias)) keys[e] += static_cast<const float*>(r.selection_bias.data)[e];
  }
  return keys;
}

// Compares every token with the oracle. Where logits are compared, ids must be equal in every slot. Where
// keys are rounded, a token may have another set only if the oracle saw a gap within twice the key error, and
// another order only of keys that close. Weights are compared for every token with the same set.
inline Comparison compare_with_oracle(const ramp_router_config& router, const Matrix& logits,
                                      const Routed& got) {
  const ramp_router_config r = check_router(router, logits.columns());
  const int64_t experts = logits.columns();
  const auto slots = static_cast<size_t>(router_slots(r));
  const auto top_k = static_cast<size_t>(r.top_k);
  const double scale = r.routed_scaling_factor;
  Comparison result;
  std::vector<double> x(static_cast<size_t>(experts));
  std::vector<int64_t> ids(slots);
  std::vector<double> weights(slots);
  EXPECT_TRUE(got.ids.padding_untouched());
  EXPECT_TRUE(got.weights.padding_untouched());
  for (int64_t t = 0; t < logits.rows(); ++t) {
    SCOPED_TRACE(fmt::format("token {}", t));
    double largest = 0.0;
    double row_max = -std::numeric_limits<double>::infinity();
    for (int64_t e = 0; e < experts; ++e) {
      const double v = x[static_cast<size_t>(e)] = logits.get(t, e);
      largest = std::max(largest, std::fabs(v));
      row_max = std::max(row_max, v);
    }
    double gap = 0.0;
    route_token_f64(r, x, ids, weights, &gap);

    std::vector<int64_t> mine(slots);
    for (size_t j = 0; j < slots; ++j) mine[j] = got.ids.id(t, static_cast<int64_t>(j));
    std::vector<int64_t> sorted = mine;
    std::sort(sorted.begin(), sorted.end());
    EXPECT_EQ(std::adjacent_find(sorted.begin(), sorted.end()), sorted.end()) << "an expert twice";
    EXPECT_GE(sorted.front(), 0);
    EXPECT_LT(sorted.back(), experts + r.num_shared_experts);
    if (mine == ids) {
      ++result.exact;
    } else {
      ++result.near_ties;
      const double error = key_error(r, experts, largest);
      std::vector<int64_t> expected = ids;
      std::sort(expected.begin(), expected.end());
      if (error == 0.0) {
        ADD_FAILURE() << "other ids although logits are compared exactly";
        continue;
      }
      if (sorted != expected) {
        EXPECT_LE(gap, 2.0 * error) << "another set";
        continue;
      }
      const std::vector<double> keys = exact_keys(r, x);
      for (size_t j = 0; j < top_k; ++j) {
        EXPECT_NEAR(keys[static_cast<size_t>(mine[j])], keys[static_cast<size_t>(ids[j])], 2.0 * error)
            << "another order at slot " << j;
      }
    }
    double largest_chosen = -std::numeric_limits<double>::infinity();
    for (size_t j = 0; j < top_k; ++j)
      largest_chosen = std::max(largest_chosen, x[static_cast<size_t>(ids[j])]);
    for (size_t j = 0; j < slots; ++j) {
      const double w = weights[static_cast<size_t>(std::find(ids.begin(), ids.end(), mine[j]) - ids.begin())];
      const float got_weight = got.weights.get(t, static_cast<int64_t>(j));
      if (j >= top_k) {
        EXPECT_EQ(got_weight, 1.0F) << "shared expert";
        continue;
      }
      const double logit = x[static_cast<size_t>(mine[j])];
      const bool over_all = r.scoring == RAMP_SCORING_SOFTMAX && r.renormalize == 0;
      double relative =
          softmax_tolerance(logit, over_all ? row_max : largest_chosen, over_all ? experts : r.top_k);
      if (r.scoring == RAMP_SCORING_SIGMOID && (r.renormalize == 0 || largest_chosen >= -64.0))
        relative = sigmoid_tolerance(r.renormalize == 1 ? r.top_k : 0);
      // Below the normal floats the term, the quotient and the product may each lose a unit of 2^-149.
      const double absolute = 0x1p-149 * (2.0 * scale + 1.0);
      EXPECT_NEAR(got_weight, w, relative * w + absolute) << "slot " << j << ", expert " << mine[j];
    }
  }
  return result;
}

// Near-ties are the exception: at most one token in a hundred (and one) on logits with distinct values.
inline void expect_mostly_exact(const Comparison& c) {
  EXPECT_LE(c.near_ties, 1 + (c.exact + c.near_ties) / 100);
}

}  // namespace ramp::test
