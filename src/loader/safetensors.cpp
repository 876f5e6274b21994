// The safetensors reader. The header is parsed as a stream of events, not into a document: nothing but the
// three levels that the format knows is accepted, so depth, duplicates and types are checked as they come by.
#include "loader/safetensors.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <array>
#include <nlohmann/json.hpp>
#include <utility>

#include "base/error.hpp"

namespace ramp::core {
namespace {

using nlohmann::json;

constexpr size_t kMaxDims = 16;  // far above any tensor; bounds what a hostile shape costs

struct FileType {
  const char* name;
  int32_t bits;
  ramp_dtype dtype;
};
// Every type of the format as of safetensors 0.6.
constexpr std::array<FileType, 22> kTypes = {{{"F64", 64, RAMP_F64},
                                              {"F32", 32, RAMP_F32},
                                              {"F16", 16, RAMP_F16},
                                              {"BF16", 16, RAMP_BF16},
                                              {"F8_E4M3", 8, RAMP_E4M3},
                                              {"I64", 64, RAMP_I64},
                                              {"I32", 32, RAMP_I32},
                                              {"U8", 8, RAMP_U8},
                                              {"BOOL", 8, RAMP_DTYPE_NONE},
                                              {"I8", 8, RAMP_DTYPE_NONE},
                                              {"I16", 16, RAMP_DTYPE_NONE},
                                              {"U16", 16, RAMP_DTYPE_NONE},
                                              {"U32", 32, RAMP_DTYPE_NONE},
                                              {"U64", 64, RAMP_DTYPE_NONE},
                                              {"C64", 64, RAMP_DTYPE_NONE},
                                              {"F8_E5M2", 8, RAMP_DTYPE_NONE},
                                              {"F8_E8M0", 8, RAMP_DTYPE_NONE},
                                              {"F8_E4M3FNUZ", 8, RAMP_DTYPE_NONE},
                                              {"F8_E5M2FNUZ", 8, RAMP_DTYPE_NONE},
                                              {"F6_E2M3", 6, RAMP_DTYPE_NONE},
                                              {"F6_E3M2", 6, RAMP_DTYPE_NONE},
                                              {"F4", 4, RAMP_DTYPE_NONE}}};

[[noreturn]] void bad(const std::string& where, std::string_view got, std::string_view expected,
                      std::string_view fix = {}) {
  fail_argument(where, got, expected, fix, RAMP_ERROR_BAD_FILE);
}

// Receives the JSON events. Levels: 0 outside, 1 the root object, 2 a tensor's object or the metadata, 3 an
// array.
class HeaderHandler : public nlohmann::json_sax<json> {
 public:
  HeaderHandler(SafetensorsHeader& out, const std::string& file) : out_(out), file_(file) {}

  bool start_object(std::size_t) override {
    if (level_ == 0) {
      level_ = 1;
    } else if (level_ == 1) {
      level_ = 2;
      entry_ = {};
      seen_ = {};
    } else {
      wrong("an object");
    }
    return true;
  }
  bool end_object() override {
    if (level_ == 2 && !in_metadata_) finish_tensor();
    --level_;
    in_metadata_ = false;
    return true;
  }
  bool key(string_t& text) override {
    if (level_ == 1) {
      name_ = text;
      in_metadata_ = text == "__metadata__";
      if (in_metadata_ ? std::exchange(metadata_seen_, true) : out_.tensors.contains(text))
        bad(where(), "this name twice", "each name once");
    } else {
      field_ = text;
      if (in_metadata_ && out_.metadata.contains(text)) bad(where(), "a metadata key twice", "each key once");
      if (!in_metadata_) note_field();
    }
    return true;
  }
  bool string(string_t& text) override {
    if (level_ != 2) wrong("a string");
    if (in_metadata_) {
      out_.metadata.emplace(field_, text);
      return true;
    }
    if (field_ != "dtype") wrong("a string");
    entry_.dtype_text = text;
    return true;
  }
  bool start_array(std::size_t) override {
    if (level_ != 2 || in_metadata_ || field_ == "dtype") wrong("an array");
    level_ = 3;
    return true;
  }
  bool end_array() override {
    level_ = 2;
    return true;
  }
  bool number_unsigned(number_unsigned_t value) override {
    if (level_ != 3) wrong("a number");
    if (field_ == "shape") {
      if (value > static_cast<uint64_t>(INT64_MAX))
        bad(where(), fmt::format("the extent {} in shape", value), "extents below 2^63");
      if (entry_.shape.size() == kMaxDims)
        bad(where(), fmt::format("more than {} dimensions", kMaxDims), fmt::format("at most {}", kMaxDims));
      entry_.shape.push_back(static_cast<int64_t>(value));
    } else if (num_offsets_ < 2) {
      (num_offsets_ == 0 ? entry_.begin : entry_.end) = value;
      ++num_offsets_;
    } else {
      bad(where(), "more than two data_offsets", "[begin, end]");
    }
    return true;
  }
  bool number_integer(number_integer_t value) override {
    bad(where(), fmt::format("the number {}", value), "integers >= 0");
  }
  bool number_float(number_float_t, const string_t& text) override {
    bad(where(), fmt::format("the number {}", printable(text)), "integers from 0 to 2^64 - 1");
  }
  bool null() override { wrong("null"); }
  bool boolean(bool) override { wrong("a boolean"); }
  bool binary(binary_t&) override { wrong("binary data"); }
  bool parse_error(std::size_t position, const std::string&, const json::exception& e) override {
    const bool utf8 = std::string_view(e.what()).find("UTF-8") != std::string_view::npos;
    bad(file_,
        fmt::format("{} at byte {} of the header", utf8 ? "text that is not UTF-8" : "malformed JSON",
                    position),
        "a JSON header", "the file is damaged or not a safetensors file");
  }

 private:
  [[nodiscard]] std::string where() const {
    return name_.empty() && level_ < 2 ? file_ : fmt::format("{}: tensor '{}'", file_, printable(name_, 120));
  }
  [[noreturn]] void wrong(const char* got) {
    static constexpr std::array<const char*, 4> kExpected = {
        "an object {\"name\": {..}}", "an object per tensor",
        "dtype (a string), shape and data_offsets (arrays)", "integers"};
    bad(where(), got, in_metadata_ ? "text values in __metadata__" : kExpected[static_cast<size_t>(level_)]);
  }
  void note_field() {
    static constexpr std::array<std::string_view, 3> kFields = {"dtype", "shape", "data_offsets"};
    for (size_t i = 0; i < kFields.size(); ++i) {
      if (field_ != kFields[i]) continue;
      if (std::exchange(seen_[i], true)) bad(where(), fmt::format("'{}' twice", field_), "each field once");
      if (i == 2) num_offsets_ = 0;
      return;
    }
    bad(where(), fmt::format("the field '{}'", printable(field_)), "dtype, shape and data_offsets only");
  }
  void finish_tensor() {
    if (!seen_[0] || !seen_[1] || !seen_[2])
      bad(where(),
          fmt::format("no '{}'", !seen_[0]   ? "dtype"
                                 : !seen_[1] ? "shape"
                                             : "data_offsets"),
          "dtype, shape and data_offsets");
    if (num_offsets_ != 2) bad(where(), fmt::format("{} data_offsets", num_offsets_), "[begin, end]");
    check_size();
    out_.tensors.emplace(name_, std::move(entry_));
  }
  // The extent of the data must be exactly that of the shape.
  void check_size() {
    const auto* const type = std::find_if(kTypes.begin(), kTypes.end(),
                                          [&](const FileType& t) { return entry_.dtype_text == t.name; });
    if (type == kTypes.end()) {
      std::string known;
      for (const FileType& t : kTypes) known += (known.empty() ? "" : ", ") + std::string(t.name);
      bad(where(), fmt::format("dtype '{}'", printable(entry_.dtype_text)), "one of " + known);
    }
    entry_.dtype = type->dtype;
    uint64_t bits = static_cast<uint64_t>(type->bits);
    bool overflow = false;
    bool empty = false;
    for (const int64_t extent : entry_.shape) {
      overflow = overflow || __builtin_mul_overflow(bits, static_cast<uint64_t>(extent), &bits);
      empty = empty || extent == 0;
    }
    if (empty) {
      bits = 0;
    } else if (overflow) {
      bad(where(), entry_.text(), "a shape whose size fits 64 bits");
    }
    if (bits % 8 != 0)
      bad(where(), fmt::format("{}: {} bits", entry_.text(), bits), "a whole number of bytes");
    if (entry_.begin > entry_.end)
      bad(where(), fmt::format("data_offsets [{}, {}]", entry_.begin, entry_.end), "begin <= end");
    if (entry_.end - entry_.begin != bits / 8)
      bad(where(), fmt::format("{} bytes of data", entry_.end - entry_.begin),
          fmt::format("{} bytes for {}", bits / 8, entry_.text()));
  }

  SafetensorsHeader& out_;
  const std::string& file_;
  int level_ = 0;
  bool in_metadata_ = false, metadata_seen_ = false;
  std::string name_, field_;
  SafetensorsEntry entry_;
  std::array<bool, 3> seen_{};
  int num_offsets_ = 0;
};

// The tensors must tile the data section: no gap (hidden content), no overlap, nothing beyond the end.
void check_layout(const SafetensorsHeader& header, uint64_t data_bytes, const std::string& file) {
  std::vector<std::pair<const std::string*, const SafetensorsEntry*>> order;
  order.reserve(header.tensors.size());
  for (const auto& [name, entry] : header.tensors) order.emplace_back(&name, &entry);
  std::sort(order.begin(), order.end(), [](const auto& a, const auto& b) {
    return std::pair(a.second->begin, a.second->end) < std::pair(b.second->begin, b.second->end);
  });
  uint64_t at = 0;
  for (const auto& [name, entry] : order) {
    const auto where = [&, tensor = name] {
      return fmt::format("{}: tensor '{}'", file, printable(*tensor, 120));
    };
    if (entry->end > data_bytes)
      bad(where(), fmt::format("data_offsets [{}, {}]", entry->begin, entry->end),
          fmt::format("offsets within the {} bytes of data", data_bytes),
          "the file is truncated: download it again");
    if (entry->begin != at)
      bad(where(), fmt::format("data that begins at {}", entry->begin), fmt::format("{}", at),
          entry->begin < at ? "tensors overlap" : "bytes between tensors belong to none");
    at = entry->end;
  }
  if (at != data_bytes)
    bad(file, fmt::format("{} bytes of data", data_bytes), fmt::format("{} bytes for its tensors", at),
        "bytes at the end belong to no tensor");
}

}  // namespace

std::string SafetensorsEntry::text() const {
  return fmt::format("{} [{}]", dtype_text, fmt::join(shape, ", "));
}

SafetensorsHeader parse_safetensors(std::span<const std::byte> file, const std::string& name) {
  constexpr const char* kKind = "a safetensors file";
  const std::string_view text(reinterpret_cast<const char*>(file.data()), file.size());
  if (text.starts_with("version https://git-lfs"))
    bad(name, "a git-lfs pointer", kKind, "fetch the content with: git lfs pull");
  if (text.starts_with("PK\x03\x04")) bad(name, "a zip archive (a PyTorch .bin or .pt?)", kKind);
  if (file.size() < 8) bad(name, fmt::format("{} bytes", file.size()), "at least 8 (the header's length)");
  uint64_t length = 0;
  for (size_t i = 8; i-- > 0;) length = length << 8U | static_cast<uint64_t>(file[i]);
  if (length > kSafetensorsMaxHeader)
    bad(name, fmt::format("a header of {} bytes", length), fmt::format("at most {}", kSafetensorsMaxHeader),
        "the file is damaged or not a safetensors file");
  if (length > file.size() - 8)
    bad(name, fmt::format("a header of {} bytes in a file of {} bytes", length, file.size()),
        "a header inside the file", "the file is truncated: download it again");
  const std::string_view header_text = text.substr(8, length);
  if (!header_text.starts_with('{'))
    bad(name,
        length == 0 ? "an empty header"
                    : fmt::format("a header that begins with '{}'", printable(header_text, 8)),
        "a JSON object");
  SafetensorsHeader header;
  header.data_offset = 8 + length;
  HeaderHandler handler(header, name);
  json::sax_parse(header_text.begin(), header_text.end(), &handler);
  check_layout(header, file.size() - header.data_offset, name);
  return header;
}

SafetensorsFile::SafetensorsFile(const std::string& path)
    : file_(path), header_(parse_safetensors(file_.bytes(), path)) {}

const SafetensorsEntry* SafetensorsFile::find(std::string_view name) const {
  const auto it = header_.tensors.find(name);
  return it == header_.tensors.end() ? nullptr : &it->second;
}

std::span<const std::byte> SafetensorsFile::bytes(const SafetensorsEntry& entry) const {
  return file_.bytes().subspan(header_.data_offset + entry.begin, entry.end - entry.begin);
}

}  // namespace ramp::core
