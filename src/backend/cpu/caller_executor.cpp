// The caller's executor behind our interface, with its promises checked: every task once, worker indices in
// range, no exception.
#include <fmt/format.h>

#include <atomic>

#include "backend/cpu/executor.hpp"
#include "base/error.hpp"

namespace ramp::core {
namespace {

// What travels through the caller's parallel_for.
struct Watched {
  ramp_task_fn fn;
  void* arg;
  int64_t tasks;
  int32_t workers;
  std::atomic<int64_t> done{0};
  std::atomic<int32_t> bad_worker{-1};
  std::atomic<int64_t> bad_task{-1};
};

void watched_task(void* arg, int64_t task, int32_t worker) noexcept {
  auto& w = *static_cast<Watched*>(arg);
  // Running such a task would touch another worker's scratch or memory that is nobody's.
  if (task < 0 || task >= w.tasks) {
    w.bad_task.store(task == -1 ? INT64_MIN : task, std::memory_order_relaxed);
    return;
  }
  if (worker < 0 || worker >= w.workers) {
    w.bad_worker.store(worker == -1 ? INT32_MIN : worker, std::memory_order_relaxed);
    return;
  }
  w.fn(w.arg, task, worker);
  w.done.fetch_add(1, std::memory_order_acq_rel);
}

class CallerExecutor final : public Executor {
 public:
  explicit CallerExecutor(const ramp_executor& executor) : executor_(executor) {}
  [[nodiscard]] int32_t workers() const noexcept override { return executor_.num_workers; }

  void parallel_for(int64_t num_tasks, ramp_task_fn fn, void* arg) override {
    if (num_tasks <= 0) return;
    // A single task needs no other thread, and concurrent callers each have their own scratch: run it here.
    if (num_tasks == 1) {
      fn(arg, 0, 0);
      return;
    }
    Watched watched{fn, arg, num_tasks, executor_.num_workers};
    try {
      executor_.parallel_for(executor_.user, num_tasks, watched_task, &watched);
    } catch (...) {
      fail(RAMP_ERROR_INVALID_ARGUMENT, "executor.parallel_for: threw an exception; it must not throw");
    }
    if (const int32_t bad = watched.bad_worker.load(); bad != -1) {
      fail_argument("executor.parallel_for", fmt::format("worker index {}", bad == INT32_MIN ? -1 : bad),
                    fmt::format("an index in [0, {})", executor_.num_workers));
    }
    if (const int64_t bad = watched.bad_task.load(); bad != -1) {
      fail_argument("executor.parallel_for", fmt::format("task {}", bad == INT64_MIN ? -1 : bad),
                    fmt::format("a task in [0, {})", num_tasks));
    }
    if (const int64_t done = watched.done.load(std::memory_order_acquire); done != num_tasks) {
      fail_argument("executor.parallel_for", fmt::format("{} task runs", done),
                    fmt::format("every one of {} tasks to run once before it returns", num_tasks));
    }
  }

 private:
  ramp_executor executor_;
};

}  // namespace

std::unique_ptr<Executor> make_caller_executor(const ramp_executor& executor) {
  if (executor.parallel_for == nullptr) fail_argument("executor.parallel_for", "NULL", "a function");
  if (executor.num_workers < 1) {
    fail_argument("executor.num_workers", fmt::format("{}", executor.num_workers), "at least 1");
  }
  return std::make_unique<CallerExecutor>(executor);
}

}  // namespace ramp::core
