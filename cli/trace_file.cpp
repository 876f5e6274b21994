// Lines to records, records to groups, groups to text.
#include "cli/trace_file.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <limits>
#include <map>
#include <numeric>
#include <optional>
#include <set>

#include "base/error.hpp"
#include "dispatch/dispatcher.hpp"
#include "dispatch/json_view.hpp"
#include "routing/workload.hpp"

namespace ramp::cli {
namespace {

constexpr size_t kMostBytes = size_t{1} << 30, kMostLine = size_t{1} << 20;
constexpr const char* kSchema = "ramp.trace";
constexpr int64_t kVersion = 1;
constexpr const char* kFix = "record it again (docs/dispatch.md, Traces)";

nlohmann::json parse_line(std::string_view line, const std::string& where) {
  return core::parse_json_file(line, where, kMostLine);
}

TraceRecord record_of(const core::JsonView& v) {
  constexpr int64_t kMost = int64_t{1} << 40, kMostExperts = 1 << 20, kMostConfigs = 64;
  constexpr double kMostUs = 1e12;
  TraceRecord r;
  r.number = v.at("number").integer(0, INT64_MAX);
  r.call = v.at("call").integer(0, INT64_MAX);
  r.shape.experts = v.at("experts").integer(1, kMostExperts);
  r.shape.top_k = v.at("top_k").integer(1, kMostExperts);  // may exceed the local experts of a shard
  r.shape.hidden = v.at("hidden").integer(1, kMost);
  r.shape.intermediate = v.at("intermediate").integer(1, kMost);
  r.shape.name =
      fmt::format("{},{},{},{}", r.shape.experts, r.shape.top_k, r.shape.hidden, r.shape.intermediate);
  r.format = v.at("format").text(64);
  r.tokens = v.at("tokens").integer(0, kMost);
  const core::JsonView batched = v.at("batched");
  if (!batched.raw().is_boolean()) batched.bad("true or false");
  r.batched = batched.raw().get<bool>();
  const core::JsonView configs = v.at("configs");
  const size_t n = configs.size("names", 1, kMostConfigs);
  for (size_t i = 0; i < n; ++i) r.configs.push_back(configs.item(i).text(256));
  r.chosen = static_cast<size_t>(v.at("chosen").integer(0, static_cast<int64_t>(n) - 1));
  r.predicted_us = v.at("predicted_us").number(0, kMostUs);
  if (const auto measured = v.find("measured_us"); measured && !measured->is_null())
    r.measured_us = measured->number(0, kMostUs);
  if (const auto name = v.find("default"); name && !name->is_null()) r.fallback = name->text(256);
  if (const auto us = v.find("default_us"); us && !us->is_null()) r.fallback_us = us->number(0, kMostUs);
  const core::JsonView histogram = v.at("histogram");
  const auto experts = static_cast<size_t>(r.shape.experts);
  histogram.size("counts, one per expert", experts, experts);
  r.histogram.resize(experts);
  int64_t rows = 0;
  for (size_t e = 0; e < experts; ++e) {
    r.histogram[e] = static_cast<int32_t>(histogram.item(e).integer(0, INT32_MAX));
    rows += r.histogram[e];
  }
  if (!r.batched && rows > r.tokens * r.shape.top_k)
    histogram.bad(fmt::format("{} rows", rows),
                  fmt::format("at most tokens * top_k = {}", r.tokens * r.shape.top_k));
  return r;
}

// The fit's dispatcher for a shape: top_k too where one has it.
class Fits {
 public:
  explicit Fits(const core::Fit* fit) {
    if (fit == nullptr) return;
    for (const core::FittedModel& m : fit->models) {
      shapes_.push_back(m.predictor->model());
      dispatchers_.emplace_back(m);
    }
  }
  [[nodiscard]] const core::Dispatcher* find(const core::ModelShape& s) const {
    const core::Dispatcher* any = nullptr;
    for (size_t i = 0; i < shapes_.size(); ++i) {
      const core::ModelShape& m = shapes_[i];
      if (m.experts != s.experts || m.hidden != s.hidden || m.intermediate != s.intermediate) continue;
      if (m.top_k == s.top_k) return &dispatchers_[i];
      any = &dispatchers_[i];
    }
    return any;
  }

 private:
  std::vector<core::ModelShape> shapes_;
  std::vector<core::Dispatcher> dispatchers_;
};

void judge_record(const TraceRecord& r, const core::Dispatcher& dispatcher, TraceGroup& g) {
  const std::vector<std::string>& names = dispatcher.predictor().configs().names;
  const auto at = std::find(names.begin(), names.end(), r.configs[r.chosen]);
  if (at == names.end()) return;
  std::vector<float> us(names.size());
  dispatcher.predict(r.histogram, us);
  const size_t best = dispatcher.choose(r.histogram);
  const double mine = us[static_cast<size_t>(at - names.begin())];
  const double theirs = us[best];
  if (!std::isfinite(mine) || !(theirs > 0)) return;
  const double loss = std::max(0.0, mine / theirs - 1);
  ++g.judged;
  g.agreed += names[best] == *at ? 1 : 0;
  g.loss += loss;
  g.max_loss = std::max(g.max_loss, loss);
}

struct Sums {
  std::map<std::string, int64_t> chosen;
  int64_t predicted = 0, measured = 0, both = 0;
  // Times of every config that was measured with a histogram.
  struct Times {
    double us = 0;
    int64_t records = 0;
    [[nodiscard]] double mean() const { return us / static_cast<double>(records); }
  };
  std::map<std::vector<int32_t>, std::map<std::string, Times>> times;
};

void regret_of_times(TraceGroup& g, const Sums& sums) {
  for (const auto& [histogram, configs] : sums.times) {
    if (configs.size() < 2) continue;
    double best = std::numeric_limits<double>::infinity();
    for (const auto& [name, t] : configs) best = std::min(best, t.mean());
    for (const auto& [name, t] : configs) {
      const double regret = t.mean() / best - 1;
      g.rivalled += t.records;
      g.measured_regret += regret * static_cast<double>(t.records);
      g.max_measured_regret = std::max(g.max_measured_regret, regret);
    }
  }
}

void finish(TraceGroup& g, const Sums& sums) {
  const auto mean = [](double& sum, int64_t n) { sum = n > 0 ? sum / static_cast<double>(n) : 0; };
  mean(g.active, g.records);
  mean(g.max_over_mean, g.records);
  mean(g.entropy, g.records);
  mean(g.predicted_us, sums.predicted);
  mean(g.measured_us, sums.measured);
  mean(g.misprediction, sums.both);
  mean(g.loss, g.judged);
  mean(g.imbalance, g.with_rows);
  mean(g.default_regret, g.compared);
  regret_of_times(g, sums);
  mean(g.measured_regret, g.rivalled);
  g.chosen.assign(sums.chosen.begin(), sums.chosen.end());
  std::stable_sort(g.chosen.begin(), g.chosen.end(),
                   [](const auto& a, const auto& b) { return a.second > b.second; });
}

std::string percent(double fraction) {
  return fmt::format("{:.1f}", 100 * fraction);
}

}  // namespace

Trace parse_trace(std::string_view text, const std::string& name) {
  Trace trace;
  bool head = true;
  for (size_t line = 1; !text.empty(); ++line) {
    const size_t end = std::min(text.find('\n'), text.size());
    const std::string_view one = text.substr(0, end);
    text.remove_prefix(std::min(end + 1, text.size()));
    if (one.find_first_not_of(" \t\r") == std::string_view::npos) continue;
    const std::string where = fmt::format("{}:{}", name, line);
    const core::JsonOrigin origin{where, kFix};
    const nlohmann::json document = parse_line(one, where);
    const core::JsonView v(document, origin);
    if (!head) {
      trace.records.push_back(record_of(v));
      continue;
    }
    head = false;
    const core::JsonView schema = v.at("schema");
    if (schema.text() != kSchema) schema.bad(fmt::format("'{}'", kSchema));
    const core::JsonView version = v.at("version");
    if (version.integer(0, INT64_MAX) != kVersion) version.bad(std::to_string(kVersion));
    if (const auto device = v.find("device")) trace.device = device->text();
    if (const auto sms = v.find("sm_count")) trace.sm_count = static_cast<int32_t>(sms->integer(0, 1 << 20));
  }
  if (head)
    core::fail_argument(name, "no lines", fmt::format("a first line with \"schema\": \"{}\"", kSchema), kFix,
                        RAMP_ERROR_BAD_FILE);
  return trace;
}

Trace read_trace(const std::string& path) {
  return parse_trace(core::read_bounded(path, kMostBytes), path);
}

TraceSummary summarize(const Trace& trace, const core::Fit* fit) {
  TraceSummary s;
  s.device = trace.device;
  s.sm_count = trace.sm_count;
  s.records = static_cast<int64_t>(trace.records.size());
  const Fits fits(fit);
  std::set<int64_t> calls;
  std::vector<Sums> sums;
  int64_t last = -1;
  for (const TraceRecord& r : trace.records) {
    calls.insert(r.call);
    s.lost += std::max<int64_t>(0, r.number - last - 1);
    last = std::max(last, r.number);
    auto at = std::find_if(s.groups.begin(), s.groups.end(), [&](const TraceGroup& g) {
      return g.shape.name == r.shape.name && g.format == r.format && g.batched == r.batched &&
             g.tokens == r.tokens;
    });
    if (at == s.groups.end()) {
      TraceGroup g;
      g.shape = r.shape;
      g.format = r.format;
      g.batched = r.batched;
      g.tokens = r.tokens;
      at = s.groups.insert(s.groups.end(), std::move(g));
      sums.emplace_back();
    }
    TraceGroup& g = *at;
    Sums& sum = sums[static_cast<size_t>(at - s.groups.begin())];
    const core::HistogramStats stats = core::describe(r.histogram);
    ++g.records;
    g.active += static_cast<double>(stats.active);
    g.max_over_mean += stats.max_over_mean;
    g.entropy += stats.normalised_entropy;
    const std::string& chosen = r.configs[r.chosen];
    ++sum.chosen[chosen];
    if (stats.rows > 0) {
      ++g.with_rows;
      g.imbalance += stats.imbalance;
      g.max_imbalance = std::max(g.max_imbalance, stats.imbalance);
      g.changed += !r.fallback.empty() && r.fallback != chosen ? 1 : 0;
    }
    if (stats.rows > 0 && r.predicted_us > 0 && r.fallback_us > 0) {
      const double regret = r.fallback_us / r.predicted_us - 1;
      g.max_default_regret = ++g.compared == 1 ? regret : std::max(g.max_default_regret, regret);
      g.default_regret += regret;
    }
    if (r.measured_us > 0) {
      Sums::Times& t = sum.times[r.histogram][chosen];
      t.us += r.measured_us;
      ++t.records;
    }
    if (r.predicted_us > 0) g.predicted_us += r.predicted_us, ++sum.predicted;
    if (r.measured_us > 0) g.measured_us += r.measured_us, ++sum.measured;
    if (r.predicted_us > 0 && r.measured_us > 0)
      g.misprediction += std::abs(r.predicted_us / r.measured_us - 1), ++sum.both;
    if (const core::Dispatcher* const d = fits.find(r.shape)) judge_record(r, *d, g);
  }
  s.calls = static_cast<int64_t>(calls.size());
  for (size_t i = 0; i < s.groups.size(); ++i) finish(s.groups[i], sums[i]);
  return s;
}

std::string trace_text(const TraceSummary& s) {
  std::string text =
      fmt::format("{}{}: {} records of {} calls{}\n", s.device.empty() ? "unknown device" : s.device,
                  s.sm_count > 0 ? fmt::format(", {} SMs", s.sm_count) : "", s.records, s.calls,
                  s.lost > 0 ? fmt::format("; {} more were lost", s.lost) : "");
  std::vector<Table::Column> columns = {{"E,k,H,I", Table::Align::kLeft},
                                        {"format", Table::Align::kLeft},
                                        {"tokens"},
                                        {"records"},
                                        {"active"},
                                        {"imbalance"},
                                        {"max"},
                                        {"entropy"},
                                        {"predicted us"},
                                        {"measured us"},
                                        {"off by %"}};
  const auto any = [&](int64_t TraceGroup::*count) {
    return std::any_of(s.groups.begin(), s.groups.end(), [&](const TraceGroup& g) { return g.*count > 0; });
  };
  const bool judged = any(&TraceGroup::judged);
  const bool compared = any(&TraceGroup::compared);
  const bool rivalled = any(&TraceGroup::rivalled);
  if (compared)
    for (const char* const title : {"default +%", "most %"}) columns.push_back({title});
  if (rivalled)
    for (const char* const title : {"regret %", "worst %"}) columns.push_back({title});
  if (judged)
    for (const char* const title : {"as the fit %", "loss %", "max %"}) columns.push_back({title});
  columns.push_back({"chosen", Table::Align::kLeft});
  Table table(columns);
  const auto or_dash = [](double v) { return v > 0 ? number(v) : std::string("-"); };
  for (const TraceGroup& g : s.groups) {
    std::vector<std::string> chosen;
    for (const auto& [name, count] : g.chosen)
      chosen.push_back(g.chosen.size() == 1 ? name
                                            : fmt::format("{} {:.0f}%", name,
                                                          100.0 * static_cast<double>(count) /
                                                              static_cast<double>(g.records)));
    std::vector<std::string> cells = {g.shape.name,
                                      g.format + (g.batched ? " batched" : ""),
                                      std::to_string(g.tokens),
                                      std::to_string(g.records),
                                      count_text(g.active),
                                      fmt::format("{:.2f}", g.imbalance),
                                      fmt::format("{:.2f}", g.max_imbalance),
                                      fmt::format("{:.2f}", g.entropy),
                                      or_dash(g.predicted_us),
                                      or_dash(g.measured_us),
                                      g.misprediction > 0 ? percent(g.misprediction) : "-"};
    const auto pair = [&](int64_t count, double first, double second) {
      for (const double v : {first, second}) cells.push_back(count > 0 ? percent(v) : "-");
    };
    if (compared) pair(g.compared, g.default_regret, g.max_default_regret);
    if (rivalled) pair(g.rivalled, g.measured_regret, g.max_measured_regret);
    if (judged) {
      const bool mine = g.judged > 0;
      cells.push_back(mine ? percent(static_cast<double>(g.agreed) / static_cast<double>(g.judged))
                           : std::string("-"));
      cells.push_back(mine ? percent(g.loss) : "-");
      cells.push_back(mine ? percent(g.max_loss) : "-");
    }
    cells.push_back(fmt::format("{}", fmt::join(chosen, ", ")));
    table.add(std::move(cells));
  }
  text += table.text();
  text +=
      "active, imbalance and entropy: means over records of experts with rows, of the fullest expert's rows "
      "over the "
      "mean of the\nexperts that have any (max: its largest), and of entropy / ln E\n";
  if (compared)
    text +=
        "default: what runs without a fit, predicted time over that of the choice, minus 1: mean and "
        "largest\n";
  if (rivalled)
    text +=
        "regret: measured time of the choice over that of the fastest config measured with the same "
        "histogram, "
        "minus 1: mean and\nlargest\n";
  if (judged)
    text +=
        "as the fit: how often the choice is the fit's own; loss: predicted time of the choice over that of "
        "the fit's "
        "choice, minus 1\n";
  return text;
}

Json trace_json(const TraceSummary& s) {
  Json groups = Json::array();
  for (const TraceGroup& g : s.groups) {
    Json chosen = Json::object();
    for (const auto& [name, count] : g.chosen) chosen[name] = count;
    const auto or_null = [](double v) { return v > 0 ? Json(v) : Json(); };
    Json j = {{"experts", g.shape.experts},
              {"top_k", g.shape.top_k},
              {"hidden", g.shape.hidden},
              {"intermediate", g.shape.intermediate},
              {"format", g.format},
              {"batched", g.batched},
              {"tokens", g.tokens},
              {"records", g.records},
              {"active", g.active},
              {"max_over_mean", g.max_over_mean},
              {"imbalance", or_null(g.imbalance)},
              {"max_imbalance", or_null(g.max_imbalance)},
              {"normalised_entropy", g.entropy},
              {"predicted_us", or_null(g.predicted_us)},
              {"measured_us", or_null(g.measured_us)},
              {"misprediction", or_null(g.misprediction)},
              {"chosen", chosen}};
    j["default"] = g.compared == 0 ? Json()
                                   : Json{{"records", g.compared},
                                          {"changed", g.changed},
                                          {"mean_regret", g.default_regret},
                                          {"max_regret", g.max_default_regret}};
    j["measured"] = g.rivalled == 0 ? Json()
                                    : Json{{"records", g.rivalled},
                                           {"mean_regret", g.measured_regret},
                                           {"max_regret", g.max_measured_regret}};
    j["fit"] = g.judged == 0 ? Json()
                             : Json{{"records", g.judged},
                                    {"agreed", g.agreed},
                                    {"mean_loss", g.loss},
                                    {"max_loss", g.max_loss}};
    groups.push_back(std::move(j));
  }
  return {{"device", s.device}, {"sm_count", s.sm_count}, {"records", s.records},
          {"calls", s.calls},   {"lost", s.lost},         {"groups", groups}};
}

}  // namespace ramp::cli
