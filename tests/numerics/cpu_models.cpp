// The real H and I of every known model, in the formats that such models come in. Of the experts only two are
// held here (one where a single expert has more than 60 million weights); expert_map sends about half of the
// slots elsewhere, as in an expert-parallel shard. A few tokens; one of them is checked in full. Sanitized
// builds leave those big experts out.
#include <gtest/gtest.h>

#include <cctype>

#include "numerics/cpu_support.hpp"

namespace ramp::core::test {
namespace {

struct ModelCase {
  ModelShape model;
  ramp_format format = RAMP_FORMAT_BF16;
};

std::vector<ModelCase> model_cases() {
  constexpr ramp_format kFormats[] = {RAMP_FORMAT_FP8_BLOCK, RAMP_FORMAT_BF16,       RAMP_FORMAT_F16,
                                      RAMP_FORMAT_F32,       RAMP_FORMAT_FP8_TENSOR, RAMP_FORMAT_FP8_CHANNEL};
  std::vector<ModelCase> cases;
  size_t next = 0;
  for (const ModelShape& m : known_models()) {
    const bool big = 3 * m.hidden * m.intermediate > 60'000'000;
    if (big && kSanitized) continue;
    cases.push_back({m, RAMP_FORMAT_FP8_BLOCK});
    if (!big) {
      cases.push_back({m, RAMP_FORMAT_BF16});
      cases.push_back({m, kFormats[2 + next++ % 4]});
    }
  }
  return cases;
}

class CpuModels : public testing::TestWithParam<ModelCase> {};
INSTANTIATE_TEST_SUITE_P(Known, CpuModels, testing::ValuesIn(model_cases()), [](const auto& p) {
  std::string n = p.param.model.name + "_" + format_name(p.param.format);
  for (char& c : n) {
    if (std::isalnum(static_cast<unsigned char>(c)) == 0) c = '_';
  }
  return n;
});

TEST_P(CpuModels, AgreesWithTheReference) {
  const ModelShape& m = GetParam().model;
  const bool big = 3 * m.hidden * m.intermediate > 60'000'000;
  CaseSpec spec;
  spec.experts = big ? 1 : 2;
  spec.top_k = big ? 1 : 2;
  spec.hidden = m.hidden;
  spec.intermediate = m.intermediate;
  spec.format = GetParam().format;
  spec.tokens = big ? 2 : 9;
  spec.expert_map = !big;
  spec.seed = 42;
  Backend& backend = cpu_backend();
  BlockCase c(spec);
  const auto w = make_held(c, big ? Hold::kPackedCopy : Hold::kPackedInPlace, backend);
  c.run(backend, *w);
  CheckOptions options = check_options();
  // One token whose slots lead to a local expert.
  std::vector<int64_t> tokens;
  for (int64_t t = 0; t < spec.tokens && tokens.empty(); ++t) {
    for (int64_t j = 0; j < spec.top_k && tokens.empty(); ++j) {
      const int32_t id = static_cast<const int32_t*>(c.ids.view.data)[t * spec.top_k + j];
      if (c.map.empty() || c.map[static_cast<size_t>(id)] >= 0) tokens.push_back(t);
    }
  }
  ASSERT_FALSE(tokens.empty());
  options.tokens = tokens;
  const CheckResult result = c.check(options);
  EXPECT_TRUE(result.ok()) << result.text();
}

}  // namespace
}  // namespace ramp::core::test
