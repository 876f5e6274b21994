// `ramp fit`, `ramp evaluate` and `ramp regions` as programs see them: exit codes, JSON keys, and that a fit
// file judged later gives what fitting in place gives.
#include <gtest/gtest.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cstdio>
#include <filesystem>
#include <nlohmann/json.hpp>
#include <string>

#include "base/file.hpp"
#include "support.hpp"

namespace ramp::core {
namespace {

struct Outcome {
  int code = -1;
  std::string out;
};
Outcome ramp(const std::string& arguments) {
  Outcome r;
  FILE* const pipe = popen((std::string(RAMP_CLI) + " " + arguments + " 2>/dev/null").c_str(), "r");
  char buffer[4096];
  while (const size_t n = fread(buffer, 1, sizeof buffer, pipe)) r.out.append(buffer, n);
  const int status = pclose(pipe);
  r.code = WIFEXITED(status) ? WEXITSTATUS(status) : -1;
  return r;
}

std::string data() {
  return "--data " + measured_directory();
}

TEST(CliEvaluate, JsonHasTheDocumentedKeys) {
  const Outcome r = ramp("evaluate --json " + data());
  ASSERT_EQ(r.code, 0);
  const nlohmann::json j = nlohmann::json::parse(r.out);
  EXPECT_LE(j.at("overall").at("mean_regret").get<double>(), 0.012);
  EXPECT_LE(j.at("overall").at("max_regret").get<double>(), 0.12);
  ASSERT_EQ(j.at("models").size(), 4U);
  for (const auto& [name, m] : j.at("models").items()) {
    EXPECT_EQ(m.at("n_train").get<int>() + m.at("n_test").get<int>(), name == "mixtral-8x22b" ? 13 : 52);
    for (const char* key : {"mean_regret", "p95_regret", "max_regret", "mape"}) {
      EXPECT_GE(m.at(key).get<double>(), 0) << name;
      EXPECT_LT(m.at(key).get<double>(), 1) << name << ": fractions, not percent";
    }
    EXPECT_LE(m.at("mean_regret").get<double>(), 0.016) << name;
    ASSERT_EQ(m.at("points").size(), m.at("n_test").get<size_t>()) << name;
    double sum = 0;
    for (const nlohmann::json& p : m.at("points")) {
      const double best = p.at("best_us").get<double>();
      EXPECT_GT(p.at("normalised_entropy").get<double>(), 0);
      for (const auto& [policy, choice] : p.at("choices").items())
        EXPECT_GE(choice.at("us").get<double>(), best) << policy << ": " << choice.at("config");
      EXPECT_EQ(p.at("choices").at("oracle").at("config"), p.at("best"));
      sum += p.at("choices").at("by_tokens").at("us").get<double>() / best - 1;
    }
    EXPECT_NEAR(sum / m.at("n_test").get<double>(),
                m.at("policies").at("by_tokens").at("mean_regret").get<double>(), 1e-12);
  }
  for (const char* policy :
       {"static_uniform", "static_skewed", "single_best", "oracle", "ramp4", "by_tokens"}) {
    EXPECT_GE(j.at("policies").at(policy).at("max_regret").get<double>(), 0);
    EXPECT_GE(j.at("policies").at(policy).at("mean_regret").get<double>(), 0);
  }
  EXPECT_EQ(j.at("policies").at("oracle").at("max_regret").get<double>(), 0);
}

TEST(CliEvaluate, AFitFileGivesTheSameAsFittingInPlace) {
  const std::string file =
      (std::filesystem::temp_directory_path() / fmt::format("ramp_fit_{}.json", getpid())).string();
  ASSERT_EQ(ramp("fit " + data() + " -o " + file).code, 0);
  nlohmann::json a = nlohmann::json::parse(ramp("evaluate --json " + data() + " --fit " + file).out);
  nlohmann::json b = nlohmann::json::parse(ramp("evaluate --json " + data()).out);
  EXPECT_EQ(a, b);
  const nlohmann::json fit = nlohmann::json::parse(read_text(file));
  EXPECT_EQ(fit.at("models").size(), 4U);
  std::filesystem::remove(file);
}

TEST(CliEvaluate, WrongUseHasItsExitCode) {
  EXPECT_EQ(ramp("evaluate").code, 2);
  EXPECT_EQ(ramp("evaluate --data /nonexistent").code, 3);
  EXPECT_EQ(ramp("evaluate --cost-model magic " + data()).code, 2);
  EXPECT_EQ(ramp("evaluate --cost-model wave --fit x.json " + data()).code, 2);
  EXPECT_EQ(ramp("evaluate --fit /nonexistent.json " + data()).code, 3);
  EXPECT_EQ(ramp("fit " + data()).code, 2);
  EXPECT_EQ(ramp("fit " + data() + " -o /nonexistent/f.json").code, 3);
}

TEST(CliRegions, PrintsTheKnownModels) {
  const nlohmann::json j = nlohmann::json::parse(ramp("regions --json --tokens 1,64").out);
  size_t olmoe = 0;
  for (const auto& r : j.at("regions")) {
    if (r.at("model") != "olmoe") continue;
    ++olmoe;
    EXPECT_EQ(r.at("rho").get<double>(), 128);
    EXPECT_EQ(r.at("lambda").get<int>(), 8);
    EXPECT_EQ(r.at("kappa").get<double>(), 16);
  }
  EXPECT_EQ(olmoe, 2U);
  EXPECT_EQ(ramp("regions --model nonesuch").code, 2);
}

}  // namespace
}  // namespace ramp::core
