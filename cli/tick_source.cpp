// Points, and the loop.
#include "cli/tick_source.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <limits>

namespace ramp::cli {
namespace {

double skew_of(const core::WorkloadSpec& spec) {
  if (spec.kind == core::WorkloadKind::kZipf) return spec.parameter;
  const bool even = spec.kind == core::WorkloadKind::kUniform || spec.kind == core::WorkloadKind::kBalanced;
  return even ? 0.0 : std::numeric_limits<double>::quiet_NaN();
}

bool same(const core::Profiler::Task& a, const core::Profiler::Task& b) {
  return a.config == b.config && a.point == b.point && a.warmup == b.warmup;
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

void run_profiler(core::Profiler& profiler, TickSource& source, const std::vector<TimedPoint>& points,
                  std::span<const int32_t> numbers, const std::function<void()>& after_point,
                  const std::function<void()>& progress) {
  size_t prepared = points.size();
  size_t done = profiler.progress().points_done;
  const auto saved = [&] {
    const size_t now = profiler.progress().points_done;
    if (now != done && after_point) after_point();
    done = now;
  };
  while (const auto first = profiler.next()) {
    progress();
    if (first->point != prepared) {
      prepared = first->point;
      source.prepare(points[prepared]);
      const std::vector<size_t> configs = profiler.contenders();
      for (const TickSource::Failure& f : source.make_ready(configs, numbers))
        profiler.report_failure(f.config, f.reason);
      saved();
      continue;  // the point may be over with that
    }
    const std::vector<core::Profiler::Task> tasks = profiler.round(source.batch());
    const std::vector<Tick> ticks = source.run(tasks, numbers);
    size_t failed = numbers.size();  // no config
    for (size_t i = 0; i < tasks.size(); ++i) {
      if (tasks[i].config == failed) continue;  // what was left of it is not asked for any more
      const auto task = profiler.next();
      if (!task || !same(*task, tasks[i])) break;  // a tick before was not what the round had foreseen
      if (ticks[i].failure.empty()) {
        profiler.report(ticks[i].us);
      } else {
        failed = tasks[i].config;
        profiler.report_failure(ticks[i].failure);
      }
    }
    saved();
  }
}

}  // namespace ramp::cli
