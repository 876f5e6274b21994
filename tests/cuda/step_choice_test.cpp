// Which kernels a call of packed weights is captured with, from a fit: also from one of a model that the GPU
// cannot evaluate, which leaves one kernel and no costs; and of a shard of the experts. Host code alone.
#include "backend/cuda/step_choice.hpp"

#include <gtest/gtest.h>

#include <algorithm>
#include <memory>
#include <vector>

#include "backend/cuda/expected_rows.hpp"
#include "backend/cuda/flat_block.hpp"
#include "backend/cuda/flat_prefill_block.hpp"
#include "backend/cuda/prefill_block.hpp"
#include "backend/cuda/stream_block.hpp"
#include "cost/support.hpp"
#include "weights/expert_weights.hpp"

namespace ramp::cuda_test {
namespace {
namespace cuda = core::cuda;

// A fit for OLMoE's shape, whatever its columns were measured on.
std::unique_ptr<core::FitList::Entry> fit_of(const char* model, ramp_format format = RAMP_FORMAT_FP8_BLOCK) {
  const core::Dataset& d = core::measured();
  core::FitReport report;
  std::shared_ptr<const core::Predictor> p =
      core::find_cost_model(model).fit(d, 0, core::select_points(d, 0, true), core::h200(), report);
  std::vector<core::KernelConfig> configs;
  if (format == RAMP_FORMAT_FP8_BLOCK) {
    for (const cuda::StreamVariant& v : cuda::stream_variants()) configs.push_back(v.config());
    configs.push_back(cuda::prefill_config());
  } else {
    for (const cuda::FlatVariant& v : cuda::flat_variants(format, 2048, 1024))
      configs.push_back(v.config(format));
    configs.push_back(cuda::flat_prefill_config(format));
  }
  while (configs.size() < p->configs().size()) {
    configs.push_back(configs.front());
    configs.back().stages = 90 + static_cast<int32_t>(configs.size());  // runs nowhere
  }
  configs.resize(p->configs().size());
  const core::ModelShape& m = p->model();
  return std::make_unique<core::FitList::Entry>(
      core::WeightKind{m.experts, m.hidden, m.intermediate, format, RAMP_ACTIVATION_SILU_AND_MUL}, m.top_k,
      "a file", core::Dispatcher(p), configs);
}

TEST(StepChoice, TakesFitsOfEveryModel) {
  for (const char* const model : {"wave", "ramp4", "step"}) {
    core::FitList fits;
    fits.add(fit_of(model));
    core::ExpertWeights w;
    const core::ModelShape& m =
        fits.find({64, 2048, 1024, RAMP_FORMAT_FP8_BLOCK})->dispatcher.predictor().model();
    w.experts = m.experts;
    w.hidden = m.hidden;
    w.intermediate = m.intermediate;
    w.format = RAMP_FORMAT_FP8_BLOCK;
    w.activation = RAMP_ACTIVATION_SILU_AND_MUL;
    cuda::StepChoice choice;
    for (const int64_t tokens : {1, 7, 8, 100, 512, 4096}) {
      const cuda::StepSet* const set = choice.find(fits, w, tokens, m.top_k, false);
      ASSERT_NE(set, nullptr) << model;
      ASSERT_FALSE(set->candidates.empty());
      if (std::string(model) != "step") {
        EXPECT_EQ(set->candidates.size(), 1U) << model;
      }
      for (const std::vector<int32_t>& h : cuda::likely_histograms(m.experts, m.top_k, tokens, false))
        EXPECT_LT(cuda::decided(*set, h), set->candidates.size()) << model << ", T = " << tokens;
      EXPECT_EQ(choice.find(fits, w, tokens, m.top_k, false), set) << "kept";
    }
    const cuda::StepSet& one = choice.one(fits, w, m.top_k, {true, 0});
    EXPECT_EQ(cuda::decided(one, std::vector<int32_t>(64, 5)), 0U);
  }
}

// What the device reads: candidates in the order of the options that name them, and none twice.
TEST(StepChoice, TheDevicesTableKeepsTheOrderOfOptions) {
  cuda::DecideParams d{};
  d.candidates = 3;
  d.options = 4;
  const unsigned only[] = {1, 0, 1, 0};
  for (unsigned o = 0; o < d.options; ++o)
    for (unsigned a = 0; a + 1 < cuda::kMostCandidates; ++a)
      d.option[o].above[a] = a < only[o] ? 0 : cuda::kNeverAbove;
  for (unsigned c = 0; c < d.candidates; ++c) {
    d.plan[c].tile_m = 8 << c;
    d.cost[c].base_ns = 100 + c;
    d.cost[c].places[0] = c;
    d.cost[c].wave_ns[0] = 5;
    for (unsigned i = 0; i < cuda::kCostPoints; ++i) d.cost[c].ns[i] = 10 * i + c;
  }
  unsigned choices = 0;
  cuda::DecideTable t = cuda::table_of(d, choices);
  EXPECT_EQ(choices, 2U);
  const unsigned order[] = {1, 0, 2};
  for (unsigned i = 0; i < 3; ++i) {
    const cuda::CandidateHead& head = t.candidate[i].head;
    EXPECT_EQ(head.tile_m, 8U << order[i]);
    EXPECT_EQ(head.tile_inverse, cuda::inverse_of(head.tile_m));
    EXPECT_EQ(head.terms.base_ns, 100 + order[i]);
    EXPECT_EQ(head.terms.places[0], order[i] == 0 ? 1 : order[i]);
    EXPECT_EQ(head.terms.wave_ns[0], order[i] == 0 ? 0U : 5U);
    EXPECT_EQ(head.option, i < 2 ? i : cuda::kMostOptions);
    EXPECT_EQ(t.candidate[i].ns[7], 70 + order[i]);
  }
  // Options that divide experts: as they are.
  d.option[3].above[0] = 20;
  t = cuda::table_of(d, choices);
  EXPECT_EQ(choices, 0U);
  for (unsigned i = 0; i < 3; ++i) EXPECT_EQ(t.candidate[i].head.tile_m, 8U << i);
  // One alone, and what is not there.
  d.candidates = d.options = 1;
  d.option[0].above[0] = d.option[0].above[1] = cuda::kNeverAbove;
  t = cuda::table_of(d, choices);
  EXPECT_EQ(choices, 1U);
  EXPECT_EQ(t.candidate[1].head.tile_m, 1U);
  EXPECT_EQ(cuda::divided(17, 1, t.candidate[1].head.tile_inverse), 17U);
}

// A config with sums runs in fast calls alone; others choose among the rest, and keep a set of their own.
TEST(StepChoice, SumsAreForCallsThatMayAddThemUp) {
  core::FitList fits;
  std::unique_ptr<core::FitList::Entry> entry = fit_of("wave");
  core::KernelConfig sums = cuda::prefill_config();
  sums.sums = true;
  for (core::KernelConfig& c : entry->configs) c = sums;  // whatever is fastest has them
  const core::KernelConfig other = entry->configs.front() = cuda::stream_variants()[3].config();
  fits.add(std::move(entry));
  core::ExpertWeights w;
  w.experts = 64;
  w.hidden = 2048;
  w.intermediate = 1024;
  w.format = RAMP_FORMAT_FP8_BLOCK;
  w.activation = RAMP_ACTIVATION_SILU_AND_MUL;
  cuda::StepChoice choice;
  bool taken = false;
  for (const int64_t tokens : {1, 100, 4096}) {
    const cuda::StepSet* const repeatable = choice.find(fits, w, tokens, 8, false);
    const cuda::StepSet* const fast = choice.find(fits, w, tokens, 8, false, true);
    ASSERT_NE(repeatable, nullptr);
    ASSERT_NE(fast, nullptr);
    EXPECT_NE(repeatable, fast);
    ASSERT_EQ(repeatable->candidates.size(), 1U);
    EXPECT_EQ(repeatable->candidates.front().config(), other);
    taken = taken || fast->candidates.front().config() == sums;
  }
  EXPECT_TRUE(taken);
}

// Flat formats have no prologue that decides: one kernel, by a fit of any model.
TEST(StepChoice, FlatFormatsTakeOneKernelByAFit) {
  for (const ramp_format format :
       {RAMP_FORMAT_BF16, RAMP_FORMAT_F16, RAMP_FORMAT_FP8_TENSOR, RAMP_FORMAT_FP8_CHANNEL}) {
    for (const char* const model : {"wave", "ramp4", "step"}) {
      core::FitList fits;
      fits.add(fit_of(model, format));
      core::ExpertWeights w;
      w.experts = 64;
      w.hidden = 2048;
      w.intermediate = 1024;
      w.format = format;
      w.activation = RAMP_ACTIVATION_SILU_AND_MUL;
      cuda::StepChoice choice;
      const core::FitList::Entry* const entry =
          fits.find({64, 2048, 1024, format, RAMP_ACTIVATION_SILU_AND_MUL}, 8);
      ASSERT_NE(entry, nullptr);
      for (const int64_t tokens : {1, 7, 100, 4096}) {
        for (const bool batched : {false, true}) {
          const cuda::StepSet* const set = choice.find(fits, w, tokens, batched ? 1 : 8, batched);
          ASSERT_NE(set, nullptr);
          ASSERT_EQ(set->candidates.size(), 1U) << model;
          const core::KernelConfig config = set->candidates.front().config();
          EXPECT_NE(std::find(entry->configs.begin(), entry->configs.end(), config), entry->configs.end());
        }
      }
      w.format = RAMP_FORMAT_FP8_BLOCK;
      EXPECT_EQ(choice.find(fits, w, 8, 8, false), nullptr) << "a fit is one format's";
    }
  }
}

// Of a map's experts a shard holds some; the slots of the others bring it no rows.
TEST(StepChoice, AShardExpectsItsShareOfTheRows) {
  core::ExpertWeights w;
  w.hidden = 7168;
  w.intermediate = 2048;
  w.format = RAMP_FORMAT_FP8_BLOCK;
  w.activation = RAMP_ACTIVATION_SILU_AND_MUL;
  std::vector<int32_t> map(256, -1);
  core::BlockCall call;
  call.weights = &w;
  struct Case {
    int64_t experts, top_k, tokens, expected;
  };
  for (const Case& c : {Case{32, 8, 128, 16}, Case{32, 8, 1, 1}, Case{32, 8, 8192, 1024}, Case{32, 8, 0, 0},
                        Case{4, 8, 1024, 32},  // 128 rows, four of a token at most
                        Case{256, 8, 128, 128}, Case{1, 8, 512, 16}}) {
    w.experts = c.experts;
    call.tokens = c.tokens;
    call.top_k = c.top_k;
    call.expert_map = map;
    EXPECT_EQ(core::cuda::expected_tokens(call), c.expected) << c.experts << " experts, T = " << c.tokens;
    EXPECT_EQ(core::cuda::expected_top_k(call), std::min(c.top_k, c.experts));
    call.expert_map = {};
    EXPECT_EQ(core::cuda::expected_tokens(call), c.tokens) << "no map: every id is one of these experts";
    EXPECT_EQ(core::cuda::expected_top_k(call), c.top_k);
  }
  // DSv3 over eight GPUs: 1024 slots at T = 128, of which 128 come here, four to an expert. Every slot would
  // make it a prefill step.
  w.experts = 32;
  call.tokens = 128;
  call.top_k = 8;
  EXPECT_TRUE(cuda::default_candidate(call).prefill);
  call.expert_map = map;
  const cuda::StepCandidate few = cuda::default_candidate(call);
  EXPECT_FALSE(few.prefill);
  call.expert_map = {};
  call.tokens = 16;
  EXPECT_EQ(cuda::default_candidate(call), few) << "as for so many rows without a map";
  // Rows of the histograms by which a fit's kernels are chosen.
  for (const std::vector<int32_t>& h : cuda::likely_histograms(32, 8, 16, false)) {
    int64_t rows = 0;
    for (const int32_t c : h) rows += c;
    EXPECT_NEAR(static_cast<double>(rows), 128, 8);
  }
}

}  // namespace
}  // namespace ramp::cuda_test
