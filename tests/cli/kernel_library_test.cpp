// `ramp profile --kernel-library`: somebody's kernel out of a shared library beside ramp's own; files, a
// second run that goes on, and libraries that are none, refuse, or compute something else.
#include <gtest/gtest.h>

#include <algorithm>
#include <filesystem>

#include "cli/harness.hpp"

namespace ramp::cli_test {
namespace {

Result profile(const Scratch& s, const std::string& library, std::vector<std::string> more = {}) {
  std::vector<std::string> args = {"--format",  "f32", "--model",   "4,2,64,32", "--tokens",  "1,16",
                                   "--layers",  "2",   "--budget",  "2",         "--repeats", "2",
                                   "--threads", "2",   "--backend", "cpu"};
  args.insert(args.end(), more.begin(), more.end());
  std::string script =
      "RAMP_CACHE_DIR='" + s.directory() + "' \"$RAMP\" profile --kernel-library '" + library + "'";
  for (const std::string& a : args) script += " '" + a + "'";
  return shell(script);
}

std::string wrong(const Scratch& s, const std::string& name) {
  const std::string copy = s.directory() + "/lib" + name + ".so";
  std::filesystem::copy_file(WRONG_KERNEL, copy, std::filesystem::copy_options::overwrite_existing);
  return copy;
}

TEST(KernelLibrary, IsCheckedTimedAndFittedBesideRampsConfigs) {
  const Scratch s;
  const Result r = profile(s, NAIVE_KERNEL, {"--json"});
  ASSERT_EQ(r.code, 0) << r.err;
  const json p = r.parsed()[0];
  EXPECT_EQ(p["kernel"], "naive");
  EXPECT_EQ(p["library_configs"], 2);
  EXPECT_GT(p["ramp_configs"], 1);
  EXPECT_GT(p["bound_ratio"].get<double>(), 0);
  EXPECT_LE(p["bound_ratio"].get<double>(), 1);
  ASSERT_EQ(p["points"].size(), 4U);
  for (const json& point : p["points"]) {
    EXPECT_GT(point["ramp_us"].get<double>(), 0);
    EXPECT_GT(point["library_us"].get<double>(), 0);
    EXPECT_EQ(point["library_config"].get<std::string>().rfind("naive_", 0), 0U);
  }
  const std::string fit = p["fit"], file = p["profile"];
  EXPECT_EQ(fit.rfind(s.directory() + "/fits/cpu_4x2x64x32_f32_silu_and_mul_", 0), 0U) << fit;
  EXPECT_TRUE(fit.ends_with("_naive.kernel-fit.json")) << fit;
  const json document = json::parse(read_file(file));
  EXPECT_EQ(document["schema"], "ramp.profile");
  EXPECT_TRUE(document["metadata"]["kernel"].get<std::string>().ends_with(" f32 silu_and_mul + naive"));
  EXPECT_EQ(document["metadata"]["protocol"], "2 layers, wall clock, quantile 0.5");
  EXPECT_EQ(document["metadata"]["budget_seconds"], 2);
  EXPECT_EQ(document["configs"]["rows"].size(), p["ramp_configs"].get<size_t>() + 2);
  EXPECT_EQ(json::parse(read_file(fit))["schema"], "ramp.fit");

  // Contexts pass the files over in silence; explain reads the fit.
  const Result bench =
      shell("RAMP_CACHE_DIR='" + s.directory() +
            "' \"$RAMP\" bench --backend cpu --threads 2 --format f32 --model 4,2,64,32 --tokens 4 "
            "--repeats 3 --no-check --read-gbps 10 --json");
  ASSERT_EQ(bench.code, 0) << bench.err;
  EXPECT_TRUE(bench.parsed()[0]["fit"].is_null());
  EXPECT_EQ(bench.err.find("naive"), std::string::npos) << bench.err;
  const Result why = shell("\"$RAMP\" explain --fit '" + fit + "' --histogram '3 0 1 12'");
  ASSERT_EQ(why.code, 0) << why.err;
  std::string count = std::to_string(p["ramp_configs"].get<int>() + 2);
  count += " configs;";
  EXPECT_NE(why.out.find(count), std::string::npos) << why.out;

  // The same command goes on from the file.
  const Result again = profile(s, NAIVE_KERNEL);
  ASSERT_EQ(again.code, 0) << again.err;
  EXPECT_NE(again.err.find("going on from there"), std::string::npos) << again.err;
  EXPECT_NE(again.out.find("2 of naive, all right"), std::string::npos) << again.out;
  EXPECT_NE(again.out.find("configs that ramp ships, not checked here;"), std::string::npos) << again.out;

  // Not where its timings were taken in another way, or nobody knows how.
  const Result other = profile(s, NAIVE_KERNEL, {"--quantile", "0"});
  EXPECT_NE(other.code, 0);
  EXPECT_NE(other.err.find("timings of '2 layers, wall clock, quantile 0.5'"), std::string::npos)
      << other.err;
  EXPECT_NE(other.err.find("--fresh"), std::string::npos) << other.err;
  json unknown = json::parse(read_file(file));
  unknown["metadata"].erase("protocol");
  write_file(file, unknown.dump());
  const Result old = profile(s, NAIVE_KERNEL);
  EXPECT_NE(old.code, 0);
  EXPECT_NE(old.err.find("a protocol that it does not name"), std::string::npos) << old.err;
  EXPECT_EQ(profile(s, NAIVE_KERNEL, {"--quantile", "0", "--fresh"}).code, 0);
}

TEST(KernelLibrary, WhatIsNoneOrRefusesOrIsWrongSaysSo) {
  const Scratch s;
  const auto refused = [&](const Result& r, std::initializer_list<const char*> parts) {
    EXPECT_NE(r.code, 0);
    for (const char* part : parts)
      EXPECT_NE(r.err.find(part), std::string::npos) << part << "\nin: " << r.err;
    EXPECT_FALSE(std::filesystem::exists(s.directory() + "/fits/x.kernel-fit.json"));
  };
  refused(profile(s, s.directory() + "/none.so"), {"--kernel-library", "none.so", "docs/third-party.md"});
  write_file(s.path("text.so"), "not a library");
  refused(profile(s, s.directory() + "/text.so"), {"--kernel-library", "text.so"});
  refused(profile(s, NAIVE_KERNEL, {"--activation", "gelu_and_mul"}),
          {"--kernel-library", "returned 1", "4,2,64,32", "f32", "cpu"});
  refused(profile(s, NAIVE_KERNEL, {"--judge"}), {"--kernel-library", "--judge"});
  refused(profile(s, NAIVE_KERNEL, {"--determinism", "fast"}),
          {"--determinism", "fast beside --kernel-library", "repeatable"});
  refused(profile(s, NAIVE_KERNEL, {"--clock", "cpu"}),
          {"--clock", "cpu beside --kernel-library", "leave --clock out"});
  refused(profile(s, wrong(s, "empty")), {"--kernel-library", "0 configs", "at least 1", "num_configs"});
  refused(profile(s, wrong(s, "zeros")), {"config 'a'", "error bound", "correct the kernel"});
  refused(profile(s, wrong(s, "fails")), {"'a'", "returned 42"});
  refused(profile(s, wrong(s, "names")), {"'a' again", "distinct names"});
  for (const auto& entry : std::filesystem::recursive_directory_iterator(s.directory()))
    EXPECT_EQ(entry.path().string().find("kernel-fit"), std::string::npos);
}

}  // namespace
}  // namespace ramp::cli_test
