// Profile files: writing and reading.
#include "dispatch/profile_file.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <unordered_set>

#include "base/error.hpp"
#include "base/file.hpp"
#include "dispatch/config_columns.hpp"

namespace ramp::core {
namespace {

constexpr size_t kMaxProfileBytes = size_t{512} << 20;
constexpr size_t kMaxConfigs = 1 << 16;
constexpr size_t kMaxColumns = 256;
constexpr size_t kMaxModels = 4096;
constexpr size_t kMaxPoints = 1 << 20;
constexpr size_t kMaxExperts = 1 << 16;
constexpr int64_t kMaxSize = int64_t{1} << 31;
constexpr std::string_view kMend = "profile the kernel on this machine again";

nlohmann::json row_to_json(const double* row, size_t n) {
  nlohmann::json out = nlohmann::json::array();
  for (size_t c = 0; c < n; ++c)
    out.push_back(std::isnan(row[c]) ? nlohmann::json() : nlohmann::json(row[c]));
  return out;
}

void row_from_json(const JsonView& v, double* row, size_t n) {
  v.size("timings or nulls, one per config", n, n);
  for (size_t c = 0; c < n; ++c) {
    const JsonView item = v.item(c);
    row[c] = item.is_null() ? std::numeric_limits<double>::quiet_NaN() : item.number(0, 1e15);
    if (row[c] == 0) item.bad("a positive time in microseconds, or null");
  }
}

ConfigTable configs_from_json(const JsonView& v) {
  ConfigTable t;
  const JsonView columns = v.at("columns");
  std::vector<const ConfigColumn*> known;  // per column; nullptr = an extra one
  std::unordered_set<std::string> names;
  for (size_t i = 0, n = columns.size("column names", 2, kMaxColumns); i < n; ++i) {
    const std::string name = columns.item(i).text();
    if (name.empty() || !names.insert(name).second) columns.item(i).bad("a name that no earlier column has");
    known.push_back(find_config_column(name));
    (known.back() != nullptr ? t.known_columns : t.extra_columns).push_back(name);
  }
  for (const char* needed : {"tile_m", "tile_n"}) {
    if (names.count(needed) == 0) columns.bad(fmt::format("a column '{}'", needed));
  }
  names.clear();
  const JsonView rows = v.at("rows");
  for (size_t i = 0, n = rows.size("configs", 1, kMaxConfigs); i < n; ++i) {
    const JsonView name = rows.item(i).at("name");
    t.names.push_back(name.text());
    if (t.names.back().empty() || !names.insert(t.names.back()).second)
      name.bad("a name that no earlier config has");
    const JsonView values = rows.item(i).at("values");
    values.size("values, one per column", known.size(), known.size());
    KernelConfig c;
    for (size_t k = 0; k < known.size(); ++k) {
      if (known[k] == nullptr) {
        t.extra.push_back(values.item(k).number(-1e300, 1e300));
      } else {
        c.*known[k]->member = static_cast<int32_t>(values.item(k).integer(known[k]->low, kMaxConfigValue));
      }
    }
    finish_config(c);
    t.configs.push_back(c);
  }
  return t;
}

void models_from_json(const JsonView& v, Dataset& d) {
  std::unordered_set<std::string> names;
  for (size_t i = 0, n = v.size("models", 1, kMaxModels); i < n; ++i) {
    const JsonView m = v.item(i);
    ModelShape s;
    s.name = m.at("name").text();
    if (s.name.empty() || !names.insert(s.name).second) m.at("name").bad("a name that no earlier model has");
    s.experts = m.at("experts").integer(1, kMaxExperts);
    s.top_k = m.at("top_k").integer(1, s.experts);
    s.hidden = m.at("hidden").integer(1, kMaxSize);
    s.intermediate = m.at("intermediate").integer(1, kMaxSize);
    d.models.push_back(std::move(s));
  }
}

std::vector<int32_t> histogram_from_json(const JsonView& v, const ModelShape& m, int64_t tokens) {
  const auto experts = static_cast<size_t>(m.experts);
  v.size("counts, one per expert", experts, experts);
  std::vector<int32_t> h(experts);
  int64_t sum = 0;
  for (size_t e = 0; e < experts; ++e) {
    h[e] = static_cast<int32_t>(v.item(e).integer(0, INT32_MAX));
    sum += h[e];
  }
  if (sum > tokens * m.top_k)
    v.bad(fmt::format("counts that sum to {}", sum),
          fmt::format("at most tokens*top_k = {}", tokens * m.top_k));
  return h;
}

void points_from_json(const JsonView& v, Dataset& d) {
  std::unordered_set<std::string> names;
  const size_t n = v.size("points", 1, kMaxPoints);
  const size_t width = d.configs.size();
  for (size_t i = 0; i < n; ++i) {
    const JsonView p = v.item(i);
    WorkPoint w;
    w.name = p.at("name").text();
    if (w.name.empty() || !names.insert(w.name).second) p.at("name").bad("a name that no earlier point has");
    w.model = static_cast<int32_t>(p.at("model").integer(0, static_cast<int64_t>(d.models.size()) - 1));
    w.tokens = p.at("tokens").integer(0, kMaxSize);
    if (const auto zipf = p.find("zipf")) w.zipf = zipf->number(-1e6, 1e6);
    const std::string split = p.at("split").text();
    if (split != "train" && split != "test") p.at("split").bad("'train' or 'test'");
    w.train = split == "train";
    w.histogram = histogram_from_json(p.at("histogram"), d.models[static_cast<size_t>(w.model)], w.tokens);
    d.points.push_back(std::move(w));
    // Grown row by row: what a file makes us allocate stays in proportion to its size.
    d.us.resize(d.us.size() + width);
    row_from_json(p.at("timings_us"), d.us.data() + i * width, width);
    d.us_repeat.resize(d.us_repeat.size() + width, std::numeric_limits<double>::quiet_NaN());
    if (const auto repeat = p.find("repeat_timings_us")) {
      row_from_json(*repeat, d.us_repeat.data() + i * width, width);
      d.has_repeat = true;
    }
  }
}

}  // namespace

std::string profile_text(const Metadata& metadata, const Dataset& d) {
  const size_t width = d.configs.size();
  nlohmann::json columns = nlohmann::json::array();
  for (const std::string& c : d.configs.known_columns) columns.push_back(c);
  for (const std::string& c : d.configs.extra_columns) columns.push_back(c);
  nlohmann::json rows = nlohmann::json::array();
  const size_t extras = d.configs.extra_columns.size();
  for (size_t c = 0; c < width; ++c) {
    nlohmann::json values = nlohmann::json::array();
    for (const std::string& name : d.configs.known_columns)
      values.push_back(d.configs.configs[c].*find_config_column(name)->member);
    for (size_t x = 0; x < extras; ++x) values.push_back(d.configs.extra[c * extras + x]);
    rows.push_back({{"name", d.configs.names[c]}, {"values", std::move(values)}});
  }
  nlohmann::json models = nlohmann::json::array();
  for (const ModelShape& m : d.models) {
    models.push_back({{"name", m.name},
                      {"experts", m.experts},
                      {"top_k", m.top_k},
                      {"hidden", m.hidden},
                      {"intermediate", m.intermediate}});
  }
  nlohmann::json points = nlohmann::json::array();
  for (size_t p = 0; p < d.points.size(); ++p) {
    const WorkPoint& w = d.points[p];
    nlohmann::json point = {
        {"name", w.name},           {"model", w.model},
        {"tokens", w.tokens},       {"split", w.train ? "train" : "test"},
        {"histogram", w.histogram}, {"timings_us", row_to_json(d.us.data() + p * width, width)}};
    if (!std::isnan(w.zipf)) point["zipf"] = w.zipf;
    const double* repeat = d.us_repeat.data() + p * width;
    if (d.has_repeat && std::any_of(repeat, repeat + width, [](double v) { return !std::isnan(v); }))
      point["repeat_timings_us"] = row_to_json(repeat, width);
    points.push_back(std::move(point));
  }
  const nlohmann::json root = {{"schema", kProfileSchema},
                               {"version", kProfileVersion},
                               {"metadata", metadata_to_json(metadata)},
                               {"configs", {{"columns", columns}, {"rows", rows}}},
                               {"models", models},
                               {"points", points}};
  return json_text_of(root, -1);
}

void write_profile(const std::string& path, const Metadata& metadata, const Dataset& data) {
  write_text(path, profile_text(metadata, data));
}

LoadedProfile parse_profile(std::string_view text, const std::string& name, const Metadata& here) {
  const nlohmann::json root = parse_json_file(text, name, kMaxProfileBytes);
  const JsonOrigin origin{name, "profile the kernel again"};
  const JsonView v(root, origin);
  LoadedProfile loaded;
  loaded.compatibility = check_schema(v, kProfileSchema, kProfileVersion, name, kMend);
  if (!loaded.compatibility.usable) return loaded;
  Profile& p = loaded.profile;
  p.metadata = metadata_from_json(v.at("metadata"));
  loaded.compatibility = compare_metadata(p.metadata, here, name, kMend);
  p.data.source = name;
  p.data.configs = configs_from_json(v.at("configs"));
  models_from_json(v.at("models"), p.data);
  points_from_json(v.at("points"), p.data);
  return loaded;
}

LoadedProfile read_profile(const std::string& path, const Metadata& here) {
  return parse_profile(read_bounded(path, kMaxProfileBytes), path, here);
}

}  // namespace ramp::core
