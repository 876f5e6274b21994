// `ramp profile` and what follows from it: files where contexts look, a second run that goes on, ^C that
// keeps what was measured, and bench, run and explain on the fit. Timings are those of a tiny layer: only
// their being there matters (tests/loop judges them).
#include <gtest/gtest.h>

#include <algorithm>

#include "cli/harness.hpp"

namespace ramp::cli_test {
namespace {

const std::vector<std::string> kQuick = {"--model",   "8,2,64,32", "--format",  "bf16",     "--tokens",
                                         "1,16",      "--layers",  "1",         "--budget", "2",
                                         "--repeats", "2",         "--threads", "2",        "--json"};

// With the cache directory inside of the scratch directory.
Result with_cache(const Scratch& s, const std::vector<std::string>& args) {
  std::string script = "RAMP_CACHE_DIR='" + s.directory() + "' \"$RAMP\"";
  for (const std::string& a : args) script += " '" + a + "'";
  return shell(script);
}

TEST(CliProfile, WritesWhereBenchLooks) {
  const Scratch s;
  const std::vector<std::string> bench = {"bench",     "--model", "8,2,64,32",  "--format",    "bf16",
                                          "--tokens",  "1,5",     "--repeats",  "3",           "--threads",
                                          "2",         "--json",  "--no-check", "--read-gbps", "10",
                                          "--backend", "cpu"};
  const Result before = with_cache(s, bench);
  ASSERT_EQ(before.code, 0) << before.err;
  EXPECT_TRUE(before.parsed()[0]["fit"].is_null());

  const Result r = with_cache(s, std::vector<std::string>{"profile"} + kQuick);
  ASSERT_EQ(r.code, 0) << r.err;
  const json p = r.parsed()[0];
  EXPECT_EQ(p["points"], 4);
  EXPECT_GT(p["runs"].get<int>(), 0);
  EXPECT_GT(p["timings"].get<int>(), p["configs"].get<int>() - 1);
  EXPECT_EQ(p["resumed"], false);
  const std::string fit = p["fit"];
  EXPECT_EQ(fit.rfind(s.directory() + "/fits/cpu_8x2x64x32_bf16_silu_and_mul_", 0), 0U) << fit;
  EXPECT_EQ(json::parse(read_file(fit))["schema"], "ramp.fit");
  const json profile = json::parse(read_file(p["profile"]));
  EXPECT_EQ(profile["schema"], "ramp.profile");
  EXPECT_EQ(profile["points"].size(), 4U);

  const Result after = with_cache(s, bench);
  ASSERT_EQ(after.code, 0) << after.err;
  for (const json& point : after.parsed()) EXPECT_EQ(point["fit"], fit);
  const Result none = with_cache(s, bench + std::vector<std::string>{"--fit", "none"});
  EXPECT_TRUE(none.parsed()[0]["fit"].is_null());
  const Result named = with_cache(s, bench + std::vector<std::string>{"--fit", fit});
  EXPECT_EQ(named.parsed()[0]["fit"], fit);
  // In words.
  std::vector<std::string> words = bench;
  std::erase(words, "--json");
  EXPECT_NE(with_cache(s, words).out.find("config auto: chosen by " + fit), std::string::npos);
  // Other workers: not this fit, and no noise about it; named, a warning says why.
  std::vector<std::string> one = bench;
  *std::find(one.begin(), one.end(), "2") = "1";
  const Result other = with_cache(s, one);
  EXPECT_TRUE(other.parsed()[0]["fit"].is_null());
  EXPECT_EQ(other.err.find("warning"), std::string::npos) << other.err;
  const Result mismatch = with_cache(s, one + std::vector<std::string>{"--fit", fit});
  EXPECT_EQ(mismatch.code, 0);
  EXPECT_NE(mismatch.err.find("ramp profile --backend cpu --threads 1"), std::string::npos) << mismatch.err;

  // Everything is measured: a second run times nothing and writes the same fit.
  const Result again = with_cache(s, std::vector<std::string>{"profile"} + kQuick);
  ASSERT_EQ(again.code, 0) << again.err;
  EXPECT_EQ(again.parsed()[0]["resumed"], true);
  EXPECT_EQ(again.parsed()[0]["runs"], 0);
  EXPECT_NE(again.err.find("--fresh"), std::string::npos);

  const Result why = with_cache(s, {"explain", "--fit", fit, "--tokens", "16", "--json"});
  ASSERT_EQ(why.code, 0) << why.err;
}

TEST(CliProfile, InterruptedItKeepsWhatItHas) {
  const Scratch s;
  const std::string common =
      "\"$RAMP\" profile --model 16,2,256,128 --format bf16 --tokens 1,2,4 --layers 1 "
      "--threads 2 --repeats 1000 --json -o '" +
      s.path("f.fit.json") + "'";
  // Interrupted once the first of six points has been written, two seconds or more before the last.
  const Result first =
      shell(common + " --budget 12 & pid=$!; i=0; while [ ! -e '" + s.path("f.profile.json") +
            "' ] && [ $i -lt 600 ]; do sleep 0.1; i=$((i+1)); done; kill -TERM $pid; "
            "wait $pid");
  EXPECT_EQ(first.code, 130);
  EXPECT_EQ(first.out, "");
  const std::vector<std::string> files = s.files();
  ASSERT_NE(std::find(files.begin(), files.end(), "f.profile.json"), files.end()) << first.err;
  EXPECT_EQ(std::find(files.begin(), files.end(), "f.fit.json"), files.end());
  const Result second = shell(common + " --budget 1");
  ASSERT_EQ(second.code, 0) << second.err;
  EXPECT_EQ(second.parsed()[0]["resumed"], true);
}

TEST(CliProfile, JudgesAndWritesADataset) {
  const Scratch s;
  const Result r = ramp(std::vector<std::string>{"profile"} + kQuick +
                        std::vector<std::string>{"-o", s.path("fits"), "--judge", "--judge-tokens", "3",
                                                 "--judge-budget", "1", "--csv", s.path("csv")});
  ASSERT_EQ(r.code, 0) << r.err;
  const json j = r.parsed()[0]["judged"];
  ASSERT_EQ(j["points"].size(), 3U);
  for (const json& p : j["points"]) EXPECT_GE(p["us"].get<double>(), p["best_us"].get<double>());
  const std::string stem = r.parsed()[0]["fit"].get<std::string>();
  const size_t slash = stem.rfind('/');
  const Result e = ramp({"evaluate", "--data", s.path("csv") + stem.substr(slash, stem.size() - slash - 9),
                         "--hardware", "cpu", "--sm-count", "2", "--allow-missing", "--json"});
  ASSERT_EQ(e.code, 0) << e.err;
  EXPECT_EQ(e.parsed()["overall"]["n_test"], 3);
}

TEST(CliProfile, GoesOnUnderItsOwnProtocolAlone) {
  const Scratch s;
  const std::vector<std::string> once =
      std::vector<std::string>{"profile"} + kQuick + std::vector<std::string>{"-o", s.path("f.fit.json")};
  const Result first = ramp(once);
  ASSERT_EQ(first.code, 0) << first.err;
  const std::string before = read_file(s.path("f.profile.json"));
  const json metadata = json::parse(before)["metadata"];
  EXPECT_NE(metadata["protocol"].get<std::string>().find(" layers, wall clock, quantile"), std::string::npos);
  EXPECT_GE(metadata["budget_seconds"].get<double>(), 0);
  std::vector<std::string> layers = once;
  *(std::find(layers.begin(), layers.end(), "--layers") + 1) = "7";
  for (const std::vector<std::string>& other : {layers, once + std::vector<std::string>{"--clock", "cpu"},
                                                once + std::vector<std::string>{"--quantile", "0.25"}}) {
    const Result r = ramp(other);
    EXPECT_EQ(r.code, 2) << r.err;
    EXPECT_TRUE(house_lines(r.err)) << r.err;
    EXPECT_NE(r.err.find(s.path("f.profile.json")), std::string::npos) << r.err;
    EXPECT_NE(r.err.find("--fresh"), std::string::npos) << r.err;
    EXPECT_EQ(read_file(s.path("f.profile.json")), before) << "what is there stays";
  }
  EXPECT_EQ(ramp(layers + std::vector<std::string>{"--fresh"}).code, 0);
}

#ifdef RAMP_FAKE_DRIVER_DIR
// On a GPU events tick: the process's CPU time says nothing. (With the stand-in for libcuda.)
TEST(CliProfile, AGpuHasItsOwnClock) {
  const Result r = shell("LD_LIBRARY_PATH='" RAMP_FAKE_DRIVER_DIR
                         ":'\"$LD_LIBRARY_PATH\" \"$RAMP\" "
                         "profile --backend cuda --model 8,2,128,128 --clock cpu");
  EXPECT_EQ(r.code, 2) << r.err;
  EXPECT_TRUE(house_lines(r.err)) << r.err;
  EXPECT_NE(r.err.find("--clock: got cpu, expected wall on a GPU"), std::string::npos) << r.err;
}
#endif

TEST(CliProfile, RefusesWhatMakesNoSense) {
  const Scratch s;
  EXPECT_EQ(ramp({"profile"}).code, 2);
  EXPECT_EQ(ramp({"profile", "--model", "olmo"}).code, 2);
  const Result two =
      ramp({"profile", "--model", "8,2,64,32", "--format", "bf16,f32", "-o", s.path("f.json")});
  EXPECT_EQ(two.code, 2);
  EXPECT_TRUE(house_lines(two.err));
  EXPECT_EQ(ramp({"profile", "--backend", "reference", "--model", "8,2,64,32"}).code, 4);
  EXPECT_EQ(ramp({"bench", "--model", "8,2,64,32", "--fit", s.path("absent.json")}).code, 3);
}

}  // namespace
}  // namespace ramp::cli_test
