// The profiling state machine under a fake clock: which config is asked for when, who is dropped, what bad
// ticks do, and how an interrupted profile goes on.
#include "dispatch/profiler.hpp"

#include <map>
#include <numeric>
#include <set>

#include "cost/evaluate.hpp"
#include "support.hpp"

namespace ramp::core {
namespace {

using Clock = std::function<double(const Profiler::Task&)>;

// Runs to the end (or until `stop` says so); returns all tasks in order.
std::vector<Profiler::Task> run(
    Profiler& p, const Clock& clock, const std::function<bool(size_t)>& stop = [](size_t) { return false; }) {
  std::vector<Profiler::Task> tasks;
  while (const auto task = p.next()) {
    if (stop(tasks.size())) break;
    tasks.push_back(*task);
    EXPECT_LT(tasks.size(), 1000000U);
    p.report(clock(*task));
  }
  return tasks;
}

Clock law(const std::vector<WorkPoint>& points, const ConfigTable& configs) {
  return [&](const Profiler::Task& t) {
    return t.warmup ? 1e9 : synthetic_us(configs.configs[t.config], points[t.point].histogram);
  };
}

TEST(Profiler, VisitsEndsFirst) {
  EXPECT_EQ(ends_inwards(0), (std::vector<size_t>{}));
  EXPECT_EQ(ends_inwards(1), (std::vector<size_t>{0}));
  EXPECT_EQ(ends_inwards(2), (std::vector<size_t>{0, 1}));
  EXPECT_EQ(ends_inwards(5), (std::vector<size_t>{0, 4, 2, 1, 3}));
  for (size_t n = 1; n < 40; ++n) {
    const std::vector<size_t> order = ends_inwards(n);
    EXPECT_EQ(std::set<size_t>(order.begin(), order.end()).size(), n);
    EXPECT_EQ(order.size(), n);
  }
}

TEST(Profiler, MeasuresEveryPairWhenAllAreClose) {
  const auto points = toy_points();
  Profiler p(toy_configs(4), toy_model(), points, {.warmup = 2, .repeats = 5, .skip_after = 0});
  const auto tasks = run(p, [](const Profiler::Task& t) { return t.warmup ? 1e9 : 10.0 + t.config; });
  EXPECT_EQ(tasks.size(), points.size() * 4 * (2 + 5));
  EXPECT_EQ(p.progress().runs, tasks.size());
  EXPECT_EQ(p.progress().points_done, points.size());
  EXPECT_EQ(p.progress().dropped, 0U);
  for (size_t i = 0; i < points.size(); ++i) {
    for (size_t c = 0; c < 4; ++c) EXPECT_EQ(p.data().time(i, c), 10.0 + static_cast<double>(c));
  }
  // Configs take turns, to and fro; each begins with its warm-ups.
  const std::vector<std::pair<size_t, bool>> head = {
      {0, true}, {0, true}, {0, false}, {1, true},  {1, true},  {1, false}, {2, true},  {2, true}, {2, false},
      {3, true}, {3, true}, {3, false}, {3, false}, {2, false}, {1, false}, {0, false}, {0, false}};
  for (size_t i = 0; i < head.size(); ++i) {
    EXPECT_EQ(tasks[i].config, head[i].first) << i;
    EXPECT_EQ(tasks[i].warmup, head[i].second) << i;
  }
  // Fewest rows first, then most.
  EXPECT_EQ(points[tasks[0].point].tokens, 1);
  EXPECT_EQ(points[tasks[4 * 7].point].tokens, 256);
}

TEST(Profiler, TheMedianCounts) {
  Profiler p(toy_configs(1), toy_model(), {toy_points()[0]}, {.warmup = 0, .repeats = 5});
  const std::vector<double> ticks = {10, 90, 11, 1, 12};
  size_t i = 0;
  run(p, [&](const Profiler::Task&) { return ticks[i++]; });
  EXPECT_EQ(i, 5U);
  EXPECT_EQ(p.data().time(0, 0), 11.0);
}

TEST(Profiler, OrAnotherQuantile) {
  for (const double q : {0.0, 0.5, 1.0}) {
    Profiler p(toy_configs(1), toy_model(), {toy_points()[0]}, {.warmup = 0, .repeats = 3, .quantile = q});
    const std::vector<double> ticks = {20, 10, 90};
    size_t i = 0;
    run(p, [&](const Profiler::Task&) { return ticks[i++]; });
    EXPECT_EQ(p.data().time(0, 0), q == 0 ? 10.0 : q == 1 ? 90.0 : 20.0);
  }
}

TEST(Profiler, SameTicksSameCourse) {
  const auto points = toy_points();
  const ConfigTable configs = toy_configs(8);
  Profiler a(configs, toy_model(), points), b(configs, toy_model(), points);
  const auto x = run(a, law(points, configs));
  const auto y = run(b, law(points, configs));
  ASSERT_EQ(x.size(), y.size());
  for (size_t i = 0; i < x.size(); ++i) {
    EXPECT_EQ(x[i].config, y[i].config);
    EXPECT_EQ(x[i].point, y[i].point);
    EXPECT_EQ(x[i].warmup, y[i].warmup);
  }
}

TEST(Profiler, HopelessConfigsLoseSamplesThenPoints) {
  const auto points = toy_points();
  const ConfigTable configs = toy_configs(4);
  // Config 3 is four times slower everywhere; config 2 only at the first point.
  const auto clock = [&](const Profiler::Task& t) {
    if (t.config == 3) return 40.0;
    return t.config == 2 && points[t.point].tokens == 1 ? 25.0 : 10.0;
  };
  Profiler p(configs, toy_model(), points, {.warmup = 1, .repeats = 9, .judge_after = 2, .skip_after = 4});
  std::map<std::pair<size_t, size_t>, int> samples;
  for (const Profiler::Task& t : run(p, clock)) samples[{t.point, t.config}] += t.warmup ? 0 : 1;
  size_t measured = 0;
  for (size_t i = 0; i < points.size(); ++i) {
    EXPECT_EQ((samples[{i, 0}]), 9);
    EXPECT_EQ((samples[{i, 2}]), points[i].tokens == 1 ? 2 : 9);
    if (!std::isnan(p.data().time(i, 3))) {
      ++measured;
      EXPECT_EQ((samples[{i, 3}]), 2);  // its timing is known all the same
      EXPECT_EQ(p.data().time(i, 3), 40.0);
    } else {
      EXPECT_EQ((samples[{i, 3}]), 0);
    }
  }
  EXPECT_EQ(measured, 4U);                                       // points.size() - 4 skipped
  EXPECT_EQ(p.progress().dropped, 4U + 2U + points.size() - 4);  // 3 judged, 2 judged (two points), 3 skipped
  EXPECT_EQ(p.progress().failed, 0U);
}

TEST(Profiler, BadTicksAreNoSamples) {
  for (const double bad : {std::nan(""), 0.0, -5.0, HUGE_VAL, -HUGE_VAL}) {
    Profiler p(toy_configs(2), toy_model(), {toy_points()[0]},
               {.warmup = 0, .repeats = 3, .max_bad_ticks = 3});
    int hiccups = 0;
    // Every second tick of config 0 is bad: never three in a row, so it only takes longer.
    run(p, [&](const Profiler::Task& t) {
      if (t.config == 0 && ++hiccups % 2 == 1) return bad;
      return 7.0;
    });
    EXPECT_EQ(hiccups, 6);
    EXPECT_EQ(p.data().time(0, 0), 7.0);
    EXPECT_EQ(p.progress().failed, 0U);
    EXPECT_TRUE(p.notes().empty());
  }
}

TEST(Profiler, ABrokenConfigIsLeftOutEverywhere) {
  const auto points = toy_points();
  for (const bool told : {false, true}) {
    Profiler p(toy_configs(3), toy_model(), points, {.warmup = 1, .repeats = 3});
    size_t runs = 0;
    while (const auto task = p.next()) {
      ++runs;
      // Config 1 breaks at the second point that is visited.
      const bool broken = task->config == 1 && p.progress().points_done >= 1;
      if (!broken) {
        p.report(10.0);
      } else if (told) {
        p.report_failure("launch returned 700");
      } else {
        p.report(std::nan(""));
      }
    }
    EXPECT_EQ(p.progress().failed, 1U);
    ASSERT_EQ(p.notes().size(), 1U);
    expect_has(p.notes()[0], {"'c1'", "hot256", told ? "launch returned 700" : "3 times in a row"});
    for (size_t i = 0; i < points.size(); ++i) {
      EXPECT_TRUE(std::isnan(p.data().time(i, 1)));
      EXPECT_EQ(p.data().time(i, 0), 10.0);
      EXPECT_EQ(p.data().time(i, 2), 10.0);
    }
    EXPECT_LT(runs, points.size() * 3 * 4);
  }
}

TEST(Profiler, AllBrokenEnds) {
  Profiler p(toy_configs(3), toy_model(), toy_points());
  size_t runs = 0;
  while (p.next()) {
    p.report_failure("no");
    ++runs;
  }
  EXPECT_EQ(runs, 3U);
  EXPECT_EQ(p.progress().failed, 3U);
  EXPECT_EQ(p.progress().points_done, p.progress().points);
}

TEST(Profiler, ResumesWhereItWasInterrupted) {
  const auto points = toy_points();
  const ConfigTable configs = toy_configs(8);
  const ProfilerOptions options = {.warmup = 1, .repeats = 3, .skip_after = 4};
  Profiler whole(configs, toy_model(), points, options);
  const size_t total = run(whole, law(points, configs)).size();
  for (const size_t cut : {size_t{0}, size_t{1}, total / 3, total / 2, total - 1}) {
    Profiler first(configs, toy_model(), points, options);
    run(first, law(points, configs), [&](size_t n) { return n == cut; });
    const size_t done = first.progress().points_done;
    Profiler second(configs, toy_model(), points, options, &first.data());
    std::set<size_t> visited;
    for (const Profiler::Task& t : run(second, law(points, configs))) visited.insert(t.point);
    EXPECT_EQ(visited.size(), points.size() - done) << cut;
    for (size_t i = 0; i < whole.data().us.size(); ++i) {
      const double a = whole.data().us[i], b = second.data().us[i];
      EXPECT_TRUE(a == b || (std::isnan(a) && std::isnan(b)));
    }
  }
  // A finished profile leaves nothing to do; another config or histogram of the same name is measured.
  Profiler again(configs, toy_model(), points, options, &whole.data());
  EXPECT_FALSE(again.next().has_value());
  ConfigTable changed = configs;
  changed.configs[0].stages = 77;
  Profiler other(changed, toy_model(), points, options, &whole.data());
  for (const Profiler::Task& t : run(other, law(points, changed))) EXPECT_EQ(t.config, 0U);
  auto moved = points;
  std::swap(moved[3].histogram[0], moved[3].histogram[7]);
  Profiler third(configs, toy_model(), moved, options, &whole.data());
  for (const Profiler::Task& t : run(third, law(moved, configs))) EXPECT_EQ(t.point, 3U);
}

// The budget is counted in ticks: no clock here either.
TEST(Profiler, ABudgetIsKeptAndSpentWhereChoicesAreClose) {
  const auto points = toy_points();
  const ConfigTable configs = toy_configs(8);
  const auto clock = [&](const Profiler::Task& t) {
    return synthetic_us(configs.configs[t.config], points[t.point].histogram);
  };
  double everything = 0;
  {
    Profiler p(configs, toy_model(), points, {.warmup = 1, .repeats = 9, .skip_after = 0});
    run(p, clock);
    everything = p.progress().spent_us;
  }
  for (const double share : {0.02, 0.1, 0.3, 1.0, 10.0}) {
    const ProfilerOptions options = {
        .warmup = 1, .repeats = 9, .skip_after = 0, .budget_us = share * everything};
    Profiler p(configs, toy_model(), points, options);
    int64_t rows = 0;
    double fraction = 0;
    while (const auto task = p.next()) {
      const auto& h = points[task->point].histogram;
      const int64_t now = std::accumulate(h.begin(), h.end(), int64_t{0});
      EXPECT_GE(now, rows) << "few rows first";
      rows = now;
      EXPECT_GE(p.progress().fraction, fraction);
      fraction = p.progress().fraction;
      p.report(clock(*task));
    }
    EXPECT_EQ(p.progress().fraction, 1.0);
    EXPECT_EQ(p.progress().points_done, points.size());
    // Each point may take its share, once more until it leaves the rest out, and one run beyond that.
    if (share <= 1) {
      EXPECT_LE(p.progress().spent_us, 2.0 * options.budget_us + 0.05 * everything);
    }
    for (size_t i = 0; i < points.size(); ++i) {
      size_t timed = 0;
      for (size_t c = 0; c < configs.size(); ++c) timed += std::isnan(p.data().time(i, c)) ? 0 : 1;
      EXPECT_GE(timed, 1U) << "every point has a timing";
      if (share > 1) {
        EXPECT_EQ(timed, configs.size());
      }
    }
  }
}

TEST(Profiler, WhatTheBudgetLeavesOutWasSlowNextDoor) {
  const auto points = toy_points();
  const ConfigTable configs = toy_configs(4);
  // Config c takes (4 - c) times as long: the last one is best, and comes first from the second point on.
  const auto clock = [&](const Profiler::Task& t) { return 100.0 * static_cast<double>(4 - t.config); };
  Profiler p(
      configs, toy_model(), points,
      {.warmup = 0, .repeats = 3, .skip_after = 0, .budget_us = 100.0 * static_cast<double>(points.size())});
  const auto tasks = run(p, clock);
  size_t place = 0;
  std::map<size_t, size_t> first;
  for (const Profiler::Task& t : tasks) first.emplace(t.point, t.config);
  for (const Profiler::Task& t : tasks) {
    if (t.point != tasks[0].point) {
      EXPECT_EQ(first[t.point], 3U) << place;
    }
    ++place;
  }
  size_t left_out = 0;
  for (size_t i = 0; i < points.size(); ++i) {
    if (i == tasks[0].point) continue;
    EXPECT_FALSE(std::isnan(p.data().time(i, 3)));
    left_out += std::isnan(p.data().time(i, 0)) ? 1 : 0;
  }
  EXPECT_GT(left_out, 0U);
  EXPECT_GE(p.progress().dropped, left_out);
  // Resumed with a budget, what was left out stays out; without one it is measured.
  ProfilerOptions options = {.warmup = 0, .repeats = 3, .skip_after = 0, .budget_us = 1e9};
  Profiler again(configs, toy_model(), points, options, &p.data());
  EXPECT_FALSE(again.next().has_value());
  options.budget_us = 0;
  Profiler rest(configs, toy_model(), points, options, &p.data());
  EXPECT_TRUE(rest.next().has_value());
  // And with another budget, as far as that goes: all of it here. What was measured is kept.
  options.budget_us = 1e9;
  options.reopen = true;
  Profiler rich(configs, toy_model(), points, options, &p.data());
  EXPECT_FALSE(run(rich, clock).empty());
  for (size_t i = 0; i < p.data().us.size(); ++i) {
    EXPECT_FALSE(std::isnan(rich.data().us[i])) << i;
    if (!std::isnan(p.data().us[i])) {
      EXPECT_EQ(rich.data().us[i], p.data().us[i]);
    }
  }
}

TEST(Profiler, EverybodyMeansTwoSamplesEach) {
  const auto points = toy_points();
  Profiler p(toy_configs(4), toy_model(), points,
             {.warmup = 0,
              .repeats = 9,
              .judge_after = 2,
              .hopeless_ratio = 100,
              .skip_after = 0,
              .budget_us = 1,
              .everybody = true,
              .halves = true});
  const auto tasks = run(p, [](const Profiler::Task& t) { return 10.0 * (1.0 + t.config); });
  EXPECT_EQ(tasks.size(), points.size() * 4 * 2);
  for (const double us : p.data().us) EXPECT_FALSE(std::isnan(us));
  for (const double us : p.data().us_repeat) EXPECT_FALSE(std::isnan(us));
}

TEST(Profiler, SettledRunsNeedNoWarmUp) {
  for (const double us : {10.0, 1000.0}) {
    Profiler p(toy_configs(2), toy_model(), {toy_points()[0]},
               {.warmup = 2, .repeats = 3, .settled_us = 500});
    const auto tasks = run(p, [&](const Profiler::Task&) { return us; });
    EXPECT_EQ(tasks.size(), us < 500 ? 2U * 5 : 2U * 3);
    EXPECT_EQ(p.data().time(0, 1), us);
  }
}

TEST(Profiler, NarrowingStopsWhatIsClearlySlower) {
  Profiler p(toy_configs(3), toy_model(), {toy_points()[0]},
             {.warmup = 0, .repeats = 9, .narrow_ratio = 1.25, .narrow_after = 3});
  const std::vector<double> us = {10, 12, 15};
  std::map<size_t, int> samples;
  for (const Profiler::Task& t : run(p, [&](const Profiler::Task& task) { return us[task.config]; }))
    ++samples[t.config];
  EXPECT_EQ(samples[0], 9);
  EXPECT_EQ(samples[1], 9);
  EXPECT_EQ(samples[2], 3);
  EXPECT_EQ(p.data().time(0, 2), 15.0);
}

TEST(Profiler, HalvesAreTheEvenAndTheOddSamples) {
  Profiler p(toy_configs(1), toy_model(), {toy_points()[0]}, {.warmup = 0, .repeats = 5, .halves = true});
  const std::vector<double> ticks = {10, 20, 11, 22, 12};
  size_t i = 0;
  run(p, [&](const Profiler::Task&) { return ticks[i++]; });
  EXPECT_TRUE(p.data().has_repeat);
  EXPECT_EQ(p.data().time(0, 0), 11.0);
  EXPECT_EQ(p.data().repeat(0, 0), 21.0);
}

TEST(Profiler, RefusesBadInput) {
  const auto points = toy_points();
  const auto make = [](ConfigTable c, std::vector<WorkPoint> p, ProfilerOptions o = {}) {
    Profiler profiler(std::move(c), toy_model(), std::move(p), o);
  };
  const auto refused = [&](const char* what, ConfigTable c, std::vector<WorkPoint> p,
                           ProfilerOptions o = {}) {
    expect_has(error_of([&] { make(std::move(c), std::move(p), o); }, RAMP_ERROR_INVALID_ARGUMENT), {what});
  };
  refused("configs", {}, points);
  refused("workloads", toy_configs(2), {});
  refused("twice", toy_configs(2), {points[0], points[0]});
  refused("7 counts", toy_configs(2), {point("x", 1, {1, 1, 0, 0, 0, 0, 0})});
  refused("negative", toy_configs(2), {point("x", 1, {1, -1, 0, 0, 0, 0, 0, 0})});
  refused("0 rows", toy_configs(2), {point("x", 1, {0, 0, 0, 0, 0, 0, 0, 0})});
  refused("3 rows", toy_configs(2), {point("x", 1, {1, 1, 1, 0, 0, 0, 0, 0})});
  refused("0 tokens", toy_configs(2), {point("x", 0, {1, 0, 0, 0, 0, 0, 0, 0})});
  refused("warmup", toy_configs(2), points, {.warmup = -1});
  refused("repeats", toy_configs(2), points, {.repeats = 0});
  refused("judge_after", toy_configs(2), points, {.judge_after = 0});
  refused("hopeless_ratio", toy_configs(2), points, {.hopeless_ratio = 1.0});
  refused("hopeless_ratio", toy_configs(2), points, {.hopeless_ratio = std::nan("")});
  refused("skip_after", toy_configs(2), points, {.skip_after = -1});
  refused("max_bad_ticks", toy_configs(2), points, {.max_bad_ticks = 0});
  refused("quantile", toy_configs(2), points, {.quantile = 1.5});
  refused("settled_us", toy_configs(2), points, {.settled_us = -1});
  refused("narrow_ratio", toy_configs(2), points, {.narrow_ratio = 0.5});
  refused("narrow_after", toy_configs(2), points, {.narrow_after = 0});
  refused("budget_us", toy_configs(2), points, {.budget_us = std::nan("")});
  Profiler done(toy_configs(1), toy_model(), {points[0]}, {.warmup = 0, .repeats = 1});
  done.report(1.0);
  EXPECT_FALSE(done.next().has_value());
  EXPECT_THROW(done.report(1.0), Error);
  EXPECT_THROW(done.report_failure("x"), Error);
}

// A profile with skipped configs still makes a fit that never chooses what failed.
TEST(Profiler, ItsDataFits) {
  const auto points = toy_points();
  const ConfigTable configs = toy_configs(8);
  Profiler p(configs, toy_model(), points);
  while (const auto task = p.next()) {
    if (task->config == 5) {
      p.report_failure("never works");
    } else {
      p.report(law(points, configs)(*task));
    }
  }
  HardwareConstants cpu;
  cpu.name = "cpu";
  cpu.sm_count = 4;
  FitReport report;
  const auto predictor =
      find_cost_model(kDefaultCostModel).fit(p.data(), 0, select_points(p.data(), 0, true), cpu, report);
  std::vector<float> us(8);
  std::vector<std::byte> scratch(predictor->scratch_bytes() + 64);
  void* at = scratch.data();
  size_t space = scratch.size();
  std::align(64, predictor->scratch_bytes(), at, space);
  for (const WorkPoint& w : points) {
    predictor->predict(w.histogram, us, {static_cast<std::byte*>(at), predictor->scratch_bytes()});
    EXPECT_TRUE(std::isinf(us[5]));
    EXPECT_NE(predictor->choose(w.histogram, {static_cast<std::byte*>(at), predictor->scratch_bytes()}), 5U);
  }
}

}  // namespace
}  // namespace ramp::core
