// The .npy format (NEP 1; versions 1.0, 2.0 and 3.0), read with suspicion: the header is a Python literal,
// and only the one dictionary that NumPy itself writes is accepted.
#include "base/npy.hpp"

#include <fmt/format.h>

#include <array>
#include <cstring>
#include <string_view>

#include "base/error.hpp"
#include "base/file.hpp"
#include "base/tensor.hpp"

namespace ramp::core {
namespace {

constexpr std::string_view kMagic = "\x93NUMPY";
constexpr size_t kMaxHeader = 10000;  // NumPy's own limit on headers that it trusts (max_header_size)
constexpr size_t kMaxDims = 32;       // NumPy's limit
constexpr const char* kAccepted = "<f4, <f8, <f2, <u2 or |V2 (bf16), |u1, |V1 (e4m3), <i4 or <i8";

[[noreturn]] void bad(const std::string& name, std::string_view got, std::string_view expected,
                      std::string_view fix = {}) {
  fail_argument(name, got, expected, fix, RAMP_ERROR_BAD_FILE);
}

struct Header {
  std::string descr;
  bool fortran = false;
  std::vector<int64_t> shape;
};

// A recursive-descent parser of {'descr': '<f4', 'fortran_order': False, 'shape': (3, 4), }. No nesting
// beyond that, so no depth to exhaust.
class HeaderParser {
 public:
  HeaderParser(std::string_view text, const std::string& name) : text_(text), name_(name) {}

  Header parse() {
    Header h;
    std::array<bool, 3> seen{};
    expect('{');
    while (!accept('}')) {
      const std::string key = string();
      expect(':');
      if (key == "descr") {
        once(seen[0], key);
        h.descr = descr();
      } else if (key == "fortran_order") {
        once(seen[1], key);
        h.fortran = boolean();
      } else if (key == "shape") {
        once(seen[2], key);
        h.shape = shape();
      } else {
        bad(name_, fmt::format("header key '{}'", printable(key)), "descr, fortran_order and shape only");
      }
      if (!accept(',')) {
        expect('}');
        break;
      }
    }
    skip_space();
    if (at_ != text_.size()) malformed("the end of the header");
    if (!seen[0] || !seen[1] || !seen[2])
      bad(name_,
          fmt::format("a header without '{}'", !seen[0]   ? "descr"
                                               : !seen[1] ? "fortran_order"
                                                          : "shape"),
          "descr, fortran_order and shape");
    return h;
  }

 private:
  [[noreturn]] void malformed(const char* expected) {
    bad(name_, fmt::format("a header with '{}' at byte {}", printable(text_.substr(at_)), at_), expected,
        "write the file with numpy.save");
  }
  void once(bool& flag, const std::string& key) {
    if (flag) bad(name_, fmt::format("header key '{}' twice", key), "each key once");
    flag = true;
  }
  void skip_space() {
    while (at_ < text_.size() && (text_[at_] == ' ' || text_[at_] == '\n' || text_[at_] == '\t')) ++at_;
  }
  bool accept(char c) {
    skip_space();
    if (at_ >= text_.size() || text_[at_] != c) return false;
    ++at_;
    return true;
  }
  void expect(char c) {
    if (accept(c)) return;
    const std::array<char, 4> text = {'\'', c, '\'', '\0'};
    malformed(text.data());
  }
  std::string string() {
    skip_space();
    if (at_ >= text_.size() || (text_[at_] != '\'' && text_[at_] != '"')) malformed("a quoted string");
    const char quote = text_[at_++];
    const size_t begin = at_;
    while (at_ < text_.size() && text_[at_] != quote) {
      if (text_[at_] == '\\') malformed("a string without escapes");
      ++at_;
    }
    if (at_ >= text_.size()) malformed("the closing quote");
    return std::string(text_.substr(begin, at_++ - begin));
  }
  std::string descr() {
    skip_space();
    if (at_ < text_.size() && text_[at_] == '[')
      bad(name_, "a structured dtype", kAccepted, "save one plain array per file");
    return string();
  }
  bool boolean() {
    skip_space();
    for (const bool value : {false, true}) {
      const std::string_view word = value ? "True" : "False";
      if (text_.substr(at_).starts_with(word)) {
        at_ += word.size();
        return value;
      }
    }
    malformed("True or False");
  }
  std::vector<int64_t> shape() {
    std::vector<int64_t> dims;
    expect('(');
    while (!accept(')')) {
      dims.push_back(integer());
      if (dims.size() > kMaxDims) bad(name_, fmt::format("more than {} dimensions", kMaxDims), "at most 32");
      if (!accept(',')) {
        expect(')');
        break;
      }
    }
    return dims;
  }
  int64_t integer() {
    skip_space();
    if (at_ < text_.size() && text_[at_] == '-')
      bad(name_, fmt::format("the negative extent '{}' in shape", printable(text_.substr(at_, 20))),
          "extents >= 0");
    const size_t begin = at_;
    int64_t value = 0;
    while (at_ < text_.size() && text_[at_] >= '0' && text_[at_] <= '9') {
      if (__builtin_mul_overflow(value, int64_t{10}, &value) ||
          __builtin_add_overflow(value, int64_t{text_[at_] - '0'}, &value))
        bad(name_, "an extent in shape of more than 63 bits", "extents that fit 63 bits");
      ++at_;
    }
    if (at_ == begin) malformed("an integer");
    return value;
  }

  std::string_view text_;
  size_t at_ = 0;
  const std::string& name_;
};

ramp_dtype dtype_of(const std::string& descr, const std::string& name) {
  if (descr.find('O') != std::string::npos)
    bad(name, fmt::format("dtype '{}': Python objects (pickled)", printable(descr)), kAccepted,
        "unpickling runs code from the file, so it is refused; save a plain numeric array");
  if (descr.size() > 2 && descr[0] == '>')
    bad(name, fmt::format("big-endian dtype '{}'", printable(descr)), kAccepted,
        fmt::format("convert with a.astype('<{}')", printable(descr.substr(1))));
  const std::string_view type = std::string_view(descr).substr(descr.empty() ? 0 : 1);
  const char order = descr.empty() ? '\0' : descr[0];
  if (order == '<' || (order == '|' && (type == "u1" || type == "V1" || type == "V2"))) {
    if (type == "f4") return RAMP_F32;
    if (type == "f8") return RAMP_F64;
    if (type == "f2") return RAMP_F16;
    if (type == "u2" || type == "V2") return RAMP_BF16;
    if (type == "i4") return RAMP_I32;
    if (type == "i8") return RAMP_I64;
    if (type == "u1") return RAMP_U8;
    if (type == "V1") return RAMP_E4M3;
  }
  bad(name, fmt::format("dtype '{}'", printable(descr)), kAccepted, "convert with a.astype('<f4')");
}

const char* descr_of(ramp_dtype dtype) {
  switch (dtype) {
    case RAMP_F32:
      return "<f4";
    case RAMP_F16:
      return "<f2";
    case RAMP_BF16:
      return "<u2";
    case RAMP_E4M3:
    case RAMP_U8:
      return "|u1";
    case RAMP_I32:
      return "<i4";
    case RAMP_I64:
      return "<i8";
    case RAMP_F64:
      return "<f8";
    case RAMP_DTYPE_NONE:
      break;
  }
  return nullptr;
}

// Copies a Fortran-order array of `count` elements into C order: walks the output in order and keeps the
// matching source index.
void transpose(const std::byte* from, std::byte* to, const std::vector<int64_t>& shape, size_t element,
               int64_t count) {
  const size_t n = shape.size();
  std::vector<int64_t> index(n, 0), stride(n, 1);
  for (size_t d = 1; d < n; ++d) stride[d] = stride[d - 1] * shape[d - 1];
  int64_t source = 0;
  for (int64_t i = 0; i < count; ++i) {
    std::memcpy(to + static_cast<size_t>(i) * element, from + static_cast<size_t>(source) * element, element);
    for (size_t d = n; d-- > 0;) {
      source += stride[d];
      if (++index[d] < shape[d]) break;
      source -= stride[d] * shape[d];
      index[d] = 0;
    }
  }
}

void check_magic(std::span<const std::byte> bytes, const std::string& name) {
  const std::string_view text(reinterpret_cast<const char*>(bytes.data()), bytes.size());
  if (text.starts_with(kMagic)) return;
  constexpr const char* expected = "a .npy file (it begins with \\x93NUMPY)";
  if (text.starts_with("PK\x03\x04"))
    bad(name, "a zip archive (.npz?)", expected, "take the array out and store it with numpy.save");
  if (text.starts_with('\x80'))
    bad(name, "a Python pickle", expected,
        "unpickling runs code from the file, so it is refused; store a plain array with numpy.save");
  bad(name, bytes.size() < 10 ? fmt::format("{} bytes", bytes.size()) : "other content", expected,
      "store the array with numpy.save");
}

}  // namespace

ramp_tensor NpyArray::view() const {
  if (shape.size() > RAMP_MAX_DIMS)
    fail_argument("npy array", fmt::format("{} dimensions", shape.size()),
                  fmt::format("at most {}", RAMP_MAX_DIMS), "reshape it", RAMP_ERROR_BAD_FILE);
  ramp_tensor t{};
  t.data = data.data();
  t.dtype = dtype;
  t.ndim = static_cast<int32_t>(shape.size());
  for (size_t d = 0; d < shape.size(); ++d) t.shape[d] = shape[d];
  return with_strides(t);
}

NpyArray parse_npy(std::span<const std::byte> bytes, const std::string& name) {
  check_magic(bytes, name);
  const auto byte = [&](size_t i) { return static_cast<uint32_t>(bytes[i]); };
  if (bytes.size() < 10)
    bad(name, fmt::format("{} bytes", bytes.size()), "at least 10 (magic, version, length)");
  const uint32_t major = byte(6);
  const uint32_t minor = byte(7);
  if (major < 1 || major > 3 || minor != 0)
    bad(name, fmt::format("format version {}.{}", major, minor), "1.0, 2.0 or 3.0");
  const size_t prefix = major == 1 ? 10 : 12;
  if (bytes.size() < prefix)
    bad(name, fmt::format("{} bytes", bytes.size()), "a header length field", "the file is truncated");
  const size_t length =
      major == 1 ? (byte(8) | byte(9) << 8U) : (byte(8) | byte(9) << 8U | byte(10) << 16U | byte(11) << 24U);
  if (length > kMaxHeader)
    bad(name, fmt::format("a header of {} bytes", length), fmt::format("at most {}", kMaxHeader));
  if (length > bytes.size() - prefix)
    bad(name, fmt::format("a header of {} bytes in a file of {} bytes", length, bytes.size()),
        "a header inside the file", "the file is truncated");

  const std::string_view text(reinterpret_cast<const char*>(bytes.data()) + prefix, length);
  Header header = HeaderParser(text, name).parse();
  NpyArray array;
  array.dtype = dtype_of(header.descr, name);
  array.descr = std::move(header.descr);
  array.shape = std::move(header.shape);

  const auto element = static_cast<size_t>(dtype_bytes(array.dtype));
  int64_t count = 1;
  bool empty = false;
  bool overflow = false;
  for (const int64_t extent : array.shape) {
    empty = empty || extent == 0;
    overflow = overflow || __builtin_mul_overflow(count, extent, &count);
  }
  int64_t data_bytes = 0;
  if (empty) {
    count = 0;
  } else if (overflow || __builtin_mul_overflow(count, static_cast<int64_t>(element), &data_bytes)) {
    bad(name, "a shape whose size overflows 63 bits", "a shape that matches the data");
  }
  const auto body = bytes.subspan(prefix + length);
  if (static_cast<uint64_t>(data_bytes) != body.size())
    bad(name, fmt::format("{} bytes of data", body.size()),
        fmt::format("{} bytes for its dtype '{}' and shape", data_bytes, array.descr),
        body.size() < static_cast<uint64_t>(data_bytes)
            ? "the file is truncated"
            : "the file has trailing bytes; save one array per file");
  array.data = AlignedBuffer(static_cast<uint64_t>(data_bytes));
  if (data_bytes == 0) return array;
  if (header.fortran && array.shape.size() > 1) {
    transpose(body.data(), array.data.as<std::byte>(), array.shape, element, count);
  } else {
    std::memcpy(array.data.data(), body.data(), body.size());
  }
  return array;
}

NpyArray read_npy(const std::string& path) {
  const MappedFile file(path);
  return parse_npy(file.bytes(), path);
}

void write_npy(const std::string& path, const ramp_tensor& tensor) {
  const char* const descr = descr_of(static_cast<ramp_dtype>(tensor.dtype));
  if (descr == nullptr || tensor.ndim < 0 || tensor.ndim > RAMP_MAX_DIMS)
    fail_argument("tensor to write as .npy", shape_text(tensor), "a known dtype and 0 to 4 dimensions");
  const int64_t count = numel(tensor);
  if (count != 0 && tensor.data == nullptr)
    fail_argument("tensor to write as .npy", "data NULL", "data", "pass a valid pointer");
  if (tensor.device.type != RAMP_DEVICE_CPU)
    fail_argument("tensor to write as .npy", "a device tensor", "host memory", "copy it to the host first");
  const ramp_tensor t = with_strides(tensor);

  std::string shape;
  for (int32_t d = 0; d < t.ndim; ++d) {
    shape += (d == 0 ? "" : ", ") + std::to_string(t.shape[d]);
    if (t.ndim == 1) shape += ",";
  }
  std::string header =
      fmt::format("{{'descr': '{}', 'fortran_order': False, 'shape': ({}), }}", descr, shape);
  // The data starts at a multiple of 64; the header ends in a newline.
  header.append((64 - (10 + header.size() + 1) % 64) % 64, ' ');
  header += '\n';
  std::string start(kMagic);
  start += {'\x01', '\0', static_cast<char>(header.size() & 0xffU), static_cast<char>(header.size() >> 8U)};

  AtomicFile file(path);
  file.write(start + header);
  const auto element = static_cast<size_t>(dtype_bytes(static_cast<ramp_dtype>(t.dtype)));
  const auto* const base = static_cast<const std::byte*>(t.data);
  if (count != 0 && is_contiguous(t)) {
    file.write(std::span(base, static_cast<size_t>(count) * element));
  } else if (count != 0) {
    // Gather blocks of elements into a buffer, whatever the strides.
    std::array<int64_t, RAMP_MAX_DIMS> index{};
    int64_t source = 0;
    std::vector<std::byte> block;
    block.reserve(1U << 20U);
    for (int64_t i = 0; i < count; ++i) {
      const std::byte* const from = base + source * static_cast<int64_t>(element);
      block.insert(block.end(), from, from + element);
      if (block.size() + element > (1U << 20U)) {
        file.write(block);
        block.clear();
      }
      for (int32_t d = t.ndim - 1; d >= 0; --d) {
        source += t.stride[d];
        if (++index[static_cast<size_t>(d)] < t.shape[d]) break;
        source -= t.stride[d] * t.shape[d];
        index[static_cast<size_t>(d)] = 0;
      }
    }
    file.write(block);
  }
  file.commit();
}

}  // namespace ramp::core
