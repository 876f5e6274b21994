// See layer_report.hpp.
#include "cli/layer_report.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <limits>
#include <map>

#include "cli/options.hpp"

namespace ramp::cli {
namespace {

// Rows of one point differ in mode and config alone.
std::string point_name(const LayerRow& r) {
  return fmt::format("{} T={} {}", r.model.name, r.m.tokens, r.m.routing);
}

struct Ratio {
  std::string point;
  int64_t tokens = 0;
  double ratio = 0;
};

// The best row of each point that `wanted` takes.
template <typename Wanted>
std::vector<Ratio> ratios(const std::vector<LayerRow>& rows, const Wanted& wanted) {
  std::map<std::string, size_t> place;
  std::vector<Ratio> list;
  for (const LayerRow& r : rows) {
    if (r.ratio() <= 0 || !wanted(r)) continue;
    const auto [at, fresh] = place.emplace(point_name(r), list.size());
    if (fresh) list.push_back({point_name(r), r.m.tokens, 0});
    list[at->second].ratio = std::max(list[at->second].ratio, r.ratio());
  }
  return list;
}

// Of the points with low <= tokens <= high; 0 where there are none.
double geometric_mean(const std::vector<Ratio>& list, int64_t low, int64_t high) {
  double sum = 0;
  int count = 0;
  for (const Ratio& r : list) {
    if (r.tokens < low || r.tokens > high) continue;
    sum += std::log(r.ratio);
    ++count;
  }
  return count == 0 ? 0 : std::exp(sum / count);
}

}  // namespace

std::vector<double> regrets(const std::vector<LayerRow>& rows) {
  const auto key = [](const LayerRow& r) {
    return fmt::format("{} {} {} {}", point_name(r), static_cast<int>(r.format),
                       static_cast<int>(r.activation), static_cast<int>(r.mode));
  };
  std::map<std::string, std::pair<double, int>> best;
  for (const LayerRow& r : rows) {
    const auto [at, fresh] = best.emplace(key(r), std::pair{r.m.us.median, 0});
    at->second.first = std::min(at->second.first, r.m.us.median);
    ++at->second.second;
  }
  std::vector<double> list;
  for (const LayerRow& r : rows) {
    const auto [us, count] = best.at(key(r));
    list.push_back(count > 1 && us > 0 ? r.m.us.median / us - 1 : std::numeric_limits<double>::quiet_NaN());
  }
  return list;
}

Json to_json(const LayerRow& r, const ContextFacts& facts) {
  const Measurement& m = r.m;
  const auto or_null = [](double v) { return v > 0 ? Json(v) : Json(); };
  return {{"model", r.model.name},
          {"experts", r.model.experts},
          {"top_k", r.model.top_k},
          {"hidden", r.model.hidden},
          {"intermediate", r.model.intermediate},
          {"format", core::format_name(r.format)},
          {"activation", core::activation_name(r.activation)},
          {"backend", facts.backend},
          {"device", facts.device},
          {"isa", facts.isa},
          {"threads", facts.workers},
          {"determinism", determinism_name(r.mode)},
          {"tokens", m.tokens},
          {"routing", m.routing},
          {"active", m.active},
          {"max_load", m.max_load},
          {"max_over_mean", m.max_over_mean},
          {"imbalance", m.imbalance},
          {"normalised_entropy", m.entropy},
          {"config", m.config},
          {"config_requested", r.requested},
          {"fit", r.fit.empty() ? Json() : Json(r.fit)},
          {"us", m.us.median},
          {"p10_us", m.us.p10},
          {"p90_us", m.us.p90},
          {"gbps", m.gbps()},
          {"tflops", m.tflops()},
          {"rel_error", r.checked ? Json(r.check.relative_error) : Json()},
          {"bound_ratio", r.checked ? Json(bound_ratio(r.check)) : Json()},
          {"checked_rows", r.check.rows},
          {"checked_layer", r.checked ? Json(r.checked_layer) : Json()},
          {"floor_us", or_null(r.floor_us)},
          {"read_gbps", or_null(r.read_gbps)},
          {"peer_us", or_null(r.peer.us)},
          {"peer", r.peer.us > 0 ? Json(r.peer.pipeline) : Json()},
          {"ratio", or_null(r.ratio())},
          {"layers", r.layers},
          {"passes", m.passes},
          {"pause_s", r.pause},
          {"protocol",
           fmt::format("one CUDA graph of {} layers with distinct weights and routing, median of {} replays "
                       "/ {}; whole block",
                       r.layers, m.passes, r.layers)}};
}

std::string layer_table(const std::vector<LayerRow>& rows) {
  Table table({{"model", Table::Align::kLeft},
               {"format", Table::Align::kLeft},
               {"tokens"},
               {"routing", Table::Align::kLeft},
               {"mode", Table::Align::kLeft},
               {"active"},
               {"max load"},
               {"config", Table::Align::kLeft},
               {"us"},
               {"p10"},
               {"p90"},
               {"GB/s"},
               {"TFLOP/s"},
               {"floor us"},
               {"x floor"},
               {"peer us"},
               {"speed-up"},
               {"rel error"},
               {"check"}});
  const auto or_dash = [](double v) { return v > 0 ? number(v) : std::string("-"); };
  for (const LayerRow& r : rows) {
    const Measurement& m = r.m;
    table.add({r.model.name, core::format_name(r.format), std::to_string(m.tokens), m.routing,
               determinism_name(r.mode), count_text(m.active), count_text(m.max_load), m.config,
               number(m.us.median), number(m.us.p10), number(m.us.p90), number(m.gbps()), number(m.tflops()),
               or_dash(r.floor_us), r.floor_us > 0 ? number(m.us.median / r.floor_us) : "-",
               r.peer.us > 0 ? number(r.peer.us) + r.peer.pipeline : "-",
               r.ratio() > 0 ? fmt::format("{:.2f}", r.ratio()) : "-",
               r.checked ? fmt::format("{:.1e}", r.check.relative_error) : "-",
               !r.checked     ? "-"
               : r.check.ok() ? "ok"
                              : "FAILED"});
  }
  return table.text();
}

std::string ratio_text(const std::vector<LayerRow>& rows, const Peers& peers) {
  std::vector<ramp_format> formats;
  std::vector<ramp_determinism> modes;
  for (const LayerRow& r : rows) {
    if (r.ratio() <= 0) continue;
    if (std::find(formats.begin(), formats.end(), r.format) == formats.end()) formats.push_back(r.format);
    if (std::find(modes.begin(), modes.end(), r.mode) == modes.end()) modes.push_back(r.mode);
  }
  std::string text;
  for (const ramp_format format : formats) {
    std::vector<std::pair<std::string, std::vector<Ratio>>> columns;
    columns.reserve(modes.size() + 1);
    for (const ramp_determinism mode : modes)
      columns.emplace_back(determinism_name(mode), ratios(rows, [&](const LayerRow& r) {
                             return r.format == format && r.mode == mode;
                           }));
    columns.emplace_back("better of each",
                         ratios(rows, [&](const LayerRow& r) { return r.format == format; }));
    const std::vector<Ratio>& best = columns.back().second;

    std::vector<Table::Column> heads = {{"tokens", Table::Align::kLeft}, {"points"}};
    for (const auto& [name, list] : columns) heads.push_back({name});
    heads.push_back({"goal"});
    Table table(heads);
    for (const Peers::Goal& g : peers.goals(format)) {
      const auto points = std::count_if(
          best.begin(), best.end(), [&](const Ratio& r) { return r.tokens >= g.low && r.tokens <= g.high; });
      if (points == 0) continue;
      std::vector<std::string> cells = {
          g.low == g.high ? std::to_string(g.low) : fmt::format("{} to {}", g.low, g.high),
          std::to_string(points)};
      for (const auto& [name, list] : columns) {
        const double mean = geometric_mean(list, g.low, g.high);
        cells.push_back(mean > 0 ? fmt::format("{:.3f}", mean) : "-");
      }
      cells.push_back(fmt::format("{:.2f}", g.ratio));
      table.add(std::move(cells));
    }
    text += fmt::format("\nspeed-up over the best open kernels on {}, {}, geometric means:\n{}",
                        peers.device(), core::format_name(format), table.text());
    std::vector<std::string> losing;
    for (const Ratio& r : best)
      if (r.ratio < peers.least_ratio()) losing.push_back(fmt::format("{} {:.2f}", r.point, r.ratio));
    text += losing.empty() ? fmt::format("no point below {:.2f}\n", peers.least_ratio())
                           : fmt::format("below {:.2f}: {}\n", peers.least_ratio(), join(losing, "; "));
  }
  return text;
}

}  // namespace ramp::cli
