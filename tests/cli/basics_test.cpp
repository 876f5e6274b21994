// Help, version, errors of the command line itself, JSON discipline, and docs/cli.md.
#include <gtest/gtest.h>

#include <algorithm>

#include "cli/harness.hpp"

namespace ramp::cli_test {
namespace {

const std::vector<std::string> kCommands = {"demo",    "info", "run",      "bench",   "workload", "configs",
                                            "regions", "fit",  "evaluate", "explain", "cache"};

bool contains(const std::string& text, const std::string& part) {
  return text.find(part) != std::string::npos;
}

TEST(CliBasics, NoCommandIsAUsageError) {
  const Result r = ramp({});
  EXPECT_EQ(r.code, 2);
  EXPECT_EQ(r.out, "");
  EXPECT_TRUE(house_lines(r.err)) << r.err;
}

TEST(CliBasics, HelpListsEveryCommandAndTheExitCodes) {
  const Result r = ramp({"--help"});
  EXPECT_EQ(r.code, 0);
  EXPECT_EQ(r.err, "");
  for (const std::string& c : kCommands) EXPECT_TRUE(contains(r.out, "\n  " + c + " ")) << c;
  EXPECT_TRUE(contains(r.out, "Exit codes: 0 ok; 1 "));
  EXPECT_FALSE(contains(r.out, "help-markdown")) << "hidden";
}

TEST(CliBasics, VersionIsTheLibrarys) {
  const Result r = ramp({"--version"});
  EXPECT_EQ(r.code, 0);
  EXPECT_EQ(r.out, "ramp " + read_file(RAMP_SOURCE_DIR "/VERSION"));
}

TEST(CliBasics, UnknownCommandSuggestsANearOne) {
  const Result r = ramp({"benhc"});
  EXPECT_EQ(r.code, 2);
  EXPECT_EQ(r.out, "");
  EXPECT_TRUE(contains(r.err, "command: got 'benhc', expected one of")) << r.err;
  EXPECT_TRUE(contains(r.err, "did you mean 'bench'?")) << r.err;
}

TEST(CliBasics, UnknownOptionSuggestsANearOne) {
  const Result r = ramp({"bench", "--token", "4"});
  EXPECT_EQ(r.code, 2);
  EXPECT_TRUE(contains(r.err, "--token: got an unknown option")) << r.err;
  EXPECT_TRUE(contains(r.err, "did you mean '--tokens'")) << r.err;
  EXPECT_TRUE(house_lines(r.err)) << r.err;
}

TEST(CliBasics, SurplusArgument) {
  const Result r = ramp({"info", "bench"});
  EXPECT_EQ(r.code, 2);
  EXPECT_TRUE(contains(r.err, "got 'bench', expected no further argument")) << r.err;
}

TEST(CliBasics, OptionWithoutValue) {
  const Result r = ramp({"run", "--model"});
  EXPECT_EQ(r.code, 2);
  EXPECT_TRUE(contains(r.err, "--model: got no value, expected one")) << r.err;
}

TEST(CliBasics, RequiredOptionMissing) {
  const Result r = ramp({"configs"});
  EXPECT_EQ(r.code, 2);
  EXPECT_TRUE(contains(r.err, "--model: got nothing, expected a value")) << r.err;
}

TEST(CliBasics, OptionGivenTwice) {
  const Result r = ramp({"configs", "--model", "olmoe", "--model", "dbrx"});
  EXPECT_EQ(r.code, 2);
  EXPECT_TRUE(contains(r.err, "--model")) << r.err;
  EXPECT_TRUE(house_lines(r.err)) << r.err;
}

TEST(CliBasics, IntegerOptionWantsAnInteger) {
  for (const char* const bad : {"x", "1.5", "", "-1", "0", "99999999999999999999"}) {
    const Result r = ramp({"run", "--model", "olmoe", "--tokens", bad});
    EXPECT_EQ(r.code, 2) << bad;
    EXPECT_TRUE(contains(r.err, "--tokens: got '" + std::string(bad) + "', expected a whole number from 1"))
        << r.err;
    EXPECT_EQ(r.out, "");
  }
}

TEST(CliBasics, ChoiceSuggestsANearOne) {
  const Result r = ramp({"configs", "--model", "olmoe", "--format", "fp8_blok"});
  EXPECT_EQ(r.code, 2);
  EXPECT_TRUE(contains(r.err, "--format: got 'fp8_blok', expected one of")) << r.err;
  EXPECT_TRUE(contains(r.err, "did you mean 'fp8_block'?")) << r.err;
}

TEST(CliBasics, DocsAreTheHelp) {
  const Result r = ramp({"help-markdown"});
  ASSERT_EQ(r.code, 0);
  EXPECT_EQ(r.out, read_file(RAMP_SOURCE_DIR "/docs/cli.md"))
      << "docs/cli.md is out of date: regenerate it with  build/bin/ramp help-markdown > docs/cli.md";
  for (const std::string& c : kCommands) EXPECT_TRUE(contains(r.out, "## ramp " + c + "\n")) << c;
}

TEST(CliBasics, FullStandardOutputIsAFileError) {
  const Result r = shell("\"$RAMP\" workload uniform --model olmoe --tokens 4 > /dev/full");
  EXPECT_EQ(r.code, 3);
  EXPECT_TRUE(contains(r.err, "standard output")) << r.err;
}

TEST(CliBasics, InfoSaysWhatThereIs) {
  const Result r = ramp({"info", "--json", "--no-measure"});
  ASSERT_EQ(r.code, 0) << r.err;
  const json j = r.parsed();
  EXPECT_EQ(j["version"].get<std::string>() + "\n", read_file(RAMP_SOURCE_DIR "/VERSION"));
  EXPECT_GE(j["cpu"]["cores"].get<int>(), 1);
  EXPECT_FALSE(j["cpu"]["isa_levels"].empty());
  EXPECT_TRUE(contains(j["build"]["cuda"], "CUDA backend")) << "the line about the CUDA backend";
  bool cpu = false;
  bool cuda = true;
  for (const json& b : j["backends"]) {
    if (b["name"] == "cpu") cpu = b["available"];
    if (b["name"] == "cuda") cuda = b["available"];
  }
  EXPECT_TRUE(cpu);
  EXPECT_TRUE(j["gpu"].contains("devices"));
  if (j["gpu"]["devices"].empty()) {
    EXPECT_FALSE(cuda);
    EXPECT_FALSE(j["gpu"]["reason"].get<std::string>().empty()) << "one line says why there is none";
  }
  EXPECT_FALSE(j.contains("measured"));
}

TEST(CliBasics, InfoMeasures) {
  const Result r = ramp({"info", "--json"});
  ASSERT_EQ(r.code, 0) << r.err;
  const json m = r.parsed()["measured"];
  // Physics of any machine that this can run on.
  EXPECT_GT(m["read_gbps"].get<double>(), 0.1);
  EXPECT_LT(m["read_gbps"].get<double>(), 1e4);
  EXPECT_GE(m["read_gbps"].get<double>(), m["read_gbps_median"].get<double>());
  EXPECT_GT(m["read_buffer_bytes"].get<int64_t>(), int64_t{1} << 21);
  EXPECT_FALSE(m["read_reader"].get<std::string>().empty());
  EXPECT_GT(m["cpu_share"].get<double>(), 0);
  EXPECT_LT(m["cpu_share"].get<double>(), 1.1);
  EXPECT_FALSE(m["fp32_gflops"].is_null());
}

// Each peak: two figures, or none and the reason. What the CPU and the system have, both lists agree on.
TEST(CliBasics, InfoMeasuresPeaksOrSaysWhyNot) {
  const Result r = ramp({"info", "--json"});
  ASSERT_EQ(r.code, 0) << r.err;
  const json j = r.parsed();
  const json m = j["measured"];
  for (const std::string peak : {"fp32", "bf16_dot", "bf16_amx"}) {
    EXPECT_FALSE(m[peak + "_kind"].get<std::string>().empty()) << peak;
    if (m[peak + "_gflops"].is_null()) {
      EXPECT_TRUE(m[peak + "_gflops_one_core"].is_null()) << peak;
      EXPECT_FALSE(m[peak + "_missing"].get<std::string>().empty()) << peak;
      continue;
    }
    EXPECT_TRUE(m[peak + "_missing"].is_null()) << peak;
    for (const char* const cores : {"_gflops", "_gflops_one_core"}) {
      EXPECT_GT(m[peak + cores].get<double>(), 0.1) << peak << cores;
      EXPECT_LT(m[peak + cores].get<double>(), 1e6) << peak << cores;
    }
  }
  const auto extension = [&](const char* name) {
    const json& list = j["cpu"]["extensions"];
    return std::find(list.begin(), list.end(), name) != list.end();
  };
  EXPECT_EQ(extension("avx512bf16"), !m["bf16_dot_gflops"].is_null());
  // The system may list tiles and refuse them to a process, not the other way round.
  EXPECT_TRUE(extension("amx_bf16") || m["bf16_amx_gflops"].is_null());
}

TEST(CliBasics, InfoPrintsEveryMeasurement) {
  const Result r = ramp({"info"});
  ASSERT_EQ(r.code, 0) << r.err;
  for (const char* const line : {"\nread ", "\nfp32 peak ", "\nbf16 dot ", "\nbf16 amx "})
    EXPECT_TRUE(contains(r.out, line)) << line << r.out;
}

TEST(CliBasics, EnvironmentIsHonouredAndShown) {
  const Result r = shell("RAMP_NUM_THREADS=3 \"$RAMP\" info --json --no-measure");
  ASSERT_EQ(r.code, 0) << r.err;
  const json j = r.parsed();
  EXPECT_EQ(j["backends"][0]["workers"], 3);
  const Result bad = shell("RAMP_NUM_THREADS=many \"$RAMP\" info --no-measure");
  EXPECT_EQ(bad.code, 2);
  EXPECT_TRUE(contains(bad.err, "RAMP_NUM_THREADS: got 'many'")) << bad.err;
}

class CommandTest : public testing::TestWithParam<std::string> {};

TEST_P(CommandTest, HelpHasExamplesAndCommonOptions) {
  const Result r = ramp({GetParam(), "--help"});
  EXPECT_EQ(r.code, 0);
  EXPECT_EQ(r.err, "");
  EXPECT_TRUE(contains(r.out, "Usage: ramp " + GetParam())) << r.out;
  EXPECT_TRUE(contains(r.out, "\nExamples:\n  ramp " + GetParam())) << r.out;
  EXPECT_TRUE(contains(r.out, "--json")) << r.out;
  EXPECT_TRUE(contains(r.out, "Exit codes:")) << r.out;
}
INSTANTIATE_TEST_SUITE_P(All, CommandTest, testing::ValuesIn(kCommands));

// A cheap success of every command, with --json: stdout is one JSON document and nothing else; stderr, where
// anything is said at all, has no JSON.
struct JsonCase {
  std::string name;
  std::vector<std::string> args;
};
class JsonTest : public testing::TestWithParam<JsonCase> {};

TEST_P(JsonTest, StdoutIsJsonAlone) {
  const Result r = ramp(GetParam().args + std::vector<std::string>{"--json"});
  ASSERT_EQ(r.code, 0) << r.err;
  json j;
  ASSERT_NO_THROW(j = r.parsed()) << r.out;
  EXPECT_TRUE(j.is_object() || j.is_array());
  EXPECT_FALSE(contains(r.err, "{")) << r.err;
}
INSTANTIATE_TEST_SUITE_P(
    All, JsonTest,
    testing::Values(JsonCase{"info", {"info", "--no-measure"}},
                    JsonCase{"run", {"run", "--model", "4,2,64,32", "--tokens", "3", "--check"}},
                    JsonCase{"bench",
                             {"bench", "--model", "4,2,64,32", "--tokens", "1", "--repeats", "3",
                              "--read-gbps", "10"}},
                    JsonCase{"workload", {"workload", "zipf:1.2", "--model", "olmoe", "--tokens", "8"}},
                    JsonCase{"configs", {"configs", "--model", "olmoe"}}),
    [](const auto& info) { return info.param.name; });

class BadJsonTest : public testing::TestWithParam<std::vector<std::string>> {};

TEST_P(BadJsonTest, ErrorsLeaveStdoutEmpty) {
  const Result r = ramp(GetParam());
  EXPECT_NE(r.code, 0);
  EXPECT_EQ(r.out, "");
  EXPECT_TRUE(house_lines(r.err)) << r.err;
}
INSTANTIATE_TEST_SUITE_P(All, BadJsonTest,
                         testing::Values(std::vector<std::string>{"run", "--json"},
                                         std::vector<std::string>{"bench", "--json", "--model", "nosuch"},
                                         std::vector<std::string>{"workload", "--json", "nosuch", "--model",
                                                                  "olmoe"},
                                         std::vector<std::string>{"configs", "--json", "--model", "olmo"},
                                         std::vector<std::string>{"info", "--json", "--surplus"}));

TEST(CliConfigs, UnknownModelSuggestsNearOnes) {
  const Result r = ramp({"configs", "--model", "olmo"});
  EXPECT_EQ(r.code, 2);
  EXPECT_TRUE(
      contains(r.err, "--model: got 'olmo', expected a known model or E,k,H,I; did you mean 'olmoe'?"))
      << r.err;
  EXPECT_TRUE(contains(r.err, "qwen3-30b")) << r.err;
}

TEST(CliConfigs, EveryModelOfTheListIsAccepted) {
  for (const char* const model :
       {"olmoe", "qwen3-30b", "qwen3.5-35b", "qwen3-235b", "mixtral-8x7b", "mixtral-8x22b", "dsv3",
        "dsv3-tp8", "dsv3-ep8", "kimi-k2-ep8", "glm-4.5-air", "gpt-oss-120b", "qwen2-57b", "phi3.5-moe",
        "dbrx", "jamba-1.5"}) {
    const Result r = ramp({"configs", "--model", model, "--json"});
    ASSERT_EQ(r.code, 0) << model << r.err;
    const json j = r.parsed();
    EXPECT_EQ(j["model"], model);
    EXPECT_FALSE(j["legal"].empty()) << model;
  }
}

TEST(CliConfigs, RejectionsHaveReasons) {
  const Result r = ramp({"configs", "--model", "8,2,64,32", "--backend", "cpu", "--json"});
  ASSERT_EQ(r.code, 0) << r.err;
  const json j = r.parsed();
  EXPECT_EQ(j["backend"], "cpu");
  for (const json& c : j["rejected"]) EXPECT_FALSE(c["reason"].get<std::string>().empty()) << c;
  ASSERT_FALSE(j["rejected"].empty()) << "tiles wider than this shape are rejected";
  const Result text = ramp({"configs", "--model", "8,2,64,32", "--backend", "cpu", "-v"});
  EXPECT_TRUE(contains(text.out, j["rejected"][0]["reason"].get<std::string>())) << text.out;
}

TEST(CliConfigs, NoShapeThatNothingRuns) {
  const Result r = ramp({"configs", "--model", "8,2,48,64"});
  EXPECT_EQ(r.code, 2);
  EXPECT_TRUE(contains(r.err, "--model: got H = 48, I = 64, expected H and I that are multiples of 32"))
      << r.err;
}

TEST(CliConfigs, MissingBackendIsUnsupported) {
  const Result r = ramp({"configs", "--model", "olmoe", "--backend", "cuda"});
  EXPECT_EQ(r.code, 4);
  EXPECT_EQ(r.out, "");
  EXPECT_TRUE(house_lines(r.err)) << r.err;
}

TEST(CliConfigs, UnknownIsaIsAUsageError) {
  const Result r = ramp({"configs", "--model", "olmoe", "--isa", "avx9000"});
  EXPECT_EQ(r.code, 2);
  EXPECT_TRUE(contains(r.err, "--isa: got 'avx9000'")) << r.err;
}

}  // namespace
}  // namespace ramp::cli_test
