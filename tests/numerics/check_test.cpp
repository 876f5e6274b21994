// The checker on hand-made results: NaN and infinity, overflow, sampled tokens, rows stored as bf16 before
// they are combined, masked rows.
#include <gtest/gtest.h>

#include <cmath>
#include <limits>

#include "backend/reference/reference.hpp"
#include "base/float_types.hpp"
#include "numerics/cases.hpp"

namespace ramp::core::test {
namespace {

constexpr ramp_format kFormats[] = {RAMP_FORMAT_FP8_BLOCK, RAMP_FORMAT_BF16,       RAMP_FORMAT_F16,
                                    RAMP_FORMAT_F32,       RAMP_FORMAT_FP8_TENSOR, RAMP_FORMAT_FP8_CHANNEL};
constexpr float kInf = std::numeric_limits<float>::infinity();

void run(BlockCase& c, ReferenceMode mode = ReferenceMode::kF32) {
  c.run(*make_reference_backend({}, mode), *c.weights);
}

// A NaN weight in w13 spoils its expert's tokens whole, one in w2 its column alone, and nothing else.
TEST(CheckNan, WeightsPropagateToTheirOwnOutputs) {
  for (const ramp_format format : kFormats) {
    for (const bool second : {false, true}) {
      CaseSpec s;
      s.format = format;
      s.tokens = 12;
      BlockCase c(s);
      const ramp_tensor& t = second ? c.synthetic.desc.w2 : c.synthetic.desc.w13;
      const int64_t expert = 3;
      const int64_t row = 5;
      store_f32(t.data, static_cast<ramp_dtype>(t.dtype), expert * t.stride[0] + row * t.stride[1] + 7,
                std::nanf(""));
      run(c);
      const CheckResult r = c.check();
      EXPECT_TRUE(r.ok()) << r.text();
      int64_t tokens_with_expert = 0;
      for (int64_t tok = 0; tok < s.tokens; ++tok) {
        bool uses = false;
        for (int64_t j = 0; j < s.top_k; ++j)
          uses = uses || static_cast<const int32_t*>(c.ids.view.data)[tok * s.top_k + j] == expert;
        tokens_with_expert += uses ? 1 : 0;
        for (int64_t n = 0; n < s.hidden; ++n)
          ASSERT_EQ(std::isnan(c.y.get(tok, n)), uses && (!second || n == row)) << tok << " " << n;
      }
      ASSERT_GT(tokens_with_expert, 0);
      ASSERT_LT(tokens_with_expert, s.tokens);
    }
  }
}

TEST(CheckNan, HiddenNanIsAMismatch) {
  CaseSpec s;
  BlockCase c(s);
  run(c);
  ASSERT_TRUE(c.check().ok());
  c.y.set(2, 17, std::nanf(""));
  CheckResult r = c.check();
  EXPECT_EQ(r.nan_mismatches, 1);
  EXPECT_FALSE(r.ok());
  EXPECT_EQ(r.worst.token, 2);
  EXPECT_EQ(r.worst.column, 17);
  c.y.set(2, 17, kInf);
  EXPECT_EQ(c.check().nan_mismatches, 1);
}

TEST(CheckNan, SwallowedNanIsAMismatch) {
  for (const ramp_format format : kFormats) {
    CaseSpec s;
    s.format = format;
    BlockCase c(s);
    run(c);
    c.x.set(1, 40, std::nanf(""));  // y is still that of the clean x
    const CheckResult r = c.check();
    EXPECT_EQ(r.nan_mismatches, s.hidden) << format_name(format);
    run(c);
    EXPECT_TRUE(c.check().ok()) << c.check().text();
  }
}

TEST(CheckNan, RouterWeightsAndAddendPropagate) {
  for (const bool on_input : {false, true}) {
    CaseSpec s;
    s.router_weight_on_input = on_input;
    s.shared_dtype = RAMP_F32;
    BlockCase c(s);
    c.topk_weights.set(0, 1, std::nanf(""));
    c.shared_addend.set(3, 9, std::nanf(""));
    run(c);
    for (int64_t n = 0; n < s.hidden; ++n) {
      EXPECT_TRUE(std::isnan(c.y.get(0, n)));
      EXPECT_EQ(std::isnan(c.y.get(3, n)), n == 9);
    }
    EXPECT_TRUE(c.check().ok()) << c.check().text();
  }
}

TEST(CheckNan, InfiniteInputsGiveNoFiniteRowsExceptWhereTheFormatSaturates) {
  for (const ramp_format format : kFormats) {
    CaseSpec s;
    s.format = format;
    BlockCase c(s);
    c.x.set(1, 40, kInf);
    run(c);
    const CheckResult r = c.check();
    EXPECT_TRUE(r.ok()) << format_name(format) << r.text();
    // A static scale saturates infinity to 448; everywhere else it spreads to the whole row.
    EXPECT_EQ(std::isfinite(c.y.get(1, 0)), format == RAMP_FORMAT_FP8_TENSOR) << format_name(format);
    EXPECT_TRUE(std::isfinite(c.y.get(0, 0)));
  }
}

// fp32 sums that may or may not overflow are not judged, and said so.
TEST(Check, OverflowIsUndetermined) {
  CaseSpec s;
  s.format = RAMP_FORMAT_F32;
  s.x_dtype = RAMP_F32;
  s.y_dtype = RAMP_F32;
  BlockCase c(s);
  for (int64_t n = 0; n < s.hidden; ++n) c.x.set(0, n, (n % 2 == 0 ? 1.0F : -1.0F) * 3e38F);
  run(c);
  const CheckResult r = c.check();
  EXPECT_EQ(r.undetermined, s.hidden);
  EXPECT_TRUE(r.ok()) << r.text();
}

// y = f16 overflows to infinity where the value is beyond 65520, and only there.
TEST(Check, OutputOverflowIsInfinity) {
  CaseSpec s;
  s.y_dtype = RAMP_F16;
  s.shared_dtype = RAMP_F32;
  BlockCase c(s);
  c.shared_addend.set(0, 3, 1e6F);
  c.shared_addend.set(0, 4, -1e6F);
  run(c);
  EXPECT_EQ(c.y.get(0, 3), kInf);
  EXPECT_EQ(c.y.get(0, 4), -kInf);
  EXPECT_TRUE(c.check().ok()) << c.check().text();
  c.y.set(0, 3, 65504.0F);  // saturated instead
  EXPECT_FALSE(c.check().ok());
}

TEST(Check, MaskedRowsAreExactlyZeroOrTheAddend) {
  for (const ramp_output output : {RAMP_OUTPUT_COMBINED, RAMP_OUTPUT_PER_SLOT}) {
    CaseSpec s;
    s.ids = Ids::kAllMasked;
    s.output = output;
    s.y_dtype = RAMP_F32;
    BlockCase c(s);
    run(c);
    EXPECT_TRUE(c.check().ok());
    static_cast<float*>(c.y.view.data)[5] = 1e-30F;
    EXPECT_FALSE(c.check().ok());
  }
  CaseSpec s;
  s.ids = Ids::kAllMasked;
  s.shared_dtype = RAMP_BF16;
  BlockCase c(s);
  run(c);
  EXPECT_TRUE(c.check().ok());
  for (int64_t n = 0; n < s.hidden; ++n) EXPECT_EQ(c.y.get(2, n), c.shared_addend.get(2, n));
}

TEST(Check, SampledTokensAloneAreJudged) {
  CaseSpec s;
  s.tokens = 40;
  BlockCase c(s);
  run(c);
  c.y.set(17, 0, 100.0F);
  const std::vector<int64_t> without = {0, 3, 39};
  const std::vector<int64_t> with = {39, 17};
  const CheckResult good = c.check({.tokens = without});
  EXPECT_TRUE(good.ok()) << good.text();
  EXPECT_EQ(good.rows, 3);
  EXPECT_EQ(good.elements, 3 * s.hidden);
  const CheckResult bad = c.check({.tokens = with});
  EXPECT_FALSE(bad.ok());
  EXPECT_EQ(bad.worst.token, 17);
  EXPECT_EQ(c.check().rows, 40);
}

TEST(Check, NoTokens) {
  CaseSpec s;
  s.tokens = 0;
  BlockCase c(s);
  run(c);
  const CheckResult r = c.check();
  EXPECT_TRUE(r.ok());
  EXPECT_EQ(r.rows, 0);
  EXPECT_EQ(r.text().find("worst"), std::string::npos) << r.text();  // there is no worst element
}

// Slot rows stored as bf16 before the sum: wrong by fp32's bounds, right when the checker is told.
TEST(Check, SlotRowsInBf16NeedToBeAllowed) {
  CaseSpec s;
  s.y_dtype = RAMP_F32;
  s.output = RAMP_OUTPUT_PER_SLOT;
  BlockCase slots(s);
  run(slots);
  s.output = RAMP_OUTPUT_COMBINED;
  BlockCase c(s);
  for (int64_t t = 0; t < s.tokens; ++t) {
    for (int64_t n = 0; n < s.hidden; ++n) {
      float sum = 0.0F;
      for (int64_t j = 0; j < s.top_k; ++j) {
        const auto* rows = static_cast<const float*>(slots.y.view.data);
        sum += bf16_to_f32(f32_to_bf16(rows[(t * s.top_k + j) * s.hidden + n]));
      }
      c.y.set(t, n, sum);
    }
  }
  EXPECT_FALSE(c.check().ok());
  const CheckResult r = c.check({.slot_rows = RAMP_BF16});
  EXPECT_TRUE(r.ok()) << r.text();
}

TEST(Check, TextNamesVerdictAndWorstElement) {
  BlockCase c(CaseSpec{});
  run(c);
  EXPECT_EQ(c.check().text().substr(0, 4), "ok: ");
  c.y.set(4, 20, 1000.0F);
  const std::string text = c.check().text();
  EXPECT_NE(text.find("WRONG"), std::string::npos) << text;
  EXPECT_NE(text.find("token 4 slot -1 column 20: got 1000"), std::string::npos) << text;
}

TEST(Check, TasksMayRunInAnyOrder) {
  BlockCase c(CaseSpec{});
  run(c);
  const CheckResult forward = c.check();
  CheckOptions backward;
  backward.parallel = [](int64_t n, const std::function<void(int64_t)>& task) {
    for (int64_t i = n - 1; i >= 0; --i) task(i);
  };
  const CheckResult r = c.check(backward);
  EXPECT_EQ(r.max_ratio, forward.max_ratio);
  EXPECT_EQ(r.relative_error, forward.relative_error);
}

}  // namespace
}  // namespace ramp::core::test
