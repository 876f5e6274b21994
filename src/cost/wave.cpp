// The wave predictor: explaining, JSON, and the fitted model.
#include "cost/wave.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>

#include "base/error.hpp"
#include "cost/model_json.hpp"
#include "geometry/grid.hpp"

namespace ramp::core {
namespace {

constexpr int kSchema = 1;
// Keys of the fitted parameters, with units. Order of WaveParameter.
constexpr const char* kParameterKeys[kWaveParameters] = {"latency_us", "sharing_per_tile", "first_read_us",
                                                         "reread_us",  "output_us",        "launch_us",
                                                         "row_us",     "fill_slope"};

}  // namespace

WavePredictor::WavePredictor(std::string_view name, WaveFit fit, ConfigTable configs, ModelShape model,
                             std::string hardware)
    : name_(name),
      fit_(std::move(fit)),
      configs_(std::move(configs)),
      model_(std::move(model)),
      hardware_(std::move(hardware)),
      table_(fit_, configs_, model_),
      kernels_(decide_kernels().back()) {}

size_t WavePredictor::coefficients() const noexcept {
  if (fit_.points.empty()) return 0;
  return configs_.size() * (kWaveParameters + (fit_.alpha.empty() ? 0 : fit_.points.size()));
}

void WavePredictor::predict(std::span<const int32_t> histogram, std::span<float> us,
                            std::span<std::byte> scratch) const noexcept {
  table_.predict(histogram, us, scratch, *kernels_);
}

size_t WavePredictor::choose(std::span<const int32_t> histogram,
                             std::span<std::byte> scratch) const noexcept {
  return table_.choose(histogram, scratch, *kernels_);
}

std::vector<CostTerm> WavePredictor::explain(std::span<const int32_t> histogram, size_t config) const {
  if (config >= configs_.size()) {
    fail_argument("config", fmt::format("{}", config), fmt::format("less than {}", configs_.size()));
  }
  const WorkClass work_class = work_class_of(configs_.configs[config], model_);
  const Work w = make_work(histogram_facts(histogram), tile_tokens(histogram, work_class.tile_m).m_tiles,
                           work_class, fit_.sm_count);
  const WaveConfigParameters& p = fit_.configs[config];
  const double latency = staircase_us(p, w, fit_.hyper);
  const double weights = weights_us(p, w);
  const double output = output_us(p, w);
  const double physics = combine_us(p.value[kLaunch], latency, weights, output, fit_.hyper);
  double residual = 0;
  if (!fit_.alpha.empty()) {
    const auto tile = static_cast<size_t>(
        std::lower_bound(fit_.tile_m.begin(), fit_.tile_m.end(), work_class.tile_m) - fit_.tile_m.begin());
    const WorkCoordinates x = coordinates(w, fit_.hyper);
    for (size_t i = 0; i < fit_.points.size(); ++i) {
      const Work t = make_work(fit_.points[i].facts, fit_.points[i].m_tiles[tile], work_class, fit_.sm_count);
      residual += similarity(x, coordinates(t, fit_.hyper)) * fit_.alpha[config * fit_.points.size() + i];
    }
    residual = std::clamp(residual, -fit_.hyper.residual_limit, fit_.hyper.residual_limit);
  }
  // Terms add up to the prediction: what overlaps is taken off again.
  return {{"launch", p.value[kLaunch]},
          {"waves of tiles", latency},
          {"weight bytes", weights},
          {"output bytes", output},
          {"overlap", physics - p.value[kLaunch] - latency - weights - output},
          {"learned residual", physics * std::expm1(residual)}};
}

nlohmann::json WavePredictor::to_json() const {
  nlohmann::json j;
  j["cost_model"] = name_;
  j["schema"] = kSchema;
  j["model"] = shape_to_json(model_);
  j["hardware"] = {{"name", hardware_}, {"sm_count", fit_.sm_count}};
  j["configs"] = table_to_json(configs_);
  const WaveHyper& h = fit_.hyper;
  j["form"] = {{"additive_share", h.additive_share},      {"tail_rows", h.tail_rows},
               {"scale_log_tiles_per_sm", h.scale_waves}, {"scale_log_first_reads_per_sm", h.scale_active},
               {"scale_padding_share", h.scale_padding},  {"scale_log_fullest_rows", h.scale_tail},
               {"residual_limit_log", h.residual_limit},  {"guard_fraction", h.guard}};
  nlohmann::json& parameters = j["parameters"];
  for (size_t k = 0; k < kWaveParameters; ++k) {
    nlohmann::json& column = parameters[kParameterKeys[k]] = nlohmann::json::array();
    for (const WaveConfigParameters& p : fit_.configs) column.push_back(p.value[k]);
  }
  nlohmann::json& residency = parameters["residency_tiles_per_sm"] = nlohmann::json::array();
  for (const WaveConfigParameters& p : fit_.configs) residency.push_back(static_cast<int64_t>(p.residency));
  parameters["measured"] = fit_.measured;
  j["tile_m"] = fit_.tile_m;
  j["train"] = nlohmann::json::array();
  for (const WaveFit::Point& p : fit_.points) {
    j["train"].push_back({{"rows", p.facts.rows},
                          {"active_experts", p.facts.active},
                          {"max_load_rows", p.facts.max_load},
                          {"m_tiles", p.m_tiles},
                          {"best_config", p.best}});
  }
  j["residual_weights"] = fit_.alpha;
  return j;
}

std::unique_ptr<Predictor> wave_from_json(std::string_view name, const nlohmann::json& j) {
  constexpr double kLarge = 1e30;
  constexpr int64_t kMany = int64_t{1} << 50;
  if (json_text(j, "cost_model") != name) {
    fail_json("cost_model", json_text(j, "cost_model"), name);
  }
  (void)json_integer(j, "schema", kSchema, kSchema);
  ModelShape model = shape_from_json(json_member(j, "model"));
  const nlohmann::json& hardware = json_member(j, "hardware");
  ConfigTable configs = table_from_json(json_member(j, "configs"));
  const size_t n = configs.size();
  WaveFit fit;
  fit.sm_count = static_cast<int32_t>(json_integer(hardware, "sm_count", 1, 1 << 20));
  const nlohmann::json& form = json_member(j, "form");
  WaveHyper& h = fit.hyper;
  h.additive_share = json_number(form, "additive_share", 0, 1);
  h.tail_rows = json_number(form, "tail_rows", 0, 1e6);
  h.scale_waves = json_number(form, "scale_log_tiles_per_sm", 1e-6, 1e6);
  h.scale_active = json_number(form, "scale_log_first_reads_per_sm", 1e-6, 1e6);
  h.scale_padding = json_number(form, "scale_padding_share", 1e-6, 1e6);
  h.scale_tail = json_number(form, "scale_log_fullest_rows", 1e-6, 1e6);
  h.residual_limit = json_number(form, "residual_limit_log", 0, 2);
  h.guard = json_number(form, "guard_fraction", -1, 1);
  const nlohmann::json& parameters = json_member(j, "parameters");
  fit.configs.resize(n);
  for (size_t k = 0; k < kWaveParameters; ++k) {
    const bool slope = k == kFillSlope;
    const std::vector<double> v =
        json_numbers(parameters, kParameterKeys[k], n, slope ? -0.9 : 0, slope ? 0.9 : kLarge);
    for (size_t c = 0; c < n; ++c) fit.configs[c].value[k] = v[c];
  }
  const std::vector<int64_t> residency = json_integers(parameters, "residency_tiles_per_sm", n, 1, 1024);
  const std::vector<int64_t> measured = json_integers(parameters, "measured", n, 0, 1);
  for (size_t c = 0; c < n; ++c) {
    fit.configs[c].residency = static_cast<double>(residency[c]);
    fit.measured.push_back(static_cast<uint8_t>(measured[c]));
  }
  if (std::count(fit.measured.begin(), fit.measured.end(), 1) == 0) {
    fail_json("measured", "no config", "at least one measured config");
  }
  fit.tile_m = distinct_tile_m(configs);
  const std::vector<int64_t> tile_m = json_integers(j, "tile_m", fit.tile_m.size(), 1, 1 << 24);
  if (!std::equal(tile_m.begin(), tile_m.end(), fit.tile_m.begin())) {
    fail_json("tile_m", "other tile sizes", "the distinct tile_m of the configs, ascending");
  }
  const nlohmann::json& train = json_member(j, "train");
  if (!train.is_array()) fail_json("train", "no array", "an array of training points");
  for (const nlohmann::json& point : train) {
    WaveFit::Point p;
    p.facts.rows = json_integer(point, "rows", 0, kMany);
    p.facts.active = json_integer(point, "active_experts", 0, model.experts);
    p.facts.max_load = json_integer(point, "max_load_rows", 0, INT32_MAX);
    p.m_tiles = json_integers(point, "m_tiles", fit.tile_m.size(), 0, kMany);
    p.best = static_cast<size_t>(json_integer(point, "best_config", 0, static_cast<int64_t>(n) - 1));
    if (fit.measured[p.best] == 0) fail_json("best_config", "a config without timings", "a measured one");
    fit.points.push_back(std::move(p));
  }
  const nlohmann::json& weights = json_member(j, "residual_weights");
  const bool none = weights.is_array() && weights.empty();
  fit.alpha = json_numbers(j, "residual_weights", none ? 0 : n * fit.points.size(), -1e6, 1e6);
  return std::make_unique<WavePredictor>(name, std::move(fit), std::move(configs), std::move(model),
                                         json_text(hardware, "name"));
}

std::unique_ptr<Predictor> WaveModel::fit(const Dataset& d, int32_t model, std::span<const size_t> points,
                                          const HardwareConstants& hw, FitReport& report) const {
  WaveFit fit = fit_wave(d, model, points, hw, report, hyper_, on_);
  return std::make_unique<WavePredictor>("wave", std::move(fit), d.configs,
                                         d.models[static_cast<size_t>(model)], hw.name);
}

std::unique_ptr<Predictor> WaveModel::from_json(const nlohmann::json& j) const {
  return wave_from_json("wave", j);
}

std::unique_ptr<Predictor> AnalyticModel::from_json(const nlohmann::json& j) const {
  return wave_from_json("analytic", j);
}

}  // namespace ramp::core
