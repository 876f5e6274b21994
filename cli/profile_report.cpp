// Tables whose cells are coloured, and charts of bench/svg.hpp.
#include "cli/profile_report.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <limits>
#include <map>

#include "bench/svg.hpp"
#include "cli/output.hpp"
#include "dispatch/dispatcher.hpp"

namespace ramp::cli {
namespace {

std::string escaped(std::string_view text) {
  std::string s;
  for (const char c : text)
    s += c == '<' ? "&lt;" : c == '&' ? "&amp;" : c == '"' ? "&quot;" : std::string(1, c);
  return s;
}

// What of a point's name is not its number of tokens: "t64_zipf:1.2" -> "zipf:1.2".
std::string routing_of(const std::string& name) {
  const size_t at = name.find('_');
  return at == std::string::npos ? name : name.substr(at + 1);
}

// Green where nothing is lost, red from `most` on.
std::string shade(double loss, double most) {
  const double f = std::clamp(loss / most, 0.0, 1.0);
  return fmt::format("hsl({:.0f},70%,{:.0f}%)", 120 * (1 - f), 85 - 20 * f);
}

struct Cell {
  std::string text, colour, title;
};

// Routing by tokens; points that are not there stay empty.
class Grid {
 public:
  void set(int64_t tokens, const std::string& routing, Cell cell) {
    if (std::find(rows_.begin(), rows_.end(), routing) == rows_.end()) rows_.push_back(routing);
    cells_[tokens][routing] = std::move(cell);
  }
  [[nodiscard]] std::string html(const std::string& corner) const {
    std::string s = fmt::format("<table><tr><th>{}</th>", corner);
    for (const auto& [tokens, column] : cells_) s += fmt::format("<th>{}</th>", tokens);
    s += "</tr>\n";
    for (const std::string& routing : rows_) {
      s += fmt::format("<tr><th>{}</th>", escaped(routing));
      for (const auto& [tokens, column] : cells_) {
        const auto at = column.find(routing);
        if (at == column.end()) {
          s += "<td></td>";
          continue;
        }
        s += fmt::format("<td style=\"background:{}\" title=\"{}\">{}</td>", at->second.colour,
                         escaped(at->second.title), at->second.text);
      }
      s += "</tr>\n";
    }
    return s + "</table>\n";
  }

 private:
  std::vector<std::string> rows_;
  std::map<int64_t, std::map<std::string, Cell>> cells_;
};

size_t best_of(const core::Dataset& d, size_t point) {
  size_t best = d.configs.size();
  double us = std::numeric_limits<double>::infinity();
  for (size_t c = 0; c < d.configs.size(); ++c)
    if (d.time(point, c) < us) us = d.time(point, best = c);
  return best;
}

// A colour per width of tile, a lightness per depth of the ring.
std::string config_colour(const core::KernelConfig& c) {
  const int hue = static_cast<int>(137.5 * std::log2(std::max(c.tile_m, 1)) + 0.3 * c.tile_n) % 360;
  return fmt::format("hsl({},65%,{}%)", hue, 88 - 2 * std::min(c.stages, 12));
}

std::string best_map(const ProfileReport& r) {
  const core::Dataset& d = *r.data;
  Grid grid;
  for (size_t p = 0; p < d.points.size(); ++p) {
    const size_t best = best_of(d, p);
    if (best == d.configs.size()) continue;
    const core::KernelConfig& c = d.configs.configs[best];
    std::string text = fmt::format("m{}<br>s{}", c.tile_m, c.stages);
    if (c.blocks > 0) text += fmt::format(" b{}", c.blocks);
    if (c.group_m > 0) text += fmt::format(" g{}", c.group_m);
    grid.set(
        d.points[p].tokens, routing_of(d.points[p].name),
        {text, config_colour(c), fmt::format("{}: {} us", d.configs.names[best], number(d.time(p, best)))});
  }
  return grid.html("best config");
}

std::string default_map(const ProfileReport& r, double& mean) {
  const core::Dataset& d = *r.data;
  Grid grid;
  double sum = 0;
  int count = 0;
  for (size_t p = 0; p < d.points.size(); ++p) {
    const size_t best = best_of(d, p);
    if (best == d.configs.size() || p >= r.defaults.size() || r.defaults[p] >= d.configs.size()) continue;
    const double us = d.time(p, r.defaults[p]);
    if (std::isnan(us)) continue;
    const double ratio = us / d.time(p, best);
    sum += std::log(ratio);
    ++count;
    grid.set(d.points[p].tokens, routing_of(d.points[p].name),
             {fmt::format("{:.3f}", ratio), shade(ratio - 1, 0.2),
              fmt::format("{} {} us, {} {} us", d.configs.names[r.defaults[p]], number(us),
                          d.configs.names[best], number(d.time(p, best)))});
  }
  mean = count == 0 ? 1 : std::exp(sum / count);
  return grid.html("default / best");
}

std::string fit_map(const ProfileReport& r, double& mean) {
  const core::Dataset& d = *r.data;
  const core::Dispatcher dispatcher(r.fit->models.front());
  Grid grid;
  int count = 0;
  for (size_t p = 0; p < d.points.size(); ++p) {
    const size_t best = best_of(d, p);
    if (best == d.configs.size()) continue;
    const size_t chosen = dispatcher.choose(d.points[p].histogram);
    const double us = d.time(p, chosen);
    const std::string routing = routing_of(d.points[p].name);
    if (std::isnan(us)) {
      grid.set(d.points[p].tokens, routing, {"?", "#ddd", d.configs.names[chosen] + " was left out here"});
      continue;
    }
    const double regret = us / d.time(p, best) - 1;
    mean += regret;
    ++count;
    grid.set(d.points[p].tokens, routing,
             {fmt::format("{:.1f}", 100 * regret), shade(regret, 0.1),
              fmt::format("{} {} us, best {}", d.configs.names[chosen], number(us), d.configs.names[best])});
  }
  mean = count == 0 ? 0 : mean / count;
  return grid.html("regret, %");
}

std::string judged_map(const Judgement& j) {
  Grid grid;
  for (const JudgedPoint& p : j.points) {
    grid.set(p.tokens, routing_of(p.name),
             {fmt::format("{:.1f}", 100 * p.regret), shade(p.regret, 0.1),
              fmt::format("{} {} us, best {} {} us, default {} us", p.chosen, number(p.us), p.best,
                          number(p.best_us), number(p.default_us))});
  }
  return grid.html("regret, %");
}

// At most so many dots: more only make the file large.
std::string scatter(const ProfileReport& r) {
  constexpr size_t kMostDots = 1500;
  const core::Dataset& d = *r.data;
  const core::Dispatcher dispatcher(r.fit->models.front());
  bench::Series all{"config at a point", "#1f77b4", {}, false, 1.8, 0.35};
  bench::Series best{"the best at a point", "#d62728", {}, false, 2.5, 0.9};
  std::vector<float> us(d.configs.size());
  const size_t every = d.us.size() / kMostDots + 1;
  for (size_t p = 0; p < d.points.size(); ++p) {
    dispatcher.predict(d.points[p].histogram, us);
    const size_t winner = best_of(d, p);
    for (size_t c = 0; c < us.size(); ++c) {
      const double measured = d.time(p, c);
      if (std::isnan(measured) || !std::isfinite(us[c]) || !(us[c] > 0)) continue;
      if (c == winner)
        best.points.emplace_back(measured, us[c]);
      else if ((p * us.size() + c) % every == 0)
        all.points.emplace_back(measured, us[c]);
    }
  }
  if (best.points.empty()) return {};
  bench::Chart chart("predicted against measured, us", {"measured us", true, {}}, {"predicted us", true, {}});
  chart.add(std::move(all));
  chart.add(std::move(best));
  chart.diagonal();
  return chart.text();
}

std::string time_spent(const std::vector<std::pair<std::string, double>>& parts) {
  double total = 0;
  for (const auto& [name, seconds] : parts) total += seconds;
  std::string s = "<table>";
  for (const auto& [name, seconds] : parts) {
    s += fmt::format(
        "<tr><th>{}</th><td>{:.1f} s</td><td class=\"bar\"><div style=\"width:{:.0f}px\"></div></td></tr>\n",
        escaped(name), seconds, total > 0 ? 400 * seconds / total : 0);
  }
  return s + fmt::format("<tr><th>together</th><td>{:.1f} s</td><td></td></tr></table>\n", total);
}

}  // namespace

std::string profile_html(const ProfileReport& r) {
  const core::Dataset& d = *r.data;
  const core::ModelShape& m = d.models.front();
  const core::Metadata& meta = r.fit->metadata;
  std::string s = fmt::format(
      "<!doctype html>\n<html lang=\"en\"><head><meta charset=\"utf-8\"><title>ramp profile: {0} in "
      "{1}</title>\n"
      "<style>body{{font:14px sans-serif;margin:24px;max-width:1100px}}table{{border-collapse:collapse}}"
      "td,th{{border:1px solid #ccc;padding:3px 7px;text-align:right;font-weight:normal}}"
      "th{{background:#f4f4f4}}.bar{{text-align:left}}.bar div{{background:#1f77b4;height:12px}}</style>"
      "</head><body>\n<h1>{0} in {1}</h1>\n<p>E = {2}, k = {3}, H = {4}, I = {5}; {6}, {7} SMs, driver {8} "
      "({9}); "
      "{10}; ramp {11}, {12}. {13} configs, {14} points, cost model {15}.</p>\n",
      escaped(m.name), escaped(r.format), m.experts, m.top_k, m.hidden, m.intermediate, escaped(meta.device),
      meta.sm_count, escaped(meta.driver), escaped(meta.cuda), escaped(meta.source),
      escaped(meta.library_version), escaped(meta.date_utc), d.configs.size(), d.points.size(),
      r.fit->models.front().predictor->cost_model());
  s += "<h2>Best config by tokens and routing</h2>\n<p>m: token rows per tile, s: stages, b: blocks per SM "
       "where "
       "fewer than fit, g: row tiles per group where not the shipped 16. Names and times on hover.</p>\n" +
       best_map(r);
  double mean = 0;
  std::string map = fit_map(r, mean);
  s += fmt::format("<h2>Regret of the fit at the points that it was made from</h2>\n<p>Mean {:.2f}%.</p>\n{}",
                   100 * mean, map);
  if (r.judged)
    s += fmt::format(
        "<h2>Regret at unseen points</h2>\n<p>Mean {:.2f}%, largest {:.1f}%, noise floor {:.2f}%.</p>\n{}",
        100 * r.judged->mean_regret, 100 * r.judged->max_regret, 100 * r.judged->mean_noise,
        judged_map(*r.judged));
  map = default_map(r, mean);
  s += fmt::format(
      "<h2>What choosing is worth</h2>\n<p>Time of the config that runs without a fit over the best one's; "
      "geometric mean {:.3f}.</p>\n{}",
      mean, map);
  s += "<h2>Predictions</h2>\n" + scatter(r);
  s += "<h2>Time spent</h2>\n" + time_spent(r.seconds);
  return s + "</body></html>\n";
}

}  // namespace ramp::cli
