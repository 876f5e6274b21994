// `ramp run` on a small checkpoint and on random weights: round trips through files, and the options that
// change what is computed. Numerics have tests of their own; here `--check` must say the same.
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <filesystem>

#include "cli/harness.hpp"

namespace ramp::cli_test {
namespace {

bool contains(const std::string& text, const std::string& part) {
  return text.find(part) != std::string::npos;
}

// Largest difference, relative to the largest value of `b`.
double difference(const std::vector<float>& a, const std::vector<float>& b) {
  EXPECT_EQ(a.size(), b.size());
  double most = 0;
  double size = 0;
  for (size_t i = 0; i < std::min(a.size(), b.size()); ++i) {
    most = std::max(most, static_cast<double>(std::fabs(a[i] - b[i])));
    size = std::max(size, static_cast<double>(std::fabs(b[i])));
  }
  EXPECT_GT(size, 0);
  return most / size;
}
// Sums of a few fp32 values of similar size in another order: a few units in the last place of the largest.
constexpr double kReordered = 8 * 0x1p-23;

class CheckpointRun : public testing::Test {
 protected:
  static void SetUpTestSuite() {
    scratch_ = new Scratch;
    checkpoint_ = make_checkpoint(*scratch_);
  }
  static void TearDownTestSuite() {
    delete scratch_;
    scratch_ = nullptr;
  }
  // run --checkpoint C ... --json; expects success.
  static json run(const std::vector<std::string>& args) {
    const Result r = ramp(std::vector<std::string>{"run", "--checkpoint", checkpoint_, "--json"} + args);
    EXPECT_EQ(r.code, 0) << r.err;
    return r.code == 0 ? r.parsed() : json();
  }
  static Scratch* scratch_;
  static std::string checkpoint_;
  Scratch out_;
};
Scratch* CheckpointRun::scratch_ = nullptr;
std::string CheckpointRun::checkpoint_;

TEST_F(CheckpointRun, SecondRunWritesTheSameBytes) {
  const json j = run({"--layer", "1", "--tokens", "9", "--seed", "4", "-o", out_.path("a.npy"), "--check"});
  EXPECT_EQ(j["source"]["layer"], 1);
  EXPECT_EQ(j["source"]["architecture"], "olmoe");
  EXPECT_EQ(j["experts"], kExperts);
  EXPECT_EQ(j["top_k"], kTopK);
  EXPECT_EQ(j["hidden"], kHidden);
  EXPECT_EQ(j["intermediate"], kIntermediate);
  EXPECT_EQ(j["format"], "fp8_block");
  EXPECT_EQ(j["tokens"], 9);
  EXPECT_EQ(j["output"]["shape"], json({9, kHidden}));
  EXPECT_EQ(j["output"]["dtype"], "bf16");
  EXPECT_TRUE(j["check"]["passed"]);
  EXPECT_EQ(j["check"]["rows"], 9);
  EXPECT_LE(j["check"]["bound_ratio"], 1.0);
  run({"--layer", "1", "--tokens", "9", "--seed", "4", "-o", out_.path("b.npy")});
  EXPECT_EQ(read_file(out_.path("a.npy")), read_file(out_.path("b.npy")));
  // Another layer has other weights.
  run({"--layer", "0", "--tokens", "9", "--seed", "4", "-o", out_.path("c.npy")});
  EXPECT_NE(read_file(out_.path("a.npy")), read_file(out_.path("c.npy")));
}

TEST_F(CheckpointRun, RepeatableWhateverThreadsAndPacking) {
  const std::vector<std::string> common = {"--tokens", "33", "--routing", "zipf:1"};
  run(common + std::vector<std::string>{"--threads", "1", "-o", out_.path("a.npy")});
  run(common + std::vector<std::string>{"--threads", "3", "-o", out_.path("b.npy")});
  EXPECT_EQ(read_file(out_.path("a.npy")), read_file(out_.path("b.npy")));
  const json unpacked = run(common + std::vector<std::string>{"--no-pack", "--check"});
  EXPECT_TRUE(unpacked["check"]["passed"]);
}

TEST_F(CheckpointRun, FilesInGiveWhatTheyWereGeneratedFrom) {
  run({"--tokens", "5", "--save-ids", out_.path("ids.npy"), "--save-weights", out_.path("w.npy"), "-o",
       out_.path("a.npy")});
  const json j = run({"--tokens", "5", "--ids", out_.path("ids.npy"), "--topk-weights", out_.path("w.npy"),
                      "-o", out_.path("b.npy")});
  EXPECT_EQ(j["routing"], "files");
  EXPECT_EQ(read_file(out_.path("a.npy")), read_file(out_.path("b.npy")));
}

TEST_F(CheckpointRun, XFromFileInEveryDtype) {
  const std::vector<float> x = noise(7 * kHidden, 1);
  save_f32(out_.path("x.npy"), {7, kHidden}, x);
  const json j = run({"--x", out_.path("x.npy"), "--check", "-o", out_.path("y.npy")});
  EXPECT_EQ(j["tokens"], 7);
  EXPECT_EQ(j["output"]["dtype"], "f32");
  EXPECT_TRUE(j["check"]["passed"]);
  const json half = run({"--x", out_.path("x.npy"), "--output-dtype", "f16", "--check"});
  EXPECT_TRUE(half["check"]["passed"]);
}

TEST_F(CheckpointRun, PerSlotRowsAddUp) {
  const std::vector<std::string> common = {"--tokens", "6", "--output-dtype", "f32", "--check"};
  run(common + std::vector<std::string>{"-o", out_.path("y.npy")});
  const json j = run(common + std::vector<std::string>{"--per-slot", "-o", out_.path("slots.npy")});
  EXPECT_EQ(load_shape(out_.path("slots.npy")), (std::vector<int64_t>{6, kTopK, kHidden}));
  EXPECT_TRUE(j["check"]["passed"]);
  const std::vector<float> slots = load_f32(out_.path("slots.npy"));
  std::vector<float> sum(static_cast<size_t>(6 * kHidden));
  for (int64_t t = 0; t < 6; ++t)
    for (int64_t s = 0; s < kTopK; ++s)
      for (int64_t h = 0; h < kHidden; ++h)
        sum[static_cast<size_t>(t * kHidden + h)] +=
            slots[static_cast<size_t>((t * kTopK + s) * kHidden + h)];
  EXPECT_LE(difference(sum, load_f32(out_.path("y.npy"))), kReordered);
}

TEST_F(CheckpointRun, LogitsPathRoutesAndMatchesItsOwnIds) {
  const std::vector<float> logits = noise(10 * kExperts, 2);
  save_f32(out_.path("l.npy"), {10, kExperts}, logits);
  const json j = run({"--logits", out_.path("l.npy"), "--save-ids", out_.path("ids.npy"), "--save-weights",
                      out_.path("w.npy"), "--check", "-o", out_.path("a.npy")});
  EXPECT_EQ(j["routing"], "logits");
  EXPECT_EQ(j["router"]["scoring"], "softmax");
  EXPECT_TRUE(j["check"]["passed"]);
  EXPECT_TRUE(j["router_check"]["passed"]);
  EXPECT_EQ(j["router_check"]["wrong"], 0);
  const std::vector<int64_t> ids = load_ids(out_.path("ids.npy"));
  for (size_t t = 0; t < 10; ++t) {
    const auto row = logits.begin() + static_cast<int64_t>(t) * kExperts;
    EXPECT_EQ(ids[t * kTopK], std::max_element(row, row + kExperts) - row) << "token " << t;
  }
  // The same ids and weights through the block alone.
  run({"--tokens", "10", "--ids", out_.path("ids.npy"), "--topk-weights", out_.path("w.npy"), "-o",
       out_.path("b.npy")});
  EXPECT_EQ(read_file(out_.path("a.npy")), read_file(out_.path("b.npy")));
}

TEST_F(CheckpointRun, RouterFlagsOverrideTheCheckpoint) {
  save_f32(out_.path("l.npy"), {4, kExperts}, noise(4 * kExperts, 3));
  const json j = run({"--logits", out_.path("l.npy"), "--scoring", "sigmoid", "--top-k", "3", "--renormalize",
                      "--num-groups", "4", "--topk-groups", "2", "--group-score", "top2-sum", "--scaling",
                      "2.5", "--check", "--save-weights", out_.path("w.npy")});
  EXPECT_EQ(j["router"]["scoring"], "sigmoid");
  EXPECT_EQ(j["top_k"], 3);
  EXPECT_TRUE(j["router_check"]["passed"]) << j["router_check"];
  EXPECT_TRUE(j["check"]["passed"]);
  const std::vector<float> w = load_f32(out_.path("w.npy"));
  for (size_t t = 0; t < 4; ++t) EXPECT_NEAR(w[3 * t] + w[3 * t + 1] + w[3 * t + 2], 2.5F, 1e-5F);
}

TEST_F(CheckpointRun, RouterOfTheCheckpoint) {
  const json j = run({"--router", "--tokens", "12", "--check", "--save-ids", out_.path("ids.npy")});
  EXPECT_EQ(j["routing"], "router");
  EXPECT_TRUE(j["check"]["passed"]);
  EXPECT_TRUE(j["router_check"]["passed"]) << j["router_check"];
  for (const int64_t e : load_ids(out_.path("ids.npy"))) {
    EXPECT_GE(e, 0);
    EXPECT_LT(e, kExperts);
  }
}

TEST_F(CheckpointRun, RouterWithPerSlotOutput) {
  save_f32(out_.path("l.npy"), {3, kExperts}, noise(3 * kExperts, 9));
  const json j = run({"--logits", out_.path("l.npy"), "--per-slot", "--check", "-o", out_.path("y.npy")});
  EXPECT_EQ(j["output"]["shape"], json({3, kTopK, kHidden}));
  EXPECT_TRUE(j["check"]["passed"]);
  EXPECT_TRUE(j["router_check"]["passed"]);
}

TEST_F(CheckpointRun, CapacityDropsSlots) {
  save_f32(out_.path("l.npy"), {4, kExperts}, std::vector<float>(4 * kExperts, 1.0F));
  const json j =
      run({"--logits", out_.path("l.npy"), "--capacity", "1", "--save-ids", out_.path("ids.npy"), "--check"});
  EXPECT_EQ(load_ids(out_.path("ids.npy")), (std::vector<int64_t>{0, 1, -1, -1, -1, -1, -1, -1}))
      << "equal logits: ids 0, 1";
  EXPECT_EQ(j["masked"], 6);
  EXPECT_EQ(j["active"], 2);
  EXPECT_TRUE(j["check"]["passed"]);
}

TEST_F(CheckpointRun, ExpertMapPermutes) {
  // Ids through a map equal mapped ids without one.
  const std::vector<int32_t> map = {3, 1, 4, 0, 5, 2, 7, 6};
  std::vector<int32_t> ids = {0, 1, 2, 3, 4, 5, 6, 7};
  save_i32(out_.path("map.npy"), {kExperts}, map);
  save_i32(out_.path("ids.npy"), {4, 2}, ids);
  for (int32_t& id : ids) id = map[static_cast<size_t>(id)];
  save_i32(out_.path("mapped.npy"), {4, 2}, ids);
  run({"--ids", out_.path("ids.npy"), "--expert-map", out_.path("map.npy"), "-o", out_.path("a.npy"),
       "--check"});
  run({"--ids", out_.path("mapped.npy"), "-o", out_.path("b.npy")});
  EXPECT_EQ(read_file(out_.path("a.npy")), read_file(out_.path("b.npy")));
}

TEST_F(CheckpointRun, TwoHalvesOfTheExpertsAddUp) {
  const std::vector<std::string> common = {"--tokens", "8", "--output-dtype", "f32", "--check"};
  run(common + std::vector<std::string>{"-o", out_.path("all.npy")});
  const json first = run(common + std::vector<std::string>{"--first-expert", "0", "--num-experts", "4", "-o",
                                                           out_.path("a.npy")});
  const json second = run(common + std::vector<std::string>{"--first-expert", "4", "-o", out_.path("b.npy")});
  EXPECT_EQ(first["experts"], 4);
  EXPECT_EQ(first["masked"].get<int>() + second["masked"].get<int>(), 8 * kTopK)
      << "each slot is masked on one side";
  std::vector<float> sum = load_f32(out_.path("a.npy"));
  const std::vector<float> b = load_f32(out_.path("b.npy"));
  for (size_t i = 0; i < sum.size(); ++i) sum[i] += b[i];
  EXPECT_LE(difference(sum, load_f32(out_.path("all.npy"))), kReordered);
}

TEST_F(CheckpointRun, SharedAddendIsAdded) {
  const std::vector<float> addend = noise(4 * kHidden, 6);
  save_f32(out_.path("s.npy"), {4, kHidden}, addend);
  run({"--tokens", "4", "--output-dtype", "f32", "-o", out_.path("a.npy")});
  run({"--tokens", "4", "--output-dtype", "f32", "--shared-addend", out_.path("s.npy"), "--check", "-o",
       out_.path("b.npy")});
  std::vector<float> sum = load_f32(out_.path("a.npy"));
  for (size_t i = 0; i < sum.size(); ++i) sum[i] += addend[i];
  EXPECT_LE(difference(sum, load_f32(out_.path("b.npy"))), kReordered);
}

TEST_F(CheckpointRun, MaskedAndForeignIdsAreCountedAndContributeNothing) {
  save_i32(out_.path("ids.npy"), {3, 2}, {-1, -1, 0, 999, -5, 7});
  const json j =
      run({"--ids", out_.path("ids.npy"), "--output-dtype", "f32", "--check", "-o", out_.path("y.npy")});
  EXPECT_EQ(j["masked"], 2);
  EXPECT_EQ(j["out_of_range"], 2);
  const std::vector<float> y = load_f32(out_.path("y.npy"));
  EXPECT_TRUE(std::all_of(y.begin(), y.begin() + kHidden, [](float v) { return v == 0; }))
      << "token 0 has no expert";
}

TEST_F(CheckpointRun, WeightOnInputAndReferenceBackend) {
  EXPECT_TRUE(run({"--tokens", "3", "--weight-on-input", "--check"})["check"]["passed"]);
  const json j = run({"--tokens", "3", "--backend", "reference", "--check"});
  EXPECT_EQ(j["backend"], "reference");
  EXPECT_TRUE(j["check"]["passed"]);
}

TEST_F(CheckpointRun, ConfigByName) {
  const Result list =
      ramp({"configs", "--model", "8,2,256,128", "--format", "fp8_block", "--backend", "cpu", "--json"});
  ASSERT_EQ(list.code, 0) << list.err;
  const std::string name = list.parsed()["legal"].back()["name"];
  const json j = run({"--backend", "cpu", "--tokens", "5", "--config", name, "--check"});
  EXPECT_EQ(j["config"], name);
  EXPECT_TRUE(j["check"]["passed"]);
}

TEST_F(CheckpointRun, ShardedAndSingleFile) {
  const Scratch s;
  const std::string sharded = make_checkpoint(s, RAMP_FORMAT_BF16, 3);
  const Result r = ramp({"run", "--checkpoint", sharded, "--tokens", "4", "--check", "--json"});
  ASSERT_EQ(r.code, 0) << r.err;
  EXPECT_EQ(r.parsed()["format"], "bf16");
  EXPECT_TRUE(r.parsed()["check"]["passed"]);
  // A lone .safetensors file has no config.json: k must be said.
  const std::string file = s.path("lone.safetensors");
  std::filesystem::copy_file(checkpoint_ + "/model.safetensors", file);
  const Result lone = ramp({"run", "--checkpoint", file, "--tokens", "4", "--layer", "0"});
  EXPECT_EQ(lone.code, 2);
  EXPECT_TRUE(contains(lone.err, "--top-k: got nothing")) << lone.err;
  const Result said =
      ramp({"run", "--checkpoint", file, "--tokens", "4", "--layer", "0", "--top-k", "2", "--check"});
  EXPECT_EQ(said.code, 0) << said.err;
}

struct FormatCase {
  std::string format, activation, determinism;
};
class RandomRun : public testing::TestWithParam<FormatCase> {};
TEST_P(RandomRun, ChecksAgainstFp64) {
  const Result r = ramp({"run", "--model", "6,2,160,96", "--format", GetParam().format, "--activation",
                         GetParam().activation, "--determinism", GetParam().determinism, "--tokens", "20",
                         "--routing", "zipf:1.5", "--check-all", "--json"});
  ASSERT_EQ(r.code, 0) << r.err;
  const json j = r.parsed();
  EXPECT_TRUE(j["check"]["passed"]) << j["check"];
  EXPECT_EQ(j["check"]["rows"], 20);
  EXPECT_GT(j["check"]["rel_error"].get<double>(), 0) << "a bf16 or fp32 result is rounded";
  EXPECT_EQ(j["format"], GetParam().format);
  EXPECT_EQ(j["determinism"], GetParam().determinism);
}
INSTANTIATE_TEST_SUITE_P(Formats, RandomRun,
                         testing::Values(FormatCase{"fp8_block", "silu_and_mul", "repeatable"},
                                         FormatCase{"bf16", "gelu_and_mul", "batch-invariant"},
                                         FormatCase{"fp16", "gelu_tanh_and_mul", "fast"},
                                         FormatCase{"f32", "relu2", "repeatable"},
                                         FormatCase{"fp8_tensor", "silu_and_mul", "fast"},
                                         FormatCase{"fp8_channel", "relu2", "batch-invariant"}),
                         [](const auto& info) { return info.param.format; });

TEST(CliRun, QuantisedX) {
  // x = codes * scale, both ours: e4m3 travels as uint8.
  const Scratch s;
  std::vector<uint8_t> codes(static_cast<size_t>(3 * 256));
  for (size_t i = 0; i < codes.size(); ++i)
    codes[i] = static_cast<uint8_t>(i * 37 % 0x78);  // no NaN, positive
  ramp_tensor t{};
  t.data = codes.data();
  t.dtype = RAMP_E4M3;
  t.ndim = 2;
  t.shape[0] = 3;
  t.shape[1] = 256;
  core::write_npy(s.path("x.npy"), t);
  save_f32(s.path("scale.npy"), {3, 2}, {0.01F, 0.02F, 0.03F, 0.01F, 0.02F, 0.005F});
  const Result r = ramp({"run", "--model", "4,2,256,128", "--x", s.path("x.npy"), "--x-scale",
                         s.path("scale.npy"), "--check", "--json"});
  ASSERT_EQ(r.code, 0) << r.err;
  EXPECT_TRUE(r.parsed()["check"]["passed"]);
  const Result missing = ramp({"run", "--model", "4,2,256,128", "--x", s.path("x.npy")});
  EXPECT_EQ(missing.code, 2);
  EXPECT_TRUE(contains(missing.err, "--x-scale: got nothing")) << missing.err;
}

TEST(CliRun, BigShapesCheckASample) {
  const Result r =
      ramp({"run", "--model", "4,2,1024,1024", "--format", "bf16", "--tokens", "600", "--check", "--json"});
  ASSERT_EQ(r.code, 0) << r.err;
  const json check = r.parsed()["check"];
  EXPECT_TRUE(check["passed"]);
  EXPECT_GT(check["rows"], 1);
  EXPECT_LT(check["rows"], 600);
}

TEST(CliRun, HumanOutputSaysWhatRan) {
  const Result r = ramp({"run", "--model", "4,2,64,32", "--tokens", "3", "--check"});
  ASSERT_EQ(r.code, 0) << r.err;
  EXPECT_TRUE(contains(r.out, "4 experts, k = 2, H = 64, I = 32, fp8_block")) << r.out;
  EXPECT_TRUE(contains(r.out, "check against fp64, 3 of 3 tokens: ")) << r.out;
}

}  // namespace
}  // namespace ramp::cli_test
