// Tensor helpers: names, sizes, strides, byte ranges, and each complaint of check_tensor with its text.
#include "base/tensor.hpp"

#include <gtest/gtest.h>

#include <vector>

#include "base/test_support.hpp"

namespace ramp::core {
namespace {

using test::expect_error;

constexpr ramp_device kCpu{RAMP_DEVICE_CPU, 0};

TEST(Tensor, NamesRoundTrip) {
  for (const ramp_dtype d : {RAMP_F32, RAMP_F16, RAMP_BF16, RAMP_E4M3, RAMP_I32, RAMP_I64, RAMP_U8, RAMP_F64})
    EXPECT_EQ(parse_dtype(dtype_name(d)), d);
  EXPECT_STREQ(dtype_name(99), "dtype(99)");
  EXPECT_STREQ(dtype_name(-1), "dtype(-1)");
  EXPECT_EQ(parse_dtype("bfloat16"), RAMP_BF16);
  expect_error(RAMP_ERROR_INVALID_ARGUMENT, {"dtype: got 'f8', expected one of", "e4m3"},
               [] { parse_dtype("f8"); });
  expect_error(RAMP_ERROR_INVALID_ARGUMENT, {"dtype"}, [] { parse_dtype("none"); });
}

TEST(Tensor, ShapeText) {
  const float x = 0;
  EXPECT_EQ(shape_text(make_tensor(&x, RAMP_BF16, {4, 128})), "bf16 [4, 128]");
  EXPECT_EQ(shape_text(make_tensor(&x, RAMP_F32, {})), "f32 []");
  ramp_tensor wild{};
  wild.ndim = 77;
  EXPECT_EQ(shape_text(wild), "none with ndim 77");
}

TEST(Tensor, SizesSaturate) {
  EXPECT_EQ(numel(make_tensor(nullptr, RAMP_F32, {})), 1);
  EXPECT_EQ(numel(make_tensor(nullptr, RAMP_F32, {3, 0, 5})), 0);
  EXPECT_EQ(numel(make_tensor(nullptr, RAMP_F32, {3, 4, 5})), 60);
  EXPECT_EQ(numel(make_tensor(nullptr, RAMP_F32, {INT64_MAX, 2})), INT64_MAX);
  EXPECT_EQ(numel(make_tensor(nullptr, RAMP_F32, {INT64_MAX, 2, 0})), 0);
  EXPECT_EQ(numel(make_tensor(nullptr, RAMP_F32, {-3, 2})), 0);
}

TEST(Tensor, StridesAndContiguity) {
  ramp_tensor t = make_tensor(nullptr, RAMP_F32, {2, 3, 4});
  EXPECT_EQ(t.stride[0], 12);
  EXPECT_EQ(t.stride[1], 4);
  EXPECT_EQ(t.stride[2], 1);
  EXPECT_TRUE(is_contiguous(t));
  ramp_tensor zero = t;
  zero.stride[0] = zero.stride[1] = zero.stride[2] = 0;
  EXPECT_TRUE(is_contiguous(zero));
  EXPECT_EQ(with_strides(zero).stride[0], 12);
  t.stride[0] = 100;
  EXPECT_FALSE(is_contiguous(t));
  EXPECT_EQ(with_strides(t).stride[0], 100);
  t.shape[0] = 1;  // the stride of a single row is never used
  EXPECT_TRUE(is_contiguous(t));
  t.shape[1] = 0;
  EXPECT_TRUE(is_contiguous(t));
}

TEST(Tensor, ByteRanges) {
  std::vector<float> data(100);
  const auto base = reinterpret_cast<uintptr_t>(data.data());
  ramp_tensor t = make_tensor(data.data(), RAMP_F32, {4, 5});
  EXPECT_EQ(byte_range(t).begin, base);
  EXPECT_EQ(byte_range(t).end, base + 80);
  t.stride[0] = 10;
  EXPECT_EQ(byte_range(t).end, base + (30 + 5) * 4);
  EXPECT_TRUE(overlaps(byte_range(t), {base + 139, base + 141}));
  EXPECT_FALSE(overlaps(byte_range(t), {base + 140, base + 141}));
  t.shape[1] = 0;
  EXPECT_EQ(byte_range(t).end, 0U);
  t.shape[0] = t.shape[1] = INT64_MAX;
  EXPECT_EQ(byte_range(t).end, UINTPTR_MAX);  // a view that cannot exist overlaps everything
}

TEST(CheckTensor, AcceptsAndFillsStrides) {
  std::vector<float> data(60);
  ramp_tensor t = make_tensor(data.data(), RAMP_F32, {3, 20});
  t.stride[0] = t.stride[1] = 0;
  EXPECT_EQ(check_tensor(t, "x", {RAMP_F32}, {3, 20}, kCpu).stride[0], 20);
  EXPECT_EQ(check_tensor(t, "x", {RAMP_BF16, RAMP_F32}, {-1, 20}, kCpu).stride[1], 1);
  t.shape[0] = 2;
  t.stride[0] = 40;
  t.stride[1] = 1;
  EXPECT_EQ(check_tensor(t, "x", {RAMP_F32}, {2, 20}, kCpu).stride[0], 40);
  t.shape[1] = 1;  // a last dimension of one element may have any stride
  t.stride[1] = 7;
  check_tensor(t, "x", {RAMP_F32}, {2, 1}, kCpu);
  const ramp_tensor empty = make_tensor(nullptr, RAMP_F32, {0, 20});
  check_tensor(empty, "x", {RAMP_F32}, {-1, 20}, kCpu);
  const ramp_tensor scalar = make_tensor(data.data(), RAMP_F32, {});
  check_tensor(scalar, "s", {RAMP_F32}, {}, kCpu);
}

TEST(CheckTensor, NamesWhatIsWrong) {
  std::vector<double> storage(4 * 64 * 128);
  const ramp_tensor good = make_tensor(storage.data(), RAMP_F32, {4, 64, 128});
  const auto check = [](ramp_tensor t) { check_tensor(t, "w13", {RAMP_F32}, {4, 64, 128}, kCpu); };
  check(good);

  expect_error(RAMP_ERROR_INVALID_ARGUMENT, {"w13: got f32 [4, 64, 128], expected bf16 [8, 64, 128]; "}, [&] {
    check_tensor(good, "w13", {RAMP_BF16}, {8, 64, 128}, kCpu);
  });
  expect_error(RAMP_ERROR_INVALID_ARGUMENT, {"expected bf16, f16 or e4m3 [any, 64, 128]", "convert"}, [&] {
    check_tensor(good, "w13", {RAMP_BF16, RAMP_F16, RAMP_E4M3}, {-1, 64, 128}, kCpu);
  });
  expect_error(RAMP_ERROR_INVALID_ARGUMENT, {"got no tensor (data is NULL)", "required"}, [&] { check({}); });

  ramp_tensor t = good;
  t.data = nullptr;
  expect_error(RAMP_ERROR_INVALID_ARGUMENT, {"f32 [4, 64, 128] with data NULL"}, [&] { check(t); });
  for (const int32_t ndim : {-1, 5, INT32_MAX, INT32_MIN}) {
    t = good;
    t.ndim = ndim;
    expect_error(RAMP_ERROR_INVALID_ARGUMENT, {"got ndim " + std::to_string(ndim), "0..4"},
                 [&] { check(t); });
  }
  t = good;
  t.ndim = 2;
  expect_error(RAMP_ERROR_INVALID_ARGUMENT, {"got f32 [4, 64], expected f32 [4, 64, 128]"},
               [&] { check(t); });
  t = good;
  t.shape[0] = -4;
  expect_error(RAMP_ERROR_INVALID_ARGUMENT, {"got f32 [-4, 64, 128]"}, [&] {
    check_tensor(t, "w13", {RAMP_F32}, {-1, 64, 128}, kCpu);
  });
  t = good;
  t.dtype = 99;
  expect_error(RAMP_ERROR_INVALID_ARGUMENT, {"got dtype(99) [4, 64, 128]"}, [&] { check(t); });
  t = good;
  t.stride[0] = -8192;
  expect_error(RAMP_ERROR_INVALID_ARGUMENT, {"strides [-8192, 128, 1]", "strides >= 0"}, [&] { check(t); });
  t = good;
  t.stride[2] = 2;
  expect_error(RAMP_ERROR_INVALID_ARGUMENT, {"strides [8192, 128, 2]", "a last stride of 1"},
               [&] { check(t); });
  t.stride[2] = 0;
  expect_error(RAMP_ERROR_INVALID_ARGUMENT, {"a last stride of 1"}, [&] { check(t); });
  t = good;
  t.stride[0] = INT64_MAX / 2;
  expect_error(RAMP_ERROR_INVALID_ARGUMENT, {"address space"}, [&] { check(t); });
  t = good;
  t.data = reinterpret_cast<char*>(storage.data()) + 2;
  expect_error(RAMP_ERROR_INVALID_ARGUMENT, {"multiple of the element size (4 bytes)"}, [&] { check(t); });
  t = good;
  t.device = {RAMP_DEVICE_CUDA, 3};
  expect_error(RAMP_ERROR_INVALID_ARGUMENT, {"got a tensor on cuda:3, expected a tensor on cpu"},
               [&] { check(t); });
  t.device = {42, 1};
  expect_error(RAMP_ERROR_INVALID_ARGUMENT, {"device type 42"}, [&] { check(t); });
}

TEST(CheckTensor, HugeExtentsAreReportedNotWrapped) {
  const float x = 0;
  for (const int64_t extent : {INT64_MAX, INT64_MAX / 2, int64_t{1} << 62, int64_t{1} << 61}) {
    const ramp_tensor t = make_tensor(&x, RAMP_F32, {extent, 128});
    expect_error(RAMP_ERROR_INVALID_ARGUMENT, {"address space"}, [&] {
      check_tensor(t, "x", {RAMP_F32}, {-1, 128}, kCpu);
    });
  }
}

TEST(Errors, HouseFormat) {
  expect_error(RAMP_ERROR_BAD_FILE, {"a: got b, expected c; d"},
               [] { fail_argument("a", "b", "c", "d", RAMP_ERROR_BAD_FILE); });
  try {
    fail_argument("a", "b", "c");
  } catch (const Error& e) {
    EXPECT_STREQ(e.what(), "a: got b, expected c");
    EXPECT_EQ(e.status(), RAMP_ERROR_INVALID_ARGUMENT);
  }
  EXPECT_STREQ(status_name(RAMP_OK), "ok");
  EXPECT_STREQ(status_name(RAMP_ERROR_BAD_FILE), "bad file");
  EXPECT_STREQ(status_name(static_cast<ramp_status>(77)), "unknown status");
  EXPECT_EQ(printable("a\nb\xff", 10), "a?b?");
  EXPECT_EQ(printable("abcdef", 3), "abc...");
}

}  // namespace
}  // namespace ramp::core
