// Which kernels a call of packed weights is captured with, from a fit: also from one of a model that the GPU
// cannot evaluate, which leaves one kernel and no costs. Host code alone.
#include "backend/cuda/step_choice.hpp"

#include <gtest/gtest.h>

#include <memory>
#include <vector>

#include "backend/cuda/prefill_block.hpp"
#include "backend/cuda/stream_block.hpp"
#include "cost/support.hpp"
#include "weights/expert_weights.hpp"

namespace ramp::cuda_test {
namespace {
namespace cuda = core::cuda;

// A fit for OLMoE's shape, whatever its columns were measured on.
std::unique_ptr<core::FitList::Entry> fit_of(const char* model) {
  const core::Dataset& d = core::measured();
  core::FitReport report;
  std::shared_ptr<const core::Predictor> p =
      core::find_cost_model(model).fit(d, 0, core::select_points(d, 0, true), core::h200(), report);
  std::vector<core::KernelConfig> configs;
  for (const cuda::StreamVariant& v : cuda::stream_variants()) configs.push_back(v.config());
  configs.push_back(cuda::prefill_config());
  while (configs.size() < p->configs().size()) {
    configs.push_back(configs.front());
    configs.back().stages = 90 + static_cast<int32_t>(configs.size());  // runs nowhere
  }
  configs.resize(p->configs().size());
  const core::ModelShape& m = p->model();
  return std::make_unique<core::FitList::Entry>(
      core::WeightKind{m.experts, m.hidden, m.intermediate, RAMP_FORMAT_FP8_BLOCK,
                       RAMP_ACTIVATION_SILU_AND_MUL},
      m.top_k, "a file", core::Dispatcher(p), configs);
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

}  // namespace
}  // namespace ramp::cuda_test
