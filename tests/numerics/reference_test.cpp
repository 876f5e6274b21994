// The reference backend against the naive triple loop (naive.hpp), over every format, activation and option.
// The full product (more than a million cases) is thinned to three pairwise covering arrays, which contain
// every pair of values of any two options, plus every format x activation. Each case also runs the fp32 mode
// through the checker: plain fp32 arithmetic must stay within the bounds.
#include "backend/reference/reference.hpp"

#include <gtest/gtest.h>

#include <cmath>

#include "base/float_types.hpp"
#include "numerics/cases.hpp"
#include "numerics/naive.hpp"

namespace ramp::core::test {
namespace {

constexpr ramp_format kFormats[] = {RAMP_FORMAT_FP8_BLOCK, RAMP_FORMAT_BF16,       RAMP_FORMAT_F16,
                                    RAMP_FORMAT_F32,       RAMP_FORMAT_FP8_TENSOR, RAMP_FORMAT_FP8_CHANNEL};
constexpr ramp_dtype kXTypes[] = {RAMP_BF16, RAMP_F32, RAMP_F16, RAMP_E4M3};
constexpr ramp_dtype kYTypes[] = {RAMP_BF16, RAMP_F32, RAMP_F16};
constexpr ramp_dtype kShared[] = {RAMP_DTYPE_NONE, RAMP_BF16, RAMP_F16, RAMP_F32};
struct Shape {
  int64_t tokens, experts, top_k, hidden, intermediate;
};
// 160 and 96: short groups and blocks; 288: two of them and a short one.
constexpr Shape kShapes[] = {{1, 4, 2, 32, 32}, {5, 6, 3, 160, 96}, {4, 3, 1, 128, 288}};

CaseSpec clean(CaseSpec s) {
  if (s.x_dtype == RAMP_E4M3 && weight_dtype(s.format) != RAMP_E4M3) s.x_dtype = RAMP_BF16;
  if (s.output == RAMP_OUTPUT_PER_SLOT) s.shared_dtype = RAMP_DTYPE_NONE;
  return s;
}

std::vector<CaseSpec> specs() {
  std::vector<CaseSpec> out;
  for (const ramp_format format : kFormats) {
    for (int32_t a = 0; a < 4; ++a) {
      CaseSpec s;
      s.format = format;
      s.activation = static_cast<ramp_activation>(a);
      s.tokens = 3;
      s.experts = 4;
      s.hidden = 160;
      s.intermediate = 96;
      s.seed = 100;
      out.push_back(s);
    }
  }
  for (uint64_t seed = 1; seed <= 3; ++seed) {
    for (const auto& r : pairwise({6, 4, 4, 3, 4, 2, 7, 2, 2, 2, 2, 2, 3}, seed)) {
      CaseSpec s;
      s.format = kFormats[r[0]];
      s.activation = static_cast<ramp_activation>(r[1]);
      s.x_dtype = kXTypes[r[2]];
      s.y_dtype = kYTypes[r[3]];
      s.shared_dtype = kShared[r[4]];
      s.output = static_cast<ramp_output>(r[5]);
      s.ids = static_cast<Ids>(r[6]);
      s.router_weight_on_input = r[7] != 0;
      s.expert_map = r[8] != 0;
      s.int64_ids = r[9] != 0;
      s.strided = r[10] != 0;
      s.split_tensor_scale = r[11] != 0;
      const Shape& shape = kShapes[r[12]];
      s.tokens = shape.tokens;
      s.experts = shape.experts;
      s.top_k = shape.top_k;
      s.hidden = shape.hidden;
      s.intermediate = shape.intermediate;
      s.seed = seed * 1000 + out.size();
      out.push_back(clean(s));
    }
  }
  return out;
}

// fp64 sums in another order: a few units of 2^-53 per term of at most 288 + 288 terms, scaled generously by
// the largest value of the row.
constexpr double kOrder = 1e-12;

class ReferenceGrid : public ::testing::TestWithParam<CaseSpec> {};

TEST_P(ReferenceGrid, EqualsNaiveLoops) {
  BlockCase c(GetParam());
  const std::vector<double> naive = naive_block(c);
  const std::vector<double> rows = reference_rows(c.call(*c.weights), {}, ReferenceMode::kF64);
  ASSERT_EQ(rows.size(), naive.size());
  double largest = 0;
  for (const double v : naive) largest = std::max(largest, std::fabs(v));
  for (size_t i = 0; i < naive.size(); ++i)
    ASSERT_NEAR(rows[i], naive[i], kOrder * largest) << "element " << i;

  // Through the backend: y is those rows rounded to its dtype, on packed and unpacked weights.
  const auto backend = make_reference_backend({});
  const auto packed = c.make_weights(RAMP_COPY);
  backend->pack(*packed, nullptr);
  c.run(*backend, *packed);
  const std::vector<uint8_t> bits = c.y_bits();
  for (size_t i = 0; i < rows.size(); ++i) {
    std::vector<uint8_t> one(8);
    store_f32(one.data(), c.spec.y_dtype, 0, static_cast<float>(rows[i]));
    const auto width = static_cast<size_t>(dtype_bytes(c.spec.y_dtype));
    for (size_t b = 0; b < width; ++b) ASSERT_EQ(bits[i * width + b], one[b]) << "element " << i;
  }
  c.run(*backend, *c.weights);
  EXPECT_EQ(c.y_bits(), bits);
  const CheckResult exact = c.check();
  EXPECT_TRUE(exact.ok()) << exact.text();
  EXPECT_EQ(exact.undetermined, 0);
}

TEST_P(ReferenceGrid, Fp32StaysWithinBounds) {
  BlockCase c(GetParam());
  const auto backend = make_reference_backend({}, ReferenceMode::kF32);
  c.run(*backend, *c.weights);
  const CheckResult r = c.check();
  EXPECT_TRUE(r.ok()) << r.text();
  EXPECT_EQ(r.undetermined, 0);
}

INSTANTIATE_TEST_SUITE_P(Pairwise, ReferenceGrid, ::testing::ValuesIn(specs()),
                         [](const auto& info) { return case_name(info.param); });

class ReferenceBatched : public ::testing::TestWithParam<CaseSpec> {};

TEST_P(ReferenceBatched, EqualsNaiveLoops) {
  for (const bool with_weights : {true, false}) {
    CaseSpec s = GetParam();
    s.router_weight_on_input = s.router_weight_on_input && with_weights;
    BatchedCase c(s, with_weights);
    const std::vector<double> naive = naive_batched(c);
    const auto backend = make_reference_backend({});
    c.run(*backend, *c.weights);
    const std::vector<uint8_t> bits = c.y_bits();
    double largest = 0;
    for (const double v : naive) largest = std::max(largest, std::fabs(v));
    ASSERT_EQ(c.spec.y_dtype, RAMP_F32);
    for (size_t i = 0; i < naive.size(); ++i) {
      if (std::isnan(load_f32(bits.data(), RAMP_F32, static_cast<int64_t>(i)))) {
        ASSERT_EQ(naive[i], 0.0);  // a row beyond the count
        continue;
      }
      ASSERT_NEAR(load_f32(bits.data(), RAMP_F32, static_cast<int64_t>(i)), naive[i], 0x1p-23 * largest);
    }
    const CheckResult exact = c.check();
    EXPECT_TRUE(exact.ok()) << exact.text();
    const auto single = make_reference_backend({}, ReferenceMode::kF32);
    c.run(*single, *c.weights);
    const CheckResult fp32 = c.check();
    EXPECT_TRUE(fp32.ok()) << fp32.text();
    EXPECT_GT(fp32.rows, 0);
  }
}

std::vector<CaseSpec> batched_specs() {
  std::vector<CaseSpec> out;
  for (const auto& r : pairwise({6, 4, 4, 2, 2, 2}, 7)) {
    CaseSpec s;
    s.format = kFormats[r[0]];
    s.activation = static_cast<ramp_activation>(r[1]);
    s.x_dtype = kXTypes[r[2]];
    s.y_dtype = RAMP_F32;
    s.router_weight_on_input = r[3] != 0;
    s.int64_ids = r[4] != 0;
    s.strided = r[5] != 0;
    s.tokens = 3;
    s.experts = 5;
    s.hidden = 160;
    s.intermediate = 96;
    s.seed = 500 + out.size();
    out.push_back(clean(s));
  }
  return out;
}
INSTANTIATE_TEST_SUITE_P(Pairwise, ReferenceBatched, ::testing::ValuesIn(batched_specs()),
                         [](const auto& info) { return case_name(info.param); });

}  // namespace
}  // namespace ramp::core::test
