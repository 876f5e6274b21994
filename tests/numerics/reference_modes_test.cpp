// The reference backend beyond the grid of reference_test.cpp: its modes (fp32, ideal), token lists, packing,
// updates, configs, routing, and the corners T = 0 and duplicate experts.
#include <gtest/gtest.h>

#include <cmath>
#include <cstring>
#include <numeric>

#include "backend/reference/reference.hpp"
#include "base/error.hpp"
#include "base/float_types.hpp"
#include "base/rng.hpp"
#include "base/tensor.hpp"
#include "numerics/cases.hpp"
#include "routing/router.hpp"

namespace ramp::core::test {
namespace {

constexpr ramp_format kFormats[] = {RAMP_FORMAT_FP8_BLOCK, RAMP_FORMAT_BF16,       RAMP_FORMAT_F16,
                                    RAMP_FORMAT_F32,       RAMP_FORMAT_FP8_TENSOR, RAMP_FORMAT_FP8_CHANNEL};

CaseSpec wide(ramp_format format) {
  CaseSpec s;
  s.format = format;
  s.y_dtype = RAMP_F32;
  s.tokens = 6;
  s.experts = 4;
  s.hidden = 512;
  s.intermediate = 512;
  return s;
}

// Rounding a number with m mantissa bits to nearest makes a relative error of about 2^-m / sqrt(12) / 1.44 in
// the mean square (uniform in a binade whose mean magnitude is 1.44): 0.025 for e4m3, 0.0016 for bf16, 0.0002
// for f16. fp8 formats round x, which reaches h through gate and up, and h: 0.025 * sqrt(3) = 0.043 when
// every value is in the normal range. x is bf16 already, so bf16 and f16 round h alone.
TEST(IdealMode, ErrorOfAFormatIsThatOfItsRoundings) {
  for (const ramp_format format : kFormats) {
    BlockCase c(wide(format));
    c.run(*make_reference_backend({}), *c.weights);
    const double error = relative_error(c.call(*c.weights), {}, ReferenceMode::kIdeal);
    double expected = 0.043;
    if (format == RAMP_FORMAT_BF16) expected = 0.0016;
    if (format == RAMP_FORMAT_F16) expected = 0.0002;
    if (format == RAMP_FORMAT_F32) {
      EXPECT_LT(error, 0x1p-24);  // the rounding of y alone
      continue;
    }
    EXPECT_GT(error, 0.6 * expected) << format_name(format);
    EXPECT_LT(error, 1.6 * expected) << format_name(format);
  }
}

TEST(IdealMode, LeavesOutTheRoundingOfXToo) {
  CaseSpec s = wide(RAMP_FORMAT_BF16);
  s.x_dtype = RAMP_F32;
  BlockCase c(s);
  c.run(*make_reference_backend({}), *c.weights);
  // x and h rounded: sqrt(3) * 0.0016
  EXPECT_NEAR(relative_error(c.call(*c.weights), {}, ReferenceMode::kIdeal), 0.0028, 0.001);
  EXPECT_LT(relative_error(c.call(*c.weights), {}, ReferenceMode::kF64), 0x1p-24);
}

TEST(Fp32Mode, IsCloseToFp64AndNotTheSame) {
  for (const ramp_format format : kFormats) {
    BlockCase c(wide(format));
    c.run(*make_reference_backend({}, ReferenceMode::kF32), *c.weights);
    const double error = relative_error(c.call(*c.weights), {}, ReferenceMode::kF64);
    EXPECT_GT(error, 0.0) << format_name(format);
    // Random walks of 512 roundings, and a few flipped codes among 6 * 2 * 512.
    EXPECT_LT(error, 1e-3) << format_name(format);
    EXPECT_EQ(relative_error(c.call(*c.weights), {}, ReferenceMode::kF32) < 0x1p-24, true);
  }
}

TEST(ReferenceRows, TokenListsSelectAndOrder) {
  for (const ramp_output output : {RAMP_OUTPUT_COMBINED, RAMP_OUTPUT_PER_SLOT}) {
    CaseSpec s;
    s.tokens = 300;  // more than one chunk
    s.hidden = 32;
    s.intermediate = 32;
    s.output = output;
    BlockCase c(s);
    const BlockCall call = c.call(*c.weights);
    const std::vector<double> all = reference_rows(call, {}, ReferenceMode::kF64);
    const std::vector<int64_t> some = {299, 0, 7, 7};
    const std::vector<double> picked = reference_rows(call, some, ReferenceMode::kF64);
    const int64_t width = s.hidden * (output == RAMP_OUTPUT_PER_SLOT ? s.top_k : 1);
    ASSERT_EQ(picked.size(), 4 * static_cast<size_t>(width));
    for (size_t n = 0; n < some.size(); ++n) {
      for (int64_t i = 0; i < width; ++i)
        ASSERT_EQ(picked[n * static_cast<size_t>(width) + static_cast<size_t>(i)],
                  all[static_cast<size_t>(some[n] * width + i)]);
    }
    c.run(*make_reference_backend({}), *c.weights);
    EXPECT_TRUE(c.check().ok());
  }
}

TEST(ReferenceBackend, DuplicateExpertsCountTwice) {
  CaseSpec s;
  s.tokens = 1;
  s.ids = Ids::kSingle;
  s.experts = 1;
  s.top_k = 3;  // expert 0 three times
  BlockCase c(s);
  const std::vector<double> thrice = reference_rows(c.call(*c.weights), {}, ReferenceMode::kF64);
  BlockCall one = c.call(*c.weights);
  one.top_k = 1;
  const float sum = c.topk_weights.get(0, 0) + c.topk_weights.get(0, 1) + c.topk_weights.get(0, 2);
  one.topk_weights = make_tensor(&sum, RAMP_F32, {1, 1});
  one.ids.shape[1] = 1;
  const std::vector<double> once = reference_rows(one, {}, ReferenceMode::kF64);
  for (size_t i = 0; i < once.size(); ++i)
    EXPECT_NEAR(thrice[i], once[i], 2 * 0x1p-24 * std::fabs(once[i]) + 1e-12);  // the sum is rounded to fp32
}

TEST(ReferenceBackend, NoTokensAndNoRows) {
  const auto backend = make_reference_backend({});
  for (const ramp_output output : {RAMP_OUTPUT_COMBINED, RAMP_OUTPUT_PER_SLOT}) {
    CaseSpec s;
    s.tokens = 0;
    s.output = output;
    BlockCase c(s);
    c.run(*backend, *c.weights);
  }
  CaseSpec s;
  s.tokens = 0;
  BatchedCase b(s);
  b.run(*backend, *b.weights);
}

// Packing gives up the checkpoint-layout views (COPY, IN_PLACE) or copies (BORROW); results, unpacking and
// updates are the same before and after.
TEST(ReferenceBackend, PackUpdateUnpack) {
  const auto backend = make_reference_backend({});
  for (const ramp_format format : kFormats) {
    for (const ramp_ownership ownership : {RAMP_COPY, RAMP_BORROW, RAMP_IN_PLACE}) {
      for (const bool packed : {false, true}) {
        if (ownership == RAMP_BORROW && !packed) continue;  // such handles are not updated
        CaseSpec s;
        s.format = format;
        s.experts = 4;
        BlockCase c(s);
        const auto w = c.make_weights(ownership);
        if (packed) {
          backend->pack(*w, nullptr);
          backend->pack(*w, nullptr);  // idempotent
          ASSERT_NE(w->packed, nullptr);
          EXPECT_EQ(w->w13.data == nullptr, ownership != RAMP_BORROW);
          EXPECT_EQ(w->packed->bytes(), static_cast<int64_t>(c.synthetic.w13.size() + c.synthetic.w2.size()));
        }
        // New values for experts 1 and 2.
        SyntheticWeightsOptions other;
        other.seed = 77;
        const SyntheticWeights fresh =
            make_synthetic_weights({"new", 2, 1, s.hidden, s.intermediate}, format, s.activation, other);
        backend->update(*w, 1, check_update(*w, 1, fresh.desc), nullptr);
        c.run(*backend, *w);
        const std::vector<uint8_t> bits = c.y_bits();

        // The same by hand, on the case's own values.
        SyntheticWeights expected = clone(c.synthetic, RAMP_BORROW);
        copy_elements(fresh.desc.w13, expert_range(expected.desc.w13, 1, 2));
        copy_elements(fresh.desc.w2, expert_range(expected.desc.w2, 1, 2));
        if (present(fresh.desc.w13_scale)) {
          copy_elements(fresh.desc.w13_scale, expert_range(expected.desc.w13_scale, 1, 2));
          copy_elements(fresh.desc.w2_scale, expert_range(expected.desc.w2_scale, 1, 2));
        }
        if (format == RAMP_FORMAT_FP8_TENSOR) {
          expected.desc.w13_input_scale = fresh.desc.w13_input_scale;
          expected.desc.w2_input_scale = fresh.desc.w2_input_scale;
        }
        const auto by_hand = make_expert_weights(expected.desc, {});
        c.run(*backend, *by_hand);
        EXPECT_EQ(c.y_bits(), bits) << format_name(format) << " ownership " << ownership;

        OwnedTensor w13(weight_dtype(format), {4, w->rows13(), s.hidden}, 24);
        OwnedTensor w2(weight_dtype(format), {4, s.hidden, s.intermediate}, 24);
        backend->unpack(*w, w13.view, w2.view, nullptr);
        EXPECT_EQ(bytes_of(w13.view), bytes_of(expected.desc.w13));
        EXPECT_EQ(bytes_of(w2.view), bytes_of(expected.desc.w2));
        EXPECT_TRUE(w13.gaps_intact() && w2.gaps_intact());
      }
    }
  }
}

TEST(ReferenceBackend, RefusesForeignPacking) {
  struct Foreign final : PackedWeights {
    [[nodiscard]] int64_t bytes() const noexcept override { return 0; }
  };
  CaseSpec s;
  BlockCase c(s);
  const auto w = c.make_weights(RAMP_COPY);
  w->w13.data = nullptr;
  w->w2.data = nullptr;
  w->packed = std::make_unique<Foreign>();
  try {
    reference_rows(c.call(*w), {}, ReferenceMode::kF64);
    FAIL();
  } catch (const Error& e) {
    EXPECT_EQ(e.status(), RAMP_ERROR_UNSUPPORTED);
    EXPECT_NE(std::string(e.what()).find("packed by another backend"), std::string::npos) << e.what();
  }
}

TEST(ReferenceBackend, InfoAndItsOneConfig) {
  const auto backend = make_reference_backend({});
  EXPECT_EQ(backend->info().kind, RAMP_BACKEND_REFERENCE);
  EXPECT_EQ(backend->info().name, "reference");
  CaseSpec s;
  BlockCase c(s);
  const ConfigList list = backend->configs({"x", 8, 2, 128, 96}, s.format, s.activation, true);
  ASSERT_EQ(list.legal.size(), 1U);
  EXPECT_EQ(backend->choose(*c.weights, c.histogram(), RAMP_REPEATABLE), list.legal[0]);
  EXPECT_EQ(parse_config(config_name(list.legal[0])), list.legal[0]);
  EXPECT_EQ(backend->block_workspace(*c.weights, 100, 8), 0U);
  BackendOptions gpu;
  gpu.device.type = RAMP_DEVICE_CUDA;
  EXPECT_THROW(make_reference_backend(gpu), Error);
}

// route(): logits given or made from x and the router weight, then the fp64 oracle, then the capacity.
TEST(ReferenceBackend, RoutesByTheOracle) {
  const int64_t tokens = 9;
  const int64_t experts = 12;
  const int64_t hidden = 64;
  OwnedTensor x(RAMP_BF16, {tokens, hidden}, 8);
  OwnedTensor w(RAMP_F32, {experts, hidden});
  Rng rng(3);
  for (int64_t c = 0; c < hidden; ++c) {
    for (int64_t t = 0; t < tokens; ++t) x.set(t, c, static_cast<float>(rng.normal()));
    for (int64_t e = 0; e < experts; ++e) w.set(e, c, static_cast<float>(rng.normal() / 8));
  }
  ramp_router_config router = ramp_router_config_init();
  router.top_k = 3;
  router.renormalize = 1;
  router.num_shared_experts = 1;
  router = check_router(router, experts);
  OwnedTensor logits(RAMP_F32, {tokens, experts});
  std::vector<std::vector<double>> exact(static_cast<size_t>(tokens));
  for (int64_t t = 0; t < tokens; ++t) {
    for (int64_t e = 0; e < experts; ++e) {
      double sum = 0;
      for (int64_t c = 0; c < hidden; ++c) sum += static_cast<double>(x.get(t, c)) * w.get(e, c);
      exact[static_cast<size_t>(t)].push_back(sum);
      logits.set(t, e, static_cast<float>(sum));
    }
  }
  for (const bool given : {false, true}) {
    for (const ramp_dtype id_type : {RAMP_I32, RAMP_I64}) {
      OwnedTensor ids(id_type, {tokens, 4}, 5);
      OwnedTensor weights(RAMP_F32, {tokens, 4}, 5);
      RouteCall call;
      call.router = router;
      call.ids = ids.view;
      call.weights = weights.view;
      if (given) {
        call.logits = logits.view;
      } else {
        call.x = x.view;
        call.router_weight = w.view;
      }
      make_reference_backend({})->route(call);
      EXPECT_TRUE(ids.gaps_intact() && weights.gaps_intact());
      for (int64_t t = 0; t < tokens; ++t) {
        std::vector<int64_t> expected(4);
        std::vector<double> expected_weights(4);
        route_token_f64(router, exact[static_cast<size_t>(t)], expected, expected_weights);
        for (int64_t j = 0; j < 4; ++j) {
          const int64_t at = t * ids.view.stride[0] + j;
          const int64_t id = id_type == RAMP_I64 ? static_cast<const int64_t*>(ids.view.data)[at]
                                                 : static_cast<const int32_t*>(ids.view.data)[at];
          EXPECT_EQ(id, expected[static_cast<size_t>(j)]);
          EXPECT_NEAR(weights.get(t, j), expected_weights[static_cast<size_t>(j)], 1e-6);
        }
        EXPECT_EQ(expected[3], experts);  // the shared expert
      }
    }
  }
  // Capacity 1: each routed expert keeps its first slot.
  router.capacity = 1;
  OwnedTensor ids(RAMP_I32, {tokens, 4});
  OwnedTensor weights(RAMP_F32, {tokens, 4});
  RouteCall call;
  call.router = router;
  call.ids = ids.view;
  call.weights = weights.view;
  call.logits = logits.view;
  make_reference_backend({})->route(call);
  std::vector<int> seen(static_cast<size_t>(experts) + 1);
  for (int64_t i = 0; i < tokens * 4; ++i) {
    const int32_t id = static_cast<const int32_t*>(ids.view.data)[i];
    if (id >= 0) ++seen[static_cast<size_t>(id)];
    if (id == -1) {
      EXPECT_EQ(static_cast<const float*>(weights.view.data)[i], 0.0F);
    }
  }
  for (int64_t e = 0; e < experts; ++e) EXPECT_LE(seen[static_cast<size_t>(e)], 1);
  EXPECT_EQ(seen[static_cast<size_t>(experts)], tokens);
}

// Pairwise arrays really cover every pair.
TEST(Pairwise, CoversAllPairs) {
  const std::vector<int32_t> levels = {3, 2, 4, 2, 5};
  const auto rows = pairwise(levels);
  EXPECT_LT(rows.size(), 40U);
  for (size_t a = 0; a < levels.size(); ++a) {
    for (size_t b = a + 1; b < levels.size(); ++b) {
      for (int32_t i = 0; i < levels[a]; ++i) {
        for (int32_t j = 0; j < levels[b]; ++j) {
          bool found = false;
          for (const auto& r : rows) found = found || (r[a] == i && r[b] == j);
          EXPECT_TRUE(found);
        }
      }
    }
  }
}

}  // namespace
}  // namespace ramp::core::test
