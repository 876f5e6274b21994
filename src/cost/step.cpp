// Prediction, fit and files of the model `step`.
#include "cost/step.hpp"

#include <fmt/format.h>

#include <Eigen/Dense>
#include <algorithm>
#include <array>
#include <cmath>
#include <limits>

#include "base/error.hpp"
#include "cost/evaluate.hpp"
#include "cost/model_json.hpp"
#include "cost/wave_fit.hpp"
#include "geometry/grid.hpp"

namespace ramp::core {
namespace {

constexpr int kSchema = 1;
constexpr size_t kTerms = 6;  // base, two waves, active, tile, row
using TermVector = Eigen::Matrix<double, kTerms, 1>;
using TermMatrix = Eigen::Matrix<double, kTerms, kTerms>;

constexpr double kNsPerUs = 1000;
// Of a term; sums of them saturate (params/decide.hpp).
constexpr double kMostNs = 1 << 22;
constexpr std::array<double, 5> kOverlaps = {0, 0.25, 0.5, 0.75, 1};
constexpr std::array<double, 4> kResidencies = {1, 2, 3, 4};

uint32_t to_ns(double us, double most = kMostNs) {
  return static_cast<uint32_t>(std::clamp(std::round(us * kNsPerUs), 0.0, most));
}
int64_t ceil_div(int64_t a, int64_t b) noexcept {
  return (a + b - 1) / b;
}

// What one point brings into a config's terms: each term's factor.
struct Factors {
  double active = 0, tiles = 0, rows = 0;
  double waves[2] = {};
};
Factors factors_of(std::span<const int32_t> histogram, const KernelConfig& config, const ModelShape& model,
                   double places) {
  Factors f;
  for (const int32_t c : histogram) {
    if (c <= 0) continue;
    f.active += 1;
    f.tiles += static_cast<double>(ceil_div(c, config.tile_m));
    f.rows += static_cast<double>(ceil_div(c, 8) * 8);
  }
  const int64_t units[2] = {ceil_div(2 * model.intermediate, config.tile_n),
                            ceil_div(model.hidden, config.tile_n)};
  for (size_t g = 0; g < 2; ++g) f.waves[g] = std::ceil(f.tiles * static_cast<double>(units[g]) / places);
  return f;
}

// min |A t - 1| over t >= 0, given A'A and A'1: Lawson and Hanson's active sets.
TermVector nonnegative(const TermMatrix& normal, const TermVector& right) {
  TermVector t = TermVector::Zero();
  std::array<bool, kTerms> free{};
  constexpr double kTolerance = 1e-12;
  for (size_t round = 0; round < 4 * kTerms; ++round) {
    const TermVector gradient = right - normal * t;
    size_t enter = kTerms;
    for (size_t i = 0; i < kTerms; ++i) {
      const auto at = static_cast<Eigen::Index>(i);
      if (!free[i] && gradient[at] > kTolerance &&
          (enter == kTerms || gradient[at] > gradient[static_cast<Eigen::Index>(enter)]))
        enter = i;
    }
    if (enter == kTerms) break;
    free[enter] = true;
    for (size_t inner = 0; inner <= kTerms; ++inner) {
      TermMatrix m = normal;
      TermVector r = right;
      for (size_t i = 0; i < kTerms; ++i) {
        if (free[i]) continue;
        const auto at = static_cast<Eigen::Index>(i);
        m.row(at).setZero();
        m.col(at).setZero();
        m(at, at) = 1;
        r[at] = 0;
      }
      const TermVector s = m.ldlt().solve(r);
      double step = 1;
      for (size_t i = 0; i < kTerms; ++i) {
        const auto at = static_cast<Eigen::Index>(i);
        if (free[i] && s[at] <= 0 && t[at] - s[at] > 0) step = std::min(step, t[at] / (t[at] - s[at]));
      }
      t += step * (s - t);
      if (step == 1) break;
      for (size_t i = 0; i < kTerms; ++i) {
        const auto at = static_cast<Eigen::Index>(i);
        if (free[i] && t[at] <= kTolerance) {
          free[i] = false;
          t[at] = 0;
        }
      }
    }
  }
  return t.cwiseMax(0);
}

struct Trial {
  StepTerms terms;
  double error = std::numeric_limits<double>::infinity();  // sum of squared relative errors
};

double predicted_us(const StepTerms& t, const Factors& f) {
  const double work = t.tile * f.tiles + t.row * f.rows;
  const double weights = t.active * f.active;
  return t.base + work + weights - t.overlap * std::min(work, weights) + t.wave[0] * f.waves[0] +
         t.wave[1] * f.waves[1];
}

// With overlap and places given. Which of weights and work is the smaller at a point follows from the terms,
// which follow from that: a few rounds.
Trial fit_terms(std::span<const Factors> factors, std::span<const double> us, double overlap, double places) {
  constexpr int kRounds = 6;
  constexpr double kRidge = 1e-9;  // of collinear columns the first ones
  Trial best;
  std::vector<bool> work_hides(us.size(), true);
  for (int round = 0; round < (overlap > 0 ? kRounds : 1); ++round) {
    TermMatrix normal = TermMatrix::Zero();
    TermVector right = TermVector::Zero();
    TermVector scale = TermVector::Zero();
    std::vector<TermVector> rows;
    for (size_t i = 0; i < us.size(); ++i) {
      const Factors& f = factors[i];
      const double work = work_hides[i] ? 1 - overlap : 1;
      const double weights = work_hides[i] ? 1 : 1 - overlap;
      TermVector row;
      row << 1, f.waves[0], f.waves[1], weights * f.active, work * f.tiles, work * f.rows;
      rows.push_back(row / us[i]);
      scale += rows.back().cwiseAbs2();
    }
    scale = scale.cwiseSqrt().cwiseMax(1e-30);
    for (const TermVector& row : rows) {
      const TermVector a = row.cwiseQuotient(scale);
      normal += a * a.transpose();
      right += a;
    }
    for (size_t i = 0; i < kTerms; ++i)
      normal(static_cast<Eigen::Index>(i), static_cast<Eigen::Index>(i)) +=
          kRidge * static_cast<double>(i + 1);
    const TermVector t = nonnegative(normal, right).cwiseQuotient(scale);
    Trial trial;
    trial.terms = {t[0], {t[1], t[2]}, t[3], t[4], t[5], overlap, places, true};
    trial.error = 0;
    bool same = true;
    for (size_t i = 0; i < us.size(); ++i) {
      const double relative = predicted_us(trial.terms, factors[i]) / us[i] - 1;
      trial.error += relative * relative;
      const bool hides = t[4] * factors[i].tiles + t[5] * factors[i].rows < t[3] * factors[i].active;
      same = same && hides == work_hides[i];
      work_hides[i] = hides;
    }
    if (trial.error < best.error) best = trial;
    if (same) break;
  }
  return best;
}

}  // namespace

cuda::CandidateCost make_cost(const StepTerms& t, const KernelConfig& config, const ModelShape& model) {
  cuda::CandidateCost c{};
  c.base_ns = to_ns(t.base);
  c.active_ns = to_ns(t.active);
  c.overlap = static_cast<uint32_t>(std::lround(std::clamp(t.overlap, 0.0, 1.0) * 256));
  const int64_t units[2] = {ceil_div(2 * model.intermediate, config.tile_n),
                            ceil_div(model.hidden, config.tile_n)};
  for (size_t g = 0; g < 2; ++g) {
    c.wave_ns[g] = to_ns(t.wave[g]);
    c.units[g] = static_cast<uint32_t>(units[g]);
    c.places[g] = static_cast<uint32_t>(std::max(1.0, t.places));
  }
  for (unsigned i = 0; i < cuda::kCostPoints; ++i) {
    const int64_t rows = cuda::point_rows(i);
    c.ns[i] = to_ns(t.tile * static_cast<double>(ceil_div(rows, config.tile_m)) +
                        t.row * static_cast<double>(ceil_div(rows, 8) * 8),
                    cuda::kMostCurveNs);
  }
  return c;
}

uint32_t step_ns(const cuda::CandidateCost& cost, uint32_t tile_m,
                 std::span<const int32_t> histogram) noexcept {
  uint32_t sum = 0;
  uint32_t active = 0;
  uint32_t tiles = 0;
  for (const int32_t c : histogram) {
    if (c <= 0) continue;
    const auto rows = static_cast<uint32_t>(c);
    sum = cuda::saturating_sum(sum, cuda::curve_ns(cost.ns, rows));
    active += 1;
    tiles += cuda::tiles_of(rows, tile_m);
  }
  return cuda::candidate_ns(cost, sum, active, tiles);
}

StepPredictor::StepPredictor(std::vector<StepTerms> terms, ConfigTable configs, ModelShape model,
                             std::string hardware, int32_t sm_count)
    : terms_(std::move(terms)),
      configs_(std::move(configs)),
      model_(std::move(model)),
      hardware_(std::move(hardware)),
      sm_count_(sm_count) {
  for (size_t c = 0; c < terms_.size(); ++c)
    costs_.push_back(make_cost(terms_[c], configs_.configs[c], model_));
}

size_t StepPredictor::coefficients() const noexcept {
  size_t n = 0;
  for (const StepTerms& t : terms_)
    for (const double v : {t.base, t.wave[0], t.wave[1], t.active, t.tile, t.row, t.overlap})
      n += v != 0 ? 1 : 0;
  return n;
}

void StepPredictor::predict(std::span<const int32_t> histogram, std::span<float> us,
                            std::span<std::byte> /*scratch*/) const noexcept {
  const auto counts = histogram.first(std::min(histogram.size(), static_cast<size_t>(model_.experts)));
  for (size_t c = 0; c < std::min(us.size(), costs_.size()); ++c)
    us[c] =
        terms_[c].measured
            ? static_cast<float>(
                  step_ns(costs_[c], static_cast<uint32_t>(configs_.configs[c].tile_m), counts) / kNsPerUs)
            : std::numeric_limits<float>::infinity();
}

size_t StepPredictor::choose(std::span<const int32_t> histogram,
                             std::span<std::byte> /*scratch*/) const noexcept {
  const auto counts = histogram.first(std::min(histogram.size(), static_cast<size_t>(model_.experts)));
  size_t best = 0;
  uint64_t least = std::numeric_limits<uint64_t>::max();
  for (size_t c = 0; c < costs_.size(); ++c) {
    if (!terms_[c].measured) continue;
    const uint64_t ns = step_ns(costs_[c], static_cast<uint32_t>(configs_.configs[c].tile_m), counts);
    if (ns < least) {
      least = ns;
      best = c;
    }
  }
  return best;
}

std::vector<CostTerm> StepPredictor::explain(std::span<const int32_t> histogram, size_t config) const {
  if (config >= terms_.size())
    fail_argument("config", fmt::format("{}", config), fmt::format("less than {}", terms_.size()));
  const StepTerms& t = terms_[config];
  const Factors f = factors_of(histogram, configs_.configs[config], model_, t.places);
  const double work = t.tile * f.tiles + t.row * f.rows;
  const double weights = t.active * f.active;
  return {{"base", t.base},
          {"weights of active experts", weights},
          {"tiles and rows", work},
          {"hidden", -t.overlap * std::min(work, weights)},
          {"waves of GEMM 1", t.wave[0] * f.waves[0]},
          {"waves of GEMM 2", t.wave[1] * f.waves[1]}};
}

namespace {

constexpr std::pair<const char*, double StepTerms::*> kKeys[] = {
    {"base_us", &StepTerms::base}, {"active_us", &StepTerms::active}, {"tile_us", &StepTerms::tile},
    {"row_us", &StepTerms::row},   {"overlap", &StepTerms::overlap},  {"places_tiles", &StepTerms::places}};
constexpr const char* kWaveKeys[2] = {"wave_gemm1_us", "wave_gemm2_us"};

}  // namespace

nlohmann::json StepPredictor::to_json() const {
  nlohmann::json j;
  j["cost_model"] = cost_model();
  j["schema"] = kSchema;
  j["model"] = shape_to_json(model_);
  j["hardware"] = {{"name", hardware_}, {"sm_count", sm_count_}};
  j["configs"] = table_to_json(configs_);
  nlohmann::json& p = j["parameters"];
  for (const auto& [key, member] : kKeys) {
    p[key] = nlohmann::json::array();
    for (const StepTerms& t : terms_) p[key].push_back(t.*member);
  }
  for (size_t g = 0; g < 2; ++g) {
    p[kWaveKeys[g]] = nlohmann::json::array();
    for (const StepTerms& t : terms_) p[kWaveKeys[g]].push_back(t.wave[g]);
  }
  p["measured"] = nlohmann::json::array();
  for (const StepTerms& t : terms_) p["measured"].push_back(t.measured ? 1 : 0);
  return j;
}

std::unique_ptr<Predictor> StepModel::fit(const Dataset& d, int32_t model, std::span<const size_t> points,
                                          const HardwareConstants& hw, FitReport& report) const {
  check_fittable(d, model, points);
  if (hw.sm_count <= 0)
    fail_argument("hardware.sm_count", fmt::format("{}", hw.sm_count), "the number of SMs or workers");
  const ModelShape& shape = d.models[static_cast<size_t>(model)];
  std::vector<StepTerms> all(d.configs.size());
  size_t unmeasured = 0;
  for (size_t c = 0; c < d.configs.size(); ++c) {
    Trial best;
    for (const double residency : kResidencies) {
      const double places = residency * hw.sm_count;
      std::vector<Factors> factors;
      std::vector<double> us;
      for (const size_t p : points) {
        if (std::isnan(d.time(p, c))) continue;
        factors.push_back(factors_of(d.points[p].histogram, d.configs.configs[c], shape, places));
        us.push_back(d.time(p, c));
      }
      if (us.empty()) break;
      for (const double overlap : kOverlaps) {
        const Trial trial = fit_terms(factors, us, overlap, places);
        if (trial.error < best.error) best = trial;
      }
    }
    all[c] = best.terms;
    if (!best.terms.measured) ++unmeasured;
  }
  if (unmeasured > 0)
    report.warnings.push_back(
        fmt::format("{} of {} configs have no training timing and are never chosen", unmeasured, all.size()));
  report.n_train = points.size();
  return std::make_unique<StepPredictor>(std::move(all), d.configs, shape, hw.name, hw.sm_count);
}

std::unique_ptr<Predictor> StepModel::from_json(const nlohmann::json& j) const {
  if (json_text(j, "cost_model") != name()) fail_json("cost_model", json_text(j, "cost_model"), name());
  (void)json_integer(j, "schema", kSchema, kSchema);
  ModelShape model = shape_from_json(json_member(j, "model"));
  ConfigTable configs = table_from_json(json_member(j, "configs"));
  const nlohmann::json& hardware = json_member(j, "hardware");
  const nlohmann::json& parameters = json_member(j, "parameters");
  std::vector<StepTerms> all(configs.size());
  constexpr double kMost = 1e9;  // of any parameter; to_ns() limits what it becomes
  for (const auto& [key, member] : kKeys) {
    const std::vector<double> v = json_numbers(parameters, key, all.size(), 0, kMost);
    for (size_t c = 0; c < all.size(); ++c) all[c].*member = v[c];
  }
  for (size_t g = 0; g < 2; ++g) {
    const std::vector<double> v = json_numbers(parameters, kWaveKeys[g], all.size(), 0, kMost);
    for (size_t c = 0; c < all.size(); ++c) all[c].wave[g] = v[c];
  }
  const std::vector<int64_t> measured = json_integers(parameters, "measured", all.size(), 0, 1);
  for (size_t c = 0; c < all.size(); ++c) all[c].measured = measured[c] != 0;
  return std::make_unique<StepPredictor>(
      std::move(all), std::move(configs), std::move(model), json_text(hardware, "name"),
      static_cast<int32_t>(json_integer(hardware, "sm_count", 1, 1 << 20)));
}

}  // namespace ramp::core
