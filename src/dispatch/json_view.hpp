// Reading JSON files that nobody vouches for: a bounded parser, and views of values that know their file and
// key, so that every complaint says "<file>: <key>: got ..., expected ...; <fix>".
#pragma once

#include <cstdint>
#include <nlohmann/json.hpp>
#include <optional>
#include <string>
#include <string_view>

namespace ramp::core {

// Throws Error(BAD_FILE) naming `name` for text that is not one UTF-8 JSON object, is longer than max_bytes
// or nests deeper than 32 levels.
nlohmann::json parse_json_file(std::string_view text, const std::string& name, size_t max_bytes);
// The file's text, read only if it is not longer than that. Throws Error(IO) or Error(BAD_FILE).
std::string read_bounded(const std::string& path, size_t max_bytes);

// The document as ASCII text with a final newline; doubles in the digits that read back to the same bits.
// Throws Error(INVALID_ARGUMENT) for strings that are not UTF-8. indent: -1 = one line.
std::string json_text_of(const nlohmann::json& document, int indent);

// What the file is and how to get a good one; shared by all views of one document.
struct JsonOrigin {
  std::string name;  // path, or what stands for it
  std::string fix;   // the command that makes such a file
};

// One value of a document. The document and its origin must outlive the view.
class JsonView {
 public:
  JsonView(const nlohmann::json& value, const JsonOrigin& origin, std::string key = "")
      : value_(&value), origin_(&origin), key_(std::move(key)) {}

  [[nodiscard]] const nlohmann::json& raw() const noexcept { return *value_; }
  [[nodiscard]] const std::string& key() const noexcept { return key_; }
  [[nodiscard]] bool is_null() const noexcept { return value_->is_null(); }

  // Members of an object.
  [[nodiscard]] JsonView at(std::string_view member) const;                   // must be there
  [[nodiscard]] std::optional<JsonView> find(std::string_view member) const;  // may be absent

  // Items of an array. `what` says in words what the array holds.
  size_t size(std::string_view what, size_t low, size_t high) const;
  [[nodiscard]] JsonView item(size_t index) const;

  // Scalars.
  [[nodiscard]] double number(double low, double high) const;  // finite
  [[nodiscard]] int64_t integer(int64_t low, int64_t high) const;
  [[nodiscard]] std::string text(size_t max_length = 1024) const;

  // Throws: "<file>: <key>: got <this value>, expected <expected>; <fix>".
  [[noreturn]] void bad(std::string_view expected) const;
  [[noreturn]] void bad(std::string_view got, std::string_view expected) const;

 private:
  const nlohmann::json* value_;
  const JsonOrigin* origin_;
  std::string key_;
};

}  // namespace ramp::core
