// Many tokens and every kind of routing: T up to 8192 over the (E, k) of real models, balanced to
// single-expert. H and I are small here (cpu_models.cpp has the real ones), formats and activations take
// turns, and a sample of tokens is checked. Of (E, k) x T x routing each pair occurs.
#include <gtest/gtest.h>

#include <array>

#include "numerics/cpu_support.hpp"

namespace ramp::core::test {
namespace {

struct RoutingCase {
  CaseSpec spec;
  std::string workload;
  friend std::ostream& operator<<(std::ostream& out, const RoutingCase& c) {
    return out << case_name(c.spec) << " " << c.workload;
  }
};

constexpr std::array<std::array<int64_t, 2>, 12> kExperts = {{{1, 1},
                                                              {6, 2},
                                                              {8, 2},
                                                              {16, 4},
                                                              {60, 4},
                                                              {64, 4},
                                                              {64, 8},
                                                              {128, 8},
                                                              {160, 6},
                                                              {256, 8},
                                                              {384, 8},
                                                              {512, 10}}};
constexpr std::array<int64_t, 6> kTokens = {127, 128, 512, 1024, 2048, 8192};
const std::array<std::string, 9> kWorkloads = {"balanced",      "uniform",       "zipf:0.8",
                                               "zipf:1",        "zipf:1.2",      "zipf:2",
                                               "dirichlet:0.3", "dirichlet:0.5", "single"};

std::vector<RoutingCase> routing_cases() {
  constexpr std::array kFormats = {RAMP_FORMAT_FP8_BLOCK, RAMP_FORMAT_BF16,       RAMP_FORMAT_F16,
                                   RAMP_FORMAT_F32,       RAMP_FORMAT_FP8_TENSOR, RAMP_FORMAT_FP8_CHANNEL};
  std::vector<RoutingCase> cases;
  const auto rows = pairwise({kExperts.size(), kTokens.size(), static_cast<int32_t>(kWorkloads.size())}, 3);
  for (const std::vector<int32_t>& r : rows) {
    RoutingCase c;
    c.spec.experts = kExperts.at(static_cast<size_t>(r[0]))[0];
    c.spec.top_k = kExperts.at(static_cast<size_t>(r[0]))[1];
    c.spec.tokens = kTokens.at(static_cast<size_t>(r[1]));
    c.workload = kWorkloads.at(static_cast<size_t>(r[2]));
    c.spec.format = kFormats[cases.size() % kFormats.size()];
    c.spec.activation = static_cast<ramp_activation>(cases.size() / 5 % 4);
    c.spec.output = cases.size() % 7 == 3 ? RAMP_OUTPUT_PER_SLOT : RAMP_OUTPUT_COMBINED;
    // Enough columns for column blocks of the combine to show at 8192 tokens (see job.cpp's budget).
    const bool many = c.spec.tokens * c.spec.top_k > 16384;
    c.spec.hidden = c.spec.tokens <= 1024 ? 288 : (many ? 64 : 128);
    c.spec.intermediate = c.spec.tokens <= 1024 ? 160 : (many ? 32 : 96);
    c.spec.seed = 9000 + cases.size();
    cases.push_back(c);
  }
  // More rows than the budget's columns allow at once: several column blocks in both GEMMs.
  RoutingCase blocks;
  blocks.spec.experts = 8;
  blocks.spec.top_k = 4;
  blocks.spec.tokens = 8192;
  blocks.spec.hidden = 320;
  blocks.spec.intermediate = 288;
  blocks.workload = "zipf:1";
  cases.push_back(blocks);
  return cases;
}

class CpuRouting : public testing::TestWithParam<RoutingCase> {};
INSTANTIATE_TEST_SUITE_P(Workloads, CpuRouting, testing::ValuesIn(routing_cases()));

TEST_P(CpuRouting, AgreesWithTheReference) {
  Backend& backend = cpu_backend();
  BlockCase c(GetParam().spec);
  set_routing(c, GetParam().workload, GetParam().spec.seed);
  const auto w = make_held(c, Hold::kPackedCopy, backend);
  c.run(backend, *w);
  CheckOptions options = check_options();
  const std::vector<int64_t> tokens = sample_tokens(c, 12);
  options.tokens = tokens;
  const CheckResult result = c.check(options);
  EXPECT_TRUE(result.ok()) << result.text();
}

}  // namespace
}  // namespace ramp::core::test
