// Traces: routing read from .npy files, every way in which a file may not fit, and statistics step by step.
#include <fstream>

#include "base/npy.hpp"
#include "base/test_support.hpp"
#include "routing/support.hpp"
#include "routing/workload.hpp"

namespace ramp::test {
namespace {

class Trace : public testing::Test {
 protected:
  // Writes `count` ids of the given type and shape and returns the path.
  std::string write(const std::string& name, ramp_dtype dtype, std::vector<int64_t> shape,
                    const std::vector<int64_t>& ids) {
    std::vector<int64_t> wide = ids;
    std::vector<int32_t> narrow(ids.begin(), ids.end());
    std::vector<uint8_t> bytes(ids.begin(), ids.end());
    std::vector<uint16_t> shorts(ids.begin(), ids.end());
    ramp_tensor t{};
    t.data = dtype == RAMP_I64   ? static_cast<void*>(wide.data())
             : dtype == RAMP_I32 ? static_cast<void*>(narrow.data())
             : dtype == RAMP_U8  ? static_cast<void*>(bytes.data())
                                 : static_cast<void*>(shorts.data());  // bf16 travels as <u2
    t.dtype = dtype;
    t.ndim = static_cast<int32_t>(shape.size());
    for (size_t d = 0; d < shape.size(); ++d) t.shape[d] = shape[d];
    const std::string path = dir_ / name;
    write_npy(path, with_strides(t));
    return path;
  }
  static Routing read(const std::string& path, int64_t experts, int64_t top_k, int64_t tokens,
                      uint64_t seed = 0) {
    return make_routing(parse_workload(path), experts, top_k, tokens, seed);
  }
  TempDir dir_;
  const std::vector<int64_t> ids_ = {0, 1, 2, 3, 4, 5, 5, 4, 3, 2, 1, 0};
};

TEST_F(Trace, EveryIntegerType) {
  for (const ramp_dtype dtype : {RAMP_I32, RAMP_I64, RAMP_U8, RAMP_BF16}) {
    const Routing r = read(write("t.npy", dtype, {6, 2}, ids_), 6, 2, 6);
    EXPECT_EQ(r.ids, (std::vector<int32_t>{0, 1, 2, 3, 4, 5, 5, 4, 3, 2, 1, 0})) << dtype;
    for (size_t t = 0; t < 6; ++t) EXPECT_NEAR(r.weights[2 * t] + r.weights[2 * t + 1], 1.0F, kU);
  }
}
TEST_F(Trace, FirstTokensOfALongerOne) {
  const Routing r = read(write("t.npy", RAMP_I32, {6, 2}, ids_), 6, 2, 2);
  EXPECT_EQ(r.ids, (std::vector<int32_t>{0, 1, 2, 3}));
}
TEST_F(Trace, StepBySeed) {
  const std::string path = write("t.npy", RAMP_I64, {3, 2, 2}, ids_);
  EXPECT_EQ(read(path, 6, 2, 2, 0).ids, (std::vector<int32_t>{0, 1, 2, 3}));
  EXPECT_EQ(read(path, 6, 2, 2, 1).ids, (std::vector<int32_t>{4, 5, 5, 4}));
  EXPECT_EQ(read(path, 6, 2, 1, 2).ids, (std::vector<int32_t>{3, 2}));
  EXPECT_EQ(read(path, 6, 2, 2, 4).ids, read(path, 6, 2, 2, 1).ids);  // modulo the steps
}
TEST_F(Trace, NoTokensAsked) {
  EXPECT_TRUE(read(write("t.npy", RAMP_I32, {6, 2}, ids_), 6, 2, 0).ids.empty());
}
TEST_F(Trace, WhatDoesNotFit) {
  const auto bad = [&](std::initializer_list<std::string_view> parts, const std::string& path, int64_t e,
                       int64_t k,
                       int64_t t) { expect_error(RAMP_ERROR_BAD_FILE, parts, [&] { read(path, e, k, t); }); };
  const std::string path = write("t.npy", RAMP_I32, {6, 2}, ids_);
  bad({"t.npy", "k = 2", "k = 3"}, path, 6, 3, 2);
  bad({"t.npy", "6 tokens", "at least 7"}, path, 6, 2, 7);
  bad({"t.npy", "id 4", "token 2, slot 0", "0 to 3"}, path, 4, 2, 6);
  bad({"3 tokens"}, write("s.npy", RAMP_I32, {2, 3, 2}, ids_), 6, 2, 4);
  bad({"id -1"}, write("m.npy", RAMP_I32, {1, 2}, {0, -1}), 6, 2, 1);
  bad({"id 4294967296"}, write("w.npy", RAMP_I64, {1, 2}, {0, int64_t{1} << 32}), 6, 2, 1);
  bad({"id 3 twice", "token 1"}, write("d.npy", RAMP_I32, {2, 2}, {0, 1, 3, 3}), 6, 2, 2);
  bad({"1 dimensions"}, write("1.npy", RAMP_I32, {12}, ids_), 6, 2, 2);
  bad({"4 dimensions"}, write("4.npy", RAMP_I32, {1, 1, 6, 2}, ids_), 6, 2, 2);
  bad({"no steps"}, write("0.npy", RAMP_I32, {0, 6, 2}, {}), 6, 2, 2);
  std::vector<float> floats(12, 1.0F);
  const std::string f = dir_ / "f.npy";
  write_npy(f, make_tensor(floats.data(), RAMP_F32, {6, 2}));
  bad({"f.npy", "<f4", "integer ids"}, f, 6, 2, 2);
}
TEST_F(Trace, FilesThatCannotBeRead) {
  expect_error(RAMP_ERROR_IO, {"missing.npy"}, [&] { read(dir_ / "missing.npy", 6, 2, 1); });
  const std::string path = dir_ / "junk.npy";
  std::ofstream(path) << "not an array";
  expect_error(RAMP_ERROR_BAD_FILE, {"junk.npy"}, [&] { read(path, 6, 2, 1); });
  const std::string whole = write("t.npy", RAMP_I32, {6, 2}, ids_);
  std::filesystem::resize_file(whole, std::filesystem::file_size(whole) - 4);
  expect_error(RAMP_ERROR_BAD_FILE, {"t.npy", "truncated"}, [&] { read(whole, 6, 2, 1); });
}
TEST_F(Trace, WrittenAndReadBack) {
  const Routing r = make_routing(parse_workload("zipf:1.2"), 64, 8, 100, 3);
  const std::string path = dir_ / "r.npy";
  write_npy(path, make_tensor(r.ids.data(), RAMP_I32, {100, 8}));
  EXPECT_EQ(read(path, 64, 8, 100).ids, r.ids);
}

TEST(TraceStats, StepsAndAggregate) {
  // Step 0: all four rows on expert 0 and 1; step 1: spread over four experts, one slot masked, one foreign.
  const std::vector<int32_t> ids = {0, 1, 0, 1, 0, 1, 2, 3, -1, 0, 9, 1};
  const TraceStats s = describe_trace(make_tensor(ids.data(), RAMP_I32, {2, 3, 2}), 4);
  ASSERT_EQ(s.steps.size(), 2U);
  EXPECT_EQ(s.tokens, 3);
  EXPECT_EQ(s.top_k, 2);
  EXPECT_EQ(s.steps[0].histogram.rows, 6);
  EXPECT_EQ(s.steps[0].histogram.active, 2);
  EXPECT_DOUBLE_EQ(s.steps[0].histogram.max_over_mean, 2.0);
  EXPECT_NEAR(s.steps[0].histogram.normalised_entropy, 0.5, 1e-15);
  EXPECT_EQ(s.steps[1].histogram.rows, 4);
  EXPECT_EQ(s.steps[1].masked, 1);
  EXPECT_EQ(s.steps[1].out_of_range, 1);
  EXPECT_DOUBLE_EQ(s.steps[1].histogram.max_over_mean, 1.0);
  EXPECT_EQ(s.total.histogram.rows, 10);
  EXPECT_EQ(s.total.masked, 1);
  EXPECT_EQ(s.total.out_of_range, 1);
  EXPECT_DOUBLE_EQ(s.max_over_mean.mean, 1.5);
  EXPECT_DOUBLE_EQ(s.max_over_mean.max, 2.0);
  EXPECT_DOUBLE_EQ(s.active.mean, 3.0);
  EXPECT_DOUBLE_EQ(s.active.max, 4.0);
  EXPECT_NEAR(s.normalised_entropy.mean, 0.75, 1e-14);
}
TEST(TraceStats, StridedStepsAndInt64) {
  // Steps 10 elements apart, rows 3 apart, two ids used of each row.
  std::vector<int64_t> ids(20, 7);
  ramp_tensor t = make_tensor(ids.data(), RAMP_I64, {2, 3, 2});
  t.stride[0] = 10;
  t.stride[1] = 3;
  for (size_t step = 0; step < 2; ++step)
    for (size_t row = 0; row < 3; ++row)
      for (size_t j = 0; j < 2; ++j) ids[step * 10 + row * 3 + j] = static_cast<int64_t>(j);
  const TraceStats s = describe_trace(t, 2);
  EXPECT_EQ(s.total.histogram.rows, 12);
  EXPECT_EQ(s.total.out_of_range, 0);
}
TEST(TraceStats, EmptyAndBad) {
  const TraceStats s = describe_trace(make_tensor(nullptr, RAMP_I32, {0, 4}), 8);
  EXPECT_EQ(s.steps.size(), 1U);
  EXPECT_EQ(s.total.histogram.rows, 0);
  EXPECT_TRUE(describe_trace(make_tensor(nullptr, RAMP_I32, {0, 2, 4}), 8).steps.empty());
  std::vector<int32_t> ids(4, 0);
  const auto bad = [](const char* field, const ramp_tensor& t, int64_t experts) {
    expect_error(RAMP_ERROR_INVALID_ARGUMENT, {field}, [&] { describe_trace(t, experts); });
  };
  bad("trace", make_tensor(ids.data(), RAMP_I32, {4}), 8);
  bad("trace", make_tensor(ids.data(), RAMP_F32, {2, 2}), 8);
  bad("experts", make_tensor(ids.data(), RAMP_I32, {2, 2}), 0);
}

}  // namespace
}  // namespace ramp::test
