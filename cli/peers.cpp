// See peers.hpp.
#include "cli/peers.hpp"

#include <fmt/format.h>

#include "base/error.hpp"
#include "base/file.hpp"

namespace ramp::cli {

Peers::Peers(const std::string& path) {
  const std::string name = path.empty() ? "built-in figures" : path;
  constexpr size_t kMostBytes = size_t{1} << 20;
  const std::string text = path.empty() ? peers_json() : core::read_text(path, kMostBytes);
  try {
    json_ = Json::parse(text);
    if (json_.at("schema") != 1)
      core::fail_argument(name, fmt::format("schema {}", json_.at("schema").dump()), "schema 1", {},
                          RAMP_ERROR_BAD_FILE);
    device_ = json_.at("device").get<std::string>();
    read_gbps_ = 1e3 * json_.at("read_tbps").get<double>();
    least_ratio_ = json_.at("least_ratio").get<double>();
    // What is looked up later is looked at now, so that only this constructor can fail.
    for (const auto& [format, models] : json_.at("us").items())
      for (const auto& [model, points] : models.items())
        for (const auto& [tokens, routings] : points.items())
          for (const auto& [routing, figure] : routings.items())
            static_cast<void>(figure.at(0).get<double>() + figure.at(1).get<std::string>().size());
    for (const auto& [format, list] : json_.at("goals").items())
      for (const Json& g : list)
        static_cast<void>(g.at("tokens").at(0).get<int64_t>() + g.at("tokens").at(1).get<int64_t>() +
                          g.at("ratio").get<double>());
    for (const char* const key : {"tflops", "layers"})
      for (const auto& [entry, value] : json_.at(key).items()) static_cast<void>(value.get<double>());
  } catch (const Json::exception& e) {
    core::fail_argument(name, core::printable(e.what(), 200), "figures as in bench/data/peers_h200.json", {},
                        RAMP_ERROR_BAD_FILE);
  }
}

Peers::Figure Peers::find(const core::ModelShape& model, ramp_format format, int64_t tokens,
                          const std::string& routing) const {
  const Json* at = &json_.at("us");
  for (const std::string& key : {std::string(core::format_name(format)), model.name, std::to_string(tokens),
                                 routing == "zipf:0" ? std::string("uniform") : routing}) {
    if (!at->contains(key)) return {};
    at = &at->at(key);
  }
  return {at->at(0).get<double>(), at->at(1).get<std::string>()};
}

std::vector<Peers::Goal> Peers::goals(ramp_format format) const {
  std::vector<Goal> list;
  const Json& all = json_.at("goals");
  if (!all.contains(core::format_name(format))) return list;
  for (const Json& g : all.at(core::format_name(format)))
    list.push_back({g.at("tokens").at(0).get<int64_t>(), g.at("tokens").at(1).get<int64_t>(),
                    g.at("ratio").get<double>()});
  return list;
}

int64_t Peers::layers(const std::string& model) const {
  return json_.at("layers").value(model, int64_t{0});
}

double Peers::tflops(ramp_format format) const {
  return json_.at("tflops").value(core::format_name(format), 0.0);
}

}  // namespace ramp::cli
