// Reading and checking the three CSV files.
#include "cost/dataset.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <charconv>
#include <cmath>
#include <optional>
#include <unordered_map>

#include "base/error.hpp"
#include "cost/csv.hpp"

namespace ramp::core {
namespace {

constexpr int64_t kMaxExperts = 1 << 16;
constexpr int64_t kMaxSize = int64_t{1} << 31;
constexpr int64_t kMaxTokens = int64_t{1} << 31;
constexpr size_t kMaxPairs = size_t{1} << 28;  // 2 GiB of timings

// Heterogeneous look-up: no string is built per row.
struct Hash {
  using is_transparent = void;
  size_t operator()(std::string_view s) const noexcept { return std::hash<std::string_view>{}(s); }
};
using Index = std::unordered_map<std::string, size_t, Hash, std::equal_to<>>;

// An extra column. The models compare its values for equality only, so that text will do as well: where a
// cell is no number, the column holds the rank of each text by first appearance.
struct ExtraColumn {
  int at = -1;
  bool numeric = true;    // so far
  bool quantity = false;  // one that the models calculate with: must be numeric
  std::vector<double> numbers, ranks;
  Index seen;

  void add(const CsvReader& csv, std::span<const std::string_view> row) {
    const std::string_view text = row[static_cast<size_t>(at)];
    const std::optional<double> value = quantity ? csv.number(row, at) : CsvReader::as_number(text);
    numeric = numeric && value.has_value();
    numbers.push_back(value.value_or(0));
    ranks.push_back(static_cast<double>(seen.emplace(std::string(text), seen.size()).first->second));
  }
  [[nodiscard]] double value(size_t config) const { return (numeric ? numbers : ranks)[config]; }
};

ConfigTable read_configs(CsvReader& csv) {
  ConfigTable t;
  const int name = csv.require("config");
  struct Field {
    const char* column;
    int32_t KernelConfig::*member;
    int at;
  };
  std::vector<Field> fields = {{"tile_m", &KernelConfig::tile_m, csv.require("tile_m")},
                               {"tile_n", &KernelConfig::tile_n, csv.require("tile_n")},
                               {"tile_k", &KernelConfig::tile_k, csv.find("tile_k")},
                               {"warps_n", &KernelConfig::warps_n, csv.find("warps_n")},
                               {"stages", &KernelConfig::stages, csv.find("stages")},
                               {"threads", &KernelConfig::threads, csv.find("threads")},
                               {"split_k", &KernelConfig::split_k, csv.find("split_k")},
                               {"group_m", &KernelConfig::group_m, csv.find("group_m")}};
  std::erase_if(fields, [](const Field& f) { return f.at < 0; });
  std::vector<ExtraColumn> extra;
  for (int c = 0; c < static_cast<int>(csv.columns().size()); ++c) {
    const bool known =
        c == name || std::any_of(fields.begin(), fields.end(), [c](const Field& f) { return f.at == c; });
    if (known) continue;
    const std::string& column = csv.columns()[static_cast<size_t>(c)];
    ExtraColumn& e = extra.emplace_back();
    e.at = c;
    e.quantity = column == "residency" || column == "smem_bytes" || column == "regs";
    t.extra_columns.push_back(column);
  }
  for (const Field& f : fields) t.known_columns.emplace_back(f.column);
  Index seen;
  for (auto row = csv.next(); !row.empty(); row = csv.next()) {
    const std::string_view id = row[static_cast<size_t>(name)];
    if (id.empty()) csv.fail_at(name, id, "a name");
    if (!seen.emplace(std::string(id), t.size()).second)
      csv.fail_at(name, id, "a name that no earlier row has");
    KernelConfig c;
    for (const Field& f : fields) {
      const bool tile = f.member == &KernelConfig::tile_m || f.member == &KernelConfig::tile_n ||
                        f.member == &KernelConfig::tile_k;
      c.*f.member = static_cast<int32_t>(csv.integer(row, f.at, tile ? 1 : 0, 1 << 24));
    }
    c.split_k = std::max(c.split_k, 1);
    if (c.group_m > 0) c.order = TaskOrder::kGrouped;
    t.names.emplace_back(id);
    t.configs.push_back(c);
    for (ExtraColumn& e : extra) e.add(csv, row);
  }
  for (size_t c = 0; c < t.size(); ++c) {
    for (const ExtraColumn& e : extra) t.extra.push_back(e.value(c));
  }
  if (t.size() == 0) fail_argument("configs.csv", "no rows", "at least two configs", {}, RAMP_ERROR_BAD_FILE);
  return t;
}

// "0 3 1 ..." -> counts. The sum is checked against tokens*top_k.
std::vector<int32_t> parse_histogram(const CsvReader& csv, int column, std::string_view text, int64_t experts,
                                     int64_t limit) {
  std::vector<int32_t> h;
  h.reserve(static_cast<size_t>(experts));
  int64_t sum = 0;
  const char* at = text.data();
  const char* const end = at + text.size();
  while (at != end) {
    if (*at == ' ') {
      ++at;
      continue;
    }
    int32_t count = 0;
    const auto [next, ec] = std::from_chars(at, end, count);
    if (ec != std::errc() || count < 0 || (next != end && *next != ' ')) {
      csv.fail_at(column, std::string_view(at, static_cast<size_t>(end - at)),
                  "non-negative counts separated by spaces");
    }
    h.push_back(count);
    sum += count;
    at = next;
    if (static_cast<int64_t>(h.size()) > experts) break;
  }
  if (static_cast<int64_t>(h.size()) != experts) {
    csv.fail_at(column,
                fmt::format("{}{} counts", static_cast<int64_t>(h.size()) > experts ? "more than " : "",
                            std::min<int64_t>(static_cast<int64_t>(h.size()), experts)),
                fmt::format("one count per expert ({})", experts));
  }
  if (sum > limit) {
    csv.fail_at(column, fmt::format("a sum of {}", sum), fmt::format("at most tokens*top_k = {}", limit));
  }
  return h;
}

void read_points(CsvReader& csv, Dataset& d, Index& index) {
  const int name = csv.require("point");
  const int model = csv.require("model");
  const int experts = csv.require("experts");
  const int top_k = csv.require("top_k");
  const int hidden = csv.require("hidden");
  const int intermediate = csv.require("intermediate");
  const int tokens = csv.require("tokens");
  const int split = csv.require("split");
  const int histogram = csv.require("histogram");
  const int zipf = csv.find("zipf");
  Index models;
  for (auto row = csv.next(); !row.empty(); row = csv.next()) {
    const std::string_view id = row[static_cast<size_t>(name)];
    if (id.empty()) csv.fail_at(name, id, "a name");
    if (!index.emplace(std::string(id), d.points.size()).second)
      csv.fail_at(name, id, "a name that no earlier row has");
    ModelShape m;
    m.name = std::string(row[static_cast<size_t>(model)]);
    if (m.name.empty()) csv.fail_at(model, m.name, "a name");
    m.experts = csv.integer(row, experts, 1, kMaxExperts);
    m.top_k = csv.integer(row, top_k, 1, m.experts);
    m.hidden = csv.integer(row, hidden, 1, kMaxSize);
    m.intermediate = csv.integer(row, intermediate, 1, kMaxSize);
    const auto [at, is_new] = models.emplace(m.name, d.models.size());
    if (is_new) {
      d.models.push_back(m);
    } else {
      const ModelShape& known = d.models[at->second];
      if (known.experts != m.experts || known.top_k != m.top_k || known.hidden != m.hidden ||
          known.intermediate != m.intermediate) {
        csv.fail_at(model, m.name, "the shape that earlier rows give this model");
      }
    }
    WorkPoint p;
    p.name = std::string(id);
    p.model = static_cast<int32_t>(at->second);
    p.tokens = csv.integer(row, tokens, 0, kMaxTokens);
    const std::string_view which = row[static_cast<size_t>(split)];
    if (which != "train" && which != "test") csv.fail_at(split, which, "train or test");
    p.train = which == "train";
    if (zipf >= 0 && !row[static_cast<size_t>(zipf)].empty()) p.zipf = csv.number(row, zipf);
    p.histogram =
        parse_histogram(csv, histogram, row[static_cast<size_t>(histogram)], m.experts, p.tokens * m.top_k);
    d.points.push_back(std::move(p));
  }
  if (d.points.empty()) fail_argument("points.csv", "no rows", "at least one point", {}, RAMP_ERROR_BAD_FILE);
}

void read_timings(CsvReader& csv, Dataset& d, const Index& points, const Index& configs) {
  const int point = csv.require("point");
  const int config = csv.require("config");
  const int us = csv.require("us");
  const int repeat = csv.find("us_repeat");
  const size_t width = d.configs.size();
  if (d.points.size() > kMaxPairs / width) {
    fail_argument("points x configs", fmt::format("{} x {}", d.points.size(), width),
                  fmt::format("at most {} pairs", kMaxPairs));
  }
  d.us.assign(d.points.size() * width, std::numeric_limits<double>::quiet_NaN());
  d.us_repeat = d.us;
  // Rows mostly come sorted by point: remember the last look-up.
  std::string_view last;
  size_t last_at = 0;
  for (auto row = csv.next(); !row.empty(); row = csv.next()) {
    const std::string_view p = row[static_cast<size_t>(point)];
    if (p != last) {
      const auto at = points.find(p);
      if (at == points.end()) csv.fail_at(point, p, "a point of points.csv");
      last = at->first;
      last_at = at->second;
    }
    const std::string_view c = row[static_cast<size_t>(config)];
    const auto at = configs.find(c);
    if (at == configs.end()) csv.fail_at(config, c, "a config of configs.csv");
    double& slot = d.us[last_at * width + at->second];
    if (!std::isnan(slot))
      csv.fail_at(config, c, fmt::format("one row per point and config ('{}' came before)", printable(p)));
    const double value = csv.number(row, us);
    if (!(value > 0)) csv.fail_at(us, row[static_cast<size_t>(us)], "a positive time in microseconds");
    slot = value;
    if (repeat >= 0 && !row[static_cast<size_t>(repeat)].empty()) {
      const double again = csv.number(row, repeat);
      if (!(again > 0))
        csv.fail_at(repeat, row[static_cast<size_t>(repeat)], "a positive time in microseconds, or nothing");
      d.us_repeat[last_at * width + at->second] = again;
      d.has_repeat = true;
    }
  }
}

void check_complete(const Dataset& d) {
  const size_t width = d.configs.size();
  const auto missing = std::count_if(d.us.begin(), d.us.end(), [](double v) { return std::isnan(v); });
  if (missing == 0) return;
  const size_t first = static_cast<size_t>(
      std::find_if(d.us.begin(), d.us.end(), [](double v) { return std::isnan(v); }) - d.us.begin());
  fail_argument("timings.csv",
                fmt::format("no timing for point '{}', config '{}' ({} such pairs)",
                            printable(d.points[first / width].name),
                            printable(d.configs.names[first % width]), missing),
                "a timing for every point and config",
                "measure them, or say --allow-missing to leave such configs out where they were not measured",
                RAMP_ERROR_BAD_FILE);
}

Dataset read(CsvReader& points, CsvReader& configs, CsvReader& timings, std::string source,
             const DatasetOptions& options) {
  Dataset d;
  d.source = std::move(source);
  d.configs = read_configs(configs);
  Index point_index;
  read_points(points, d, point_index);
  Index config_index;
  for (size_t c = 0; c < d.configs.size(); ++c) config_index.emplace(d.configs.names[c], c);
  read_timings(timings, d, point_index, config_index);
  if (!options.allow_missing) check_complete(d);
  return d;
}

}  // namespace

bool ConfigTable::has(std::string_view column) const noexcept {
  return std::find(known_columns.begin(), known_columns.end(), column) != known_columns.end();
}

Dataset read_dataset(const std::string& directory, const DatasetOptions& options) {
  CsvReader points(directory + "/points.csv");
  CsvReader configs(directory + "/configs.csv");
  CsvReader timings(directory + "/timings.csv");
  return read(points, configs, timings, directory, options);
}

Dataset parse_dataset(std::string_view points, std::string_view configs, std::string_view timings,
                      const DatasetOptions& options) {
  CsvReader p(points, "points.csv");
  CsvReader c(configs, "configs.csv");
  CsvReader t(timings, "timings.csv");
  return read(p, c, t, "memory", options);
}

std::vector<size_t> select_points(const Dataset& d, int32_t model, bool train) {
  std::vector<size_t> out;
  for (size_t i = 0; i < d.points.size(); ++i) {
    if (d.points[i].model == model && d.points[i].train == train) out.push_back(i);
  }
  return out;
}

}  // namespace ramp::core
