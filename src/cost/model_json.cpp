// Shapes and config tables as JSON, and reads that complain usefully.
#include "cost/model_json.hpp"

#include <fmt/format.h>

#include <cmath>
#include <set>

#include "base/error.hpp"

namespace ramp::core {
namespace {

constexpr int64_t kMaxExperts = 1 << 16;
constexpr int64_t kMaxSize = int64_t{1} << 31;
constexpr int64_t kMaxParameter = 1 << 24;
constexpr size_t kMaxConfigs = 1 << 20;

struct KnownColumn {
  const char* name;
  int32_t KernelConfig::*member;
  int64_t low;
};
constexpr KnownColumn kKnown[] = {
    {"tile_m", &KernelConfig::tile_m, 1},   {"tile_n", &KernelConfig::tile_n, 1},
    {"tile_k", &KernelConfig::tile_k, 1},   {"warps_n", &KernelConfig::warps_n, 0},
    {"stages", &KernelConfig::stages, 0},   {"threads", &KernelConfig::threads, 0},
    {"split_k", &KernelConfig::split_k, 0}, {"group_m", &KernelConfig::group_m, 0}};

std::string shortly(const nlohmann::json& j) {
  if (j.is_array()) return fmt::format("an array of {}", j.size());
  if (j.is_object()) return "an object";
  return printable(j.dump(-1, ' ', false, nlohmann::json::error_handler_t::replace));
}

}  // namespace

void fail_json(std::string_view key, std::string_view got, std::string_view expected) {
  fail_argument(fmt::format("\"{}\"", printable(key)), got, expected, "write the file again with `ramp fit`",
                RAMP_ERROR_BAD_FILE);
}

const nlohmann::json& json_member(const nlohmann::json& j, std::string_view key) {
  if (!j.is_object()) fail_json(key, shortly(j), "an object that has this key");
  const auto at = j.find(key);
  if (at == j.end()) fail_json(key, "nothing", "a value");
  return *at;
}

double json_number(const nlohmann::json& j, std::string_view key, double low, double high) {
  const nlohmann::json& v = json_member(j, key);
  const double x = v.is_number() ? v.get<double>() : std::nan("");
  if (!(x >= low && x <= high)) fail_json(key, shortly(v), fmt::format("a number in [{}, {}]", low, high));
  return x;
}

int64_t json_integer(const nlohmann::json& j, std::string_view key, int64_t low, int64_t high) {
  const nlohmann::json& v = json_member(j, key);
  const bool fits = v.is_number_integer() &&
                    !(v.is_number_unsigned() && v.get<uint64_t>() > static_cast<uint64_t>(INT64_MAX));
  const int64_t x = fits ? v.get<int64_t>() : 0;
  if (!fits || x < low || x > high)
    fail_json(key, shortly(v), fmt::format("an integer in [{}, {}]", low, high));
  return x;
}

std::string json_text(const nlohmann::json& j, std::string_view key) {
  const nlohmann::json& v = json_member(j, key);
  if (!v.is_string()) fail_json(key, shortly(v), "a string");
  return v.get<std::string>();
}

std::vector<double> json_numbers(const nlohmann::json& j, std::string_view key, size_t count, double low,
                                 double high) {
  const nlohmann::json& v = json_member(j, key);
  if (!v.is_array() || v.size() != count)
    fail_json(key, shortly(v), fmt::format("an array of {} numbers", count));
  std::vector<double> out;
  out.reserve(count);
  for (const nlohmann::json& e : v) {
    const double x = e.is_number() ? e.get<double>() : std::nan("");
    if (!(x >= low && x <= high)) fail_json(key, shortly(e), fmt::format("numbers in [{}, {}]", low, high));
    out.push_back(x);
  }
  return out;
}

std::vector<int64_t> json_integers(const nlohmann::json& j, std::string_view key, size_t count, int64_t low,
                                   int64_t high) {
  const std::vector<double> v =
      json_numbers(j, key, count, static_cast<double>(low), static_cast<double>(high));
  std::vector<int64_t> out;
  out.reserve(count);
  for (size_t i = 0; i < count; ++i) {
    const nlohmann::json& e = json_member(j, key)[i];
    if (!e.is_number_integer()) fail_json(key, shortly(e), "whole numbers");
    out.push_back(e.get<int64_t>());
  }
  return out;
}

nlohmann::json shape_to_json(const ModelShape& m) {
  return {{"name", m.name},
          {"experts", m.experts},
          {"top_k", m.top_k},
          {"hidden", m.hidden},
          {"intermediate", m.intermediate}};
}

ModelShape shape_from_json(const nlohmann::json& j) {
  ModelShape m;
  m.name = json_text(j, "name");
  m.experts = json_integer(j, "experts", 1, kMaxExperts);
  m.top_k = json_integer(j, "top_k", 1, m.experts);
  m.hidden = json_integer(j, "hidden", 1, kMaxSize);
  m.intermediate = json_integer(j, "intermediate", 1, kMaxSize);
  return m;
}

nlohmann::json table_to_json(const ConfigTable& t) {
  nlohmann::json j;
  j["config"] = t.names;
  for (const KnownColumn& k : kKnown) {
    if (!t.has(k.name)) continue;
    nlohmann::json& column = j[k.name] = nlohmann::json::array();
    for (const KernelConfig& c : t.configs) column.push_back(c.*k.member);
  }
  nlohmann::json& extra = j["extra"] = nlohmann::json::object();
  for (size_t x = 0; x < t.extra_columns.size(); ++x) {
    nlohmann::json& column = extra[t.extra_columns[x]] = nlohmann::json::array();
    for (size_t c = 0; c < t.size(); ++c) column.push_back(t.extra[c * t.extra_columns.size() + x]);
  }
  return j;
}

ConfigTable table_from_json(const nlohmann::json& j) {
  const nlohmann::json& names = json_member(j, "config");
  if (!names.is_array() || names.empty() || names.size() > kMaxConfigs) {
    fail_json("config", shortly(names), fmt::format("an array of 1 to {} names", kMaxConfigs));
  }
  ConfigTable t;
  std::set<std::string> seen;
  for (const nlohmann::json& n : names) {
    if (!n.is_string() || !seen.insert(n.get<std::string>()).second) {
      fail_json("config", shortly(n), "names, each once");
    }
    t.names.push_back(n.get<std::string>());
  }
  t.configs.resize(t.names.size());
  for (const KnownColumn& k : kKnown) {
    if (!j.contains(k.name)) continue;
    t.known_columns.emplace_back(k.name);
    const std::vector<int64_t> v = json_integers(j, k.name, t.size(), k.low, kMaxParameter);
    for (size_t c = 0; c < t.size(); ++c) t.configs[c].*k.member = static_cast<int32_t>(v[c]);
  }
  if (!t.has("tile_m") || !t.has("tile_n")) fail_json("tile_m", "no such column", "tile_m and tile_n");
  for (KernelConfig& c : t.configs) {
    c.split_k = std::max(c.split_k, 1);
    if (c.group_m > 0) c.order = TaskOrder::kGrouped;
  }
  const nlohmann::json& extra = json_member(j, "extra");
  if (!extra.is_object()) fail_json("extra", shortly(extra), "an object of columns");
  std::vector<std::vector<double>> columns;
  for (const auto& [name, values] : extra.items()) {
    t.extra_columns.push_back(name);
    columns.push_back(json_numbers(extra, name, t.size(), -1e300, 1e300));
  }
  for (size_t c = 0; c < t.size(); ++c) {
    for (const auto& column : columns) t.extra.push_back(column[c]);
  }
  return t;
}

}  // namespace ramp::core
