// Every figure of docs/cost-model.md: the ablation tables (markdown on standard output) and the plots
// (bench_ablation --plot docs/img). Fits on rows with split=train, judges on split=test; nothing is random.
//   bench_ablation [--data DIR] [--plot DIR]
#include <fmt/format.h>

#include <cmath>
#include <cstdio>
#include <cstring>
#include <map>
#include <memory>
#include <string>
#include <vector>

#include "base/aligned_buffer.hpp"
#include "base/error.hpp"
#include "base/file.hpp"
#include "bench/svg.hpp"
#include "cost/evaluate.hpp"
#include "cost/ramp4.hpp"
#include "cost/wave.hpp"
#include "geometry/grid.hpp"

namespace {

using namespace ramp::core;  // NOLINT(google-build-using-namespace)
using ramp::bench::Axis;
using ramp::bench::Chart;
using ramp::bench::Series;

struct Result {
  std::string name;
  std::vector<RegretStats> models;
  std::vector<double> mape;
};

std::vector<float> predict(const Predictor& p, const std::vector<int32_t>& h) {
  const AlignedBuffer scratch(p.scratch_bytes());
  std::vector<float> us(p.configs().size());
  p.predict(h, us, {scratch.as<std::byte>(), p.scratch_bytes()});
  return us;
}
size_t choose(const Predictor& p, const std::vector<int32_t>& h) {
  const AlignedBuffer scratch(p.scratch_bytes());
  return p.choose(h, {scratch.as<std::byte>(), p.scratch_bytes()});
}

std::unique_ptr<Predictor> fit(const CostModel& m, const Dataset& d, size_t model) {
  FitReport report;
  const auto index = static_cast<int32_t>(model);
  return m.fit(d, index, select_points(d, index, true), h200(), report);
}

Result judge(const std::string& name, const CostModel& m, const Dataset& d) {
  Result r{name, {}, {}};
  for (size_t model = 0; model < d.models.size(); ++model) {
    const auto p = fit(m, d, model);
    const std::vector<size_t> test = select_points(d, static_cast<int32_t>(model), false);
    r.models.push_back(regret(d, test, [&](size_t at) { return choose(*p, d.points[at].histogram); }));
    double sum = 0;
    for (const size_t at : test) {
      const std::vector<float> us = predict(*p, d.points[at].histogram);
      for (size_t c = 0; c < us.size(); ++c) sum += std::abs(us[c] / d.time(at, c) - 1);
    }
    r.mape.push_back(sum / static_cast<double>(test.size() * d.configs.size()));
  }
  return r;
}

// wave with parts left out of fit and prediction alike: the smallest prediction, no guard.
Result judge_without(const std::string& name, const Dataset& d, const WaveSwitches& on, const WaveHyper& h) {
  Result r{name, {}, {}};
  for (size_t model = 0; model < d.models.size(); ++model) {
    const auto index = static_cast<int32_t>(model);
    FitReport report;
    const WaveFit f = fit_wave(d, index, select_points(d, index, true), h200(), report, h, on);
    const std::vector<size_t> test = select_points(d, index, false);
    double sum = 0;
    r.models.push_back(regret(d, test, [&](size_t at) {
      size_t best = 0;
      double least = 1e300;
      for (size_t c = 0; c < d.configs.size(); ++c) {
        const double us = ablated_us(f, d.configs.configs[c], d.models[model], c, d.points[at].histogram, on);
        sum += std::abs(us / d.time(at, c) - 1);
        if (us < least) {
          least = us;
          best = c;
        }
      }
      return best;
    }));
    r.mape.push_back(sum / static_cast<double>(test.size() * d.configs.size()));
  }
  return r;
}

Result judge(const std::string& name, const Dataset& d, Policy policy) {
  Result r{name, {}, {}};
  for (size_t model = 0; model < d.models.size(); ++model) {
    const auto index = static_cast<int32_t>(model);
    r.models.push_back(regret(d, select_points(d, index, false), make_policy(d, index, policy)));
  }
  return r;
}

double mean_of(const Result& r) {
  double sum = 0;
  for (const RegretStats& s : r.models) sum += s.mean;
  return sum / static_cast<double>(r.models.size());
}

void header(const Dataset& d) {
  std::string line = "| | mean | max |";
  std::string rule = "|---|---|---|";
  for (const ModelShape& m : d.models) {
    line += fmt::format(" {} |", m.name);
    rule += "---|";
  }
  fmt::print("{}\n{}\n", line, rule);
}

// Regret in percent: mean of models, maximum, then per model "mean / p95 / max (error of the prediction)".
void print(const Result& r) {
  double most = 0;
  std::string cells;
  for (size_t m = 0; m < r.models.size(); ++m) {
    const RegretStats& s = r.models[m];
    most = std::max(most, s.max);
    cells += fmt::format(" {:.2f} / {:.1f} / {:.1f}{} |", 100 * s.mean, 100 * s.p95, 100 * s.max,
                         r.mape.empty() ? "" : fmt::format(" ({:.1f})", 100 * r.mape[m]));
  }
  fmt::print("| {} | {:.2f} | {:.1f} |{}\n", r.name, 100 * mean_of(r), 100 * most, cells);
}

void print_terms(const Dataset& d) {
  fmt::print("\n## Policies and models\n\n");
  header(d);
  print(judge("static, tuned at uniform routing", d, Policy::kStaticUniform));
  print(judge("static, tuned at skewed routing", d, Policy::kStaticSkewed));
  print(judge("one config for everything", d, Policy::kSingleBest));
  print(judge("ramp4 (published)", Ramp4Model(), d));
  print(judge("analytic (no profile)", AnalyticModel(), d));
  print(judge("wave", WaveModel(), d));

  fmt::print("\n## Linear models, per config\n\n");
  header(d);
  print(judge("2 terms: a + b·g/SM", Ramp4Model({.grid = false, .log = false}), d));
  print(judge("3 terms: + d·log(g+1), always", Ramp4Model({.grid = false, .log_always = true}), d));
  print(judge("4 terms as printed", Ramp4Model(), d));
  print(judge("4 terms, d always", Ramp4Model({.log_always = true}), d));
  print(judge("a + b·g/SM + e·active", Ramp4Model({.grid = false, .log = false, .active = true}), d));
  print(judge("4 terms, d always, + e·active", Ramp4Model({.log_always = true, .active = true}), d));
}

void print_wave(const Dataset& d) {
  fmt::print("\n## wave, one part left out at a time\n\n");
  header(d);
  const auto row = [&](const char* name, const WaveSwitches& on, auto&& change) {
    WaveHyper h;
    change(h);
    print(judge_without(name, d, on, h));
  };
  const auto same = [](WaveHyper&) {};
  print(judge("wave", WaveModel(), d));
  row("no guard (nor has any row below)", {}, same);
  row("no residual", {.residual = false}, same);
  row("no wave quantisation", {.waves = false}, same);
  row("one tile per SM (no residency)", {.residency = false}, same);
  row("no active experts (every tile a first read)", {.active = false}, same);
  row("no output bytes", {.output = false}, same);
  row("no additive part (nearly the maximum)", {}, [](WaveHyper& h) { h.additive_share = 0; });
  row("sum only", {}, [](WaveHyper& h) { h.additive_share = 1; });
  row("no hot-tile tail", {}, [](WaveHyper& h) { h.tail_rows = 0; });
  row("no neighbours (every config alone)", {}, [](WaveHyper& h) { h.passes = 1; });
}

Dataset without(Dataset d, const std::vector<std::string>& columns) {
  for (const std::string& column : columns) std::erase(d.configs.known_columns, column);
  for (KernelConfig& c : d.configs.configs) {
    if (!d.configs.has("stages")) c.stages = KernelConfig{}.stages;
    if (!d.configs.has("threads")) c.threads = KernelConfig{}.threads;
    if (!d.configs.has("warps_n")) c.warps_n = KernelConfig{}.warps_n;
  }
  return d;
}

// Other training rows out of the same data: token counts and skews.
Dataset design(Dataset d, const std::vector<int64_t>& tokens, const std::vector<double>& skews) {
  for (WorkPoint& p : d.points) {
    const bool t = std::find(tokens.begin(), tokens.end(), p.tokens) != tokens.end();
    const bool z = std::find(skews.begin(), skews.end(), p.zipf) != skews.end();
    p.train = t && z;
  }
  // A model that has none of these skews (mixtral was measured uniform only) is left out.
  for (size_t m = d.models.size(); m-- > 0;) {
    if (select_points(d, static_cast<int32_t>(m), true).size() >= 2) continue;
    Dataset kept;
    kept.configs = d.configs;
    kept.models = d.models;
    kept.models.erase(kept.models.begin() + static_cast<std::ptrdiff_t>(m));
    for (size_t p = 0; p < d.points.size(); ++p) {
      if (d.points[p].model == static_cast<int32_t>(m)) continue;
      kept.points.push_back(d.points[p]);
      if (kept.points.back().model > static_cast<int32_t>(m)) --kept.points.back().model;
      for (size_t c = 0; c < d.configs.size(); ++c) {
        kept.us.push_back(d.time(p, c));
        kept.us_repeat.push_back(d.repeat(p, c));
      }
    }
    d = std::move(kept);
  }
  return d;
}

void print_transfer(const Dataset& d) {
  fmt::print("\n## Columns missing\n\n");
  header(d);
  print(judge("wave, no stages", WaveModel(), without(d, {"stages"})));
  print(judge("wave, no stages, threads, warps", WaveModel(), without(d, {"stages", "threads", "warps_n"})));
  print(judge("analytic, no stages", AnalyticModel(), without(d, {"stages"})));

  fmt::print("\n## Other training rows (mean / worst model / max)\n\n| | wave | ramp4 |\n|---|---|---|\n");
  const auto row = [&](const char* name, const std::vector<int64_t>& tokens,
                       const std::vector<double>& skews) {
    const Dataset other = design(d, tokens, skews);
    std::string cells;
    for (const CostModel* m : {&find_cost_model("wave"), &find_cost_model("ramp4")}) {
      const Result r = judge("", *m, other);
      double worst = 0;
      double most = 0;
      for (const RegretStats& s : r.models) {
        worst = std::max(worst, s.mean);
        most = std::max(most, s.max);
      }
      cells += fmt::format(" {:.2f} / {:.2f} / {:.1f} |", 100 * mean_of(r), 100 * worst, 100 * most);
    }
    fmt::print("| {} ({} models) |{}\n", name, other.models.size(), cells);
  };
  row("T 2, 16, 64, 256, 1024, 4096; z 0, 1.2", {2, 16, 64, 256, 1024, 4096}, {0, 1.2});
  row("T 1, 4, 16, 64, 256, 2048; z 0, 1.2", {1, 4, 16, 64, 256, 2048}, {0, 1.2});
  row("T 1, 8, 32, 128, 512, 2048; z 0.6, 2", {1, 8, 32, 128, 512, 2048}, {0.6, 2});
  row("six uniform points", {1, 8, 32, 128, 512, 2048}, {0});

  // Leave one model out: settings of the hyper-parameters, one at a time x1/2 and x2, chosen on the others.
  std::vector<std::pair<std::string, WaveHyper>> settings = {{"shipped", {}}};
  const std::pair<const char*, double WaveHyper::*> tuned[] = {
      {"additive_share", &WaveHyper::additive_share},
      {"tail_rows", &WaveHyper::tail_rows},
      {"noise", &WaveHyper::noise},
      {"pull", &WaveHyper::pull},
      {"latency_width", &WaveHyper::latency_width},
      {"scale_waves", &WaveHyper::scale_waves},
      {"scale_active", &WaveHyper::scale_active},
      {"scale_padding", &WaveHyper::scale_padding},
      {"scale_tail", &WaveHyper::scale_tail},
      {"residual_sd", &WaveHyper::residual_sd},
      {"residual_noise", &WaveHyper::residual_noise}};
  for (const auto& [name, member] : tuned) {
    for (const double factor : {0.5, 2.0}) {
      WaveHyper h;
      h.*member *= factor;
      settings.emplace_back(fmt::format("{} x{}", name, factor), h);
    }
  }
  std::vector<Result> results;
  double low = 1;
  double high = 0;
  for (const auto& [name, h] : settings) {
    results.push_back(judge(name, WaveModel({}, h), d));
    low = std::min(low, mean_of(results.back()));
    high = std::max(high, mean_of(results.back()));
  }
  fmt::print(
      "\n## Leave one model out\n\n{} settings, mean regret {:.2f} to {:.2f}%\n\n| held out | setting chosen "
      "on the others | mean | max |\n|---|---|---|---|\n",
      settings.size(), 100 * low, 100 * high);
  double held = 0;
  for (size_t m = 0; m < d.models.size(); ++m) {
    size_t best = 0;
    double least = 1e9;
    for (size_t s = 0; s < results.size(); ++s) {
      double others = 0;
      for (size_t o = 0; o < d.models.size(); ++o) others += o == m ? 0 : results[s].models[o].mean;
      if (others < least) {
        least = others;
        best = s;
      }
    }
    const RegretStats& s = results[best].models[m];
    held += s.mean / static_cast<double>(d.models.size());
    fmt::print("| {} | {} | {:.2f} | {:.1f} |\n", d.models[m].name, settings[best].first, 100 * s.mean,
               100 * s.max);
  }
  fmt::print("| mean | | {:.2f} | |\n", 100 * held);
}

void print_misses(const Dataset& d) {
  fmt::print(
      "\n## Misses of wave above 2.5%\n\n| point | regret % | chose (measured, predicted us) | best "
      "(measured, "
      "predicted us) |\n|---|---|---|---|\n");
  for (size_t m = 0; m < d.models.size(); ++m) {
    const auto p = fit(find_cost_model("wave"), d, m);
    for (const size_t at : select_points(d, static_cast<int32_t>(m), false)) {
      const size_t one[] = {at};
      const size_t chosen = choose(*p, d.points[at].histogram);
      const RegretStats r = regret(d, one, [&](size_t) { return chosen; });
      if (r.mean < 0.025) continue;
      const std::vector<float> us = predict(*p, d.points[at].histogram);
      size_t best = 0;
      for (size_t c = 0; c < us.size(); ++c) best = d.time(at, c) < d.time(at, best) ? c : best;
      fmt::print("| {} | {:.1f} | {} ({:.0f}, {:.0f}) | {} ({:.0f}, {:.0f}) |\n", d.points[at].name,
                 100 * r.mean, d.configs.names[chosen], d.time(at, chosen), us[chosen], d.configs.names[best],
                 d.time(at, best), us[best]);
    }
  }
}

size_t config_of(const Dataset& d, const std::string& name) {
  for (size_t c = 0; c < d.configs.size(); ++c) {
    if (d.configs.names[c] == name) return c;
  }
  fail_argument("--plot", fmt::format("data without config '{}'", name), "tests/data/alpha_moe_h200");
}

double tiles_per_sm(const Dataset& d, size_t at, size_t c) {
  const WorkPoint& p = d.points[at];
  const ModelShape& m = d.models[static_cast<size_t>(p.model)];
  return static_cast<double>(tile_tokens(p.histogram, d.configs.configs[c].tile_m).m_tiles *
                             work_class_of(d.configs.configs[c], m).blocks_per_tile) /
         h200().sm_count;
}

// Time over tiles per SM for one config of the first model: measured, wave, ramp4.
void plot_staircase(const Dataset& d, const std::string& directory, const std::string& config,
                    int residency) {
  const size_t c = config_of(d, config);
  const auto wave = fit(find_cost_model("wave"), d, 0);
  const auto ramp4 = fit(find_cost_model("ramp4"), d, 0);
  Chart chart(
      fmt::format("{} on {}: time over tiles per SM ({} resident)", config, d.models[0].name, residency),
      {"tiles per SM", false, {}, 0, 9}, {"microseconds"});
  Series measured{"measured", "#111", {}, false, 4, 0.7};
  Series ours{"wave", "#d62728", {}, false, 2.5, 1};
  Series theirs{"ramp4", "#1f77b4", {}, true, 0, 1};
  for (size_t at = 0; at < d.points.size(); ++at) {
    const double q = d.points[at].model == 0 ? tiles_per_sm(d, at, c) : 1e9;
    if (q > 9) continue;
    measured.points.emplace_back(q, d.time(at, c));
    ours.points.emplace_back(q, predict(*wave, d.points[at].histogram)[c]);
    theirs.points.emplace_back(q, predict(*ramp4, d.points[at].histogram)[c]);
  }
  std::sort(theirs.points.begin(), theirs.points.end());
  chart.add(std::move(theirs));
  chart.add(std::move(measured));
  chart.add(std::move(ours));
  write_text(fmt::format("{}/staircase_{}.svg", directory, config), chart.text());
}

void plots(const Dataset& d, const std::string& directory) {
  plot_staircase(d, directory, "m80_n32x8_s4", 1);
  plot_staircase(d, directory, "m32_n32x8_s2", 2);

  const char* const names[] = {"ramp4", "analytic", "wave"};
  const char* const colours[] = {"#1f77b4", "#2ca02c", "#d62728"};
  Chart scatter("predicted against measured, test points (every 41st pair)", {"measured, microseconds", true},
                {"predicted, microseconds", true});
  Chart active("error of ramp4 and wave over first reads per tile, test points (every 41st pair)",
               {"share of tiles that read an expert's weights first", false, {}, 0, 1},
               {"predicted / measured", true, {0.5, 0.7, 1, 1.4, 2}, 0.45, 2.2});
  for (size_t i = 0; i < 3; ++i) {
    Series s{names[i], colours[i], {}, false, 1.5, 0.5};
    Series a = s;
    size_t pair = 0;
    for (size_t m = 0; m < d.models.size(); ++m) {
      const auto p = fit(find_cost_model(names[i]), d, m);
      for (const size_t at : select_points(d, static_cast<int32_t>(m), false)) {
        const std::vector<float> us = predict(*p, d.points[at].histogram);
        for (size_t c = 0; c < us.size(); ++c) {
          if (pair++ % 41 != 0) continue;
          const TokenTiling t = tile_tokens(d.points[at].histogram, d.configs.configs[c].tile_m);
          s.points.emplace_back(d.time(at, c), us[c]);
          a.points.emplace_back(static_cast<double>(t.active) / static_cast<double>(t.m_tiles),
                                us[c] / d.time(at, c));
        }
      }
    }
    scatter.add(std::move(s));
    if (i != 1) active.add(std::move(a));
  }
  scatter.diagonal();
  active.horizontal(1);
  write_text(directory + "/predicted_measured.svg", scatter.text());
  write_text(directory + "/first_reads.svg", active.text());

  Chart by_tokens("mean regret of test points by tokens per step",
                  {"tokens", true, {1, 4, 16, 64, 256, 1024, 4096}}, {"regret, %"});
  const auto series = [&](const char* name, const char* colour, auto&& chooser) {
    std::map<int64_t, std::pair<double, double>> sums;
    for (size_t m = 0; m < d.models.size(); ++m) {
      const std::function<size_t(size_t)> choice = chooser(m);
      for (const size_t at : select_points(d, static_cast<int32_t>(m), false)) {
        const size_t one[] = {at};
        auto& [sum, n] = sums[d.points[at].tokens];
        sum += 100 * regret(d, one, choice).mean;
        n += 1;
      }
    }
    Series s{name, colour, {}, true, 3, 1};
    for (const auto& [tokens, sum] : sums)
      s.points.emplace_back(static_cast<double>(tokens), sum.first / sum.second);
    by_tokens.add(std::move(s));
  };
  const auto policy = [&](Policy p) {
    return [&d, p](size_t m) { return make_policy(d, static_cast<int32_t>(m), p); };
  };
  const auto model = [&](const char* name) {
    return [&d, name](size_t m) {
      const std::shared_ptr<const Predictor> p = fit(find_cost_model(name), d, m);
      return [&d, p](size_t at) { return choose(*p, d.points[at].histogram); };
    };
  };
  series("static, uniform", "#7f7f7f", policy(Policy::kStaticUniform));
  series("static, skewed", "#bcbd22", policy(Policy::kStaticSkewed));
  series("ramp4", colours[0], model("ramp4"));
  series("analytic", colours[1], model("analytic"));
  series("wave", colours[2], model("wave"));
  write_text(directory + "/regret_by_tokens.svg", by_tokens.text());
}

}  // namespace

int main(int argc, char** argv) {
  std::string data = RAMP_SOURCE_DIR "/tests/data/alpha_moe_h200";
  std::string plot;
  for (int i = 1; i + 1 < argc; i += 2) {
    if (std::strcmp(argv[i], "--data") == 0) data = argv[i + 1];
    if (std::strcmp(argv[i], "--plot") == 0) plot = argv[i + 1];
  }
  try {
    const Dataset d = read_dataset(data);
    if (!plot.empty()) {
      plots(d, plot);
      return 0;
    }
    print_terms(d);
    print_wave(d);
    print_transfer(d);
    print_misses(d);
  } catch (const Error& e) {
    fmt::print(stderr, "bench_ablation: {}\n", e.what());
    return 1;
  }
  return 0;
}
