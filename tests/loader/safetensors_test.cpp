// The safetensors reader against hostile files, and the writer's round trip. Each broken file must end in
// BAD_FILE with a text that says what is wrong; none may crash or allocate without bound.
#include "loader/safetensors.hpp"

#include <gtest/gtest.h>

#include <cstring>
#include <numeric>

#include "base/file.hpp"
#include "base/tensor.hpp"
#include "base/test_support.hpp"

namespace ramp::core {
namespace {

using test::expect_error;
using test::TempDir;

std::string make_file(const std::string& header, const std::string& data) {
  std::string out;
  for (int i = 0; i < 8; ++i) out += static_cast<char>(header.size() >> (8 * i) & 0xff);
  return out + header + data;
}
SafetensorsHeader parse(const std::string& file) {
  return parse_safetensors(std::as_bytes(std::span(file)), "x.safetensors");
}
void expect_bad(const std::string& file, std::initializer_list<std::string_view> parts) {
  expect_error(RAMP_ERROR_BAD_FILE, parts, [&] { parse(file); });
}
// One tensor "a" with this description, over `bytes` bytes of data.
void expect_bad_tensor(const std::string& description, size_t bytes,
                       std::initializer_list<std::string_view> parts) {
  expect_bad(make_file(R"({"a":)" + description + "}", std::string(bytes, '\0')), parts);
}

constexpr const char* kTwo =
    R"({"__metadata__":{"format":"pt"},"b":{"dtype":"F32","shape":[2,3],"data_offsets":[8,32]},)"
    R"("a":{"dtype":"BF16","shape":[4],"data_offsets":[0,8]}}   )";

TEST(Safetensors, ParsesNamesShapesAndMetadata) {
  const SafetensorsHeader h = parse(make_file(kTwo, std::string(32, '\0')));
  ASSERT_EQ(h.tensors.size(), 2U);
  EXPECT_EQ(h.data_offset, 8 + std::strlen(kTwo));
  EXPECT_EQ(h.metadata.at("format"), "pt");
  EXPECT_EQ(h.tensors.at("b").dtype, RAMP_F32);
  EXPECT_EQ(h.tensors.at("b").shape, (std::vector<int64_t>{2, 3}));
  EXPECT_EQ(h.tensors.at("b").begin, 8U);
  EXPECT_EQ(h.tensors.at("a").text(), "BF16 [4]");
}

TEST(Safetensors, EveryType) {
  struct Case {
    const char* name;
    int64_t bits;
    ramp_dtype dtype;
  };
  const Case cases[] = {
      {"F64", 64, RAMP_F64},           {"F32", 32, RAMP_F32},        {"F16", 16, RAMP_F16},
      {"BF16", 16, RAMP_BF16},         {"F8_E4M3", 8, RAMP_E4M3},    {"I64", 64, RAMP_I64},
      {"I32", 32, RAMP_I32},           {"U8", 8, RAMP_U8},           {"BOOL", 8, RAMP_DTYPE_NONE},
      {"I8", 8, RAMP_DTYPE_NONE},      {"U16", 16, RAMP_DTYPE_NONE}, {"F8_E5M2", 8, RAMP_DTYPE_NONE},
      {"F8_E8M0", 8, RAMP_DTYPE_NONE}, {"F4", 4, RAMP_DTYPE_NONE},   {"F6_E2M3", 6, RAMP_DTYPE_NONE}};
  for (const Case& c : cases) {
    const auto bytes = static_cast<size_t>(c.bits * 8 / 8);
    const std::string header = R"({"t":{"dtype":")" + std::string(c.name) +
                               R"(","shape":[2,4],"data_offsets":[0,)" + std::to_string(bytes) + "]}}";
    EXPECT_EQ(parse(make_file(header, std::string(bytes, '\0'))).tensors.at("t").dtype, c.dtype) << c.name;
  }
  expect_bad_tensor(R"({"dtype":"F4","shape":[3],"data_offsets":[0,2]})", 2,
                    {"12 bits", "whole number of bytes"});
}

TEST(Safetensors, EmptyFilesScalarsAndEmptyTensors) {
  EXPECT_TRUE(parse(make_file("{}", "")).tensors.empty());
  EXPECT_TRUE(parse(make_file(R"({"a":{"dtype":"F32","shape":[],"data_offsets":[0,4]}})", "abcd"))
                  .tensors.at("a")
                  .shape.empty());
  // Empty tensors may sit on a boundary, several of them, with any other extent.
  const SafetensorsHeader h = parse(make_file(
      R"({"a":{"dtype":"F32","shape":[0,9223372036854775807],"data_offsets":[4,4]},)"
      R"("b":{"dtype":"U8","shape":[4],"data_offsets":[0,4]},"c":{"dtype":"F32","shape":[0],"data_offsets":[4,4]}})",
      "abcd"));
  EXPECT_EQ(h.tensors.size(), 3U);
}

TEST(Safetensors, HeaderLength) {
  expect_bad("", {"x.safetensors: got 0 bytes", "at least 8"});
  expect_bad("1234567", {"7 bytes"});
  expect_bad(std::string(8, '\0'), {"empty header"});
  expect_bad(std::string(8, '\xff'), {"header of 18446744073709551615 bytes", "at most 100000000"});
  expect_bad(std::string("\x00\xe1\xf5\x05\x00\x00\x00\x00{}", 10),
             {"header of 100000000 bytes in a file of 10"});
  expect_bad(std::string("\x01\xe1\xf5\x05\x00\x00\x00\x00{}", 10), {"at most 100000000"});
  expect_bad(make_file(" {}", ""), {"begins with ' {}'", "JSON object"});
  expect_bad("version https://git-lfs.github.com/spec/v1\noid sha256:0\n",
             {"git-lfs pointer", "git lfs pull"});
  expect_bad("PK\x03\x04 and so on", {"zip archive"});
}

TEST(Safetensors, TruncatedAtEveryByte) {
  const std::string whole = make_file(kTwo, std::string(32, '\1'));
  parse(whole);
  for (size_t n = 0; n < whole.size(); ++n) expect_bad(whole.substr(0, n), {"x.safetensors"});
  expect_bad(whole.substr(0, whole.size() - 1), {"tensor 'b'", "within the 31 bytes", "truncated"});
  expect_bad(whole + "x", {"33 bytes of data", "belong to no tensor"});
}

TEST(Safetensors, EveryByteOfTheHeaderCorrupted) {
  // Any one-byte change either still parses to the same layout rules or is refused: never anything else.
  const std::string whole = make_file(kTwo, std::string(32, '\1'));
  for (size_t i = 0; i < whole.size() - 32; ++i) {
    for (const char c : {'\0', '\xff', '"', '{', '[', '9', ' '}) {
      std::string broken = whole;
      broken[i] = c;
      try {
        const SafetensorsHeader h = parse(broken);
        for (const auto& [name, entry] : h.tensors) {
          ASSERT_LE(entry.begin, entry.end);
          ASSERT_LE(h.data_offset + entry.end, broken.size());
        }
      } catch (const Error& e) {
        ASSERT_EQ(e.status(), RAMP_ERROR_BAD_FILE);
      }
    }
  }
}

TEST(Safetensors, OffsetsMustTileTheData) {
  const auto two = [](const char* a, const char* b) {
    return std::string(R"({"a":{"dtype":"U8","shape":[4],"data_offsets":)") + a +
           R"(},"b":{"dtype":"U8","shape":[4],"data_offsets":)" + b + "}}";
  };
  parse(make_file(two("[4,8]", "[0,4]"), std::string(8, '\0')));
  expect_bad(make_file(two("[0,4]", "[2,6]"), std::string(8, '\0')),
             {"tensor 'b'", "begins at 2", "overlap"});
  expect_bad(make_file(two("[0,4]", "[0,4]"), std::string(8, '\0')), {"overlap"});
  expect_bad(make_file(two("[0,4]", "[5,9]"), std::string(9, '\0')), {"begins at 5", "belong to none"});
  expect_bad(make_file(two("[1,5]", "[5,9]"), std::string(9, '\0')), {"tensor 'a'", "belong to none"});
  expect_bad(make_file(two("[0,4]", "[4,8]"), std::string(7, '\0')), {"within the 7 bytes", "truncated"});
  expect_bad(make_file(two("[0,4]", "[18446744073709551611,18446744073709551615]"), std::string(8, '\0')),
             {"within the 8 bytes"});
  expect_bad(make_file(two("[0,4]", "[8,4]"), std::string(8, '\0')), {"[8, 4]", "begin <= end"});
  expect_bad(make_file("{}", "x"), {"1 bytes of data"});
}

TEST(Safetensors, SizesMustMatchShapes) {
  expect_bad_tensor(R"({"dtype":"F32","shape":[2],"data_offsets":[0,4]})", 4,
                    {"tensor 'a'", "4 bytes", "8 bytes for F32 [2]"});
  expect_bad_tensor(R"({"dtype":"F32","shape":[4294967296,4294967296],"data_offsets":[0,0]})", 0,
                    {"fits 64 bits"});
  expect_bad_tensor(R"({"dtype":"F64","shape":[2305843009213693952],"data_offsets":[0,0]})", 0,
                    {"fits 64 bits"});
  expect_bad_tensor(R"({"dtype":"U8","shape":[9223372036854775808],"data_offsets":[0,0]})", 0,
                    {"extent 9223372036854775808"});
  expect_bad_tensor(R"({"dtype":"U8","shape":[18446744073709551616],"data_offsets":[0,0]})", 0,
                    {"18446744073709551616"});
  expect_bad_tensor(R"({"dtype":"U8","shape":[-1],"data_offsets":[0,0]})", 0,
                    {"the number -1", "integers >= 0"});
  expect_bad_tensor(R"({"dtype":"U8","shape":[1.0],"data_offsets":[0,1]})", 1, {"the number 1.0"});
  expect_bad_tensor(R"({"dtype":"U8","shape":[1e9],"data_offsets":[0,1]})", 1, {"the number 1e9"});
  std::string many = "[1";
  for (int i = 0; i < 16; ++i) many += ",1";
  expect_bad_tensor(R"({"dtype":"U8","shape":)" + many + R"(],"data_offsets":[0,1]})", 1,
                    {"more than 16 dimensions"});
}

TEST(Safetensors, FieldsOfATensor) {
  expect_bad_tensor(R"({"shape":[1],"data_offsets":[0,1]})", 1, {"tensor 'a': got no 'dtype'"});
  expect_bad_tensor(R"({"dtype":"U8","data_offsets":[0,1]})", 1, {"no 'shape'"});
  expect_bad_tensor(R"({"dtype":"U8","shape":[1]})", 1, {"no 'data_offsets'"});
  expect_bad_tensor(R"({"dtype":"U8","shape":[1],"data_offsets":[0]})", 1, {"1 data_offsets"});
  expect_bad_tensor(R"({"dtype":"U8","shape":[1],"data_offsets":[]})", 1, {"0 data_offsets"});
  expect_bad_tensor(R"({"dtype":"U8","shape":[1],"data_offsets":[0,1,2]})", 1, {"more than two"});
  expect_bad_tensor(R"({"dtype":"U8","shape":[1],"data_offsets":[0,1],"x":1})", 1, {"the field 'x'"});
  expect_bad_tensor(R"({"dtype":"U8","dtype":"U8","shape":[1],"data_offsets":[0,1]})", 1, {"'dtype' twice"});
  expect_bad_tensor(R"({"dtype":"Q7","shape":[1],"data_offsets":[0,1]})", 1, {"dtype 'Q7'", "F8_E4M3"});
  expect_bad_tensor(R"({"dtype":8,"shape":[1],"data_offsets":[0,1]})", 1, {"got a number"});
  expect_bad_tensor(R"({"dtype":["U8"],"shape":[1],"data_offsets":[0,1]})", 1, {"got an array"});
  expect_bad_tensor(R"({"dtype":"U8","shape":1,"data_offsets":[0,1]})", 1, {"got a number"});
  expect_bad_tensor(R"({"dtype":"U8","shape":"1","data_offsets":[0,1]})", 1, {"got a string"});
  expect_bad_tensor(R"({"dtype":"U8","shape":[[1]],"data_offsets":[0,1]})", 1, {"got an array"});
  expect_bad_tensor(R"({"dtype":"U8","shape":[{}],"data_offsets":[0,1]})", 1, {"got an object"});
  expect_bad_tensor(R"({"dtype":"U8","shape":["1"],"data_offsets":[0,1]})", 1, {"got a string"});
  expect_bad_tensor(R"({"dtype":"U8","shape":[null],"data_offsets":[0,1]})", 1, {"got null"});
  expect_bad_tensor(R"({"dtype":"U8","shape":[true],"data_offsets":[0,1]})", 1, {"got a boolean"});
  for (const char* value : {"1", "null", "true", "[]", "\"x\"", "1.5", "-1"})
    expect_bad_tensor(value, 1, {"tensor 'a'"});
}

TEST(Safetensors, DuplicatesAndMetadata) {
  expect_bad(make_file(R"({"a":{"dtype":"U8","shape":[1],"data_offsets":[0,1]},)"
                       R"("a":{"dtype":"U8","shape":[1],"data_offsets":[0,1]}})",
                       "x"),
             {"tensor 'a'", "twice"});
  expect_bad(make_file(R"({"__metadata__":{"k":"v"},"__metadata__":{"l":"v"}})", ""), {"twice"});
  expect_bad(make_file(R"({"__metadata__":{"k":"v","k":"w"}})", ""), {"metadata key twice"});
  expect_bad(make_file(R"({"__metadata__":{"k":1}})", ""), {"text values in __metadata__"});
  expect_bad(make_file(R"({"__metadata__":{"k":{}}})", ""), {"text values"});
  expect_bad(make_file(R"({"__metadata__":{"k":[]}})", ""), {"text values"});
  expect_bad(make_file(R"({"__metadata__":[]})", ""), {"got an array"});
}

TEST(Safetensors, MalformedJson) {
  for (const char* text :
       {"{", "{]", "{\"a\"", "{\"a\":}", "{} x", "{}{}", "{\"a\":{}},", "{'a':1}", "{//x\n}", "{\"a\":01}"})
    expect_bad(make_file(text, ""), {"x.safetensors"});
  expect_bad(make_file("{\"\xff\xfe\":{}}", ""), {"not UTF-8"});
  expect_bad(make_file("{\"\xc0\x80\":{}}", ""), {"not UTF-8"});
  expect_bad(make_file("{\"\xed\xa0\x80\":{}}", ""), {"not UTF-8"});  // a lone surrogate
}

TEST(Safetensors, HostileNestingIsRefusedAtTheFourthLevel) {
  // A million levels: a recursive parser would run out of stack.
  std::string deep = "{\"a\":";
  for (int i = 0; i < 1000000; ++i) deep += '[';
  expect_bad(make_file(deep, ""), {"got an array"});
  deep = "{\"a\":{\"shape\":";
  for (int i = 0; i < 1000000; ++i) deep += '[';
  expect_bad(make_file(deep, ""), {"got an array", "integers"});
  deep.clear();
  for (int i = 0; i < 200000; ++i) deep += "{\"a\":";
  expect_bad(make_file(deep, ""), {"x.safetensors"});
}

TEST(Safetensors, ErrorsQuoteHostileNamesSafely) {
  const std::string name(5000, 'n');
  try {
    parse(make_file("{\"" + name + "\\u0007\\n\":1}", ""));
    FAIL();
  } catch (const Error& e) {
    EXPECT_LT(std::string(e.what()).size(), 400U);
    for (const char* c = e.what(); *c != '\0'; ++c) EXPECT_GE(*c, 0x20);
  }
}

TEST(SafetensorsWriter, RoundTripsEveryDtypeAligned) {
  const TempDir dir;
  std::vector<uint64_t> data(64);
  std::iota(data.begin(), data.end(), 0x0102030405060708ULL);
  std::vector<NamedTensor> tensors;
  // Odd byte counts first, so that only the writer's order can keep the others aligned.
  for (const ramp_dtype d : {RAMP_U8, RAMP_E4M3, RAMP_BF16, RAMP_F16, RAMP_F32, RAMP_I32, RAMP_I64, RAMP_F64})
    tensors.push_back({std::string("t.") + dtype_name(d), make_tensor(data.data(), d, {3, 5})});
  tensors.push_back({"scalar \"quoted\" \xc3\xa9", make_tensor(data.data(), RAMP_F32, {})});
  tensors.push_back({"empty", make_tensor(nullptr, RAMP_F32, {0, 4})});
  write_safetensors(dir / "f.safetensors", tensors, {{"format", "pt"}, {"note", "a\nb"}});
  const SafetensorsFile file(dir / "f.safetensors");
  EXPECT_EQ(file.header().metadata.at("note"), "a\nb");
  EXPECT_EQ(file.header().data_offset % 64, 0U);
  ASSERT_EQ(file.header().tensors.size(), tensors.size());
  for (const NamedTensor& t : tensors) {
    const SafetensorsEntry* entry = file.find(t.name);
    ASSERT_NE(entry, nullptr) << t.name;
    EXPECT_EQ(entry->dtype, t.tensor.dtype);
    EXPECT_EQ(entry->shape, std::vector<int64_t>(t.tensor.shape, t.tensor.shape + t.tensor.ndim));
    const auto bytes = file.bytes(*entry);
    const auto element = static_cast<size_t>(dtype_bytes(entry->dtype));
    ASSERT_EQ(bytes.size(), static_cast<size_t>(numel(t.tensor)) * element);
    EXPECT_EQ(std::memcmp(bytes.data(), data.data(), bytes.size()), 0);
    EXPECT_EQ(reinterpret_cast<uintptr_t>(bytes.data()) % element, 0U) << t.name;
  }
  EXPECT_EQ(file.find("nothing"), nullptr);
}

TEST(SafetensorsWriter, RefusesWhatItCannotWriteAndLeavesNothing) {
  const TempDir dir;
  const std::string path = dir / "f.safetensors";
  float x = 0;
  const ramp_tensor good = make_tensor(&x, RAMP_F32, {1});
  const auto write = [&](std::vector<NamedTensor> t) { write_safetensors(path, t); };
  expect_error(RAMP_ERROR_INVALID_ARGUMENT, {"taken"}, [&] { write({{"a", good}, {"a", good}}); });
  expect_error(RAMP_ERROR_INVALID_ARGUMENT, {"taken"}, [&] { write({{"__metadata__", good}}); });
  expect_error(RAMP_ERROR_INVALID_ARGUMENT, {"UTF-8"}, [&] { write({{"\xff", good}}); });
  expect_error(RAMP_ERROR_INVALID_ARGUMENT, {"contiguous host tensor"}, [&] {
    write({{"a", make_tensor(nullptr, RAMP_F32, {1})}});
  });
  ramp_tensor t = make_tensor(&x, RAMP_F32, {2, 2});
  t.stride[0] = 4;
  expect_error(RAMP_ERROR_INVALID_ARGUMENT, {"contiguous host tensor"}, [&] { write({{"a", t}}); });
  expect_error(RAMP_ERROR_INVALID_ARGUMENT, {"a dtype that safetensors knows"}, [&] {
    SafetensorsWriter(path, {{"a", RAMP_DTYPE_NONE, {1}}});
  });
  expect_error(RAMP_ERROR_INVALID_ARGUMENT, {"4 bytes of data", "8 for its tensors"}, [&] {
    SafetensorsWriter writer(path, {{"a", RAMP_F32, {2}}});
    writer.append(std::as_bytes(std::span(&x, 1)));
    writer.commit();
  });
  expect_error(RAMP_ERROR_INVALID_ARGUMENT, {"8 bytes of data", "4 for its tensors"}, [&] {
    SafetensorsWriter writer(path, {{"a", RAMP_F32, {1}}});
    const float two[2] = {};
    writer.append(std::as_bytes(std::span(two)));
  });
  expect_error(RAMP_ERROR_IO, {"No space left"}, [&] {
    write_safetensors("/dev/full", std::vector<NamedTensor>{{"a", good}});
  });
  EXPECT_TRUE(dir.list().empty());
}

TEST(SafetensorsFile, NamesThePath) {
  const TempDir dir;
  expect_error(RAMP_ERROR_IO, {dir / "none.safetensors"}, [&] { SafetensorsFile(dir / "none.safetensors"); });
  write_text(dir / "f.safetensors", "");
  expect_error(RAMP_ERROR_BAD_FILE, {dir / "f.safetensors", "0 bytes"},
               [&] { SafetensorsFile(dir / "f.safetensors"); });
}

}  // namespace
}  // namespace ramp::core
