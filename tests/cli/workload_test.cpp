// `ramp workload`: generation, statistics, traces, bad input.
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <set>

#include "cli/harness.hpp"

namespace ramp::cli_test {
namespace {

bool contains(const std::string& text, const std::string& part) {
  return text.find(part) != std::string::npos;
}

class KindTest : public testing::TestWithParam<std::string> {};

TEST_P(KindTest, SavedRoutingIsPossibleAndDescribedAsGenerated) {
  const Scratch s;
  const Result r =
      ramp({"workload", GetParam(), "--experts", "16", "--top-k", "4", "--tokens", "50", "--seed", "3",
            "--save", s.path("ids.npy"), "--save-weights", s.path("w.npy"), "--json"});
  ASSERT_EQ(r.code, 0) << r.err;
  const json generated = r.parsed()["aggregate"];
  const std::vector<int64_t> ids = load_ids(s.path("ids.npy"));
  ASSERT_EQ(load_shape(s.path("ids.npy")), (std::vector<int64_t>{50, 4}));
  std::vector<int64_t> histogram(16);
  for (size_t t = 0; t < 50; ++t) {
    std::set<int64_t> distinct(ids.begin() + static_cast<int64_t>(4 * t),
                               ids.begin() + static_cast<int64_t>(4 * t + 4));
    EXPECT_EQ(distinct.size(), 4U) << "token " << t;
    for (const int64_t e : distinct) {
      ASSERT_GE(e, 0);
      ASSERT_LT(e, 16);
      ++histogram[static_cast<size_t>(e)];
    }
  }
  EXPECT_EQ(generated["histogram"], json(histogram));
  EXPECT_EQ(generated["rows"], 200);
  EXPECT_EQ(generated["max_load"], *std::max_element(histogram.begin(), histogram.end()));
  // entropy/ln E, recomputed here.
  double entropy = 0;
  for (const int64_t c : histogram)
    if (c > 0) entropy -= static_cast<double>(c) / 200 * std::log(static_cast<double>(c) / 200);
  EXPECT_NEAR(generated["normalised_entropy"].get<double>(), entropy / std::log(16), 1e-12);

  const std::vector<float> weights = load_f32(s.path("w.npy"));
  for (size_t t = 0; t < 50; ++t) {
    float sum = 0;
    for (size_t j = 0; j < 4; ++j) sum += weights[4 * t + j];
    EXPECT_NEAR(sum, 1.0F, 1e-6F);
  }
  // The saved file, read back as a trace, is the same workload.
  const Result trace = ramp({"workload", s.path("ids.npy"), "--experts", "16", "--json"});
  ASSERT_EQ(trace.code, 0) << trace.err;
  EXPECT_EQ(trace.parsed()["aggregate"]["histogram"], generated["histogram"]);
}
INSTANTIATE_TEST_SUITE_P(Kinds, KindTest,
                         testing::Values("balanced", "uniform", "zipf:1.2", "dirichlet:0.5", "ddist:0.7",
                                         "single"));

TEST(CliWorkload, SeedDecides) {
  const auto ids = [](const std::string& seed) {
    const Scratch s;
    const Result r = ramp({"workload", "zipf:1", "--model", "olmoe", "--tokens", "20", "--seed", seed,
                           "--save", s.path("i.npy")});
    EXPECT_EQ(r.code, 0) << r.err;
    return load_ids(s.path("i.npy"));
  };
  EXPECT_EQ(ids("1"), ids("1"));
  EXPECT_NE(ids("1"), ids("2"));
}

TEST(CliWorkload, TraceWithStepsIsDescribedStepByStep) {
  const Scratch s;
  // Step 0: everything on experts 0 and 1; step 1: spread, with one masked and one impossible id.
  save_i32(s.path("t.npy"), {2, 3, 2}, {0, 1, 0, 1, 0, 1, 0, 2, 3, -1, 1, 9});
  const Result r = ramp({"workload", s.path("t.npy"), "--experts", "4", "--json"});
  ASSERT_EQ(r.code, 0) << r.err;
  const json j = r.parsed();
  ASSERT_EQ(j["steps"].size(), 2U);
  EXPECT_EQ(j["steps"][0]["active"], 2);
  EXPECT_EQ(j["steps"][0]["max_load"], 3);
  EXPECT_EQ(j["steps"][1]["active"], 4);
  EXPECT_EQ(j["steps"][1]["masked"], 1);
  EXPECT_EQ(j["steps"][1]["out_of_range"], 1);
  EXPECT_EQ(j["aggregate"]["histogram"], json({4, 4, 1, 1}));
  EXPECT_EQ(j["aggregate"]["tokens"], 6);
  const Result text = ramp({"workload", s.path("t.npy"), "--experts", "4"});
  EXPECT_TRUE(contains(text.out, "2 steps of 3 tokens, k = 2, E = 4")) << text.out;
}

TEST(CliWorkload, TraceWithoutExpertsTakesTheLargestId) {
  const Scratch s;
  save_i32(s.path("t.npy"), {2, 2}, {0, 6, 1, 2});
  const Result r = ramp({"workload", s.path("t.npy"), "--json"});
  ASSERT_EQ(r.code, 0) << r.err;
  EXPECT_EQ(r.parsed()["experts"], 7);
  EXPECT_TRUE(contains(r.err, "note: experts not given: 7 taken")) << r.err;
}

TEST(CliWorkload, ByteTracesAreRead) {
  const Scratch s;
  const std::vector<uint8_t> ids = {0, 1, 2, 3, 3, 0};
  ramp_tensor t{};
  t.data = const_cast<uint8_t*>(ids.data());
  t.dtype = RAMP_U8;
  t.ndim = 2;
  t.shape[0] = 3;
  t.shape[1] = 2;
  core::write_npy(s.path("t.npy"), t);
  const Result r = ramp({"workload", s.path("t.npy"), "--experts", "4", "--json"});
  ASSERT_EQ(r.code, 0) << r.err;
  EXPECT_EQ(r.parsed()["aggregate"]["histogram"], json({2, 1, 1, 2}));
}

struct Bad {
  std::string name;
  std::vector<std::string> args;
  int code;
  std::string message;
};
class BadWorkload : public testing::TestWithParam<Bad> {};
TEST_P(BadWorkload, IsRefused) {
  const Result r = ramp(std::vector<std::string>{"workload"} + GetParam().args);
  EXPECT_EQ(r.code, GetParam().code) << r.err;
  EXPECT_EQ(r.out, "");
  EXPECT_TRUE(house_lines(r.err)) << r.err;
  EXPECT_TRUE(contains(r.err, GetParam().message)) << r.err;
}
INSTANTIATE_TEST_SUITE_P(
    All, BadWorkload,
    testing::Values(
        Bad{"spec", {"zipff:1", "--model", "olmoe", "--tokens", "4"}, 2, "ROUTING: got"},
        Bad{"parameter", {"zipf:x", "--model", "olmoe", "--tokens", "4"}, 2, "ROUTING: got"},
        Bad{"k_above_e", {"uniform", "--experts", "4", "--top-k", "5", "--tokens", "4"}, 2, "5"},
        Bad{"no_model", {"uniform", "--tokens", "4"}, 2, "--model: got nothing"},
        Bad{"no_k", {"uniform", "--experts", "4", "--tokens", "4"}, 2, "--top-k: got nothing"},
        Bad{"no_tokens", {"uniform", "--model", "olmoe"}, 2, "--tokens: got nothing"},
        Bad{"zero_tokens", {"uniform", "--model", "olmoe", "--tokens", "0"}, 2, "--tokens: got '0'"},
        Bad{"no_routing", {}, 2, "got nothing, expected a value"},
        Bad{"missing_trace", {"/nowhere/t.npy", "--model", "olmoe"}, 3, "/nowhere/t.npy"},
        Bad{"model_quartet",
            {"uniform", "--model", "8,9,64,32", "--tokens", "4"},
            2,
            "--model: got '8,9,64,32'"}),
    [](const auto& info) { return info.param.name; });

TEST(CliWorkload, BadTraces) {
  const Scratch s;
  save_f32(s.path("f.npy"), {2, 2}, {0, 1, 2, 3});
  const Result floats = ramp({"workload", s.path("f.npy"), "--model", "olmoe"});
  EXPECT_EQ(floats.code, 3);
  EXPECT_TRUE(contains(floats.err, "f32 [2, 2]")) << floats.err;
  write_file(s.path("p.npy"), std::string("\x80\x04\x95pickle", 9));
  const Result pickle = ramp({"workload", s.path("p.npy"), "--model", "olmoe"});
  EXPECT_EQ(pickle.code, 3);
  EXPECT_TRUE(contains(pickle.err, "pickle")) << pickle.err;
  save_i32(s.path("i.npy"), {4}, {0, 1, 2, 3});
  EXPECT_EQ(ramp({"workload", s.path("i.npy"), "--model", "olmoe"}).code, 3);
  save_i32(s.path("t.npy"), {2, 2}, {0, 1, 2, 3});
  const Result cut = ramp({"workload", s.path("t.npy"), "--model", "olmoe", "--save", s.path("o.npy")});
  EXPECT_EQ(cut.code, 2) << "which part of the trace to save is not said";
  const Result more = ramp({"workload", s.path("t.npy"), "--experts", "4", "--top-k", "2", "--tokens", "9"});
  EXPECT_EQ(more.code, 3) << more.err << "a trace has only so many tokens";
}

TEST(CliWorkload, UnwritableOutputLeavesNothing) {
  const Scratch s;
  const Result r =
      ramp({"workload", "uniform", "--model", "olmoe", "--tokens", "4", "--save", s.path("no/ids.npy")});
  EXPECT_EQ(r.code, 3);
  EXPECT_EQ(r.out, "");
  EXPECT_TRUE(s.files().empty());
}

}  // namespace
}  // namespace ramp::cli_test
