// Fit and prediction of the published model.
#include "cost/ramp4.hpp"

#include <fmt/format.h>

#include <Eigen/Dense>
#include <algorithm>
#include <array>
#include <cmath>
#include <limits>

#include "base/error.hpp"
#include "cost/evaluate.hpp"
#include "cost/model_json.hpp"
#include "geometry/grid.hpp"

namespace ramp::core {
namespace {

constexpr int kSchema = 1;

struct Coefficients {
  double a = 0, b = 0, c = 0, d = 0, e = 0;
  double least_grid = 0, most_grid = 0;  // profiled range of g
  bool measured = false;
};

// The printed formula.
double formula(const Coefficients& k, double grid, double active_waves, int32_t sm_count) {
  return k.a + k.b * grid / sm_count + k.c * grid + k.d * std::log(grid + 1) + k.e * active_waves;
}

double predicted(const Coefficients& k, double grid, double active_waves, int32_t sm_count) {
  const double at = std::clamp(grid, k.least_grid, k.most_grid);
  double us = formula(k, at, active_waves, sm_count);
  if (grid != at) us += std::max(0.0, k.b / sm_count + k.c + k.d / (at + 1)) * (grid - at);
  return std::clamp(us, 0.0, 3e38);
}

class Ramp4Predictor final : public Predictor {
 public:
  Ramp4Predictor(std::vector<Coefficients> k, ConfigTable configs, ModelShape model, std::string hardware,
                 int32_t sm_count)
      : k_(std::move(k)),
        configs_(std::move(configs)),
        model_(std::move(model)),
        hardware_(std::move(hardware)),
        sm_count_(sm_count),
        counter_(distinct_tile_m(configs_)) {
    const auto tiles = counter_.tile_m();
    for (const KernelConfig& c : configs_.configs) {
      tile_.push_back(
          static_cast<size_t>(std::lower_bound(tiles.begin(), tiles.end(), c.tile_m) - tiles.begin()));
      blocks_.push_back(static_cast<double>(work_class_of(c, model_).blocks_per_tile));
    }
  }
  [[nodiscard]] std::string_view cost_model() const noexcept override { return "ramp4"; }
  [[nodiscard]] const ModelShape& model() const noexcept override { return model_; }
  [[nodiscard]] const ConfigTable& configs() const noexcept override { return configs_; }
  [[nodiscard]] size_t coefficients() const noexcept override {
    size_t n = 0;
    for (const Coefficients& k : k_) {
      for (const double v : {k.a, k.b, k.c, k.d, k.e}) n += v != 0 ? 1 : 0;
    }
    return n;
  }
  [[nodiscard]] size_t scratch_bytes() const noexcept override {
    return counts_bytes() + counter_.scratch_bytes();
  }

  void predict(std::span<const int32_t> histogram, std::span<float> us,
               std::span<std::byte> scratch) const noexcept override {
    const HistogramFacts facts = count(histogram, scratch);
    for (size_t c = 0; c < std::min(us.size(), k_.size()); ++c) us[c] = one(c, facts, scratch);
  }

  [[nodiscard]] size_t choose(std::span<const int32_t> histogram,
                              std::span<std::byte> scratch) const noexcept override {
    const HistogramFacts facts = count(histogram, scratch);
    size_t best = 0;
    float least = std::numeric_limits<float>::infinity();
    for (size_t c = 0; c < k_.size(); ++c) {
      const float us = one(c, facts, scratch);
      if (us < least) {
        least = us;
        best = c;
      }
    }
    return best;
  }

  [[nodiscard]] std::vector<CostTerm> explain(std::span<const int32_t> histogram,
                                              size_t config) const override {
    if (config >= k_.size()) {
      fail_argument("config", fmt::format("{}", config), fmt::format("less than {}", k_.size()));
    }
    const Coefficients& k = k_[config];
    const TokenTiling t = tile_tokens(histogram, configs_.configs[config].tile_m);
    const double grid = static_cast<double>(t.m_tiles) * blocks_[config];
    const double active = static_cast<double>(t.active) * blocks_[config] / sm_count_;
    std::vector<CostTerm> terms = {{"constant a", k.a},
                                   {"waves b*g/SM", k.b * grid / sm_count_},
                                   {"grid c*g", k.c * grid},
                                   {"log d*log(g+1)", k.d * std::log(grid + 1)}};
    if (k.e != 0) terms.push_back({"active experts", k.e * active});
    terms.push_back({"guard", predicted(k, grid, active, sm_count_) - formula(k, grid, active, sm_count_)});
    return terms;
  }

  [[nodiscard]] nlohmann::json to_json() const override {
    nlohmann::json j;
    j["cost_model"] = cost_model();
    j["schema"] = kSchema;
    j["model"] = shape_to_json(model_);
    j["hardware"] = {{"name", hardware_}, {"sm_count", sm_count_}};
    j["configs"] = table_to_json(configs_);
    for (const auto& [key, member] : kKeys) {
      nlohmann::json& column = j["parameters"][key] = nlohmann::json::array();
      for (const Coefficients& k : k_) column.push_back(k.*member);
    }
    nlohmann::json& measured = j["parameters"]["measured"] = nlohmann::json::array();
    for (const Coefficients& k : k_) measured.push_back(k.measured ? 1 : 0);
    return j;
  }

  static constexpr std::pair<const char*, double Coefficients::*> kKeys[] = {
      {"a_us", &Coefficients::a},
      {"b_us_per_wave", &Coefficients::b},
      {"c_us_per_tile", &Coefficients::c},
      {"d_us_per_log_tile", &Coefficients::d},
      {"e_us_per_active_wave", &Coefficients::e},
      {"least_grid_tiles", &Coefficients::least_grid},
      {"most_grid_tiles", &Coefficients::most_grid}};

 private:
  [[nodiscard]] size_t counts_bytes() const noexcept {
    return (counter_.tile_m().size() * sizeof(int64_t) + 63) / 64 * 64;
  }
  HistogramFacts count(std::span<const int32_t> histogram, std::span<std::byte> scratch) const noexcept {
    const auto experts = static_cast<size_t>(model_.experts);
    return counter_.count(histogram.first(std::min(histogram.size(), experts)), *decide_kernels().back(),
                          {reinterpret_cast<int64_t*>(scratch.data()), counter_.tile_m().size()},
                          scratch.data() + counts_bytes());
  }
  [[nodiscard]] float one(size_t c, const HistogramFacts& facts,
                          std::span<std::byte> scratch) const noexcept {
    const Coefficients& k = k_[c];
    if (!k.measured) return std::numeric_limits<float>::infinity();
    const int64_t m_tiles = reinterpret_cast<const int64_t*>(scratch.data())[tile_[c]];
    const double active = static_cast<double>(facts.active) * blocks_[c] / sm_count_;
    return static_cast<float>(predicted(k, static_cast<double>(m_tiles) * blocks_[c], active, sm_count_));
  }

  std::vector<Coefficients> k_;
  ConfigTable configs_;
  ModelShape model_;
  std::string hardware_;
  int32_t sm_count_;
  TileCounter counter_;
  std::vector<size_t> tile_;
  std::vector<double> blocks_;
};

}  // namespace

std::unique_ptr<Predictor> Ramp4Model::fit(const Dataset& d, int32_t model, std::span<const size_t> points,
                                           const HardwareConstants& hw, FitReport& report) const {
  check_fittable(d, model, points);
  if (hw.sm_count <= 0) {
    fail_argument("hardware.sm_count", fmt::format("{}", hw.sm_count), "the number of SMs or workers");
  }
  const ModelShape& shape = d.models[static_cast<size_t>(model)];
  std::vector<Coefficients> all(d.configs.size());
  size_t deficient = 0;
  size_t unmeasured = 0;
  std::array<Eigen::Index, 2> example{};  // rank, columns
  for (size_t c = 0; c < d.configs.size(); ++c) {
    const KernelConfig& config = d.configs.configs[c];
    const auto blocks = static_cast<double>(work_class_of(config, shape).blocks_per_tile);
    std::vector<double> grid;
    std::vector<double> active;
    std::vector<double> us;
    for (const size_t p : points) {
      if (std::isnan(d.time(p, c))) continue;
      const TokenTiling t = tile_tokens(d.points[p].histogram, config.tile_m);
      grid.push_back(static_cast<double>(t.m_tiles) * blocks);
      active.push_back(static_cast<double>(t.active) * blocks / hw.sm_count);
      us.push_back(d.time(p, c));
    }
    if (us.empty()) {
      ++unmeasured;
      continue;
    }
    Coefficients& k = all[c];
    k.measured = true;
    k.least_grid = *std::min_element(grid.begin(), grid.end());
    k.most_grid = *std::max_element(grid.begin(), grid.end());
    std::vector<double Coefficients::*> columns = {&Coefficients::a};
    if (on_.waves) columns.push_back(&Coefficients::b);
    if (on_.grid) columns.push_back(&Coefficients::c);
    if (on_.log && (on_.log_always || quantile(grid, 0.5) < hw.sm_count)) columns.push_back(&Coefficients::d);
    if (on_.active) columns.push_back(&Coefficients::e);
    // Rows over their own time: least squares of relative error, all right-hand sides 1.
    const auto rows = static_cast<Eigen::Index>(us.size());
    const auto width = static_cast<Eigen::Index>(columns.size());
    Eigen::MatrixXd x(rows, width);
    for (Eigen::Index i = 0; i < rows; ++i) {
      const auto at = static_cast<size_t>(i);
      for (Eigen::Index j = 0; j < width; ++j) {
        Coefficients one;
        one.*columns[static_cast<size_t>(j)] = 1;
        x(i, j) = formula(one, grid[at], active[at], hw.sm_count) / us[at];
      }
    }
    // Complete orthogonal decomposition = column-pivoting Householder QR taken on to the minimum-norm
    // solution.
    Eigen::CompleteOrthogonalDecomposition<Eigen::MatrixXd> qr(width, width);
    qr.setThreshold(1e-10);
    qr.compute(x);
    const Eigen::VectorXd solved = qr.solve(Eigen::VectorXd::Ones(rows));
    for (Eigen::Index j = 0; j < width; ++j) k.*columns[static_cast<size_t>(j)] = solved[j];
    if (qr.rank() < width) {
      ++deficient;
      example = {qr.rank(), width};
    }
  }
  if (deficient > 0) {
    report.warnings.push_back(fmt::format(
        "ramp4: rank-deficient in {} of {} configs (e.g. rank {} of {} columns; g/SM and g are collinear): "
        "minimum-norm solution",
        deficient, all.size(), example[0], example[1]));
  }
  if (unmeasured > 0) {
    report.warnings.push_back(
        fmt::format("{} of {} configs have no training timing and are never chosen", unmeasured, all.size()));
  }
  report.n_train = points.size();
  return std::make_unique<Ramp4Predictor>(std::move(all), d.configs, shape, hw.name, hw.sm_count);
}

std::unique_ptr<Predictor> Ramp4Model::from_json(const nlohmann::json& j) const {
  if (json_text(j, "cost_model") != name()) fail_json("cost_model", json_text(j, "cost_model"), name());
  (void)json_integer(j, "schema", kSchema, kSchema);
  ModelShape model = shape_from_json(json_member(j, "model"));
  ConfigTable configs = table_from_json(json_member(j, "configs"));
  const nlohmann::json& hardware = json_member(j, "hardware");
  const nlohmann::json& parameters = json_member(j, "parameters");
  std::vector<Coefficients> all(configs.size());
  for (const auto& [key, member] : Ramp4Predictor::kKeys) {
    const std::vector<double> v = json_numbers(parameters, key, all.size(), -1e300, 1e300);
    for (size_t c = 0; c < all.size(); ++c) all[c].*member = v[c];
  }
  const std::vector<int64_t> measured = json_integers(parameters, "measured", all.size(), 0, 1);
  for (size_t c = 0; c < all.size(); ++c) {
    all[c].measured = measured[c] != 0;
    if (!(all[c].least_grid >= 0 && all[c].most_grid >= all[c].least_grid)) {
      fail_json("least_grid_tiles", fmt::format("{}..{}", all[c].least_grid, all[c].most_grid), "a range");
    }
  }
  return std::make_unique<Ramp4Predictor>(
      std::move(all), std::move(configs), std::move(model), json_text(hardware, "name"),
      static_cast<int32_t>(json_integer(hardware, "sm_count", 1, 1 << 20)));
}

}  // namespace ramp::core
