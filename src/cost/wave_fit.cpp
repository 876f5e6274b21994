// Maximum a posteriori fit of the wave physics by damped Gauss-Newton with robust weights, alternating with
// neighbourhood means (a hierarchy: memory, output and launch are almost one number per model; sharing and
// re-reads vary mildly; the latency follows its neighbours unless its own points say otherwise).
#include "cost/wave_fit.hpp"

#include <fmt/format.h>

#include <Eigen/Dense>
#include <algorithm>
#include <cmath>

#include "base/error.hpp"
#include "geometry/grid.hpp"

namespace ramp::core {
namespace {

using Vector8 = Eigen::Matrix<double, kWaveParameters, 1>;
using Matrix8 = Eigen::Matrix<double, kWaveParameters, kWaveParameters>;
constexpr double kDerivativeStep = 1e-4;  // of the numeric Jacobian, in log units

// The fit works on logarithms of all parameters but the fill slope, which may have either sign.
WaveConfigParameters natural(const Vector8& theta, double residency) {
  WaveConfigParameters p;
  p.residency = residency;
  for (size_t i = 0; i < kWaveParameters; ++i) {
    p.value[i] = i == kFillSlope ? theta[kFillSlope] : std::exp(theta[static_cast<Eigen::Index>(i)]);
  }
  return p;
}

Vector8 logarithms(const WaveVector& v) {
  Vector8 t;
  for (size_t i = 0; i < kWaveParameters; ++i) {
    t[static_cast<Eigen::Index>(i)] = i == kFillSlope ? v[i] : std::log(v[i]);
  }
  return t;
}

// One model's training data in the shape that the fit walks: [config][point].
struct Problem {
  size_t configs = 0, points = 0;
  std::vector<Work> work;                   // [config][point]
  std::vector<double> log_us;               // [config][point], NaN where not measured
  std::vector<Vector8> start;               // kernel constants, log units
  std::vector<double> latency_k, shared_k;  // neighbourhoods [config][config]
};

// Work as an ablation wants it seen.
Work seen(Work w, const WaveSwitches& on) {
  if (!on.active) w.first_read = w.tiles;
  if (!on.output) w.output *= 1e-6;
  return w;
}

double predicted_log(const WaveConfigParameters& p, const Work& w, const WaveHyper& h,
                     const WaveSwitches& on) {
  if (on.waves) return std::log(physics_us(p, w, h));
  const double alone =
      p.value[kLatency] * (1 + p.value[kFillSlope] * (w.padding - 0.5)) + p.value[kRow] * w.fill;
  const double latency = w.tiles / p.residency * alone * (1 + p.value[kSharing] * (p.residency - 1));
  return std::log(combine_us(p.value[kLaunch], latency, weights_us(p, w), output_us(p, w), h));
}

struct Spread {
  WaveVector first, later;
  double pull;
};

class PhysicsFit {
 public:
  PhysicsFit(const Problem& problem, std::span<const double> residency, const WaveHyper& h,
             const WaveSwitches& on, const Spread& spread)
      : problem_(problem), residency_(residency), h_(h), on_(on), spread_(spread), theta_(problem.start) {}

  std::vector<Vector8> run() {
    std::vector<Vector8> centre = problem_.start;
    for (int pass = 0; pass < h_.passes; ++pass) {
      const WaveVector& sd = pass == 0 ? spread_.first : spread_.later;
      const int iterations = pass == 0 ? h_.first_iterations : h_.later_iterations;
      for (size_t c = 0; c < problem_.configs; ++c) {
        for (int i = 0; i < iterations; ++i) improve(c, centre[c], sd);
      }
      centre = neighbourhood_means();
    }
    return theta_;
  }

 private:
  // One damped Gauss-Newton step of one config's eight parameters.
  void improve(size_t c, const Vector8& centre, const WaveVector& sd) {
    std::array<WaveConfigParameters, kWaveParameters + 1> p;
    for (size_t k = 0; k < kWaveParameters; ++k) {
      Vector8 moved = theta_[c];
      moved[static_cast<Eigen::Index>(k)] += kDerivativeStep;
      p[k] = natural(moved, residency_[c]);
    }
    p[kWaveParameters] = natural(theta_[c], residency_[c]);
    Matrix8 hessian = Matrix8::Zero();
    Vector8 gradient = Vector8::Zero();
    for (size_t i = 0; i < problem_.points; ++i) {
      const double measured = problem_.log_us[c * problem_.points + i];
      if (std::isnan(measured)) continue;
      const Work& w = problem_.work[c * problem_.points + i];
      const double f = predicted_log(p[kWaveParameters], w, h_, on_);
      Vector8 j;
      for (size_t k = 0; k < kWaveParameters; ++k) {
        j[static_cast<Eigen::Index>(k)] = (predicted_log(p[k], w, h_, on_) - f) / kDerivativeStep;
      }
      const double error = measured - f;
      const double scaled = error / (h_.robust_at * h_.noise);
      const double weight = 1 / (h_.noise * h_.noise) / (1 + scaled * scaled);
      hessian += weight * j * j.transpose();
      gradient += weight * error * j;
    }
    for (size_t k = 0; k < kWaveParameters; ++k) {
      const auto at = static_cast<Eigen::Index>(k);
      const double precision = 1 / (sd[k] * sd[k]);
      hessian(at, at) += precision;
      gradient[at] -= precision * (theta_[c][at] - centre[at]);
    }
    const Vector8 step = hessian.ldlt().solve(gradient);
    theta_[c] += step.cwiseMax(-h_.step_limit).cwiseMin(h_.step_limit);
  }

  [[nodiscard]] double smoothed(const std::vector<double>& k, size_t c, Eigen::Index parameter) const {
    // Relative to the constants, for these carry what is known of a config's size.
    double sum = problem_.start[c][parameter];
    for (size_t o = 0; o < problem_.configs; ++o)
      sum += k[c * problem_.configs + o] * (theta_[o][parameter] - problem_.start[o][parameter]);
    return sum;
  }

  // Where each config's parameters are expected, given all others.
  [[nodiscard]] std::vector<Vector8> neighbourhood_means() const {
    const auto n = static_cast<double>(problem_.configs);
    double first_read = 0;
    double output = 0;
    double launch = 0;
    for (size_t c = 0; c < problem_.configs; ++c) {
      first_read += (theta_[c][kFirstRead] - problem_.start[c][kFirstRead]) / n;
      output += theta_[c][kOutput] / n;
      launch += theta_[c][kLaunch] / n;
    }
    std::vector<Vector8> mean(problem_.configs);
    for (size_t c = 0; c < problem_.configs; ++c) {
      Vector8& m = mean[c];
      m[kLatency] = smoothed(problem_.latency_k, c, kLatency);
      m[kSharing] = smoothed(problem_.shared_k, c, kSharing);
      m[kFirstRead] = problem_.start[c][kFirstRead] + first_read;
      m[kReread] = smoothed(problem_.shared_k, c, kReread);
      m[kOutput] = output;
      m[kLaunch] = launch;
      m[kRow] = smoothed(problem_.shared_k, c, kRow);
      m[kFillSlope] = smoothed(problem_.shared_k, c, kFillSlope);
      for (Eigen::Index k = 1; k < m.size(); ++k) {
        m[k] = (1 - spread_.pull) * m[k] + spread_.pull * problem_.start[c][k];
      }
    }
    return mean;
  }

  const Problem& problem_;
  std::span<const double> residency_;
  const WaveHyper& h_;
  const WaveSwitches& on_;
  const Spread& spread_;
  std::vector<Vector8> theta_;
};

// Mean capped squared log error of a fit: how residencies are compared.
double training_error(const Problem& p, const std::vector<Vector8>& theta, std::span<const double> residency,
                      const WaveHyper& h, const WaveSwitches& on) {
  double sum = 0;
  size_t n = 0;
  for (size_t c = 0; c < p.configs; ++c) {
    const WaveConfigParameters params = natural(theta[c], residency[c]);
    for (size_t i = 0; i < p.points; ++i) {
      const double measured = p.log_us[c * p.points + i];
      if (std::isnan(measured)) continue;
      const double e = predicted_log(params, p.work[c * p.points + i], h, on) - measured;
      sum += std::min(e * e, h.residency_error);
      ++n;
    }
  }
  return sum / static_cast<double>(std::max<size_t>(n, 1));
}

// Median of log(measured / kernel constants): how foreign the kernel is.
double typical_shift(const Problem& p, std::span<const double> residency, const WaveHyper& h,
                     const WaveSwitches& on) {
  std::vector<double> shifts;
  for (size_t c = 0; c < p.configs; ++c) {
    const WaveConfigParameters params = natural(p.start[c], residency.empty() ? 1.0 : residency[c]);
    for (size_t i = 0; i < p.points; ++i) {
      const double measured = p.log_us[c * p.points + i];
      if (!std::isnan(measured)) {
        shifts.push_back(measured - predicted_log(params, p.work[c * p.points + i], h, on));
      }
    }
  }
  const auto middle = shifts.begin() + static_cast<std::ptrdiff_t>(shifts.size() / 2);
  std::nth_element(shifts.begin(), middle, shifts.end());
  return *middle;
}

// Root mean square log error of the finished physics.
double training_misfit(const Problem& p, std::span<const WaveConfigParameters> params, const WaveHyper& h,
                       const WaveSwitches& on) {
  double sum = 0;
  size_t n = 0;
  for (size_t c = 0; c < p.configs; ++c) {
    for (size_t i = 0; i < p.points; ++i) {
      const double measured = p.log_us[c * p.points + i];
      if (std::isnan(measured)) continue;
      const double e = predicted_log(params[c], p.work[c * p.points + i], h, on) - measured;
      sum += e * e;
      ++n;
    }
  }
  return std::sqrt(sum / static_cast<double>(std::max<size_t>(n, 1)));
}

// Residual weights of one config: (K + noise/size I)^-1 e over the points where it was measured.
void fit_residual(const Problem& p, size_t c, const WaveConfigParameters& params, const WaveHyper& h,
                  const WaveSwitches& on, std::span<double> alpha) {
  std::vector<size_t> at;
  for (size_t i = 0; i < p.points; ++i) {
    if (!std::isnan(p.log_us[c * p.points + i])) at.push_back(i);
  }
  std::fill(alpha.begin(), alpha.end(), 0.0);
  if (at.empty()) return;
  const auto n = static_cast<Eigen::Index>(at.size());
  const double nugget = h.residual_noise / h.residual_sd;
  Eigen::MatrixXd k(n, n);
  Eigen::VectorXd e(n);
  for (Eigen::Index i = 0; i < n; ++i) {
    const Work& w = p.work[c * p.points + at[static_cast<size_t>(i)]];
    const WorkCoordinates x = coordinates(w, h);
    for (Eigen::Index j = 0; j < n; ++j) {
      k(i, j) = similarity(x, coordinates(p.work[c * p.points + at[static_cast<size_t>(j)]], h));
    }
    k(i, i) += nugget * nugget;
    e[i] = p.log_us[c * p.points + at[static_cast<size_t>(i)]] - predicted_log(params, w, h, on);
  }
  const Eigen::VectorXd solved = k.llt().solve(e);
  for (Eigen::Index i = 0; i < n; ++i) alpha[at[static_cast<size_t>(i)]] = solved[i];
}

Problem make_problem(const Dataset& d, const ModelShape& shape, std::span<const size_t> points,
                     const HardwareConstants& hw, const WaveHyper& h, const WaveSwitches& on,
                     const WaveFit& fit) {
  const ConfigTable& t = d.configs;
  Problem p;
  p.configs = t.size();
  p.points = points.size();
  p.work.resize(p.configs * p.points);
  p.log_us.resize(p.configs * p.points);
  for (size_t c = 0; c < p.configs; ++c) {
    p.start.push_back(logarithms(kernel_constants(t.configs[c], shape, hw, {})));
    const WorkClass w = work_class_of(t.configs[c], shape);
    const auto tile = static_cast<size_t>(std::lower_bound(fit.tile_m.begin(), fit.tile_m.end(), w.tile_m) -
                                          fit.tile_m.begin());
    for (size_t i = 0; i < p.points; ++i) {
      const WaveFit::Point& point = fit.points[i];
      p.work[c * p.points + i] = seen(make_work(point.facts, point.m_tiles[tile], w, hw.sm_count), on);
      p.log_us[c * p.points + i] = std::log(d.time(points[i], c));
    }
  }
  p.latency_k = neighbourhood(t, h.latency_width, h.latency_per_stage, h.latency_other);
  p.shared_k = neighbourhood(t, h.shared_width, h.shared_per_stage, h.shared_other);
  return p;
}

// p90 of |log(repeat/time)| over the training points; 0 where nothing was repeated.
double repeat_noise(const Dataset& d, std::span<const size_t> points) {
  std::vector<double> all;
  for (const size_t p : points) {
    for (size_t c = 0; d.has_repeat && c < d.configs.size(); ++c) {
      const double ratio = std::abs(std::log(d.repeat(p, c) / d.time(p, c)));
      if (!std::isnan(ratio)) all.push_back(ratio);
    }
  }
  if (all.empty()) return 0;
  const auto at = all.begin() + static_cast<std::ptrdiff_t>(0.9 * static_cast<double>(all.size() - 1));
  std::nth_element(all.begin(), at, all.end());
  return *at;
}

WaveFit::Point make_point(const Dataset& d, size_t point, std::span<const int32_t> tile_m) {
  WaveFit::Point p;
  const std::vector<int32_t>& histogram = d.points[point].histogram;
  p.facts = histogram_facts(histogram);
  for (const int32_t m : tile_m) p.m_tiles.push_back(tile_tokens(histogram, m).m_tiles);
  double best = std::numeric_limits<double>::infinity();
  for (size_t c = 0; c < d.configs.size(); ++c) {
    if (d.time(point, c) < best) {
      best = d.time(point, c);
      p.best = c;
    }
  }
  return p;
}

}  // namespace

double ablated_us(const WaveFit& f, const KernelConfig& c, const ModelShape& model, size_t config,
                  std::span<const int32_t> histogram, const WaveSwitches& on) {
  const WorkClass k = work_class_of(c, model);
  const Work w = seen(
      make_work(histogram_facts(histogram), tile_tokens(histogram, k.tile_m).m_tiles, k, f.sm_count), on);
  double residual = 0;
  if (!f.alpha.empty()) {
    const auto tile =
        static_cast<size_t>(std::lower_bound(f.tile_m.begin(), f.tile_m.end(), k.tile_m) - f.tile_m.begin());
    const WorkCoordinates x = coordinates(w, f.hyper);
    for (size_t i = 0; i < f.points.size(); ++i) {
      const Work t = seen(make_work(f.points[i].facts, f.points[i].m_tiles[tile], k, f.sm_count), on);
      residual += similarity(x, coordinates(t, f.hyper)) * f.alpha[config * f.points.size() + i];
    }
  }
  residual = std::clamp(residual, -f.hyper.residual_limit, f.hyper.residual_limit);
  return std::exp(predicted_log(f.configs[config], w, f.hyper, on) + residual);
}

WaveFit fit_wave(const Dataset& d, int32_t model, std::span<const size_t> points, const HardwareConstants& hw,
                 FitReport& report, const WaveHyper& hyper, const WaveSwitches& on) {
  check_fittable(d, model, points);
  if (hw.sm_count <= 0) {
    fail_argument("hardware.sm_count", fmt::format("{}", hw.sm_count), "the number of SMs or workers");
  }
  const ModelShape& shape = d.models[static_cast<size_t>(model)];
  const size_t n = d.configs.size();
  WaveFit fit;
  fit.hyper = hyper;
  fit.sm_count = hw.sm_count;
  fit.tile_m = distinct_tile_m(d.configs);
  for (const size_t p : points) fit.points.push_back(make_point(d, p, fit.tile_m));
  const Problem problem = make_problem(d, shape, points, hw, hyper, on, fit);

  Residency residency = residency_of(d.configs, hw);
  if (!on.residency) residency.tiles.assign(n, 1.0);
  Spread spread{hyper.first_sd, hyper.later_sd, hyper.pull};
  const double shift = typical_shift(problem, residency.tiles, hyper, on);
  Problem centred = problem;
  const bool foreign = std::abs(shift) > std::log(hyper.foreign_at);
  // Workers' constants are orders of magnitude, whichever way they point.
  if (foreign || runs_on_workers(hw)) {
    spread = {hyper.foreign_first_sd, hyper.foreign_later_sd, 0.0};
    for (Vector8& s : centred.start) {
      for (Eigen::Index k = 0; k < s.size(); ++k) {
        if (k != kSharing && k != kFillSlope) s[k] += shift;
      }
    }
    if (!runs_on_workers(hw))
      report.warnings.push_back(fmt::format(
          "typical time is {:.3g}x what this kernel family takes: its constants only start the fit",
          std::exp(shift)));
  }
  std::vector<Vector8> theta;
  if (!residency.tiles.empty()) {
    theta = PhysicsFit(centred, residency.tiles, hyper, on, spread).run();
  } else {
    double best = std::numeric_limits<double>::infinity();
    for (int r = 1; r <= hyper.largest_residency; ++r) {
      const std::vector<double> tried(n, r);
      std::vector<Vector8> t = PhysicsFit(centred, tried, hyper, on, spread).run();
      const double error = training_error(centred, t, tried, hyper, on);
      if (theta.empty() || error < (1 - hyper.residency_gain) * best) {
        best = error;
        theta = std::move(t);
        residency.tiles = tried;
      }
    }
    report.warnings.push_back(
        fmt::format("no column says how many tiles share an SM; {} fits the training points best (add a "
                    "residency, smem_bytes or regs column)",
                    residency.tiles[0]));
  }

  fit.measured.assign(n, 0);
  size_t unmeasured = 0;
  constexpr double kSteepest = 0.9;  // keeps a tile's time positive whatever its fill
  for (size_t c = 0; c < n; ++c) {
    theta[c][kFillSlope] = std::clamp(theta[c][kFillSlope], -kSteepest, kSteepest);
    fit.configs.push_back(natural(theta[c], residency.tiles[c]));
    for (const size_t p : points) fit.measured[c] |= !std::isnan(d.time(p, c)) ? 1 : 0;
    unmeasured += fit.measured[c] == 0 ? 1 : 0;
  }
  if (unmeasured > 0) {
    report.warnings.push_back(
        fmt::format("{} of {} configs have no training timing and are never chosen", unmeasured, n));
  }
  // Repeats that differ by more than the noise that the fit assumes (a CPU that others use too): which config
  // was measured fastest is then luck among the close ones, and the prediction, which pools over points and
  // neighbours, is the better witness.
  const double noise = repeat_noise(d, points);
  if (noise > hyper.noise) {
    constexpr double kDeviationOfP90 = 1.0 / 1.645;  // normal noise
    fit.hyper.residual_noise = std::max(hyper.residual_noise, noise * kDeviationOfP90);
    fit.hyper.guard = -1;
  }
  if (on.residual) {
    const double misfit = training_misfit(problem, fit.configs, hyper, on);
    if (misfit > hyper.misfit_at) {
      fit.hyper.residual_sd = misfit;
      fit.hyper.residual_limit = std::min(2.0, std::max(hyper.residual_limit, hyper.misfit_limit * misfit));
      report.warnings.push_back(fmt::format(
          "the physics explains the training points to {:.0f}% only: more is left to the residual, "
          "which needs profile points near the workloads to come",
          100 * misfit));
    }
    fit.alpha.resize(n * points.size());
    for (size_t c = 0; c < n; ++c) {
      fit_residual(problem, c, fit.configs[c], fit.hyper, on,
                   std::span(fit.alpha).subspan(c * points.size(), points.size()));
    }
  }
  if (!on.guard) fit.hyper.guard = -1;
  report.n_train = points.size();
  return fit;
}

}  // namespace ramp::core
