// The checker against planted faults: for each kind of mistake that a kernel can make, a y with that mistake
// (made by the fp32 reference on altered weights or arguments) must be called wrong, and the unaltered y
// right.
#include <gtest/gtest.h>

#include <cmath>
#include <functional>

#include "backend/reference/reference.hpp"
#include "base/float_types.hpp"
#include "base/tensor.hpp"
#include "numerics/cases.hpp"

namespace ramp::core::test {
namespace {

constexpr ramp_format kFormats[] = {RAMP_FORMAT_FP8_BLOCK, RAMP_FORMAT_BF16,       RAMP_FORMAT_F16,
                                    RAMP_FORMAT_F32,       RAMP_FORMAT_FP8_TENSOR, RAMP_FORMAT_FP8_CHANNEL};

// One element of [E, rows, cols] storage set to zero.
void zero(SyntheticWeights& w, bool second, int64_t e, int64_t row, int64_t col) {
  const ramp_tensor& t = second ? w.desc.w2 : w.desc.w13;
  store_f32(t.data, static_cast<ramp_dtype>(t.dtype), e * t.stride[0] + row * t.stride[1] + col, 0.0F);
}

void swap_rows(SyntheticWeights& w, int64_t e, int64_t a, int64_t b) {
  const ramp_tensor& t = w.desc.w13;
  const auto dtype = static_cast<ramp_dtype>(t.dtype);
  for (int64_t k = 0; k < t.shape[2]; ++k) {
    const int64_t at = e * t.stride[0] + a * t.stride[1] + k;
    const int64_t bt = e * t.stride[0] + b * t.stride[1] + k;
    const float va = load_f32(t.data, dtype, at);
    const float vb = load_f32(t.data, dtype, bt);
    store_f32(t.data, dtype, at, vb);
    store_f32(t.data, dtype, bt, va);
  }
}

struct Fault {
  const char* name;
  // Alters the weights of expert 0 .. E-1 (whichever the case uses). Returns false where it does not apply.
  std::function<bool(SyntheticWeights&, const CaseSpec&)> plant;
};

// Faults that stay within one weight matrix. Every expert gets them, since a fault in an idle one is none.
std::vector<Fault> weight_faults() {
  return {
      {"neighbour_w13_scale",  // one scale of each expert read from its neighbour's place
       [](SyntheticWeights& w, const CaseSpec& s) {
         if (w.w13_scale.size() < 2) return false;
         const size_t per = w.w13_scale.size() / static_cast<size_t>(s.experts);
         for (size_t e = 0; e < static_cast<size_t>(s.experts); ++e)
           w.w13_scale[e * per + per / 2] = w.w13_scale[(e * per + per / 2 + 1) % w.w13_scale.size()];
         return true;
       }},
      {"neighbour_w2_scale",
       [](SyntheticWeights& w, const CaseSpec& s) {
         if (w.w2_scale.size() < 2) return false;
         const size_t per = w.w2_scale.size() / static_cast<size_t>(s.experts);
         for (size_t e = 0; e < static_cast<size_t>(s.experts); ++e)
           w.w2_scale[e * per + per / 2] = w.w2_scale[(e * per + per / 2 + 1) % w.w2_scale.size()];
         return true;
       }},
      {"dropped_last_32_of_gemm1",  // the tail of the depth loop
       [](SyntheticWeights& w, const CaseSpec& s) {
         for (int64_t e = 0; e < s.experts; ++e) {
           for (int64_t r = 0; r < w.desc.w13.shape[1]; ++r) {
             for (int64_t k = s.hidden - 32; k < s.hidden; ++k) zero(w, false, e, r, k);
           }
         }
         return true;
       }},
      {"dropped_last_32_of_gemm2",
       [](SyntheticWeights& w, const CaseSpec& s) {
         for (int64_t e = 0; e < s.experts; ++e) {
           for (int64_t r = 0; r < s.hidden; ++r) {
             for (int64_t k = s.intermediate - 32; k < s.intermediate; ++k) zero(w, true, e, r, k);
           }
         }
         return true;
       }},
      {"one_missing_column",  // a single column of GEMM1's depth
       [](SyntheticWeights& w, const CaseSpec& s) {
         for (int64_t e = 0; e < s.experts; ++e) {
           for (int64_t r = 0; r < w.desc.w13.shape[1]; ++r) zero(w, false, e, r, s.hidden / 2 + 1);
         }
         return true;
       }},
      {"one_missing_intermediate_row",
       [](SyntheticWeights& w, const CaseSpec& s) {
         for (int64_t e = 0; e < s.experts; ++e) {
           for (int64_t k = 0; k < s.hidden; ++k) zero(w, false, e, s.intermediate / 2 + 1, k);
         }
         return true;
       }},
      {"swapped_gate_and_up",
       [](SyntheticWeights& w, const CaseSpec& s) {
         if (s.activation == RAMP_ACTIVATION_RELU2) return false;
         for (int64_t e = 0; e < s.experts; ++e) {
           for (int64_t r = 0; r < s.intermediate; ++r) swap_rows(w, e, r, s.intermediate + r);
         }
         return true;
       }},
      {"two_rows_exchanged",  // an interleaving mistake
       [](SyntheticWeights& w, const CaseSpec& s) {
         for (int64_t e = 0; e < s.experts; ++e) swap_rows(w, e, 8, 9);
         return true;
       }},
      {"up_scaled_like_gate",
       [](SyntheticWeights& w, const CaseSpec& s) {
         if (s.format == RAMP_FORMAT_FP8_TENSOR && w.desc.w13_scale.ndim != 2) return false;
         if (w.w13_scale.empty() || s.activation == RAMP_ACTIVATION_RELU2) return false;
         const size_t per = w.w13_scale.size() / static_cast<size_t>(s.experts);
         for (size_t e = 0; e < static_cast<size_t>(s.experts); ++e) {
           for (size_t i = 0; i < per / 2; ++i) w.w13_scale[e * per + per / 2 + i] = w.w13_scale[e * per + i];
         }
         return true;
       }},
  };
}

struct Param {
  ramp_format format;
  bool big;  // H = 1024, I = 608: long sums; else H = 256, I = 160
  ramp_dtype y;
};
CaseSpec spec_of(const Param& p) {
  CaseSpec s;
  s.format = p.format;
  s.y_dtype = p.y;
  s.tokens = 2;
  s.experts = 3;
  s.top_k = 2;
  s.hidden = p.big ? 1024 : 256;
  s.intermediate = p.big ? 608 : 160;
  s.seed = 40;
  return s;
}

class Mutation : public ::testing::TestWithParam<Param> {};

// Runs the fp32 reference with `alter` applied to the call and checks the result against the true call.
CheckResult run_altered(BlockCase& c, const ExpertWeights& w, const std::function<void(BlockCall&)>& alter,
                        ReferenceMode mode = ReferenceMode::kF32) {
  c.y.poison();
  BlockCall call = c.call(w);
  call.counters = nullptr;
  alter(call);
  make_reference_backend({}, mode)->expert_block(call);
  return c.check();
}

TEST_P(Mutation, WeightFaultsAreCaught) {
  BlockCase c(spec_of(GetParam()));
  const CheckResult right = run_altered(c, *c.weights, [](BlockCall&) {});
  ASSERT_TRUE(right.ok()) << right.text();
  for (const Fault& fault : weight_faults()) {
    SyntheticWeights altered = clone(c.synthetic, RAMP_BORROW);
    if (!fault.plant(altered, c.spec)) continue;
    const auto w = make_expert_weights(altered.desc, {});
    const CheckResult r = run_altered(c, *w, [](BlockCall&) {});
    EXPECT_FALSE(r.ok()) << fault.name << ": " << r.text();
  }
}

TEST_P(Mutation, CallFaultsAreCaught) {
  BlockCase c(spec_of(GetParam()));
  const auto wrong = [&](const char* name, const std::function<void(BlockCall&)>& alter) {
    const CheckResult r = run_altered(c, *c.weights, alter);
    EXPECT_FALSE(r.ok()) << name << ": " << r.text();
  };
  // Each token's experts shifted by one.
  std::vector<int32_t> ids(static_cast<size_t>(c.spec.tokens * c.spec.top_k));
  for (size_t i = 0; i < ids.size(); ++i) ids[i] = (static_cast<const int32_t*>(c.ids.view.data)[i] + 1) % 3;
  wrong("wrong expert", [&](BlockCall& call) {
    call.ids = make_tensor(ids.data(), RAMP_I32, {c.spec.tokens, c.spec.top_k});
  });
  for (size_t i = 0; i < ids.size(); ++i) ids[i] = static_cast<const int32_t*>(c.ids.view.data)[i];
  ids[1] = -1;
  wrong("a slot left out", [&](BlockCall& call) {
    call.ids = make_tensor(ids.data(), RAMP_I32, {c.spec.tokens, c.spec.top_k});
  });
  std::vector<float> weights(ids.size(), 1.0F);
  wrong("router weights left out", [&](BlockCall& call) {
    call.topk_weights = make_tensor(weights.data(), RAMP_F32, {c.spec.tokens, c.spec.top_k});
  });
  for (int64_t t = 0; t < c.spec.tokens; ++t) {
    for (int64_t j = 0; j < c.spec.top_k; ++j)
      weights[static_cast<size_t>(t * c.spec.top_k + j)] = c.topk_weights.get(t, c.spec.top_k - 1 - j);
  }
  wrong("router weights of the other slot", [&](BlockCall& call) {
    call.topk_weights = make_tensor(weights.data(), RAMP_F32, {c.spec.tokens, c.spec.top_k});
  });
  wrong("router weight on the wrong side", [](BlockCall& call) { call.router_weight_on_input = true; });
  OwnedTensor addend(RAMP_BF16, {c.spec.tokens, c.spec.hidden});
  for (int64_t t = 0; t < c.spec.tokens; ++t) {
    for (int64_t n = 0; n < c.spec.hidden; ++n) addend.set(t, n, 0.25F);
  }
  wrong("an addend too many", [&](BlockCall& call) { call.shared_addend = addend.view; });
}

TEST_P(Mutation, RowsOfAnotherTokenAreCaught) {
  BlockCase c(spec_of(GetParam()));
  run_altered(c, *c.weights, [](BlockCall&) {});
  for (int64_t n = 0; n < c.spec.hidden; ++n) c.y.set(0, n, c.y.get(1, n));
  EXPECT_FALSE(c.check().ok());
}

TEST_P(Mutation, SmallDamageToOneElementIsCaught) {
  BlockCase c(spec_of(GetParam()));
  run_altered(c, *c.weights, [](BlockCall&) {});
  const int64_t n = c.spec.hidden / 3;
  // 1% of the typical magnitude: five times bf16's rounding of a typical element.
  double rms = 0;
  for (int64_t i = 0; i < c.spec.hidden; ++i) rms += std::pow(c.y.get(1, i), 2);
  rms = std::sqrt(rms / static_cast<double>(c.spec.hidden));
  c.y.set(1, n, static_cast<float>(c.y.get(1, n) + 0.01 * rms + 0.01 * std::fabs(c.y.get(1, n))));
  const CheckResult r = c.check();
  EXPECT_FALSE(r.ok()) << r.text();
  EXPECT_EQ(r.worst.token, 1);
  EXPECT_EQ(r.worst.column, n);
}

// The intermediate left as it is, instead of requantised: the format's own error is far above the bounds of
// an fp32 y for every format that rounds.
TEST_P(Mutation, MissingQuantisationIsCaught) {
  const Param p = GetParam();
  if (p.format == RAMP_FORMAT_F32) return;  // nothing to leave out
  const bool half = p.format == RAMP_FORMAT_BF16 || p.format == RAMP_FORMAT_F16;
  if (half && p.y != RAMP_F32) return;  // drowned by the rounding of y
  // f16's own rounding (2^-12) is about what sums of 1024 terms may change through f16 steps that flip.
  if (p.format == RAMP_FORMAT_F16 && p.big) return;
  BlockCase c(spec_of(p));
  const CheckResult r = run_altered(
      c, *c.weights, [](BlockCall&) {}, ReferenceMode::kIdeal);
  EXPECT_FALSE(r.ok()) << r.text();
}

// y truncated to bf16 instead of rounded to nearest.
TEST_P(Mutation, TruncatedOutputIsCaught) {
  CaseSpec s = spec_of(GetParam());
  s.y_dtype = RAMP_F32;
  BlockCase exact(s);
  run_altered(exact, *exact.weights, [](BlockCall&) {});
  s.y_dtype = RAMP_BF16;
  BlockCase c(s);
  for (int64_t t = 0; t < s.tokens; ++t) {
    for (int64_t n = 0; n < s.hidden; ++n) {
      const auto bits = std::bit_cast<uint32_t>(exact.y.get(t, n)) & 0xffff0000U;
      c.y.set(t, n, std::bit_cast<float>(bits));
    }
  }
  const CheckResult r = c.check();
  EXPECT_FALSE(r.ok()) << r.text();
}

std::vector<Param> params() {
  std::vector<Param> out;
  for (const ramp_format f : kFormats) {
    for (const bool big : {false, true}) {
      for (const ramp_dtype y : {RAMP_BF16, RAMP_F32}) out.push_back({f, big, y});
    }
  }
  return out;
}
INSTANTIATE_TEST_SUITE_P(Formats, Mutation, ::testing::ValuesIn(params()), [](const auto& info) {
  return std::string(format_name(info.param.format)) + (info.param.big ? "_big_" : "_small_") +
         (info.param.y == RAMP_F32 ? "f32" : "bf16");
});

}  // namespace
}  // namespace ramp::core::test
