// The dispatcher's C ABI: profiling, as a loop over callbacks and as a bare state machine.
#include <fmt/format.h>

#include <chrono>
#include <limits>

#include "abi/dispatch_handles.hpp"
#include "base/error.hpp"
#include "dispatch/default_points.hpp"

namespace ramp::core {
namespace {

std::vector<WorkPoint> read_workloads(const ramp_profile_options& o, const ModelShape& model) {
  if (o.num_workloads < 0 || o.num_workloads > (1 << 20))
    fail_argument("num_workloads", fmt::format("{}", o.num_workloads), fmt::format("0 to {}", 1 << 20));
  if (o.max_tokens < 0) fail_argument("max_tokens", fmt::format("{}", o.max_tokens), ">= 0 (0 = 2048)");
  if (o.num_workloads == 0)
    return default_points(model, o.max_tokens == 0 ? kDefaultMaxTokens : o.max_tokens, o.seed);
  if (o.workloads == nullptr) fail_argument("workloads", "NULL", "an array of num_workloads points");
  std::vector<WorkPoint> points;
  for (int64_t i = 0; i < o.num_workloads; ++i) {
    const auto w = read_element(o.workloads, static_cast<size_t>(i), "ramp_workload");
    WorkPoint p;
    p.name = w.name != nullptr ? std::string(w.name) : fmt::format("t{}_{}", w.tokens, i);
    p.tokens = w.tokens;
    if (w.histogram == nullptr)
      fail_argument(fmt::format("workloads[{}].histogram", i), "NULL", "a count per expert");
    p.histogram.assign(w.histogram, w.histogram + model.experts);
    points.push_back(std::move(p));
  }
  return points;
}

ProfilerOptions read_counts(const ramp_profile_options& o) {
  ProfilerOptions p;
  if (o.warmup < -1) fail_argument("warmup", fmt::format("{}", o.warmup), "-1 (none), 0 (default) or more");
  if (o.repeats < 0) fail_argument("repeats", fmt::format("{}", o.repeats), "0 (default) or more");
  if (o.warmup != 0) p.warmup = o.warmup == -1 ? 0 : o.warmup;
  if (o.repeats != 0) p.repeats = o.repeats;
  if (o.hopeless_ratio != 0) p.hopeless_ratio = o.hopeless_ratio;
  if (o.keep_hopeless != 0) {
    p.skip_after = 0;
    p.judge_after = p.repeats;
  }
  return p;
}

std::unique_ptr<Profiler> make_profiler(const RegisteredKernel& k, const ramp_profile_options* options) {
  const ramp_profile_options o =
      options != nullptr ? read_sized(options, "ramp_profile_options") : ramp_profile_options_init();
  const KernelDescription& d = k.description();
  return std::make_unique<Profiler>(d.configs, d.model, read_workloads(o, d.model), read_counts(o),
                                    o.resume != 0 ? k.profile() : nullptr);
}

// Runs the tasks of one profiler through the caller's callbacks.
class Loop {
 public:
  Loop(const ramp_kernel& k, Profiler& profiler, const ramp_profile_options& o)
      : kernel_(k), profiler_(profiler), options_(o) {}

  void run() {
    while (const auto task = profiler_.next()) {
      if (!prepared_ || task->point != point_) prepare(task->point);
      double us = 0;
      const std::string failure = measure(static_cast<int32_t>(task->config), us);
      if (failure.empty()) {
        profiler_.report(us);
      } else {
        profiler_.report_failure(failure);
      }
    }
  }

 private:
  void prepare(size_t point) {
    const WorkPoint& p = profiler_.data().points[point];
    workload_ = ramp_workload_init();
    workload_.name = p.name.c_str();
    workload_.tokens = p.tokens;
    workload_.histogram = p.histogram.data();
    call_ = &workload_;
    if (options_.prepare != nullptr) {
      const int code = options_.prepare(options_.user, &workload_, &call_);
      if (code != 0)
        fail(RAMP_ERROR_DEVICE,
             fmt::format("prepare of workload '{}' returned {}, expected 0", p.name, code));
    }
    point_ = point;
    prepared_ = true;
  }

  // "" or why it failed.
  std::string measure(int32_t config, double& us) {
    using Clock = std::chrono::steady_clock;
    if (options_.measure != nullptr) {
      const int code = options_.measure(options_.user, config, call_, &us);
      return code == 0 ? std::string() : fmt::format("measure returned {}", code);
    }
    const Clock::time_point start = Clock::now();
    int code = 0;
    try {
      code = launch_config(kernel_, config, call_);
    } catch (const Error& e) {  // one of ramp's own
      return printable(e.what(), 200);
    }
    if (code != 0) return fmt::format("launch returned {}", code);
    if (options_.synchronize != nullptr) code = options_.synchronize(options_.user);
    const Clock::time_point end = Clock::now();
    if (code != 0) return fmt::format("synchronize returned {}", code);
    us = std::chrono::duration<double, std::micro>(end - start).count();
    return {};
  }

  const ramp_kernel& kernel_;
  Profiler& profiler_;
  const ramp_profile_options& options_;
  ramp_workload workload_{};
  void* call_ = nullptr;
  size_t point_ = 0;
  bool prepared_ = false;
};

}  // namespace
}  // namespace ramp::core

using namespace ramp::core;  // NOLINT(google-build-using-namespace): the border file of the C ABI

ramp_status ramp_kernel_profile(ramp_kernel* kernel, const ramp_profile_options* options) {
  return border([&] {
    ramp_kernel& k = kernel_of(kernel);
    const ramp_profile_options o =
        options != nullptr ? read_sized(options, "ramp_profile_options") : ramp_profile_options_init();
    if (o.measure == nullptr && !launches(k))
      fail_argument("kernel", "neither a launch nor a measure callback", "one of them",
                    "set ramp_kernel_desc.launch or ramp_profile_options.measure");
    if (k.block && o.prepare == nullptr)
      fail_argument("prepare", "NULL", "a callback that makes the ramp_block_call of a point",
                    "ramp's own configs run nothing else");
    const std::unique_ptr<Profiler> profiler = make_profiler(*k.kernel, options);
    const auto keep = [&] {
      if (profiler->progress().points_done > 0) k.kernel->set_profile(profiler->data(), profiler->notes());
    };
    try {
      Loop(k, *profiler, o).run();
    } catch (...) {
      keep();
      throw;
    }
    keep();
    log_warnings(k);
  });
}

ramp_status ramp_profiler_create(const ramp_kernel* kernel, const ramp_profile_options* options,
                                 ramp_profiler** out) {
  return border([&] {
    check_out(out, "out");
    auto handle = std::make_unique<ramp_profiler>();
    handle->profiler = make_profiler(*kernel_of(kernel).kernel, options);
    *out = handle.release();
  });
}

void ramp_profiler_destroy(ramp_profiler* profiler) {
  if (profiler != nullptr) destroy_dispatch_handle(profiler);
}

ramp_status ramp_profiler_next(const ramp_profiler* profiler, ramp_profile_task* out) {
  return border([&] {
    const Profiler& p = *profiler_of(profiler).profiler;
    ramp_profile_task task = ramp_profile_task_init();
    const auto next = p.next();
    task.done = next ? 0 : 1;
    if (next) {
      const WorkPoint& w = p.data().points[next->point];
      task.config = static_cast<int32_t>(next->config);
      task.warmup = next->warmup ? 1 : 0;
      task.workload = static_cast<int64_t>(next->point);
      task.tokens = w.tokens;
      task.name = w.name.c_str();
      task.histogram = w.histogram.data();
    }
    const Profiler::Progress progress = p.progress();
    task.points_done = static_cast<int64_t>(progress.points_done);
    task.points = static_cast<int64_t>(progress.points);
    write_sized(out, task, "ramp_profile_task");
  });
}

ramp_status ramp_profiler_report(ramp_profiler* profiler, double us) {
  return border([&] { profiler_of(profiler).profiler->report(us); });
}

ramp_status ramp_profiler_report_failure(ramp_profiler* profiler, const char* reason) {
  return border([&] {
    profiler_of(profiler).profiler->report_failure(reason != nullptr ? printable(reason, 200)
                                                                     : "no reason given");
  });
}

ramp_status ramp_profiler_finish(const ramp_profiler* profiler, ramp_kernel* kernel) {
  return border([&] {
    const Profiler& p = *profiler_of(profiler).profiler;
    ramp_kernel& k = kernel_of(kernel);
    const KernelDescription& d = k.kernel->description();
    const Dataset& data = p.data();
    if (data.configs.names != d.configs.names || data.models[0].experts != d.model.experts)
      fail_argument("kernel", fmt::format("'{}'", d.name), "the kernel that the profiler was made for");
    if (p.progress().points_done == 0)
      fail_argument("profiler", "no complete point", "at least one", "go on until a point is done");
    k.kernel->set_profile(data, p.notes());
    log_warnings(k);
  });
}
