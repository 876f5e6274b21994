// JSON documents from files that nobody vouches for: bounded in size and depth, errors in the house format.
#pragma once

#include <cstdint>
#include <nlohmann/json.hpp>
#include <string>
#include <string_view>

namespace ramp::core {

// Throws Error(BAD_FILE) naming `name` for text that is not one JSON object, is longer than max_bytes, nests
// deeper than 64 levels or is not UTF-8.
nlohmann::json parse_json_object(std::string_view text, const std::string& name,
                                 uint64_t max_bytes = uint64_t{16} << 20U);

}  // namespace ramp::core
