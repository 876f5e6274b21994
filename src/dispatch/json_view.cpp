// Bounded parsing, and typed access with errors that name the key.
#include "dispatch/json_view.hpp"

#include <fmt/format.h>

#include <cmath>
#include <filesystem>

#include "base/error.hpp"
#include "base/file.hpp"

namespace ramp::core {
namespace {

constexpr int kMaxDepth = 32;

// How a value looks in a message.
std::string describe_value(const nlohmann::json& v) {
  switch (v.type()) {
    case nlohmann::json::value_t::object:
      return "an object";
    case nlohmann::json::value_t::array:
      return fmt::format("an array of {}", v.size());
    case nlohmann::json::value_t::string:
      return fmt::format("'{}'", printable(v.get_ref<const std::string&>()));
    default:
      return printable(v.dump());
  }
}

}  // namespace

nlohmann::json parse_json_file(std::string_view text, const std::string& name, size_t max_bytes) {
  const auto bad = [&](const std::string& got, const std::string& expected, std::string_view fix) {
    fail_argument(name, got, expected, fix, RAMP_ERROR_BAD_FILE);
  };
  if (text.size() > max_bytes)
    bad(fmt::format("{} bytes", text.size()), fmt::format("at most {}", max_bytes), {});
  const auto bounded = [&](int depth, nlohmann::json::parse_event_t, nlohmann::json&) {
    if (depth > kMaxDepth)
      bad(fmt::format("JSON nested deeper than {} levels", kMaxDepth), "less nesting", {});
    return true;
  };
  constexpr std::string_view kFix = "the file is damaged or cut off: write it again";
  nlohmann::json value;
  try {
    value = nlohmann::json::parse(text.begin(), text.end(), bounded);
  } catch (const nlohmann::json::parse_error& e) {
    bad(fmt::format("malformed JSON at byte {}", e.byte), "a JSON object", kFix);
  } catch (const nlohmann::json::exception&) {  // a number beyond double
    bad("malformed JSON", "a JSON object", kFix);
  }
  if (!value.is_object()) bad(describe_value(value), "a JSON object", {});
  return value;
}

std::string read_bounded(const std::string& path, size_t max_bytes) {
  std::error_code unknown;  // pipes have no size: read them
  const uintmax_t bytes = std::filesystem::file_size(path, unknown);
  if (!unknown && bytes > max_bytes) {
    fail_argument(path, fmt::format("{} bytes", bytes), fmt::format("at most {}", max_bytes), {},
                  RAMP_ERROR_BAD_FILE);
  }
  return read_text(path, max_bytes);
}

std::string json_text_of(const nlohmann::json& document, int indent) {
  try {
    return document.dump(indent, ' ', true) + "\n";
  } catch (const nlohmann::json::type_error&) {
    fail_argument("name", "text that is not UTF-8", "UTF-8 names of kernels, configs, models and points",
                  "rename it");
  }
}

void JsonView::bad(std::string_view got, std::string_view expected) const {
  fail_argument(key_.empty() ? origin_->name : fmt::format("{}: {}", origin_->name, key_), got, expected,
                origin_->fix, RAMP_ERROR_BAD_FILE);
}

void JsonView::bad(std::string_view expected) const {
  bad(describe_value(*value_), expected);
}

JsonView JsonView::at(std::string_view member) const {
  if (auto found = find(member)) return *found;
  JsonView absent(*value_, *origin_, key_.empty() ? std::string(member) : fmt::format("{}.{}", key_, member));
  absent.bad("nothing", "this key");
}

std::optional<JsonView> JsonView::find(std::string_view member) const {
  if (!value_->is_object()) bad("an object");
  const auto at = value_->find(member);
  if (at == value_->end()) return std::nullopt;
  return JsonView(*at, *origin_, key_.empty() ? std::string(member) : fmt::format("{}.{}", key_, member));
}

size_t JsonView::size(std::string_view what, size_t low, size_t high) const {
  if (!value_->is_array()) bad(fmt::format("an array of {}", what));
  if (value_->size() < low || value_->size() > high) {
    bad(low == high ? fmt::format("an array of {} {}", low, what)
                    : fmt::format("an array of {} to {} {}", low, high, what));
  }
  return value_->size();
}

JsonView JsonView::item(size_t index) const {
  return {(*value_)[index], *origin_, fmt::format("{}[{}]", key_, index)};
}

double JsonView::number(double low, double high) const {
  if (!value_->is_number()) bad("a number");
  const auto v = value_->get<double>();
  if (!std::isfinite(v) || v < low || v > high) bad(fmt::format("a number in [{:g}, {:g}]", low, high));
  return v;
}

int64_t JsonView::integer(int64_t low, int64_t high) const {
  const bool fits =
      value_->is_number_integer() &&
      !(value_->is_number_unsigned() && value_->get<uint64_t>() > static_cast<uint64_t>(INT64_MAX));
  const int64_t v = fits ? value_->get<int64_t>() : 0;
  if (!fits || v < low || v > high) bad(fmt::format("an integer in [{}, {}]", low, high));
  return v;
}

std::string JsonView::text(size_t max_length) const {
  if (!value_->is_string()) bad("a string");
  const auto& s = value_->get_ref<const std::string&>();
  if (s.size() > max_length) bad(fmt::format("at most {} characters", max_length));
  return s;
}

}  // namespace ramp::core
