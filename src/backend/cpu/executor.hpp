// Executor: how the CPU backend runs its tasks, on its own thread pool or on the caller's ramp_executor. One
// interface, so that nothing else knows the difference.
#pragma once

#include <cstdint>
#include <memory>

#include "ramp/ramp.h"

namespace ramp::core {

class Executor {
 public:
  virtual ~Executor() = default;
  [[nodiscard]] virtual int32_t workers() const noexcept = 0;
  // Runs fn(arg, task, worker) exactly once for each task in [0, num_tasks) and returns when all are done;
  // worker is in [0, workers()), and no two tasks run at once under the same worker index. fn must not throw
  // (a throw ends the process: tasks are noexcept by contract). Everything written before the call is visible
  // to the tasks, and their writes are visible after it. No allocation. Safe to call from several threads.
  virtual void parallel_for(int64_t num_tasks, ramp_task_fn fn, void* arg) = 0;

  // The same for a callable object: no std::function, no allocation.
  template <typename Body>
  void run(int64_t num_tasks, const Body& body) {
    parallel_for(
        num_tasks,
        [](void* arg, int64_t task, int32_t worker) { (*static_cast<const Body*>(arg))(task, worker); },
        const_cast<void*>(static_cast<const void*>(&body)));
  }
};

// Over the caller's callbacks (copied). Checks what it can: a worker index out of range or a task that did
// not run becomes an Error, as does an exception out of parallel_for. Throws when the struct itself is wrong.
std::unique_ptr<Executor> make_caller_executor(const ramp_executor& executor);

}  // namespace ramp::core
