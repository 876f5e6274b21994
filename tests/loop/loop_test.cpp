// The loop as a user runs it, on this machine's timings: `ramp profile --judge` profiles two layer shapes,
// fits the cost model, lets it choose at 18 points per shape that the fit has not seen (3 routings x 6 token
// counts), and holds every choice against exhaustive timing of all configs. Bars: mean regret at most 10%,
// and as fast as the best single config by geometric mean, within the noise floor (the best config of half
// the samples, judged on the other half). Above a floor of 5% nothing can be judged, and the test says so and
// skips: with busy neighbours the floor rose from 3% to 9-15%, and the regret with it. Hence also the 20%
// quantile. docs/dispatch.md has the command with medians, and what it gave.
#include <gtest/gtest.h>

#include <cmath>
#include <cstdio>

#include "cli/harness.hpp"

namespace ramp::cli_test {
namespace {

TEST(Loop, ProfileFitDispatchRegret) {
  const Scratch scratch;
  const Result r = ramp({"profile",
                         "--backend",
                         "cpu",
                         "--model",
                         "32,4,1024,512,8,2,1024,1024",
                         "--format",
                         "bf16",
                         "--tokens",
                         "1,4,16,64,256",
                         "--budget",
                         "40",
                         "--quantile",
                         "0.2",
                         "--judge",
                         "--judge-tokens",
                         "2,8,32,100,180,400",
                         "--judge-budget",
                         "40",
                         "-o",
                         scratch.path("fits"),
                         "--json"});
  ASSERT_EQ(r.code, 0) << r.err;
  const json models = r.parsed();
  ASSERT_EQ(models.size(), 2U);
  double regret = 0;
  double noise = 0;
  double over_single_best = 0;
  for (const json& m : models) {
    const json& j = m["judged"];
    ASSERT_EQ(j["points"].size(), 18U);
    std::printf(
        "%s: mean regret %.2f%%, p95 %.2f%%, max %.2f%%, noise floor %.2f%%; %.3fx the single best config, "
        "%.3fx the analytic default; %d configs, profile %.0f s, judging %.0f s, weights %.1f s\n",
        m["model"].get<std::string>().c_str(), 100 * j["mean_regret"].get<double>(),
        100 * j["p95_regret"].get<double>(), 100 * j["max_regret"].get<double>(),
        100 * j["noise_floor"].get<double>(), j["speedup_over_single_best"].get<double>(),
        j["speedup_over_default"].get<double>(), m["configs"].get<int>(), m["profile_seconds"].get<double>(),
        j["seconds"].get<double>(), m["weights_seconds"].get<double>());
    regret += j["mean_regret"].get<double>() / 2;
    noise += j["noise_floor"].get<double>() / 2;
    over_single_best += std::log(j["speedup_over_single_best"].get<double>()) / 2;
  }
  std::printf("both: mean regret %.2f%% (noise floor %.2f%%), %.3fx the single best config\n", 100 * regret,
              100 * noise, std::exp(over_single_best));
  if (noise > 0.05) GTEST_SKIP() << "noise floor " << 100 * noise << "%: this machine is too busy to judge";
  EXPECT_LE(regret, 0.10);
  EXPECT_GT(std::exp(over_single_best), 1.0 - noise);
}

}  // namespace
}  // namespace ramp::cli_test
