// Inputs, ticks, and the judge.
#include "cli/block_profile.hpp"

#include <fmt/format.h>
#include <time.h>

#include <algorithm>
#include <cmath>

#include "base/error.hpp"
#include "cli/block_bench.hpp"
#include "cli/machine.hpp"
#include "cost/evaluate.hpp"

namespace ramp::cli {
namespace {

constexpr double kMemoryShare = 0.7;  // of the free memory, for weights
constexpr int64_t kMostLayers = 24;
constexpr size_t kMostRotations = 32;

double skew_of(const core::WorkloadSpec& spec) {
  if (spec.kind == core::WorkloadKind::kZipf) return spec.parameter;
  const bool even = spec.kind == core::WorkloadKind::kUniform || spec.kind == core::WorkloadKind::kBalanced;
  return even ? 0.0 : std::numeric_limits<double>::quiet_NaN();
}

// Among the first `count` configs.
size_t fastest(const core::Dataset& d, size_t point, size_t count, const std::vector<double>& us) {
  size_t best = 0;
  double best_us = std::numeric_limits<double>::infinity();
  for (size_t c = 0; c < count; ++c) {
    const double t = us[point * d.configs.size() + c];
    if (t < best_us) {
      best_us = t;
      best = c;
    }
  }
  return best;
}

}  // namespace

std::vector<TimedPoint> make_points(const core::ModelShape& model, const std::vector<int64_t>& tokens,
                                    const std::vector<core::WorkloadSpec>& routings, bool train,
                                    uint64_t seed) {
  std::vector<TimedPoint> points;
  for (const int64_t t : tokens) {
    for (const core::WorkloadSpec& spec : routings) {
      TimedPoint p;
      p.routing = core::make_routing(spec, model.experts, model.top_k, t, seed + points.size());
      p.work.name = fmt::format("t{}_{}", t, core::workload_name(spec));
      p.work.tokens = t;
      p.work.zipf = skew_of(spec);
      p.work.train = train;
      p.work.histogram.assign(static_cast<size_t>(model.experts), 0);
      for (const int32_t id : p.routing.ids)
        if (id >= 0 && id < model.experts) ++p.work.histogram[static_cast<size_t>(id)];
      points.push_back(std::move(p));
    }
  }
  return points;
}

LayerPlan plan_layers(const core::ModelShape& model, ramp_format format, ramp_activation activation,
                      int64_t wanted) {
  const int64_t layer = model.experts * core::expert_bytes(model, format, activation);
  const int64_t llc = last_level_cache_bytes();
  const int64_t memory = available_memory();
  int64_t layers = wanted > 0 ? wanted : std::clamp<int64_t>((2 * llc + layer - 1) / layer, 1, kMostLayers);
  if (memory > 0) {
    const auto fits =
        static_cast<int64_t>(kMemoryShare * static_cast<double>(memory) / static_cast<double>(layer));
    if (fits < 1)
      core::fail_argument(fmt::format("--model {}", model.name),
                          fmt::format("{} of weights in {} for one layer",
                                      bytes_text(static_cast<double>(layer)), core::format_name(format)),
                          fmt::format("at most {:.0f}% of the {} of free memory", 100 * kMemoryShare,
                                      bytes_text(static_cast<double>(memory))),
                          "take a smaller model or format", RAMP_ERROR_OUT_OF_MEMORY);
    layers = std::min(layers, fits);
  }
  return {layers, layers * layer, llc > 0 && layers * layer > llc};
}

BlockTimer::BlockTimer(ramp_context* context, const std::vector<RunnableLayer>& layers,
                       const core::ModelShape& shape, ramp_format format, ramp_determinism determinism,
                       uint64_t seed)
    : context_(context),
      layers_(layers),
      shape_(shape),
      format_(format),
      determinism_(determinism),
      seed_(seed) {}

void BlockTimer::prepare(const TimedPoint& point) {
  const int64_t tokens = point.work.tokens;
  const ramp_dtype dtype = natural_dtype(format_);
  if (!x_.present() || x_.view.shape[0] != tokens) {
    x_ = make_host_tensor(dtype, {tokens, shape_.hidden});
    core::fill_activations(x_.view.data, dtype, tokens, shape_.hidden, seed_);
    y_ = make_host_tensor(dtype, {tokens, shape_.hidden});
  }
  weights_ = make_host_tensor(RAMP_F32, {tokens, shape_.top_k});
  std::copy(point.routing.weights.begin(), point.routing.weights.end(), weights_.data.as<float>());
  // As many rotations as it takes to visit every expert.
  const auto active = static_cast<size_t>(std::count_if(
      point.work.histogram.begin(), point.work.histogram.end(), [](int32_t c) { return c > 0; }));
  const auto experts = static_cast<size_t>(shape_.experts);
  const size_t rotations =
      std::clamp<size_t>((experts + active - 1) / std::max<size_t>(active, 1), 1, kMostRotations);
  ids_.clear();
  for (size_t r = 0; r < rotations; ++r) {
    HostTensor ids = make_host_tensor(RAMP_I32, {tokens, shape_.top_k});
    const auto shift = static_cast<int32_t>(r * experts / rotations);
    std::transform(
        point.routing.ids.begin(), point.routing.ids.end(), ids.data.as<int32_t>(),
        [&](int32_t id) { return id < 0 ? id : (id + shift) % static_cast<int32_t>(shape_.experts); });
    ids_.push_back(std::move(ids));
  }
  uint64_t bytes = 0;
  check(ramp_expert_block_workspace(context_, layers_.front().handle.get(), tokens, shape_.top_k, &bytes));
  workspace_.reserve(bytes);
}

double BlockTimer::now_us() const {
  timespec t{};
  if (cpu_time_workers_ == 0) {
    clock_gettime(CLOCK_MONOTONIC, &t);
  } else {
    clock_gettime(CLOCK_PROCESS_CPUTIME_ID, &t);
  }
  const double us = 1e6 * static_cast<double>(t.tv_sec) + 1e-3 * static_cast<double>(t.tv_nsec);
  return cpu_time_workers_ == 0 ? us : us / cpu_time_workers_;
}

double BlockTimer::tick(int32_t number) {
  const size_t layer = calls_ % layers_.size();
  const size_t rotation = calls_ / layers_.size() % ids_.size();
  ++calls_;
  ramp_expert_block_args args = ramp_expert_block_args_init();
  args.determinism = determinism_;
  args.config = number;
  args.weights = layers_[layer].handle.get();
  args.x = x_.view;
  args.y = y_.view;
  args.topk_ids = ids_[rotation].view;
  args.topk_weights = weights_.view;
  const double start = now_us();
  check(ramp_expert_block(context_, &args, workspace_.data(), workspace_.size(), nullptr));
  return now_us() - start;
}

void run_profiler(core::Profiler& profiler, BlockTimer& timer, const std::vector<TimedPoint>& points,
                  const std::vector<int32_t>& numbers, const std::function<void()>& after_point,
                  const std::function<void()>& progress) {
  size_t prepared = points.size();
  size_t done = profiler.progress().points_done;
  while (const auto task = profiler.next()) {
    progress();
    if (task->point != prepared) {
      prepared = task->point;
      timer.prepare(points[prepared]);
    }
    profiler.report(timer.tick(numbers[task->config]));
    const size_t now = profiler.progress().points_done;
    if (now != done && after_point) after_point();
    done = now;
  }
}

core::Dataset merge_halves(core::Dataset d) {
  for (size_t i = 0; i < d.us.size(); ++i) {
    if (!std::isnan(d.us_repeat[i])) d.us[i] = std::sqrt(d.us[i] * d.us_repeat[i]);
  }
  return d;
}

core::Dataset join_datasets(const core::Dataset& train, const core::Dataset& test) {
  core::Dataset d = train;
  const size_t width = train.configs.size();
  for (size_t p = 0; p < test.points.size(); ++p) {
    d.points.push_back(test.points[p]);
    d.points.back().train = false;
    for (size_t c = 0; c < width; ++c) {
      d.us.push_back(test.time(p, c));
      d.us_repeat.push_back(test.repeat(p, c));
    }
  }
  d.has_repeat = train.has_repeat || test.has_repeat;
  return d;
}

Judgement judge(const core::Dataset& train, const core::Dataset& test, const core::Dispatcher& dispatcher) {
  const size_t extra = train.configs.size();  // the analytic default's place in test
  const core::Dataset merged = merge_halves(test);
  const core::Dataset all = join_datasets(train, merged);
  const size_t offset = train.points.size();
  const core::Chooser single = core::make_policy(all, 0, core::Policy::kSingleBest);
  Judgement j;
  std::vector<double> regrets;
  double log_single = 0;
  double log_default = 0;
  for (size_t p = 0; p < test.points.size(); ++p) {
    const size_t chosen = dispatcher.choose(test.points[p].histogram);
    const size_t best = fastest(merged, p, extra, merged.us);
    const size_t one = single(p + offset);
    const size_t first = fastest(test, p, extra, test.us);
    const size_t second = fastest(test, p, extra, test.us_repeat);
    JudgedPoint r;
    r.name = test.points[p].name;
    r.tokens = test.points[p].tokens;
    r.chosen = test.configs.names[chosen];
    r.best = test.configs.names[best];
    r.us = merged.time(p, chosen);
    r.best_us = merged.time(p, best);
    r.default_us = merged.time(p, extra);
    r.single_us = merged.time(p, one);
    r.regret = r.us / r.best_us - 1;
    r.noise = test.repeat(p, first) / test.repeat(p, second) - 1;
    j.single_best = test.configs.names[one];
    regrets.push_back(r.regret);
    j.mean_noise += r.noise / static_cast<double>(test.points.size());
    log_single += std::log(r.single_us / r.us);
    log_default += std::log(r.default_us / r.us);
    j.points.push_back(std::move(r));
  }
  const auto n = static_cast<double>(std::max<size_t>(regrets.size(), 1));
  for (const double r : regrets) {
    j.mean_regret += r / n;
    j.max_regret = std::max(j.max_regret, r);
  }
  j.p95_regret = core::quantile(regrets, 0.95);
  j.over_single_best = std::exp(log_single / n);
  j.over_default = std::exp(log_default / n);
  return j;
}

}  // namespace ramp::cli
