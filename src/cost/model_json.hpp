// The parts that every predictor's JSON shares: model shape and config table, with checks that name the key.
#pragma once

#include <nlohmann/json.hpp>
#include <string>
#include <string_view>
#include <vector>

#include "cost/dataset.hpp"

namespace ramp::core {

// {"name", "experts", "top_k", "hidden", "intermediate"}
nlohmann::json shape_to_json(const ModelShape& m);
ModelShape shape_from_json(const nlohmann::json& j);

// Columns: {"config": [names], "tile_m": [...], ..., "extra": {column: [...]}}; only columns that the profile
// carried.
nlohmann::json table_to_json(const ConfigTable& t);
ConfigTable table_from_json(const nlohmann::json& j);

// Checked reads. Throw Error(BAD_FILE) naming the key, what was found and what is expected.
const nlohmann::json& json_member(const nlohmann::json& j, std::string_view key);
double json_number(const nlohmann::json& j, std::string_view key, double low, double high);
int64_t json_integer(const nlohmann::json& j, std::string_view key, int64_t low, int64_t high);
std::string json_text(const nlohmann::json& j, std::string_view key);
// Arrays of exactly `count` numbers in [low, high].
std::vector<double> json_numbers(const nlohmann::json& j, std::string_view key, size_t count, double low,
                                 double high);
std::vector<int64_t> json_integers(const nlohmann::json& j, std::string_view key, size_t count, int64_t low,
                                   int64_t high);
[[noreturn]] void fail_json(std::string_view key, std::string_view got, std::string_view expected);

}  // namespace ramp::core
