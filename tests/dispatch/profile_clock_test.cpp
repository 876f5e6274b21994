// The profiling state machine on a machine whose clock will not hold: a simulated GPU at its power limit,
// with the swings that an H200 showed (664 us and 754 us for configs that are equal to 0.3%). What is
// measured must be the configs and not the clock, in whatever order they come and however many samples they
// get.
#include <algorithm>
#include <cmath>
#include <map>

#include "dispatch/profiler.hpp"
#include "support.hpp"

namespace ramp::core {
namespace {

constexpr double kMs = 1e3;  // microseconds

// How much slower than at full clock, so long after work began: full for 40 ms, 8% slower, then 11%, and
// every half second a slump by another 30% that takes 80 ms to come and 150 ms to go.
double slowness(double us) {
  if (us < 40 * kMs) return 1;
  if (us < 120 * kMs) return 1.08;
  const double at = std::fmod(us, 500 * kMs) - 250 * kMs;
  double slump = 0;
  if (at >= 0 && at < 80 * kMs) slump = at / (80 * kMs);
  if (at >= 80 * kMs && at < 230 * kMs) slump = 1 - (at - 80 * kMs) / (150 * kMs);
  return 1.11 + 0.3 * slump;
}

// Config c takes 600 us and a quarter percent per c more; a run lasts `layers` times that.
constexpr double kLayers = 2;
double truth(size_t config) {
  return 600 * (1 + 0.0025 * static_cast<double>(config));
}

// Whose clock rests between two points.
class Gpu {
 public:
  double tick(const Profiler::Task& task) {
    if (task.point != point_) {
      point_ = task.point;
      busy_us_ = 0;
    }
    const double us = truth(task.config) * slowness(busy_us_);
    busy_us_ += kLayers * us;
    ++runs[task.config];
    warmups += task.warmup ? 1 : 0;
    return us;
  }
  std::map<size_t, int> runs;
  int warmups = 0;

 private:
  size_t point_ = 1000;
  double busy_us_ = 0;
};

std::vector<WorkPoint> few_points() {
  std::vector<WorkPoint> points = toy_points();
  points.resize(4);
  return points;
}

ProfilerOptions gpu_options(bool unsteady) {
  ProfilerOptions o;
  o.warmup = 1;
  o.repeats = 20;
  o.judge_after = 1;
  o.least_repeats = 3;
  o.hopeless_ratio = 1.5;
  o.narrow_ratio = 1.15;
  o.narrow_after = 3;
  o.finalist_ratio = 1.04;
  o.skip_after = 0;
  o.halves = true;
  o.budget_us = 1e12;
  o.cost.assign(few_points().size(), kLayers);
  if (unsteady) o.unsteady.assign(few_points().size(), true);
  return o;
}

// The largest error of a config's time relative to config 0's, over points and configs.
double worst_error(const Dataset& d) {
  double worst = 0;
  for (size_t p = 0; p < d.points.size(); ++p) {
    const auto us = [&](size_t c) {
      return std::isnan(d.repeat(p, c)) ? d.time(p, c) : std::sqrt(d.time(p, c) * d.repeat(p, c));
    };
    for (size_t c = 0; c < d.configs.size(); ++c)
      worst = std::max(worst, std::abs(us(c) / us(0) / (truth(c) / truth(0)) - 1));
  }
  return worst;
}

Dataset profiled(const ProfilerOptions& o, size_t configs, Gpu& gpu) {
  Profiler p(toy_configs(configs), toy_model(), few_points(), o);
  while (const auto task = p.next()) p.report(gpu.tick(*task));
  return p.data();
}

TEST(ProfileClock, ConfigsAreComparedNotClocks) {
  constexpr size_t kConfigs = 100;  // a round of all lasts 150 ms
  Gpu plain;
  const double without = worst_error(profiled(gpu_options(false), kConfigs, plain));
  Gpu related;
  const Dataset d = profiled(gpu_options(true), kConfigs, related);
  EXPECT_GT(without, 0.04) << "else this simulates nothing";
  EXPECT_LT(worst_error(d), 0.01);
  // At the pace that the point had on the whole, not at that of an idle GPU.
  for (size_t p = 0; p < d.points.size(); ++p) {
    EXPECT_GT(d.time(p, 0), 1.08 * truth(0));
    EXPECT_LT(d.time(p, 0), 1.41 * truth(0));
  }
}

TEST(ProfileClock, FewConfigsFewSamples) {
  for (const size_t configs : {size_t{1}, size_t{2}, size_t{3}}) {
    ProfilerOptions o = gpu_options(true);
    o.repeats = 3;
    Gpu gpu;
    EXPECT_LT(worst_error(profiled(o, configs, gpu)), 0.01) << configs;
  }
}

// Batches as a GPU is timed by: what a round foresees is what next() says.
TEST(ProfileClock, BatchesTakeTheSameCourse) {
  ProfilerOptions o = gpu_options(true);
  Gpu one;
  const Dataset d = profiled(o, 20, one);
  for (const size_t most : {size_t{1}, size_t{7}, size_t{256}}) {
    Gpu gpu;
    Profiler p(toy_configs(20), toy_model(), few_points(), o);
    size_t batches = 0;
    while (p.next()) {
      const auto round = p.round(most);
      ASSERT_FALSE(round.empty());
      ++batches;
      for (const Profiler::Task& t : round) {
        const auto task = p.next();
        if (!task || task->config != t.config || task->point != t.point || task->warmup != t.warmup) break;
        p.report(gpu.tick(t));
      }
    }
    EXPECT_EQ(p.data().us, d.us) << most;
    EXPECT_EQ(gpu.runs, one.runs) << most;
    if (most == 256) {
      EXPECT_LE(batches, 4 * (20U + 24U)) << "a round is one batch, a window of settling one or two";
    }
  }
}

TEST(ProfileClock, SettlesUntilTwoWindowsAgree) {
  ProfilerOptions o = gpu_options(true);
  o.settle_us = 100 * kMs;
  o.settle_window_us = 25 * kMs;
  // Microseconds until the first sample, but for the reference's first run and a warm-up.
  const auto settling = [&](const auto& us) {
    Profiler p(toy_configs(3), toy_model(), few_points(), o);
    double spent = 0;
    while (p.next()->warmup) {
      EXPECT_EQ(p.next()->config, 0U);
      const double now = us(spent);
      p.report(now);
      spent += kLayers * now;
    }
    return spent - 2 * kLayers * us(spent);
  };
  const double steady = settling([](double) { return 500.0; });
  EXPECT_GE(steady, 100 * kMs);
  EXPECT_LE(steady, 130 * kMs);
  // A pace that changes at 90 ms: the windows before and after do not agree.
  const double late = settling([](double spent) { return spent < 90 * kMs ? 500.0 : 550.0; });
  EXPECT_GE(late, 125 * kMs);
  EXPECT_LE(late, 180 * kMs);
  const double never = settling([](double spent) { return 500 + spent / kMs; });
  EXPECT_GE(never, o.settle_most_us);
  EXPECT_LE(never, o.settle_most_us + 10 * kMs);
}

TEST(ProfileClock, SteadyPointsNeedNoReference) {
  ProfilerOptions o = gpu_options(false);
  Gpu gpu;
  profiled(o, 10, gpu);
  EXPECT_EQ(gpu.warmups, 4 * 10);
  o.unsteady = {false, false, true, false};
  Gpu some;
  profiled(o, 10, some);
  EXPECT_GT(some.warmups, 4 * 10 + 70) << "settling alone is 80 runs";
}

TEST(ProfileClock, AReferenceThatFails) {
  for (const int after : {0, 1, 90, 100}) {
    Profiler p(toy_configs(6), toy_model(), few_points(), gpu_options(true));
    Gpu gpu;
    int left = after;
    bool failed = false;
    while (const auto task = p.next()) {
      if (task->config == 0 && left-- <= 0) {
        EXPECT_FALSE(failed);
        failed = true;
        p.report_failure("broke");
        continue;
      }
      p.report(gpu.tick(*task));
    }
    EXPECT_TRUE(failed);
    for (size_t i = 0; i < p.data().points.size(); ++i) {
      EXPECT_TRUE(std::isnan(p.data().time(i, 0)));
      for (size_t c = 1; c < 6; ++c) EXPECT_FALSE(std::isnan(p.data().time(i, c))) << after;
    }
  }
}

// Whenever it fails: while the GPU settles, in a round, at its end, and when it takes no more samples itself,
// far from the best, and is replayed between others.
TEST(ProfileClock, AReferenceThatFailsAtAnyTick) {
  for (int after = 0; after < 400; ++after) {
    ProfilerOptions o = gpu_options(true);
    o.hopeless_ratio = 10;
    o.reference_us = 1;
    Profiler p(toy_configs(3), toy_model(), few_points(), o);
    int left = after, steps = 0;
    while (const auto task = p.next()) {
      ASSERT_LT(++steps, 100000) << after;
      if (task->config == 0 && left-- <= 0) {
        p.report_failure("broke");
        continue;
      }
      p.report(task->config == 0 ? 700 : 299.0 + static_cast<double>(task->config));
    }
    for (size_t i = 0; i < p.data().points.size(); ++i) {
      EXPECT_NEAR(p.data().time(i, 1), 300, 1e-6) << after;
      EXPECT_NEAR(p.data().time(i, 2), 301, 1e-6) << after;
    }
  }
}

// The clock falls for good behind its first tick; samples from before it failed and from after are of one
// pace.
TEST(ProfileClock, AReferenceThatFailsUnderAFallingClock) {
  for (int after = 60; after < 120; ++after) {
    Profiler p(toy_configs(3), toy_model(), few_points(), gpu_options(true));
    bool settled = false;  // another config has had a tick
    int replays = 0, steps = 0, related = 0;
    while (const auto task = p.next()) {
      ASSERT_LT(++steps, 100000);
      if (task->point != 0) break;
      settled = settled || task->config != 0;
      if (task->config == 0 && ++replays > after) {
        p.report_failure("broke");
        continue;
      }
      related += settled ? 1 : 0;
      p.report((1000.0 + 100 * static_cast<double>(task->config)) * (related > 1 ? 1.2 : 1));
    }
    EXPECT_NEAR(p.data().time(0, 1), 1320, 1) << after;
    EXPECT_NEAR(p.data().time(0, 2), 1440, 1) << after;
  }
}

TEST(ProfileClock, AReferenceWithoutTicks) {
  Profiler p(toy_configs(4), toy_model(), few_points(), gpu_options(true));
  int bad = 0;
  while (const auto task = p.next()) {
    ASSERT_LT(++bad, 100000);
    p.report(task->config == 0 ? std::nan("") : 100 + static_cast<double>(task->config));
  }
  EXPECT_EQ(p.progress().failed, 1U);
  for (size_t c = 1; c < 4; ++c) EXPECT_EQ(p.data().time(0, c), 100 + static_cast<double>(c));
}

// A budget that is spent ends a point, but not before everybody who is not out of the question has samples
// enough to be compared.
TEST(ProfileClock, ABudgetLeavesNobodyWithOneSample) {
  ProfilerOptions o = gpu_options(true);
  o.budget_us = 1;
  o.everybody = true;
  Profiler p(toy_configs(30), toy_model(), few_points(), o);
  Gpu gpu;
  std::map<std::pair<size_t, size_t>, int> samples;
  while (const auto task = p.next()) {
    if (!task->warmup) ++samples[{task->point, task->config}];
    p.report(gpu.tick(*task));
  }
  ASSERT_EQ(samples.size(), 4U * 30U);
  for (const auto& [pair, count] : samples) EXPECT_EQ(count, 3);
}

TEST(ProfileClock, FinalistsGoOn) {
  ProfilerOptions o = gpu_options(false);
  o.cost.resize(1);
  Profiler p(toy_configs(100), toy_model(), {few_points().front()}, o);
  while (const auto task = p.next()) p.report(task->warmup ? 1.0 : truth(task->config));
  const size_t n = p.progress().runs;
  // 100 warm-ups; 3 samples for all; 8 for those within 15% (61 configs); 20 for those within 4% (17).
  EXPECT_EQ(n, 100U + 3 * 100 + 5 * 61 + 12 * 17);
}

// Times that are affine in the rows: what fell behind is left out, and nothing is lost.
TEST(ProfileClock, WhatFellBehindIsLeftBehind) {
  std::vector<WorkPoint> points;
  for (int32_t t = 1; t <= 1024; t *= 2) {
    std::vector<int32_t> even(8, t / 4);
    even[0] += 2 * t - 8 * (t / 4);
    points.push_back(point(fmt::format("t{}", t), t, even));
  }
  constexpr size_t kConfigs = 24;
  const auto law = [&](const Profiler::Task& t) {
    const double c = static_cast<double>(t.config);
    return 100 + 8 * c + static_cast<double>(points[t.point].tokens) * 10 / (1 + c);
  };
  ProfilerOptions o;
  o.warmup = 0;
  o.repeats = 2;
  o.skip_after = 0;
  o.budget_us = 1e12;
  o.neighbour_ratio = 1.5;
  size_t runs[2];
  for (const bool behind : {false, true}) {
    o.leave_behind = behind;
    Profiler p(toy_configs(kConfigs), toy_model(), points, o);
    while (const auto task = p.next()) p.report(law(*task));
    runs[behind] = p.progress().runs;
    for (size_t i = 0; i < points.size(); ++i) {
      double best = 1e300;
      double found = 1e300;
      for (size_t c = 0; c < kConfigs; ++c) {
        best = std::min(best, law({c, i, false}));
        if (!std::isnan(p.data().time(i, c))) found = std::min(found, p.data().time(i, c));
      }
      EXPECT_EQ(found, best) << points[i].name;
    }
  }
  EXPECT_LT(runs[1], runs[0]);
}

TEST(ProfileClock, SenselessOptions) {
  const auto refused = [](const char* what, const std::function<void(ProfilerOptions&)>& change) {
    ProfilerOptions o = gpu_options(true);
    change(o);
    const std::string message = error_of([&] { Profiler(toy_configs(2), toy_model(), few_points(), o); },
                                         RAMP_ERROR_INVALID_ARGUMENT);
    expect_has(message, {what});
  };
  refused("unsteady", [](ProfilerOptions& o) { o.unsteady.resize(1); });
  refused("cost", [](ProfilerOptions& o) { o.cost.resize(3); });
  refused("cost", [](ProfilerOptions& o) { o.cost[1] = 0; });
  refused("settle_us", [](ProfilerOptions& o) { o.settle_us = -1; });
  refused("settle_window_us", [](ProfilerOptions& o) { o.settle_window_us = 0; });
  refused("settle_most_us", [](ProfilerOptions& o) { o.settle_most_us = 1; });
  refused("settle_ratio", [](ProfilerOptions& o) { o.settle_ratio = 1; });
  refused("reference_us", [](ProfilerOptions& o) { o.reference_us = 0; });
  refused("finalist_ratio", [](ProfilerOptions& o) { o.finalist_ratio = 0.5; });
  refused("finalist_after", [](ProfilerOptions& o) { o.finalist_after = 0; });
  refused("least_repeats", [](ProfilerOptions& o) { o.least_repeats = 21; });
  Profiler p(toy_configs(2), toy_model(), few_points());
  EXPECT_THROW(p.report_failure(2, "nobody"), Error);
}

}  // namespace
}  // namespace ramp::core
