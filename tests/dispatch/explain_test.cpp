// `ramp explain` as users run it: every way to name a step, what it says about measured points, bad input,
// and plots in all formats and panels.
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>

#include "cli/harness.hpp"

namespace ramp::cli_test {
namespace {

const std::vector<std::string> kData = {"explain", "--data", RAMP_SOURCE_DIR "/tests/data/alpha_moe_h200"};

bool contains(const std::string& text, const std::string& part) {
  return text.find(part) != std::string::npos;
}

// The fit file of the measured data, made once.
const std::string& fit_file() {
  static const Scratch scratch;
  static const std::string path = [] {
    const std::string p = scratch.path("fit.json");
    const Result r = ramp({"fit", "--data", RAMP_SOURCE_DIR "/tests/data/alpha_moe_h200", "-o", p});
    EXPECT_EQ(r.code, 0) << r.err;
    return p;
  }();
  return path;
}

TEST(Explain, MeasuredPointAddsUp) {
  const Result r = ramp(kData + std::vector<std::string>{"--point", "olmoe_t64_z1.2", "--json"});
  ASSERT_EQ(r.code, 0) << r.err;
  const json j = r.parsed();
  EXPECT_EQ(j["model"]["name"], "olmoe");
  EXPECT_EQ(j["cost_model"], "wave");
  EXPECT_EQ(j["workload"]["rows"], 512);
  ASSERT_EQ(j["candidates"].size(), 152U);
  double last = 0;
  double best = HUGE_VAL;
  double chosen = 0;
  for (const json& c : j["candidates"]) {
    const double us = c["predicted_us"];
    EXPECT_GE(us, last);  // sorted
    last = us;
    best = std::min(best, c["measured_us"].get<double>());
    if (c["config"] == j["choice"]) chosen = c["measured_us"];
    double sum = 0;
    for (const auto& [name, value] : c["terms_us"].items()) sum += value.get<double>();
    EXPECT_NEAR(sum, us, 1e-4 * us) << c["config"];  // terms in double, decision in float
    EXPECT_EQ(c["tiles"].get<int64_t>(), c["m_tiles"].get<int64_t>() * c["n_tiles"].get<int64_t>());
    const auto slots = static_cast<int64_t>(132 * c["residency"].get<double>());
    EXPECT_EQ(c["full_waves"].get<int64_t>() * slots + c["tail_tiles"].get<int64_t>(),
              c["tiles"].get<int64_t>());
  }
  EXPECT_EQ(j["measured"]["best_us"].get<double>(), best);
  EXPECT_NEAR(j["measured"]["regret"].get<double>(), chosen / best - 1, 1e-12);
  EXPECT_TRUE(j["guard"]["active"].get<bool>());
}

TEST(Explain, EveryWayToNameAStepAgrees) {
  const json generated = ramp({"explain", "--fit", fit_file(), "--model", "olmoe", "--routing", "zipf:1.2",
                               "--tokens", "64", "--seed", "5", "--json"})
                             .parsed();
  std::string text;
  for (const json& c : generated["workload"]["histogram"]) text += std::to_string(c.get<int>()) + " ";
  const json typed =
      ramp({"explain", "--fit", fit_file(), "--model", "64,8,2048,1024", "--histogram", text, "--json"})
          .parsed();
  const Scratch scratch;
  ASSERT_EQ(ramp({"workload", "zipf:1.2", "--model", "olmoe", "--tokens", "64", "--seed", "5", "--save",
                  scratch.path("ids.npy")})
                .code,
            0);
  const json ids =
      ramp({"explain", "--fit", fit_file(), "--model", "olmoe", "--ids", scratch.path("ids.npy"), "--json"})
          .parsed();
  for (const json& other : {typed, ids}) {
    EXPECT_EQ(other["candidates"], generated["candidates"]);
    EXPECT_EQ(other["choice"], generated["choice"]);
    EXPECT_EQ(other["guard"], generated["guard"]);
  }
  EXPECT_TRUE(generated["measured"].is_null());  // a fit alone knows no timing
}

TEST(Explain, FitFileAndFreshFitAgree) {
  const std::vector<std::string> point = {"--point", "qwen3-30b_t256_z0.6", "--json"};
  const json fresh = ramp(kData + point).parsed();
  const json from_file = ramp(kData + std::vector<std::string>{"--fit", fit_file()} + point).parsed();
  EXPECT_EQ(fresh, from_file);
}

TEST(Explain, TextNamesChoiceDefaultGuardAndMeasured) {
  const Result r = ramp(kData + std::vector<std::string>{"--point", "mixtral-8x22b_t2_z0.0", "--top", "3"});
  ASSERT_EQ(r.code, 0) << r.err;
  for (const char* part : {"\nchoice ", "\nnext ", "\ndefault ", "\nguard ", "\nmeasured ",
                           "mixtral-8x22b (E 8, k 2", "a test point", "weight bytes", "(152 configs"})
    EXPECT_TRUE(contains(r.out, part)) << part << "\n" << r.out;
  EXPECT_EQ(r.err, "");
}

TEST(Explain, OtherCostModels) {
  for (const char* model : {"ramp4", "analytic"}) {
    const Result r =
        ramp(kData + std::vector<std::string>{"--cost-model", model, "--model", "olmoe", "--json"});
    ASSERT_EQ(r.code, 0) << r.err;
    EXPECT_EQ(r.parsed()["cost_model"], model);
  }
}

TEST(Explain, BadInputNamesTheOption) {
  const Scratch scratch;
  write_file(scratch.path("bad.json"), "{\"schema\":\"ramp.fit\",\"version\":1}");
  save_f32(scratch.path("f.npy"), {2, 2}, {1, 2, 3, 4});
  struct Case {
    std::vector<std::string> args;
    int code;
    const char* part;
  };
  const std::vector<Case> cases = {
      {{"explain"}, 2, "--data"},
      {{"explain", "--fit", scratch.path("none.json")}, 3, "none.json"},
      {{"explain", "--fit", scratch.path("bad.json")}, 3, "metadata"},
      {{"explain", "--fit", fit_file()}, 2, "--model"},
      {{"explain", "--fit", fit_file(), "--model", "olmo"}, 2, "olmoe"},
      {{"explain", "--fit", fit_file(), "--point", "olmoe_t64_z1.2"}, 2, "--data"},
      {kData + std::vector<std::string>{"--point", "olmoe_t65"}, 2, "--point"},
      {{"explain", "--fit", fit_file(), "--model", "olmoe", "--histogram", "1 2 x"}, 2, "--histogram"},
      {{"explain", "--fit", fit_file(), "--model", "olmoe", "--histogram", "1 -2"}, 2, "--histogram"},
      {{"explain", "--fit", fit_file(), "--model", "olmoe", "--histogram", "1 2 3"}, 2, "64"},
      {{"explain", "--fit", fit_file(), "--model", "olmoe", "--ids", scratch.path("f.npy")}, 3, "f.npy"},
      {{"explain", "--fit", fit_file(), "--model", "olmoe", "--routing", "zopf:1"}, 2, "--routing"},
      {{"explain", "--fit", fit_file(), "--model", "olmoe", "--plot", scratch.path("a.gif")}, 2, ".svg"},
      {{"explain", "--fit", fit_file(), "--model", "olmoe", "--plot", scratch.path("a.svg"), "--panel",
        "pie"},
       2,
       "--panel"},
      {{"explain", "--fit", fit_file(), "--model", "olmoe", "--plot", scratch.path("a.svg"), "--panel",
        "regret"},
       2,
       "--data"},
      {{"explain", "--fit", fit_file(), "--model", "olmoe", "--plot", scratch.path("a.svg"), "--config",
        "m9"},
       2,
       "--config"},
  };
  for (const Case& c : cases) {
    const Result r = ramp(c.args);
    EXPECT_EQ(r.code, c.code) << r.err;
    EXPECT_EQ(r.out, "");
    EXPECT_TRUE(house_lines(r.err)) << r.err;
    EXPECT_TRUE(contains(r.err, c.part)) << c.part << "\n" << r.err;
  }
  EXPECT_EQ(scratch.files(), (std::vector<std::string>{"bad.json", "f.npy"}));
}

#ifdef RAMP_HAS_PLOT
TEST(Explain, PlotsInEveryFormatAndPanel) {
  const Scratch scratch;
  const std::vector<std::string> point = {"--point", "olmoe_t64_z1.2", "--plot"};
  const std::vector<std::pair<std::string, std::string>> formats = {
      {"all.svg", "<?xml"}, {"all.png", "\x89PNG"}, {"all.html", "<!DOCTYPE html>"}};
  for (const auto& [name, magic] : formats) {
    const Result r = ramp(kData + point + std::vector<std::string>{scratch.path(name)});
    ASSERT_EQ(r.code, 0) << r.err;
    const std::string file = read_file(scratch.path(name));
    EXPECT_EQ(file.compare(0, magic.size(), magic), 0) << name;
    EXPECT_GT(file.size(), 50000U);
    EXPECT_TRUE(contains(r.out, "scatter, curves, staircase, regret, regions"));
  }
  EXPECT_TRUE(contains(read_file(scratch.path("all.html")), "Regret by tokens and skew"));
  EXPECT_TRUE(contains(read_file(scratch.path("all.svg")), "</svg>"));
  for (const char* panel : {"scatter", "curves", "staircase", "regret", "regions"}) {
    const json j =
        ramp(kData + point + std::vector<std::string>{scratch.path("one.svg"), "--panel", panel, "--json"})
            .parsed();
    EXPECT_EQ(j["plot"]["panels"], json::array({panel}));
  }
  // A fit alone draws what needs no measurement, and says what it leaves out.
  const Result r = ramp({"explain", "--fit", fit_file(), "--model", "olmoe", "--plot",
                         scratch.path("fit.svg"), "--config", "m8_n32x8_s2"});
  ASSERT_EQ(r.code, 0) << r.err;
  EXPECT_TRUE(contains(r.out, "(curves, staircase, regions)"));
  EXPECT_TRUE(contains(r.err, "regret"));
  EXPECT_EQ(ramp(kData + point + std::vector<std::string>{scratch.path("no/such/dir.svg")}).code, 3);
}
#else
TEST(Explain, WithoutTheModuleThePlotSaysWhatIsMissing) {
  const Scratch scratch;
  const Result r =
      ramp(kData + std::vector<std::string>{"--point", "olmoe_t64_z1.2", "--plot", scratch.path("a.svg")});
  EXPECT_EQ(r.code, 4);
  EXPECT_TRUE(contains(r.err, "libcairo2")) << r.err;
  EXPECT_EQ(r.out, "");
}
#endif

}  // namespace
}  // namespace ramp::cli_test
