// What `ramp profile` does around the state machine, with a made-up timer: batches take the same course as
// single ticks, failures cost only the config that failed, a budget leaves out what was slow next door, fits
// hold the contenders alone and are judged by name, and the report says what is in the profile.
#include <map>
#include <set>

#include "cli/judgement.hpp"
#include "cli/profile_protocol.hpp"
#include "cli/profile_report.hpp"
#include "cli/tick_source.hpp"
#include "dispatch/fit_file.hpp"
#include "support.hpp"

namespace ramp::core {
namespace {

std::vector<cli::TimedPoint> timed_points() {
  std::vector<cli::TimedPoint> points;
  for (WorkPoint& p : toy_points()) points.push_back({std::move(p), {}});
  return points;
}
std::vector<WorkPoint> work_of(const std::vector<cli::TimedPoint>& points) {
  std::vector<WorkPoint> work;
  for (const cli::TimedPoint& p : points) work.push_back(p.work);
  return work;
}

// The synthetic law, so many tasks at a time.
class FakeTimer final : public cli::TickSource {
 public:
  FakeTimer(const ConfigTable& configs, size_t batch) : configs_(configs), batch_(batch) {}
  void prepare(const cli::TimedPoint& point) override {
    point_ = &point;
    ++prepared;
  }
  [[nodiscard]] size_t batch() const override { return batch_; }
  std::vector<Failure> make_ready(std::span<const size_t> configs,
                                  std::span<const int32_t> numbers) override {
    EXPECT_FALSE(configs.empty());
    std::vector<Failure> failures;
    for (const size_t c : configs) {
      EXPECT_EQ(numbers[c], static_cast<int32_t>(c) + 1);
      if (unmakable.contains(c)) failures.push_back({c, "does not compile"});
    }
    return failures;
  }
  std::vector<cli::Tick> run(std::span<const Profiler::Task> tasks,
                             std::span<const int32_t> numbers) override {
    ++batches;
    std::vector<cli::Tick> ticks;
    for (const Profiler::Task& t : tasks) {
      ++runs[t.config];
      EXPECT_EQ(numbers[t.config], static_cast<int32_t>(t.config) + 1);
      if (broken.contains(t.config))
        ticks.push_back({0, "does not launch"});
      else
        ticks.push_back({t.warmup ? 1e3 : law(t.config), {}});
    }
    return ticks;
  }
  double law(size_t config) {
    return (slow.contains(config) ? 1.4 : 1.0) *
           synthetic_us(configs_.configs[config], point_->work.histogram);
  }

  std::set<size_t> broken, unmakable, slow;
  std::map<size_t, int> runs;
  int prepared = 0, batches = 0;

 private:
  const ConfigTable& configs_;
  size_t batch_;
  const cli::TimedPoint* point_ = nullptr;
};

std::vector<int32_t> numbers(size_t n) {
  std::vector<int32_t> list(n);
  for (size_t i = 0; i < n; ++i) list[i] = static_cast<int32_t>(i) + 1;
  return list;
}

ProfilerOptions gpu_like() {
  ProfilerOptions o;
  o.warmup = 1;
  o.repeats = 5;
  o.judge_after = 1;
  o.hopeless_ratio = 1.5;
  o.narrow_ratio = 1.15;
  o.narrow_after = 2;
  o.skip_after = 0;
  o.halves = true;
  return o;
}

Dataset profiled(FakeTimer& timer, const ConfigTable& configs, const ProfilerOptions& o,
                 std::vector<std::string>* notes = nullptr) {
  const auto points = timed_points();
  Profiler p(configs, toy_model(), work_of(points), o);
  int saved = 0;
  cli::run_profiler(
      p, timer, points, numbers(configs.size()), [&] { ++saved; }, [] {});
  EXPECT_FALSE(p.next().has_value());
  EXPECT_EQ(saved, static_cast<int>(points.size()));
  EXPECT_EQ(timer.prepared, static_cast<int>(points.size()));
  if (notes != nullptr) *notes = p.notes();
  return p.data();
}

bool same(const std::vector<double>& a, const std::vector<double>& b) {
  if (a.size() != b.size()) return false;
  for (size_t i = 0; i < a.size(); ++i)
    if (!(a[i] == b[i]) && !(std::isnan(a[i]) && std::isnan(b[i]))) return false;
  return true;
}

TEST(ProfileRounds, BatchesTakeTheSameCourseAsSingleTicks) {
  const ConfigTable configs = toy_configs(8);
  for (const double budget : {0.0, 2e4}) {
    ProfilerOptions o = gpu_like();
    o.budget_us = budget;
    FakeTimer one(configs, 1);
    const Dataset d = profiled(one, configs, o);
    for (const size_t batch : {size_t{3}, size_t{7}, size_t{1000}}) {
      FakeTimer many(configs, batch);
      const Dataset e = profiled(many, configs, o);
      EXPECT_TRUE(same(d.us, e.us)) << batch;
      EXPECT_TRUE(same(d.us_repeat, e.us_repeat)) << batch;
      EXPECT_LT(many.batches, one.batches);
      if (budget == 0) {
        EXPECT_EQ(many.runs, one.runs) << "nothing is run in vain";
      }
    }
  }
}

TEST(ProfileRounds, ARoundIsWhatNextWillSay) {
  Profiler p(toy_configs(5), toy_model(), toy_points(), gpu_like());
  while (p.next()) {
    const auto round = p.round(3);
    ASSERT_FALSE(round.empty());
    EXPECT_LE(round.size(), 4U);  // a config's warm-up and its sample stay together
    for (const Profiler::Task& t : round) {
      const auto task = p.next();
      ASSERT_TRUE(task.has_value());
      EXPECT_EQ(task->config, t.config);
      EXPECT_EQ(task->point, t.point);
      EXPECT_EQ(task->warmup, t.warmup);
      p.report(10);
    }
  }
  EXPECT_TRUE(p.round(3).empty());
}

// From the second point on, first ticks are so long that they count: no warm-up is planned beside them.
TEST(ProfileRounds, LongFirstTicksAreForeseen) {
  ProfilerOptions o = gpu_like();
  o.settled_us = 500;
  Profiler p(toy_configs(5), toy_model(), toy_points(), o);
  size_t planned = 0;
  size_t reported = 0;
  while (p.next()) {
    const auto round = p.round(100);
    planned += round.size();
    for (const Profiler::Task& t : round) {
      const auto task = p.next();
      if (!task || task->config != t.config || task->point != t.point || task->warmup != t.warmup) break;
      p.report(1000);
      ++reported;
    }
  }
  EXPECT_EQ(reported, toy_points().size() * 5 * 5) << "five samples each, no warm-ups";
  EXPECT_LE(planned - reported, 50U) << "at the first point alone, where nothing is known";
}

TEST(ProfileRounds, AFailureCostsOneConfig) {
  const ConfigTable configs = toy_configs(6);
  FakeTimer timer(configs, 100);
  timer.broken = {2};
  std::vector<std::string> notes;
  const Dataset d = profiled(timer, configs, gpu_like(), &notes);
  ASSERT_EQ(notes.size(), 1U);
  expect_has(notes[0], {"'c2'", "does not launch"});
  for (size_t p = 0; p < d.points.size(); ++p)
    for (size_t c = 0; c < configs.size(); ++c) EXPECT_EQ(std::isnan(d.time(p, c)), c == 2);
}

TEST(ProfileRounds, WhatCannotBeMadeReadyFailsBeforeItsTurn) {
  const ConfigTable configs = toy_configs(6);
  FakeTimer timer(configs, 100);
  timer.unmakable = {0, 5};  // who would have been first, and last
  std::vector<std::string> notes;
  const Dataset d = profiled(timer, configs, gpu_like(), &notes);
  ASSERT_EQ(notes.size(), 2U);
  expect_has(notes[0], {"'c0'", "does not compile"});
  EXPECT_FALSE(timer.runs.contains(0));
  EXPECT_FALSE(timer.runs.contains(5));
  for (size_t p = 0; p < d.points.size(); ++p)
    for (size_t c = 0; c < configs.size(); ++c) EXPECT_EQ(std::isnan(d.time(p, c)), c == 0 || c == 5);
}

TEST(ProfileRounds, NobodyLeft) {
  const ConfigTable configs = toy_configs(2);
  const auto points = timed_points();
  FakeTimer timer(configs, 100);
  timer.unmakable = {0, 1};
  Profiler p(configs, toy_model(), work_of(points), gpu_like());
  cli::run_profiler(p, timer, points, numbers(2), {}, [] {});
  EXPECT_FALSE(p.next().has_value());
  EXPECT_EQ(p.progress().failed, 2U);
  EXPECT_EQ(timer.batches, 0);
}

TEST(ProfileRounds, HopelessAfterOneReplay) {
  const ConfigTable configs = toy_configs(8);
  FakeTimer timer(configs, 100);
  const Dataset d = profiled(timer, configs, gpu_like());
  for (size_t p = 0; p < d.points.size(); ++p) {
    double best = 1e300;
    for (size_t c = 0; c < 8; ++c) best = std::min(best, d.time(p, c));
    for (size_t c = 0; c < 8; ++c) EXPECT_TRUE(d.time(p, c) <= 1.5 * best || std::isnan(d.repeat(p, c)));
  }
}

// A config that was good next door and meets one hiccup of the machine keeps its place.
TEST(ProfileRounds, AHiccupCondemnsNobody) {
  const ConfigTable configs = toy_configs(4);
  const auto points = toy_points();
  ProfilerOptions o = gpu_like();
  o.budget_us = 1e9;
  Profiler p(configs, toy_model(), points, o);
  size_t visited = 0;
  bool hit = false;
  while (const auto task = p.next()) {
    visited = p.progress().points_done;
    double us = 10.0 + static_cast<double>(task->config);
    if (visited == 1 && task->config == 0 && !task->warmup && !hit) {
      hit = true;
      us = 200;
    }
    p.report(us);
  }
  ASSERT_TRUE(hit);
  for (size_t i = 0; i < points.size(); ++i) {
    EXPECT_EQ(p.data().time(i, 0), 10.0) << i;
    EXPECT_EQ(p.data().repeat(i, 0), 10.0) << i;
  }
}

TEST(ProfileRounds, SlowNextDoorIsLeftOutUnlessAlways) {
  const ConfigTable configs = toy_configs(8);
  ProfilerOptions o = gpu_like();
  o.budget_us = 1e9;
  o.neighbour_ratio = 1.5;
  o.always = {3};
  FakeTimer timer(configs, 4);
  const Dataset d = profiled(timer, configs, o);
  size_t left_out = 0;
  for (size_t p = 0; p < d.points.size(); ++p) {
    EXPECT_FALSE(std::isnan(d.time(p, 3)));
    // By the law: nothing that would have been best is missing.
    double best = 1e300;
    double found = 1e300;
    for (size_t c = 0; c < configs.size(); ++c) {
      best = std::min(best, synthetic_us(configs.configs[c], d.points[p].histogram));
      if (!std::isnan(d.time(p, c))) found = std::min(found, d.time(p, c));
      left_out += std::isnan(d.time(p, c)) ? 1 : 0;
    }
    EXPECT_EQ(found, best) << d.points[p].name;
  }
  EXPECT_GT(left_out, 0U);
  o.neighbour_ratio = 0.5;
  EXPECT_THROW(Profiler(configs, toy_model(), toy_points(), o), Error);
}

TEST(ProfileRounds, ContendersJudgementAndReport) {
  const ConfigTable configs = toy_configs(8);
  FakeTimer timer(configs, 100);
  timer.slow = {5, 6};
  const Dataset all = cli::merge_halves(profiled(timer, configs, gpu_like()));
  const Dataset few = cli::contenders(all, 1);
  EXPECT_LT(few.configs.size(), all.configs.size());
  EXPECT_EQ(few.configs.names.front(), "c0");
  EXPECT_EQ(few.configs.extra.size(), few.configs.size());
  for (size_t p = 0; p < all.points.size(); ++p) {
    double a = 1e300;
    double b = 1e300;
    for (size_t c = 0; c < all.configs.size(); ++c) a = std::min(a, all.time(p, c));
    for (size_t c = 0; c < few.configs.size(); ++c) b = std::min(b, few.time(p, c));
    EXPECT_EQ(a, b) << "the best of every point stays";
  }
  Metadata metadata;
  metadata.device = "a <GPU>";
  const Fit fit = fit_dataset(few, "wave", h200(), metadata);
  // Unseen points, one more config: the default.
  Dataset test = all;
  test.configs.names.emplace_back("default");
  test.configs.configs.push_back(test.configs.configs.front());
  test.configs.extra.push_back(0);
  test.us.clear();
  for (const WorkPoint& p : all.points) {
    for (const KernelConfig& c : configs.configs) test.us.push_back(synthetic_us(c, p.histogram));
    test.us.push_back(2 * synthetic_us(configs.configs[0], p.histogram));
  }
  test.us_repeat = test.us;
  const cli::Judgement j = cli::judge(all, test, Dispatcher(fit.models.front()));
  EXPECT_EQ(j.points.size() + j.unjudged, test.points.size());
  for (const cli::JudgedPoint& p : j.points) {
    EXPECT_GE(p.us, p.best_us);
    EXPECT_EQ(p.noise, 0);
  }
  EXPECT_EQ(cli::judgement_json(j)["points"].size(), j.points.size());
  EXPECT_EQ(j.live_points, 0U);
  EXPECT_TRUE(cli::judgement_json(j)["mean_live_regret"].is_null());

  // One quick sample beats nobody; and what a context with the fit runs is judged beside the choice.
  Dataset quick = test;
  const size_t slowest = 7;
  quick.configs.names.emplace_back("live");
  quick.configs.configs.push_back(quick.configs.configs.front());
  quick.configs.extra.push_back(0);
  quick.us.clear();
  quick.us_repeat.clear();
  for (size_t p = 0; p < test.points.size(); ++p) {
    for (size_t c = 0; c < test.configs.size(); ++c) {
      quick.us.push_back(c == slowest ? 0.1 : test.time(p, c));
      quick.us_repeat.push_back(c == slowest ? std::nan("") : test.time(p, c));
    }
    const size_t choice = Dispatcher(fit.models.front()).choose(test.points[p].histogram);
    const std::string& name = Dispatcher(fit.models.front()).predictor().configs().names[choice];
    const auto at = std::find(test.configs.names.begin(), test.configs.names.end(), name);
    quick.us.push_back(1.25 * test.time(p, static_cast<size_t>(at - test.configs.names.begin())));
    quick.us_repeat.push_back(quick.us.back());
  }
  const cli::Judgement live = cli::judge(all, quick, Dispatcher(fit.models.front()));
  ASSERT_EQ(live.points.size(), test.points.size());
  EXPECT_EQ(live.live_points, live.points.size());
  double mean = 0;
  for (const cli::JudgedPoint& p : live.points) {
    EXPECT_NE(p.best, "c7") << p.name;
    if (p.chosen == "c7") continue;
    EXPECT_NEAR(p.live_us, 1.25 * p.us, 1e-9);
    mean += (p.live_us / p.best_us - 1) / static_cast<double>(live.points.size());
  }
  EXPECT_NEAR(live.mean_live_regret, mean, 1e-9);
  EXPECT_GE(live.max_live_regret, 0.25);
  EXPECT_NE(cli::judgement_text(live).find("its decision included"), std::string::npos);
  EXPECT_NE(cli::judgement_text(j).find("regret on"), std::string::npos);

  cli::ProfileReport report{
      &few, &fit, "fp8_block", std::vector<size_t>(few.points.size(), 0), {{"timing", 3.0}, {"fitting", 1.0}},
      j};
  const std::string html = cli::profile_html(report);
  expect_has(html, {"<!doctype html>", "a &lt;GPU>", "Best config", "Regret at unseen points", "<svg",
                    "timing", "default / best", "</html>"});
  EXPECT_EQ(html.find("http://www.w3.org/2000/svg") == std::string::npos, false);
  EXPECT_EQ(html.find("<script"), std::string::npos) << "self-contained";
  EXPECT_EQ(html.find("nan"), std::string::npos);
  report.judged.reset();
  report.defaults.assign(few.points.size(), few.configs.size());
  EXPECT_NE(cli::profile_html(report).find("</html>"), std::string::npos);
}

// How many layers a GPU's profile needs for its weights to be beyond the L2 cache, and whether they are.
TEST(ProfileProtocol, LayersBeyondTheCache) {
  constexpr int64_t kMb = 1000000;
  // OLMoE: 8 of 64 experts of 6.3 MB; five layers of the protocol read 252 MB.
  cli::GpuLayerLimits limits{64, 63 * kMb / 10, 8, 50 * kMb, 1000, 5};
  cli::LayerPlan plan = cli::plan_gpu_layers(limits, 0);
  EXPECT_EQ(plan.layers, 5);
  EXPECT_TRUE(plan.beyond_cache);
  EXPECT_EQ(plan.bytes, 5 * 64 * 63 * kMb / 10);
  // A small layer at T = 1: 4 experts of 1.5 MB.
  limits = {32, 15 * kMb / 10, 4, 50 * kMb, 1000, 0};
  plan = cli::plan_gpu_layers(limits, 0);
  EXPECT_EQ(plan.layers, 17);
  EXPECT_TRUE(plan.beyond_cache);
  plan = cli::plan_gpu_layers(limits, 5);
  EXPECT_EQ(plan.layers, 5);
  EXPECT_FALSE(plan.beyond_cache) << "asked for, and said to be in the cache";
  limits.fit = 6;
  plan = cli::plan_gpu_layers(limits, 0);
  EXPECT_EQ(plan.layers, 6);
  EXPECT_FALSE(plan.beyond_cache);
  limits = {8, kMb / 10, 1, 50 * kMb, 1000, 0};
  EXPECT_EQ(cli::plan_gpu_layers(limits, 0).layers, 24) << "a limit";
  EXPECT_FALSE(cli::plan_gpu_layers(limits, 0).beyond_cache);
  limits.l2_bytes = 0;  // a driver that does not tell
  EXPECT_EQ(cli::plan_gpu_layers(limits, 0).layers, 5);
  EXPECT_FALSE(cli::plan_gpu_layers(limits, 0).beyond_cache);
}

// What a GPU's clock will hold at, and how much of the layers a replay needs there: OLMoE in fp8_block.
TEST(ProfileProtocol, FloorsOfAPoint) {
  const ModelShape olmoe{"olmoe", 64, 8, 2048, 1024};
  const auto floor = [&](int32_t tokens) {
    return cli::layer_floor(std::vector<int32_t>(64, tokens / 8), olmoe, RAMP_FORMAT_FP8_BLOCK,
                            RAMP_ACTIVATION_SILU_AND_MUL);
  };
  EXPECT_NEAR(floor(64).read_us, 64 * 6.3 / 4.53, 1);  // 64 experts of 6.3 MB at 4.53 TB/s
  EXPECT_NEAR(floor(6000).compute_us, 48000 * 2.0 * 3 * 2048 * 1024 / 1080e6, 1);
  EXPECT_FALSE(floor(64).unsteady());
  EXPECT_FALSE(floor(200).unsteady());
  EXPECT_TRUE(floor(700).unsteady());
  EXPECT_TRUE(floor(6000).unsteady());
  const cli::LayerFloor nothing = cli::layer_floor(std::vector<int32_t>(64, 0), olmoe, RAMP_FORMAT_FP8_BLOCK,
                                                   RAMP_ACTIVATION_SILU_AND_MUL);
  EXPECT_EQ(nothing.read_us, 0);
  constexpr int64_t kL2 = 50000000;
  EXPECT_EQ(cli::layers_of_replay(nothing, kL2, 5), 2);
  EXPECT_EQ(cli::layers_of_replay(floor(8), kL2, 5), 5);
  EXPECT_EQ(cli::layers_of_replay(floor(64), kL2, 24), 6) << "half a millisecond";
  EXPECT_EQ(cli::layers_of_replay(floor(64), kL2, 5), 5) << "all there are";
  EXPECT_EQ(cli::layers_of_replay(floor(6000), kL2, 5), 2);
  EXPECT_EQ(cli::layers_of_replay(floor(6000), kL2, 1), 1);
  // Mixtral's layers are so long, and so much more than the cache, that one will do.
  const ModelShape mixtral{"mixtral", 8, 2, 4096, 14336};
  const auto long_floor = [&](int32_t tokens) {
    return cli::layer_floor(std::vector<int32_t>(8, tokens / 4), mixtral, RAMP_FORMAT_FP8_BLOCK,
                            RAMP_ACTIVATION_SILU_AND_MUL);
  };
  EXPECT_EQ(cli::layers_of_replay(long_floor(64), kL2, 3), 2);
  EXPECT_EQ(cli::layers_of_replay(long_floor(6000), kL2, 3), 1);
  // Much work on few weights: the cache counts.
  const ModelShape small{"small", 2, 2, 256, 256};
  const cli::LayerFloor hot = cli::layer_floor(std::vector<int32_t>(2, 2000000), small, RAMP_FORMAT_FP8_BLOCK,
                                               RAMP_ACTIVATION_SILU_AND_MUL);
  EXPECT_EQ(cli::layers_of_replay(hot, kL2, 24), 24);
}

TEST(ProfileProtocol, TimingsOfTwoAreNotMixed) {
  Metadata here;
  here.protocol = cli::protocol_text(5, "wall", 0.5);
  here.source = "ramp profile, 5 layers, 2.0 GB";
  Metadata theirs = here;
  EXPECT_NO_THROW(cli::check_protocol(theirs, here, "f.json"));
  for (const std::string& other :
       {cli::protocol_text(2, "wall", 0.5), cli::protocol_text(5, "cpu", 0.5),
        cli::protocol_text(5, "wall", 0), cli::protocol_text(5, "wall", 0.5, "fast")}) {
    theirs.protocol = other;
    const std::string message =
        error_of([&] { cli::check_protocol(theirs, here, "f.json"); }, RAMP_ERROR_INVALID_ARGUMENT);
    expect_has(message, {"f.json", other.c_str(), here.protocol.c_str(), "--layers", "--fresh"});
  }
  // Of a version that did not record it.
  theirs.protocol = "";
  EXPECT_NO_THROW(cli::check_protocol(theirs, here, "f.json"));
  theirs.source = "ramp profile, 2 layers, 2.0 GB";
  error_of([&] { cli::check_protocol(theirs, here, "f.json"); }, RAMP_ERROR_INVALID_ARGUMENT);
  theirs.source = "a directory";
  EXPECT_NO_THROW(cli::check_protocol(theirs, here, "f.json"));
}

}  // namespace
}  // namespace ramp::core
