// `ramp cache`: listing, clearing and compiling ahead, none of which needs a GPU.
#include <gtest/gtest.h>

#include "cli/harness.hpp"

namespace ramp::cli_test {
namespace {

bool contains(const std::string& text, const std::string& part) {
  return text.find(part) != std::string::npos;
}

TEST(CliCache, WrongActions) {
  Result r = ramp({"cache"});
  EXPECT_EQ(r.code, 2);
  r = ramp({"cache", "claer"});
  EXPECT_EQ(r.code, 2);
  EXPECT_TRUE(contains(r.err, "got 'claer', expected one of list, clear, warm; did you mean 'clear'?"))
      << r.err;
  EXPECT_TRUE(house_lines(r.err)) << r.err;
}

#ifdef RAMP_HAS_CUDA

TEST(CliCache, EmptyIsNoError) {
  const Scratch scratch;
  const Result r = ramp({"cache", "list", "--cache-dir", scratch.path("none"), "--json"});
  ASSERT_EQ(r.code, 0) << r.err;
  EXPECT_TRUE(r.parsed()["entries"].empty());
  EXPECT_EQ(ramp({"cache", "clear", "--cache-dir", scratch.path("none"), "--json"}).parsed()["files"], 0);
  EXPECT_TRUE(scratch.files().empty());
}

TEST(CliCache, WarmListClear) {
  const Scratch scratch;
  const std::vector<std::string> here = {"--cache-dir", scratch.directory(), "--json"};
  Result r = ramp(std::vector<std::string>{"cache", "warm", "--arch", "sm_80"} + here);
  ASSERT_EQ(r.code, 0) << r.err;
  json j = r.parsed();
  ASSERT_FALSE(j["programs"].empty());
  const size_t programs = j["programs"].size();
  for (const json& p : j["programs"]) {
    EXPECT_EQ(p["arch"], "sm_80");
    EXPECT_FALSE(p["cached"].get<bool>()) << p;
    EXPECT_GT(p["bytes"].get<int64_t>(), 0) << p;
    EXPECT_TRUE(p["error"].is_null()) << p;
  }
  r = ramp(std::vector<std::string>{"cache", "warm", "--arch", "sm_80"} + here);
  j = r.parsed();  // a name: the loop would outlive a temporary
  for (const json& p : j["programs"]) EXPECT_TRUE(p["cached"].get<bool>()) << p;

  r = ramp(std::vector<std::string>{"cache", "list"} + here);
  ASSERT_EQ(r.code, 0) << r.err;
  j = r.parsed();
  ASSERT_EQ(j["entries"].size(), programs);
  for (const json& e : j["entries"]) {
    EXPECT_TRUE(e["valid"].get<bool>()) << e;
    EXPECT_TRUE(e["current"].get<bool>()) << e;
  }
  const std::string victim = scratch.path("cubin/" + j["entries"][0]["file"].get<std::string>());
  write_file(victim, "damaged");
  write_file(scratch.path("cubin/mine.txt"), "mine");
  r = ramp(std::vector<std::string>{"cache", "list"} + here);
  EXPECT_FALSE(r.parsed()["entries"][0]["valid"].get<bool>());
  const Result text = ramp({"cache", "list", "--cache-dir", scratch.directory()});
  EXPECT_TRUE(contains(text.out, "damaged: it is shorter than its header")) << text.out;

  r = ramp(std::vector<std::string>{"cache", "warm", "--arch", "sm_80"} + here);
  EXPECT_EQ(r.code, 0);
  EXPECT_TRUE(contains(r.err, "compiling it again")) << r.err;
  EXPECT_TRUE(house_lines(r.err)) << r.err;

  r = ramp(std::vector<std::string>{"cache", "clear"} + here);
  ASSERT_EQ(r.code, 0) << r.err;
  EXPECT_EQ(r.parsed()["files"].get<size_t>(), programs);
  EXPECT_EQ(r.parsed()["others"], 1);
  EXPECT_EQ(read_file(scratch.path("cubin/mine.txt")), "mine");
}

TEST(CliCache, ReportIsWritten) {
  const Scratch scratch;
  const std::string page = scratch.path("report.md");
  const Result r =
      ramp({"cache", "warm", "--arch", "sm_80", "--cache-dir", scratch.directory(), "--report", page});
  ASSERT_EQ(r.code, 0) << r.err;
  EXPECT_TRUE(contains(read_file(page), "| copy | copy_16 | sm_80 |")) << read_file(page);
}

TEST(CliCache, BadOptions) {
  const Scratch scratch;
  Result r = ramp({"cache", "warm", "--arch", "sm_90a,hopper", "--cache-dir", scratch.directory()});
  EXPECT_EQ(r.code, 2);
  EXPECT_TRUE(contains(r.err, "--arch: got 'hopper', expected a GPU architecture")) << r.err;
  r = ramp({"cache", "list", "--arch", "sm_80", "--cache-dir", scratch.directory()});
  EXPECT_EQ(r.code, 2);
  EXPECT_TRUE(contains(r.err, "--arch: got it with 'list'")) << r.err;
  write_file(scratch.path("file"), "");
  r = ramp({"cache", "list", "--cache-dir", scratch.path("file")});
  EXPECT_EQ(r.code, 3);
  EXPECT_TRUE(house_lines(r.err)) << r.err;
  r = shell("unset RAMP_CACHE_DIR XDG_CACHE_HOME HOME; \"$RAMP\" cache list");
  EXPECT_EQ(r.code, 2);
  EXPECT_TRUE(contains(r.err, "set one of them, or give --cache-dir")) << r.err;
}

#else

TEST(CliCache, NeedsTheCudaBackend) {
  const Result r = ramp({"cache", "list"});
  EXPECT_EQ(r.code, 4);
  EXPECT_TRUE(contains(r.err, "got a build without the CUDA backend")) << r.err;
}

#endif

}  // namespace
}  // namespace ramp::cli_test
