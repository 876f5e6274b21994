// The .npy reader and writer: every dtype and format version, Fortran order, and a wide choice of broken and
// hostile files, each of which must end in an error that says what is wrong.
#include "base/npy.hpp"

#include <gtest/gtest.h>

#include <cstring>
#include <numeric>

#include "base/file.hpp"
#include "base/rng.hpp"
#include "base/tensor.hpp"
#include "base/test_support.hpp"

namespace ramp::core {
namespace {

using test::expect_error;
using test::TempDir;

// A .npy file as NumPy would lay it out; header is used as given.
std::string make_npy(int version, const std::string& header, const std::string& data) {
  std::string out = "\x93NUMPY";
  out += {static_cast<char>(version), '\0'};
  for (int i = 0; i < (version == 1 ? 2 : 4); ++i) out += static_cast<char>(header.size() >> (8 * i) & 0xff);
  return out + header + data;
}
std::string header(const std::string& descr, const std::string& shape, bool fortran = false) {
  return "{'descr': '" + descr + "', 'fortran_order': " + (fortran ? "True" : "False") +
         ", 'shape': " + shape + ", }\n";
}
NpyArray parse(const std::string& file) {
  return parse_npy(std::as_bytes(std::span(file)), "test.npy");
}
void expect_bad(const std::string& file, std::initializer_list<std::string_view> parts) {
  expect_error(RAMP_ERROR_BAD_FILE, parts, [&] { parse(file); });
}
std::string bytes_of(const auto& values) {
  return {reinterpret_cast<const char*>(values.data()), values.size() * sizeof values[0]};
}

TEST(Npy, EveryDtypeAndVersion) {
  struct Case {
    const char* descr;
    ramp_dtype dtype;
  };
  const Case cases[] = {{"<f4", RAMP_F32},  {"<f8", RAMP_F64},  {"<f2", RAMP_F16}, {"<u2", RAMP_BF16},
                        {"|V2", RAMP_BF16}, {"<V2", RAMP_BF16}, {"|u1", RAMP_U8},  {"|V1", RAMP_E4M3},
                        {"<V1", RAMP_E4M3}, {"<i4", RAMP_I32},  {"<i8", RAMP_I64}};
  for (const Case& c : cases) {
    for (const int version : {1, 2, 3}) {
      const auto element = static_cast<size_t>(dtype_bytes(c.dtype));
      std::string data(6 * element, '\0');
      std::iota(data.begin(), data.end(), '\1');
      const NpyArray a = parse(make_npy(version, header(c.descr, "(2, 3)"), data));
      EXPECT_EQ(a.descr, c.descr);
      EXPECT_EQ(a.dtype, c.dtype);
      EXPECT_EQ(a.shape, (std::vector<int64_t>{2, 3}));
      ASSERT_EQ(a.data.size(), data.size());
      EXPECT_EQ(std::memcmp(a.data.data(), data.data(), data.size()), 0);
      EXPECT_EQ(a.view().ndim, 2);
      EXPECT_EQ(a.view().stride[0], 3);
    }
  }
}

TEST(Npy, HeaderVariantsThatNumPyAccepts) {
  const std::string data = bytes_of(std::vector<float>{1, 2});
  for (const char* text : {"{'descr': '<f4', 'fortran_order': False, 'shape': (2,)}",
                           "{\"shape\":(2,),\"descr\":\"<f4\",\"fortran_order\":False}",
                           "  { 'fortran_order' : False , 'descr':'<f4','shape':( 2 , ) , }   \n"})
    EXPECT_EQ(parse(make_npy(1, text, data)).shape, std::vector<int64_t>{2}) << text;
}

TEST(Npy, ScalarsAndEmptyArrays) {
  EXPECT_TRUE(parse(make_npy(1, header("<f8", "()"), std::string(8, '\0'))).shape.empty());
  EXPECT_EQ(parse(make_npy(1, header("<f4", "(0,)"), "")).data.size(), 0U);
  // Zero elements, whatever the other extents multiply to.
  EXPECT_EQ(
      numel(parse(make_npy(1, header("<f4", "(4611686018427387904, 0, 4611686018427387904)"), "")).view()),
      0);
}

TEST(Npy, FortranOrderIsTransposed) {
  // The array a[i,j,k] = 100 i + 10 j + k in Fortran order, by its definition.
  std::vector<int32_t> data;
  for (int k = 0; k < 4; ++k)
    for (int j = 0; j < 3; ++j)
      for (int i = 0; i < 2; ++i) data.push_back(100 * i + 10 * j + k);
  const NpyArray a = parse(make_npy(1, header("<i4", "(2, 3, 4)", true), bytes_of(data)));
  const auto* v = a.data.as<int32_t>();
  for (int i = 0; i < 2; ++i)
    for (int j = 0; j < 3; ++j)
      for (int k = 0; k < 4; ++k) EXPECT_EQ(*v++, 100 * i + 10 * j + k);
  EXPECT_EQ(parse(make_npy(1, header("<i4", "(2,)", true), std::string(8, '\1'))).data.as<int32_t>()[0],
            0x01010101);
  EXPECT_EQ(parse(make_npy(1, header("<i4", "(3, 0)", true), "")).data.size(), 0U);
}

TEST(Npy, PickledObjectsAreRefused) {
  expect_bad(make_npy(1, header("|O", "(1,)"), "\x80\x04K\x01."),
             {"test.npy", "Python objects", "unpickling runs code"});
  expect_bad(make_npy(1, "{'descr': [('a', '|O')], 'fortran_order': False, 'shape': (1,)}", "x"),
             {"structured dtype"});
  expect_bad(std::string("\x80\x04\x95\x10\x00\x00", 6) + "numpy.core",
             {"Python pickle", "unpickling runs code"});
  expect_bad("PK\x03\x04zip", {"zip archive (.npz?)"});
}

TEST(Npy, ForeignTypesAreNamed) {
  for (const char* descr :
       {"<c8", "<i2", "|b1", "<u4", "<U8", "|S3", "<M8[ns]", "f4", "", "<", "|f4", "<f16", "=f4"})
    expect_bad(make_npy(1, header(descr, "(1,)"), std::string(64, '\0')), {"dtype", "expected <f4", "<i8"});
  expect_bad(make_npy(1, header(">f4", "(1,)"), std::string(4, '\0')), {"big-endian", "astype('<f4')"});
}

TEST(Npy, TruncatedAtEveryByte) {
  const std::string whole = make_npy(1, header("<f4", "(2, 2)"), std::string(16, '\1'));
  parse(whole);
  for (size_t n = 0; n < whole.size(); ++n) expect_bad(whole.substr(0, n), {"test.npy: got"});
  expect_bad(whole + "x", {"17 bytes of data", "16 bytes", "trailing"});
  expect_bad(whole.substr(0, whole.size() - 1), {"15 bytes of data", "truncated"});
}

TEST(Npy, HostileHeaders) {
  const std::string data(16, '\0');
  const auto with = [&](const std::string& text) { return make_npy(2, text, data); };
  expect_bad(with(header("<f4", "(-1, 4)")), {"negative extent '-1"});
  expect_bad(with(header("<f4", "(4, -9223372036854775808)")), {"negative extent"});
  expect_bad(with(header("<f4", "(99999999999999999999, 1)")), {"63 bits"});
  expect_bad(with(header("<f4", "(4611686018427387904, 4611686018427387904)")), {"overflows"});
  expect_bad(with(header("<f8", "(2305843009213693952,)")), {"overflows"});  // 2^61 * 8
  expect_bad(with(header("<f4", "(4294967296, 4294967296)")), {"overflows"});
  std::string many = "(";
  for (int i = 0; i < 33; ++i) many += "1, ";
  expect_bad(with(header("<f4", many + ")")), {"more than 32 dimensions"});
  expect_bad(with(std::string(20000, ' ')), {"header of 20000 bytes", "at most 10000"});
  expect_bad(with("{'shape': " + std::string(5000, '(')), {"expected an integer"});
  for (const char* text : {"",
                           "{}",
                           "[]",
                           "{",
                           "{'descr'",
                           "{'descr': ",
                           "{'descr': '<f4",
                           "{'descr': '<f4'",
                           "{'descr': 4}",
                           "{3: 4}",
                           "{'descr': '<f4', 'fortran_order': 1, 'shape': (4,)}",
                           "{'descr': '<f4', 'fortran_order': False, 'shape': 4}",
                           "{'descr': '<f4', 'fortran_order': False, 'shape': (4,)} x",
                           "{'descr': '<f4', 'fortran_order': False}",
                           "{'descr': '<f4', 'fortran_order': False, 'shape': (4.0,)}",
                           "{'descr': '<f4', 'fortran_order': False, 'shape': (,)}",
                           "{'descr': '<f4', 'descr': '<f4', 'fortran_order': False, 'shape': (4,)}",
                           "{'descr': '<f4', 'fortran_order': False, 'shape': (4,), 'extra': 1}",
                           "{'descr': '<f\\x34', 'fortran_order': False, 'shape': (4,)}",
                           "{'descr': '<f4', 'fortran_order': __import__('os'), 'shape': (4,)}"})
    expect_bad(with(text), {"test.npy: got"});
}

TEST(Npy, WrongMagicAndVersions) {
  expect_bad("", {"0 bytes"});
  expect_bad(std::string(100, 'x'), {"other content", "numpy.save"});
  for (const int version : {0, 4, 9, 255})
    expect_bad(make_npy(version, header("<f4", "(0,)"), ""), {"format version"});
  std::string minor = make_npy(1, header("<f4", "(0,)"), "");
  minor[7] = 1;
  expect_bad(minor, {"format version 1.1"});
  std::string overlong = make_npy(2, header("<f4", "(0,)"), "");
  overlong[11] = '\x7f';  // header length 2^30 and more
  expect_bad(overlong, {"at most 10000"});
  std::string beyond = make_npy(1, header("<f4", "(0,)"), "");
  beyond[9] = '\x20';  // 8 KiB: within the limit, beyond the file
  expect_bad(beyond, {"truncated"});
}

TEST(Npy, ManyDimensionsParseButHaveNoView) {
  const NpyArray a = parse(make_npy(1, header("<f4", "(1, 1, 1, 1, 2)"), std::string(8, '\0')));
  EXPECT_EQ(a.shape.size(), 5U);
  expect_error(RAMP_ERROR_BAD_FILE, {"5 dimensions", "at most 4"}, [&] { static_cast<void>(a.view()); });
}

TEST(Npy, WriteReadRoundTrip) {
  const TempDir dir;
  Rng rng(11);
  for (const ramp_dtype d :
       {RAMP_F32, RAMP_F16, RAMP_BF16, RAMP_E4M3, RAMP_I32, RAMP_I64, RAMP_U8, RAMP_F64}) {
    for (const std::vector<int64_t>& shape :
         {std::vector<int64_t>{}, {7}, {0}, {3, 5}, {2, 3, 4}, {2, 1, 3, 2}, {3, 0, 2}}) {
      ramp_tensor t{};
      t.dtype = d;
      for (const int64_t extent : shape) t.shape[t.ndim++] = extent;
      std::vector<uint64_t> data(128);
      for (uint64_t& v : data) v = rng.next();
      t.data = data.data();
      write_npy(dir / "a.npy", t);
      const NpyArray a = read_npy(dir / "a.npy");
      EXPECT_EQ(a.shape, shape);
      EXPECT_EQ(dtype_bytes(a.dtype), dtype_bytes(d));
      EXPECT_EQ(a.data.size(), static_cast<uint64_t>(numel(t) * dtype_bytes(d)));
      if (a.data.size() != 0) {
        EXPECT_EQ(std::memcmp(a.data.data(), data.data(), a.data.size()), 0);
      }
      const MappedFile file(dir / "a.npy");
      EXPECT_EQ((file.bytes().size() - a.data.size()) % 64, 0U) << "the data is aligned";
    }
  }
}

TEST(Npy, WritesStridedTensors) {
  const TempDir dir;
  std::vector<int32_t> data(1000);
  std::iota(data.begin(), data.end(), 0);
  ramp_tensor t = make_tensor(data.data(), RAMP_I32, {3, 4, 5});
  t.stride[0] = 100;
  t.stride[1] = 10;
  t.stride[2] = 2;
  write_npy(dir / "a.npy", t);
  const NpyArray a = read_npy(dir / "a.npy");
  const auto* v = a.data.as<int32_t>();
  for (int i = 0; i < 3; ++i)
    for (int j = 0; j < 4; ++j)
      for (int k = 0; k < 5; ++k) EXPECT_EQ(*v++, 100 * i + 10 * j + 2 * k);
  // Larger than the gathering block of 1 MiB.
  std::vector<double> big(600000);
  std::iota(big.begin(), big.end(), 0.0);
  t = make_tensor(big.data(), RAMP_F64, {300000, 1});
  t.stride[0] = 2;
  write_npy(dir / "b.npy", t);
  const NpyArray b = read_npy(dir / "b.npy");
  for (int i = 0; i < 300000; ++i) ASSERT_EQ(b.data.as<double>()[i], 2.0 * i);
}

TEST(Npy, WriteRefusesWhatItCannotWrite) {
  const TempDir dir;
  const std::string path = dir / "a.npy";
  float x = 0;
  ramp_tensor t = make_tensor(&x, RAMP_F32, {1});
  t.device.type = RAMP_DEVICE_CUDA;
  expect_error(RAMP_ERROR_INVALID_ARGUMENT, {"device tensor"}, [&] { write_npy(path, t); });
  t = make_tensor(nullptr, RAMP_F32, {1});
  expect_error(RAMP_ERROR_INVALID_ARGUMENT, {"data NULL"}, [&] { write_npy(path, t); });
  t = make_tensor(&x, RAMP_DTYPE_NONE, {1});
  expect_error(RAMP_ERROR_INVALID_ARGUMENT, {"a known dtype"}, [&] { write_npy(path, t); });
  EXPECT_TRUE(dir.list().empty());
  expect_error(RAMP_ERROR_IO, {"No such file"}, [&] { read_npy(path); });
}

}  // namespace
}  // namespace ramp::core
