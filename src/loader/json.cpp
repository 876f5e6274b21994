// Bounded JSON parsing over nlohmann-json's callback interface.
#include "loader/json.hpp"

#include <fmt/format.h>

#include "base/error.hpp"

namespace ramp::core {
namespace {
constexpr int kMaxDepth = 64;
}  // namespace

nlohmann::json parse_json_object(std::string_view text, const std::string& name, uint64_t max_bytes) {
  if (text.size() > max_bytes)
    fail_argument(name, fmt::format("{} bytes", text.size()), fmt::format("at most {}", max_bytes), {},
                  RAMP_ERROR_BAD_FILE);
  const auto callback = [&](int depth, nlohmann::json::parse_event_t, nlohmann::json&) {
    if (depth > kMaxDepth)
      fail_argument(name, fmt::format("JSON nested deeper than {} levels", kMaxDepth), "less nesting", {},
                    RAMP_ERROR_BAD_FILE);
    return true;
  };
  nlohmann::json value;
  try {
    value = nlohmann::json::parse(text.begin(), text.end(), callback);
  } catch (const nlohmann::json::parse_error& e) {
    const bool utf8 = std::string_view(e.what()).find("UTF-8") != std::string_view::npos;
    fail_argument(name,
                  fmt::format("{} at byte {}", utf8 ? "text that is not UTF-8" : "malformed JSON", e.byte),
                  "a JSON object", "the file is damaged: fetch it again", RAMP_ERROR_BAD_FILE);
  } catch (const nlohmann::json::exception&) {  // numbers out of range
    fail_argument(name, "malformed JSON", "a JSON object", "the file is damaged: fetch it again",
                  RAMP_ERROR_BAD_FILE);
  }
  if (!value.is_object())
    fail_argument(name, std::string("a JSON ") + value.type_name(), "a JSON object", {}, RAMP_ERROR_BAD_FILE);
  return value;
}

}  // namespace ramp::core
