// A dataset as three CSV files.
#include <fmt/format.h>

#include <cmath>

#include "base/error.hpp"
#include "base/file.hpp"
#include "dispatch/config_columns.hpp"
#include "dispatch/profile_file.hpp"

namespace ramp::core {
namespace {

// RFC 4180: quoted where a comma or a quote asks for it.
std::string field(std::string_view text) {
  if (text.find_first_of("\r\n") != std::string_view::npos)
    fail_argument("name", "a line break", "names on one line", "rename it");
  if (text.find_first_of(",\"") == std::string_view::npos) return std::string(text);
  std::string quoted = "\"";
  for (const char c : text) {
    quoted += c;
    if (c == '"') quoted += c;
  }
  quoted += '"';
  return quoted;
}

// {} of a double prints the shortest digits that read back to the same bits.
std::string points_csv(const Dataset& d) {
  std::string out = "point,model,experts,top_k,hidden,intermediate,tokens,zipf,split,histogram\n";
  for (const WorkPoint& p : d.points) {
    const ModelShape& m = d.models[static_cast<size_t>(p.model)];
    out +=
        fmt::format("{},{},{},{},{},{},{},{},{},", field(p.name), field(m.name), m.experts, m.top_k, m.hidden,
                    m.intermediate, p.tokens, std::isnan(p.zipf) ? std::string() : fmt::format("{}", p.zipf),
                    p.train ? "train" : "test");
    out += fmt::format("{}\n", fmt::join(p.histogram, " "));
  }
  return out;
}

std::string configs_csv(const ConfigTable& t) {
  std::string out = "config";
  for (const std::string& c : t.known_columns) out += fmt::format(",{}", c);
  for (const std::string& c : t.extra_columns) out += fmt::format(",{}", field(c));
  out += "\n";
  const size_t extras = t.extra_columns.size();
  for (size_t c = 0; c < t.size(); ++c) {
    out += field(t.names[c]);
    for (const std::string& name : t.known_columns)
      out += fmt::format(",{}", t.configs[c].*find_config_column(name)->member);
    for (size_t x = 0; x < extras; ++x) out += fmt::format(",{}", t.extra[c * extras + x]);
    out += "\n";
  }
  return out;
}

std::string timings_csv(const Dataset& d) {
  std::string out = d.has_repeat ? "point,config,us,us_repeat\n" : "point,config,us\n";
  for (size_t p = 0; p < d.points.size(); ++p) {
    for (size_t c = 0; c < d.configs.size(); ++c) {
      if (std::isnan(d.time(p, c))) continue;
      out += fmt::format("{},{},{}", field(d.points[p].name), field(d.configs.names[c]), d.time(p, c));
      if (d.has_repeat)
        out += std::isnan(d.repeat(p, c)) ? std::string(",") : fmt::format(",{}", d.repeat(p, c));
      out += "\n";
    }
  }
  return out;
}

}  // namespace

void write_dataset(const std::string& directory, const Dataset& d) {
  // Texts first: a name that cannot be written leaves no half-written set behind.
  const std::string points = points_csv(d);
  const std::string configs = configs_csv(d.configs);
  const std::string timings = timings_csv(d);
  write_text(directory + "/points.csv", points);
  write_text(directory + "/configs.csv", configs);
  write_text(directory + "/timings.csv", timings);
}

}  // namespace ramp::core
