// `ramp run` with bad files, shapes and arguments: the right exit code, one line that names the argument, no
// output file, nothing on stdout.
#include <gtest/gtest.h>

#include <filesystem>

#include "cli/harness.hpp"

namespace ramp::cli_test {
namespace {

bool contains(const std::string& text, const std::string& part) {
  return text.find(part) != std::string::npos;
}

void expect_refused(const Result& r, int code, const std::string& message) {
  EXPECT_EQ(r.code, code) << r.err;
  EXPECT_EQ(r.out, "");
  EXPECT_TRUE(house_lines(r.err)) << r.err;
  EXPECT_TRUE(contains(r.err, message)) << r.err;
}

struct Bad {
  std::string name;
  std::vector<std::string> args;
  int code;
  std::string message;
};
class BadRun : public testing::TestWithParam<Bad> {};
TEST_P(BadRun, IsRefused) {
  expect_refused(ramp(std::vector<std::string>{"run"} + GetParam().args), GetParam().code,
                 GetParam().message);
}
INSTANTIATE_TEST_SUITE_P(
    All, BadRun,
    testing::Values(
        Bad{"no_weights", {"--tokens", "4"}, 2, "--checkpoint, --model: got neither"},
        Bad{"two_weights",
            {"--model", "olmoe", "--checkpoint", "/tmp", "--tokens", "4"},
            2,
            "expected one of the two"},
        Bad{"missing_checkpoint", {"--checkpoint", "/nowhere/at/all", "--tokens", "4"}, 3, "/nowhere/at/all"},
        Bad{"unknown_model", {"--model", "mixtral-8x7", "--tokens", "4"}, 2, "did you mean 'mixtral-8x7b'"},
        Bad{"k_above_e", {"--model", "4,5,64,32", "--tokens", "4"}, 2, "--model: got '4,5,64,32'"},
        Bad{"odd_hidden", {"--model", "4,2,65,32", "--tokens", "4"}, 2, "hidden"},
        Bad{"zero_tokens", {"--model", "4,2,64,32", "--tokens", "0"}, 2, "--tokens: got '0'"},
        Bad{"no_tokens", {"--model", "4,2,64,32"}, 2, "--tokens: got nothing"},
        Bad{"bad_routing",
            {"--model", "4,2,64,32", "--tokens", "4", "--routing", "zipf"},
            2,
            "--routing: got"},
        Bad{"router_without_checkpoint",
            {"--model", "4,2,64,32", "--tokens", "4", "--router"},
            2,
            "--router: got"},
        Bad{"layer_without_checkpoint",
            {"--model", "4,2,64,32", "--tokens", "4", "--layer", "0"},
            2,
            "--layer"},
        Bad{"unknown_config",
            {"--model", "4,2,64,32", "--tokens", "4", "--config", "huge"},
            2,
            "--config: got 'huge'"},
        Bad{"unknown_backend",
            {"--model", "4,2,64,32", "--tokens", "4", "--backend", "gpu"},
            2,
            "--backend: got 'gpu'"},
        Bad{"cuda", {"--model", "4,2,64,32", "--tokens", "4", "--backend", "cuda"}, 4, "ramp: "},
        Bad{"weights_without_ids", {"--model", "4,2,64,32", "--topk-weights", "w.npy"}, 2, "--topk-weights"},
        Bad{"missing_x", {"--model", "4,2,64,32", "--x", "/nowhere/x.npy"}, 3, "/nowhere/x.npy"},
        Bad{"top_k", {"--model", "4,2,64,32", "--tokens", "4", "--top-k", "5"}, 2, "5"}),
    [](const auto& info) { return info.param.name; });

TEST(CliRunFiles, WrongShapesNameOptionFileAndShapes) {
  const Scratch s;
  const std::vector<std::string> model = {"run", "--model", "4,2,64,32"};
  save_f32(s.path("x.npy"), {3, 63}, noise(3 * 63, 1));
  expect_refused(ramp(model + std::vector<std::string>{"--x", s.path("x.npy")}), 2,
                 "--x: got f32 [3, 63] in " + s.path("x.npy"));
  save_f32(s.path("x1.npy"), {64}, noise(64, 1));
  expect_refused(ramp(model + std::vector<std::string>{"--x", s.path("x1.npy")}), 2, "--x: got f32 [64]");
  save_i32(s.path("ix.npy"), {1, 64}, std::vector<int32_t>(64));
  expect_refused(ramp(model + std::vector<std::string>{"--x", s.path("ix.npy")}), 2, "--x: got i32 [1, 64]");
  save_f32(s.path("ids.npy"), {3, 2}, noise(6, 1));
  expect_refused(ramp(model + std::vector<std::string>{"--ids", s.path("ids.npy")}), 2,
                 "--ids: got f32 [3, 2]");
  save_i32(s.path("ok.npy"), {3, 2}, {0, 1, 1, 2, 2, 3});
  save_f32(s.path("w.npy"), {3, 3}, noise(9, 1));
  expect_refused(
      ramp(model + std::vector<std::string>{"--ids", s.path("ok.npy"), "--topk-weights", s.path("w.npy")}), 2,
      "--topk-weights: got f32 [3, 3]");
  save_f32(s.path("l.npy"), {3, 5}, noise(15, 1));
  expect_refused(ramp(model + std::vector<std::string>{"--logits", s.path("l.npy")}), 2,
                 "--logits: got f32 [3, 5]");
  save_f32(s.path("good_x.npy"), {4, 64}, noise(256, 1));
  expect_refused(
      ramp(model + std::vector<std::string>{"--x", s.path("good_x.npy"), "--ids", s.path("ok.npy")}), 2,
      "--ids: got i32 [3, 2]");
  expect_refused(ramp(model + std::vector<std::string>{"--x", s.path("good_x.npy"), "--tokens", "5"}), 2,
                 "--tokens: got 5");
  save_i32(s.path("map.npy"), {4}, {0, 1, 2, 4});
  expect_refused(ramp(model + std::vector<std::string>{"--tokens", "4", "--expert-map", s.path("map.npy")}),
                 2, "--expert-map: got 4 for id 3");
  // Said before the work, not after it (which would be refused here).
  expect_refused(
      ramp(model + std::vector<std::string>{"--tokens", "4", "--config", "nosuch", "-o", s.path("no/y.npy")}),
      3, "no/y.npy: cannot write");
  // More than any machine has: refused before anything is made.
  expect_refused(ramp({"run", "--model", "2,1,65536,32", "--tokens", "1073741824", "--backend", "cpu"}), 4,
                 "--tokens: got x and y of 1073741824 tokens, 281.47 TB at least");
  save_i32(s.path("none.npy"), {0}, {});
  expect_refused(ramp(model + std::vector<std::string>{"--tokens", "4", "--expert-map", s.path("none.npy")}),
                 2, "--expert-map: got no entries");
  save_f32(s.path("a.npy"), {4, 63}, noise(4 * 63, 1));
  expect_refused(ramp(model + std::vector<std::string>{"--tokens", "4", "--shared-addend", s.path("a.npy")}),
                 2, "--shared-addend: got f32 [4, 63]");
}

TEST(CliRunFiles, DamagedNpy) {
  const Scratch s;
  const std::vector<std::string> model = {"run", "--model", "4,2,64,32", "--x"};
  save_f32(s.path("x.npy"), {3, 64}, noise(3 * 64, 1));
  const std::string good = read_file(s.path("x.npy"));
  write_file(s.path("short.npy"), good.substr(0, good.size() - 4));
  expect_refused(ramp(model + std::vector<std::string>{s.path("short.npy")}), 3, "truncated");
  write_file(s.path("head.npy"), good.substr(0, 20));
  expect_refused(ramp(model + std::vector<std::string>{s.path("head.npy")}), 3, "head.npy");
  write_file(s.path("pickle.npy"), std::string("\x80\x04\x95\x10 and so on", 14));
  expect_refused(ramp(model + std::vector<std::string>{s.path("pickle.npy")}), 3, "pickle");
  std::string object = good;
  object.replace(object.find("<f4"), 3, "|O8");
  write_file(s.path("object.npy"), object);
  expect_refused(ramp(model + std::vector<std::string>{s.path("object.npy")}), 3, "pickle");
  write_file(s.path("empty.npy"), "");
  expect_refused(ramp(model + std::vector<std::string>{s.path("empty.npy")}), 3, "empty.npy");
  expect_refused(ramp(model + std::vector<std::string>{s.directory()}), 3, s.directory());
}

TEST(CliRunFiles, DamagedCheckpoint) {
  const Scratch s;
  const std::string checkpoint = make_checkpoint(s, RAMP_FORMAT_FP8_BLOCK, 2);
  const std::vector<std::string> run = {"run", "--tokens", "2", "--checkpoint"};
  ASSERT_EQ(ramp(run + std::vector<std::string>{checkpoint}).code, 0);
  expect_refused(ramp(run + std::vector<std::string>{checkpoint, "--layer", "7"}), 2, "7");
  expect_refused(ramp(run + std::vector<std::string>{checkpoint, "--first-expert", "8"}), 2,
                 "--first-expert: got 8");
  expect_refused(
      ramp(run + std::vector<std::string>{checkpoint, "--first-expert", "5", "--num-experts", "4"}), 2,
      "--num-experts: got 4");

  std::string shard;
  for (const auto& entry : std::filesystem::directory_iterator(checkpoint))
    if (entry.path().extension() == ".safetensors") shard = entry.path().string();
  const std::string bytes = read_file(shard);
  write_file(shard, bytes.substr(0, bytes.size() / 2));
  const Result truncated = ramp(run + std::vector<std::string>{checkpoint, "--layer", "0"});
  const Result other = ramp(run + std::vector<std::string>{checkpoint, "--layer", "1"});
  EXPECT_TRUE(truncated.code == 3 || other.code == 3) << truncated.err << other.err;
  std::filesystem::remove(shard);
  const Result gone = ramp(run + std::vector<std::string>{checkpoint, "--layer", "0"});
  const Result gone_too = ramp(run + std::vector<std::string>{checkpoint, "--layer", "1"});
  EXPECT_TRUE(gone.code == 3 || gone_too.code == 3) << gone.err << gone_too.err;
  write_file(checkpoint + "/config.json", "{ not json");
  expect_refused(ramp(run + std::vector<std::string>{checkpoint}), 3, "config.json");
}

TEST(CliRunFiles, UnwritableOutputLeavesNothing) {
  const Scratch s;
  const std::vector<std::string> run = {"run", "--model", "4,2,64,32", "--tokens", "40", "-o"};
  expect_refused(ramp(run + std::vector<std::string>{s.path("no/such/y.npy")}), 3, s.path("no/such/y.npy"));
  EXPECT_TRUE(s.files().empty());
  expect_refused(ramp(run + std::vector<std::string>{"/dev/full"}), 3, "/dev/full");
}

TEST(CliRunFiles, NoSpaceLeavesTheOldFileAndNoPart) {
  // A file-size limit of 512 bytes stands for the full disk: y has 5 KB. The shell ignores the signal, so
  // that the write fails instead.
  const Scratch s;
  write_file(s.path("y.npy"), "old");
  const Result r = shell("trap '' XFSZ; cd '" + s.directory() +
                         "' && ulimit -f 1 && exec \"$RAMP\" run --model 4,2,64,32 --tokens 40 -o y.npy");
  EXPECT_EQ(r.code, 3) << r.err;
  EXPECT_TRUE(contains(r.err, "y.npy")) << r.err;
  EXPECT_EQ(s.files(), std::vector<std::string>{"y.npy"});
  EXPECT_EQ(read_file(s.path("y.npy")), "old");
}

TEST(CliRunFiles, NaNInXPropagatesAndIsNoCrash) {
  const Scratch s;
  std::vector<float> x = noise(2 * 64, 1);
  x[3] = std::numeric_limits<float>::quiet_NaN();
  save_f32(s.path("x.npy"), {2, 64}, x);
  const Result r = ramp({"run", "--model", "4,2,64,32", "--format", "bf16", "--x", s.path("x.npy"), "--check",
                         "-o", s.path("y.npy"), "--json"});
  EXPECT_EQ(r.code, 0) << r.err;
  const std::vector<float> y = load_f32(s.path("y.npy"));
  EXPECT_TRUE(y[0] != y[0]);
  EXPECT_TRUE(y[64] == y[64]) << "the other token is untouched";
}

}  // namespace
}  // namespace ramp::cli_test
