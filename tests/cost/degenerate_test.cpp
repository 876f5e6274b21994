// Data that nobody wishes for: too little of it, nothing to learn, holes, masked ids, other kernels. Either a
// clear error or a model that works.
#include <gtest/gtest.h>

#include <cmath>
#include <nlohmann/json.hpp>

#include "base/error.hpp"
#include "cost/wave.hpp"
#include "support.hpp"

namespace ramp::core {
namespace {

// A kernel of our own making: tile_m x tile_n tiles on `workers` workers, time = start + waves * tile, with a
// tile's time growing with its rows. No stages, no threads, no warps.
struct Synthetic {
  int32_t workers = 16;
  double start_us = 30, tile_us = 200, row_us = 25;
  double read_us = 0;  // per active expert
};

double synthetic_us(const Synthetic& k, const std::vector<int32_t>& histogram, int32_t tile_m,
                    int64_t slices) {
  int64_t tiles = 0;
  int64_t active = 0;
  for (const int32_t c : histogram) {
    tiles += (c + tile_m - 1) / tile_m;
    active += c > 0 ? 1 : 0;
  }
  const double waves = std::ceil(static_cast<double>(tiles * slices) / k.workers);
  return k.start_us + waves * (k.tile_us + k.row_us * tile_m) + k.read_us * static_cast<double>(active);
}

Dataset synthetic(const Synthetic& k, const std::string& extra_header = "", const std::string& extra = "") {
  std::string configs = "config,tile_m,tile_n" + extra_header + "\n";
  std::vector<std::pair<int32_t, int32_t>> tiles;
  for (const int32_t m : {4, 8, 16, 32, 64}) {
    for (const int32_t n : {64, 128}) {
      configs += fmt::format("k{}x{},{},{}{}\n", m, n, m, n, extra);
      tiles.emplace_back(m, n);
    }
  }
  std::string points = "point,model,experts,top_k,hidden,intermediate,tokens,split,histogram\n";
  std::string timings = "point,config,us\n";
  for (int t = 0; t < 14; ++t) {
    std::vector<int32_t> h(8);
    const int tokens = 1 << (t / 2 + 1);
    std::string text;
    for (int e = 0; e < 8; ++e) {
      h[static_cast<size_t>(e)] = t % 2 == 0 ? tokens * 2 / 8 : (e < 2 ? tokens : 0);
      text += fmt::format("{}{}", e == 0 ? "" : " ", h[static_cast<size_t>(e)]);
    }
    points += fmt::format("p{},other,8,2,512,256,{},{},{}\n", t, tokens, t % 3 == 2 ? "test" : "train", text);
    for (const auto& [m, n] : tiles) {
      timings += fmt::format("p{},k{}x{},{}\n", t, m, n,
                             synthetic_us(k, h, m, (512 + n - 1) / n) * (n == 128 ? 1.0 : 0.6));
    }
  }
  return parse_dataset(points, configs, timings);
}

HardwareConstants workers(int32_t n) {
  HardwareConstants hw;
  hw.name = "cpu";
  hw.sm_count = n;
  return hw;
}

std::unique_ptr<Predictor> fit_on(std::string_view name, const Dataset& d, const HardwareConstants& hw,
                                  FitReport& report) {
  return find_cost_model(name).fit(d, 0, select_points(d, 0, true), hw, report);
}

TEST(OtherKernels, AKernelOnWorkersIsLearned) {
  const Dataset d = synthetic({});
  FitReport report;
  const auto p = fit_on("wave", d, workers(16), report);
  const RegretStats r = test_regret(d, 0, *p);
  EXPECT_LE(r.mean, 0.05);
  for (const size_t t : select_points(d, 0, true)) {
    const std::vector<float> us = predict(*p, d.points[t].histogram);
    for (size_t c = 0; c < us.size(); ++c) EXPECT_NEAR(us[c] / d.time(t, c), 1, 0.25) << d.points[t].name;
  }
}

// The same kernel a thousand times slower or faster is learned as well: nothing hangs on the absolute scale.
TEST(OtherKernels, AbsoluteScaleDoesNotMatter) {
  for (const double scale : {1e-3, 1e3}) {
    Synthetic k;
    k.start_us *= scale;
    k.tile_us *= scale;
    k.row_us *= scale;
    const Dataset d = synthetic(k);
    FitReport report;
    const auto p = fit_on("wave", d, workers(16), report);
    EXPECT_LE(test_regret(d, 0, *p).mean, 0.08) << scale;
    // On a GPU, where the constants mean something, a foreign kernel is reported.
    HardwareConstants gpu = h200();
    gpu.sm_count = 16;
    FitReport on_gpu;
    (void)fit_on("wave", d, gpu, on_gpu);
    EXPECT_FALSE(on_gpu.warnings.empty()) << scale;
  }
}

TEST(OtherKernels, ResidencyIsFittedWhereNoColumnSaysIt) {
  const Dataset d = synthetic({.workers = 264});  // 132 SMs, two tiles each
  FitReport report;
  (void)fit_on("wave", d, h200(), report);
  bool said = false;
  for (const std::string& w : report.warnings) said |= w.find("residency") != std::string::npos;
  EXPECT_TRUE(said);
}

TEST(OtherKernels, ExplicitColumnsWin) {
  const HardwareConstants& hw = h200();
  const auto tiles = [&](const Dataset& d) { return residency_of(d.configs, hw); };
  Residency r = tiles(synthetic({}, ",residency", ",3"));
  EXPECT_EQ(r.source, ResidencySource::kColumn);
  EXPECT_EQ(r.tiles.at(4), 3.0);
  r = tiles(synthetic({}, ",smem_bytes", ",100000"));
  EXPECT_EQ(r.source, ResidencySource::kResources);
  EXPECT_EQ(r.tiles.at(4), 2.0);  // 233,472 / 101,024
  r = tiles(synthetic({}, ",regs,threads", ",128,256"));
  EXPECT_EQ(r.tiles.at(4), 2.0);  // 65,536 / (128*256)
  r = tiles(synthetic({}, ",warps_n,stages,threads", ",4,2,256"));
  EXPECT_EQ(r.source, ResidencySource::kDescriptor);
  r = tiles(synthetic({}));
  EXPECT_EQ(r.source, ResidencySource::kUnknown);
  EXPECT_TRUE(r.tiles.empty());
  r = residency_of(synthetic({}).configs, workers(8));
  EXPECT_EQ(r.source, ResidencySource::kNoSharing);
}

// The descriptor on the measured kernel: where the staircase's steps were seen.
TEST(OtherKernels, DescriptorGivesTheMeasuredResidency) {
  const Residency r = residency_of(measured().configs, h200());
  ASSERT_EQ(r.source, ResidencySource::kDescriptor);
  const std::map<std::string, double> seen = {{"m8_n32x8_s2", 3},  {"m16_n32x8_s2", 2}, {"m24_n32x8_s3", 2},
                                              {"m32_n32x8_s2", 2}, {"m32_n32x8_s3", 1}, {"m8_n32x8_s5", 1},
                                              {"m80_n32x8_s4", 1}, {"m8_n64x4_s1", 5}};
  for (const auto& [name, tiles] : seen) {
    const auto& names = measured().configs.names;
    const auto at = std::find(names.begin(), names.end(), name);
    ASSERT_NE(at, names.end()) << name;
    EXPECT_EQ(r.tiles[static_cast<size_t>(at - names.begin())], tiles) << name;
  }
}

Dataset without(const Dataset& d, std::initializer_list<const char*> columns) {
  Dataset out = d;
  for (const char* column : columns) std::erase(out.configs.known_columns, column);
  const KernelConfig none;
  for (KernelConfig& c : out.configs.configs) {
    if (!out.configs.has("stages")) c.stages = none.stages;
    if (!out.configs.has("threads")) c.threads = none.threads;
    if (!out.configs.has("warps_n")) c.warps_n = none.warps_n;
  }
  return out;
}

double mean_regret(const Dataset& d, std::string_view name) {
  double mean = 0;
  for (size_t m = 0; m < d.models.size(); ++m) {
    const auto p = fit_model(name, d, static_cast<int32_t>(m));
    mean += test_regret(d, static_cast<int32_t>(m), *p).mean / static_cast<double>(d.models.size());
  }
  return mean;
}

TEST(MissingColumns, WaveDegradesGently) {
  EXPECT_LE(mean_regret(without(measured(), {"stages"}), "wave"), 0.025);
  EXPECT_LE(mean_regret(without(measured(), {"stages", "threads", "warps_n"}), "wave"), 0.025);
}

// Without `stages` the depth is unknown; the documented prior (3, then the middle of each family of ties)
// must still beat the static policy tuned at uniform routing.
TEST(MissingColumns, AnalyticUsesItsPriorInsteadOfTies) {
  const Dataset d = without(measured(), {"stages"});
  double uniform = 0;
  for (int32_t m = 0; m < 4; ++m) {
    uniform += regret(d, select_points(d, m, false), make_policy(d, m, Policy::kStaticUniform)).mean / 4;
  }
  EXPECT_LT(mean_regret(d, "analytic"), uniform);
  FitReport report;
  (void)fit_model("analytic", d, 0, &report);
  EXPECT_FALSE(report.warnings.empty());
}

TEST(Missing, TimingsMayBeAbsent) {
  Dataset d = measured();
  const size_t n = d.configs.size();
  // A profile that dropped slow configs early: at every training point only the faster half; three configs
  // never measured.
  const std::vector<size_t> never = {0, 77, 151};
  for (const size_t p : select_points(d, 0, true)) {
    std::vector<double> sorted(d.us.begin() + static_cast<std::ptrdiff_t>(p * n),
                               d.us.begin() + static_cast<std::ptrdiff_t>((p + 1) * n));
    const double half = quantile(sorted, 0.5);
    for (size_t c = 0; c < n; ++c) {
      if (d.us[p * n + c] > half) d.us[p * n + c] = std::nan("");
    }
    for (const size_t c : never) d.us[p * n + c] = std::nan("");
  }
  for (const char* name : {"wave", "ramp4"}) {
    FitReport report;
    const auto p = fit_model(name, d, 0, &report);
    bool said = false;
    for (const std::string& w : report.warnings) said |= w.find("never chosen") != std::string::npos;
    EXPECT_TRUE(said) << name;
    for (const WorkPoint& point : d.points) {
      if (point.model != 0) continue;
      const std::vector<float> us = predict(*p, point.histogram);
      for (const size_t c : never) EXPECT_TRUE(std::isinf(us[c]));
      for (const float v : us) EXPECT_FALSE(std::isnan(v));
      EXPECT_TRUE(std::isfinite(us[choose(*p, point.histogram)]));
    }
    const std::string text = p->to_json().dump();
    EXPECT_EQ(find_cost_model(name).from_json(nlohmann::json::parse(text))->to_json().dump(), text);
  }
  const auto p = fit_model("wave", d, 0);
  EXPECT_LE(test_regret(measured(), 0, *p).mean, 0.03);
}

template <typename F>
void expect_error(F&& f, const char* part) {
  try {
    f();
    FAIL() << "accepted; expected: " << part;
  } catch (const Error& e) {
    EXPECT_NE(std::string(e.what()).find(part), std::string::npos) << e.what();
  }
}

TEST(Degenerate, ClearErrors) {
  const Dataset& d = measured();
  FitReport report;
  for (const char* name : {"wave", "ramp4"}) {
    const CostModel& model = find_cost_model(name);
    const std::vector<size_t> train = select_points(d, 1, true);
    expect_error([&] { (void)model.fit(d, 1, {}, h200(), report); }, "at least two");
    expect_error([&] { (void)model.fit(d, 1, std::span(train).first(1), h200(), report); }, "qwen3-30b");
    expect_error([&] { (void)model.fit(d, 9, train, h200(), report); }, "model");
    expect_error([&] { (void)model.fit(d, 0, train, h200(), report); }, "a point of model 'olmoe'");
    expect_error([&] { (void)model.fit(d, 1, train, workers(0), report); }, "sm_count");
    Dataset one = parse_dataset(
        "point,model,experts,top_k,hidden,intermediate,tokens,split,histogram\np,m,2,1,128,128,2,train,1 1\n"
        "q,m,2,1,128,128,4,train,2 2\n",
        "config,tile_m,tile_n\na,8,256\n", "point,config,us\np,a,5\nq,a,6\n");
    expect_error([&] { (void)model.fit(one, 0, select_points(one, 0, true), h200(), report); }, "1 config");
    Dataset constant = d;
    std::fill(constant.us.begin(), constant.us.end(), 42.0);
    expect_error([&] { (void)model.fit(constant, 1, train, h200(), report); }, "timings that differ");
    Dataset empty = d;
    for (size_t c = 0; c < d.configs.size(); ++c) empty.us[train[2] * d.configs.size() + c] = std::nan("");
    expect_error([&] { (void)model.fit(empty, 1, train, h200(), report); }, "no timing for training point");
  }
  expect_error([] { (void)find_cost_model("magic"); }, "wave, ramp4, analytic");
}

// Two configs and two points are the least there is; they fit, and predict what was measured roughly.
TEST(Degenerate, TheSmallestProfileWorks) {
  const Dataset d = parse_dataset(
      "point,model,experts,top_k,hidden,intermediate,tokens,split,histogram\n"
      "p,m,1,1,128,128,1,train,1\nq,m,1,1,128,128,400,train,400\n",
      "config,tile_m,tile_n\na,8,256\nb,64,256\n", "point,config,us\np,a,5\np,b,9\nq,a,60\nq,b,20\n");
  for (const char* name : {"wave", "ramp4", "analytic", "step"}) {
    const auto p = fit_model(name, d, 0);
    for (const auto& h : std::vector<std::vector<int32_t>>{{0}, {1}, {37}, {400}, {2147483647}}) {
      for (const float us : predict(*p, h)) EXPECT_TRUE(std::isfinite(us) && us >= 0) << name;
    }
    if (std::string_view(name) != "analytic") {
      EXPECT_EQ(choose(*p, std::vector<int32_t>{1}), 0U) << name;
      EXPECT_EQ(choose(*p, std::vector<int32_t>{400}), 1U) << name;
    }
  }
}

// Duplicate workloads, equal columns and empty (fully masked) training histograms keep the algebra regular.
TEST(Degenerate, RepeatedAndEmptyPoints) {
  Dataset d = measured();
  const std::vector<size_t> train = select_points(d, 0, true);
  for (size_t i = 1; i < 5; ++i) {
    d.points[train[i]].histogram = d.points[train[0]].histogram;
    for (size_t c = 0; c < d.configs.size(); ++c) {
      d.us[train[i] * d.configs.size() + c] = d.time(train[0], c);
    }
  }
  std::fill(d.points[train[6]].histogram.begin(), d.points[train[6]].histogram.end(), 0);
  for (const char* name : {"wave", "ramp4"}) {
    const auto p = fit_model(name, d, 0);
    for (const size_t t : train) {
      for (const float us : predict(*p, d.points[t].histogram)) EXPECT_TRUE(std::isfinite(us) && us >= 0);
    }
  }
}

// Absurd but positive timings: still finite.
TEST(Degenerate, WildTimings) {
  Dataset d = measured();
  uint32_t s = 1;
  for (double& us : d.us) {
    s = s * 1664525U + 1013904223U;
    us = std::pow(10.0, static_cast<double>(s >> 8) / 16777216.0 * 24 - 12);
  }
  for (const char* name : {"wave", "ramp4"}) {
    const auto p = fit_model(name, d, 3);
    for (const WorkPoint& point : d.points) {
      if (point.model != 3) continue;
      for (const float us : predict(*p, point.histogram)) ASSERT_TRUE(std::isfinite(us) && us >= 0) << name;
    }
    const std::string text = p->to_json().dump();
    EXPECT_EQ(find_cost_model(name).from_json(nlohmann::json::parse(text))->to_json().dump(), text) << name;
  }
}

// Histograms that sum to less (masked ids): only counts are used, so masking half of the experts is the same
// as a smaller workload.
TEST(Masked, HistogramsMaySumToLess) {
  const WorkPoint& point = measured().points[select_points(measured(), 2, false)[20]];
  std::vector<int32_t> half = point.histogram;
  for (size_t e = 0; e < half.size(); e += 2) half[e] = 0;
  const std::vector<float> all = predict(fitted("wave", 2), point.histogram);
  const std::vector<float> some = predict(fitted("wave", 2), half);
  double sum_all = 0;
  double sum_some = 0;
  for (size_t c = 0; c < all.size(); ++c) {
    sum_all += all[c];
    sum_some += some[c];
  }
  EXPECT_LT(sum_some, sum_all);
}

}  // namespace
}  // namespace ramp::core
