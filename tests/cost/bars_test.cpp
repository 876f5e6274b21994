// The bars that this room answers for, on the measured data in the repository: regret of wave and analytic,
// ramp4 beside them, transfer of the structure to single models, and that no test timing is ever read.
#include <gtest/gtest.h>

#include <cmath>
#include <nlohmann/json.hpp>
#include <random>

#include "cost/ramp4.hpp"
#include "cost/wave.hpp"
#include "support.hpp"

namespace ramp::core {
namespace {

struct Overall {
  double mean = 0, worst_mean = 0, max = 0;
};
Overall overall(const Dataset& d, std::string_view cost_model) {
  Overall o;
  for (size_t m = 0; m < d.models.size(); ++m) {
    const auto p = fit_model(cost_model, d, static_cast<int32_t>(m));
    const RegretStats r = test_regret(d, static_cast<int32_t>(m), *p);
    o.mean += r.mean / static_cast<double>(d.models.size());
    o.worst_mean = std::max(o.worst_mean, r.mean);
    o.max = std::max(o.max, r.max);
  }
  return o;
}

TEST(Bars, Wave) {
  const Overall o = overall(measured(), "wave");
  EXPECT_LE(o.mean, 0.012);
  EXPECT_LE(o.worst_mean, 0.016);
  EXPECT_LE(o.max, 0.12);
}

TEST(Bars, AnalyticWithoutAnyProfile) {
  EXPECT_LE(overall(measured(), "analytic").mean, 0.08);
}

TEST(Bars, ThePublishedModelIsWorse) {
  const Overall wave = overall(measured(), "wave");
  const Overall ramp4 = overall(measured(), "ramp4");
  EXPECT_GT(ramp4.mean, 2 * wave.mean);
  EXPECT_GT(ramp4.max, 2 * wave.max);
  // Its published claim is 0.93% mean; on this kernel it is 3% (the figure that docs/cost-model.md explains).
  EXPECT_GT(ramp4.mean, 0.02);
}

TEST(Bars, ThePublishedModelReportsItsRankOnce) {
  FitReport report;
  (void)fit_model("ramp4", measured(), 0, &report);
  ASSERT_EQ(report.warnings.size(), 1U);
  EXPECT_NE(report.warnings[0].find("152 of 152"), std::string::npos) << report.warnings[0];
  EXPECT_EQ(report.n_train, select_points(measured(), 0, true).size());
}

// Inside the profiled range ramp4 is the printed formula; c*g and b*g/SM share the slope by minimum norm.
TEST(Ramp4, SolvesThePrintedLeastSquares) {
  const Dataset& d = measured();
  const auto p = fit_model("ramp4", d, 0);
  const nlohmann::json k = p->to_json().at("parameters");
  const std::vector<size_t> train = select_points(d, 0, true);
  for (size_t c = 0; c < d.configs.size(); c += 13) {
    const double a = k.at("a_us")[c];
    const double b = k.at("b_us_per_wave")[c];
    const double cc = k.at("c_us_per_tile")[c];
    const double dd = k.at("d_us_per_log_tile")[c];
    // (b, c) += t*(1, -1/SM) changes nothing; the solution of minimum norm is orthogonal to it.
    EXPECT_NEAR(b - cc / 132, 0, 1e-6 * (std::abs(b) + 1)) << "minimum norm";
    // Normal equations: the residual of relative error is orthogonal to the columns.
    double dot_one = 0;
    double dot_grid = 0;
    double scale_one = 0;
    double scale_grid = 0;
    std::vector<double> grids;
    for (const size_t t : train) {
      int64_t tiles = 0;
      for (const int32_t rows : d.points[t].histogram) {
        tiles += (rows + d.configs.configs[c].tile_m - 1) / d.configs.configs[c].tile_m;
      }
      const double g = static_cast<double>(tiles) * std::ceil(2048.0 / d.configs.configs[c].tile_n);
      grids.push_back(g);
      const double us = d.time(t, c);
      const double e = (a + (b / 132 + cc) * g + dd * std::log(g + 1)) / us - 1;
      dot_one += e / us;
      dot_grid += e * g / us;
      scale_one += 1 / us;
      scale_grid += g / us;
    }
    EXPECT_NEAR(dot_one, 0, 1e-8 * scale_one);
    EXPECT_NEAR(dot_grid, 0, 1e-8 * scale_grid);
    if (quantile(grids, 0.5) >= 132) {
      EXPECT_EQ(dd, 0.0) << "log term only in small grids";
    }
  }
}

TEST(Ramp4, ExtrapolatesUpwardsAndNeverBelowZero) {
  for (int32_t m = 0; m < 4; ++m) {
    const Predictor& p = fitted("ramp4", m);
    std::vector<int32_t> h(static_cast<size_t>(p.model().experts), 1 << 12);
    std::vector<float> before = predict(p, h);
    for (int i = 0; i < 8; ++i) {
      for (int32_t& c : h) c *= 2;
      const std::vector<float> now = predict(p, h);
      for (size_t c = 0; c < now.size(); ++c) {
        ASSERT_GE(now[c], before[c]);
        ASSERT_GE(before[c], 0.0F);
      }
      before = now;
    }
  }
}

// Everything a fit reads is its training rows: wild test timings change not one bit.
TEST(Bars, NoTestRowIsReadByTheFit) {
  Dataset scrambled = measured();
  std::mt19937 rng(11);
  for (size_t p = 0; p < scrambled.points.size(); ++p) {
    if (scrambled.points[p].train) continue;
    for (size_t c = 0; c < scrambled.configs.size(); ++c) {
      scrambled.us[p * scrambled.configs.size() + c] = 1.0 + static_cast<double>(rng() % 100000);
      scrambled.us_repeat[p * scrambled.configs.size() + c] = std::nan("");
    }
    for (int32_t& count : scrambled.points[p].histogram) count = static_cast<int32_t>(rng() % 50);
  }
  for (const std::string_view name : cost_model_names()) {
    for (int32_t m = 0; m < 4; ++m) {
      EXPECT_EQ(fit_model(name, scrambled, m)->to_json().dump(), fitted(name, m).to_json().dump());
    }
  }
}

// A directory that holds one model alone, as text, through the reader.
Dataset only_model(const Dataset& d, int32_t model) {
  Dataset out;
  out.source = d.source;
  out.configs = d.configs;
  out.models = {d.models[static_cast<size_t>(model)]};
  for (size_t p = 0; p < d.points.size(); ++p) {
    if (d.points[p].model != model) continue;
    out.points.push_back(d.points[p]);
    out.points.back().model = 0;
    for (size_t c = 0; c < d.configs.size(); ++c) {
      out.us.push_back(d.time(p, c));
      out.us_repeat.push_back(d.repeat(p, c));
    }
  }
  out.has_repeat = d.has_repeat;
  return out;
}

// What transfers between models is the structure: equations, hyper-parameters and kernel constants. Nothing
// is estimated over models, so a directory without the others gives the same bits.
TEST(Transfer, EachModelAloneFitsTheSame) {
  for (int32_t m = 0; m < 4; ++m) {
    const Dataset alone = only_model(measured(), m);
    for (const std::string_view name : cost_model_names()) {
      EXPECT_EQ(fit_model(name, alone, 0)->to_json().dump(), fitted(name, m).to_json().dump());
    }
  }
}

// Mean regret over models on their test points, for one setting of the hyper-parameters.
std::vector<double> regrets_with(const WaveHyper& h) {
  std::vector<double> out;
  const WaveModel model({}, h);
  for (int32_t m = 0; m < 4; ++m) {
    FitReport report;
    const auto p = model.fit(measured(), m, select_points(measured(), m, true), h200(), report);
    out.push_back(test_regret(measured(), m, *p).mean);
  }
  return out;
}

// Leave one model out: of one-at-a-time changes of the hyper-parameters (x1/2, x2), take what is best for the
// three other models and judge it on the one left out. The held-out figure must stay in the bars' reach; it
// is the honest estimate of what a new model gets, as far as hyper-parameters go.
TEST(Transfer, HyperParametersChosenOnThreeModelsServeTheFourth) {
  std::vector<WaveHyper> settings = {WaveHyper{}};
  double WaveHyper::*const tuned[] = {
      &WaveHyper::additive_share, &WaveHyper::tail_rows,     &WaveHyper::noise,
      &WaveHyper::pull,           &WaveHyper::latency_width, &WaveHyper::scale_waves,
      &WaveHyper::scale_active,   &WaveHyper::scale_padding, &WaveHyper::scale_tail,
      &WaveHyper::residual_sd,    &WaveHyper::residual_noise};
  for (double WaveHyper::*const member : tuned) {
    for (const double factor : {0.5, 2.0}) {
      settings.emplace_back();
      settings.back().*member *= factor;
    }
  }
  std::vector<std::vector<double>> table;
  for (const WaveHyper& h : settings) table.push_back(regrets_with(h));
  double held_out = 0;
  double held_out_worst = 0;
  double worst_setting = 0;
  for (const auto& row : table) {
    double mean = 0;
    for (const double r : row) mean += r / 4;
    worst_setting = std::max(worst_setting, mean);
  }
  for (size_t left = 0; left < 4; ++left) {
    size_t best = 0;
    double least = 1;
    for (size_t s = 0; s < table.size(); ++s) {
      double others = 0;
      for (size_t m = 0; m < 4; ++m) others += m == left ? 0 : table[s][m] / 3;
      if (others < least) {
        least = others;
        best = s;
      }
    }
    held_out += table[best][left] / 4;
    held_out_worst = std::max(held_out_worst, table[best][left]);
  }
  RecordProperty("held_out_mean_percent", fmt::format("{:.2f}", 100 * held_out));
  RecordProperty("held_out_worst_percent", fmt::format("{:.2f}", 100 * held_out_worst));
  RecordProperty("worst_setting_percent", fmt::format("{:.2f}", 100 * worst_setting));
  EXPECT_LE(held_out, 0.013) << "mean over held-out models";
  EXPECT_LE(held_out_worst, 0.020) << "worst held-out model";
  EXPECT_LE(worst_setting, 0.020) << "the plateau is no plateau";
}

}  // namespace
}  // namespace ramp::core
