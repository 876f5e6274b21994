// ThreadPool: the CPU backend's own workers. Made for many short parallel loops in a row (a layer has four or
// five, microseconds apart): workers spin briefly for the next loop before they sleep, a loop costs no
// allocation, and the calling thread works as worker 0.
#pragma once

#include <atomic>
#include <cstdint>
#include <mutex>
#include <thread>
#include <vector>

#include "backend/cpu/executor.hpp"

namespace ramp::core {

class ThreadPool final : public Executor {
 public:
  // workers >= 1, the caller's thread included: starts workers - 1 threads. Throws Error when the system
  // gives none.
  explicit ThreadPool(int32_t workers);
  ~ThreadPool() override;
  ThreadPool(const ThreadPool&) = delete;
  ThreadPool& operator=(const ThreadPool&) = delete;

  [[nodiscard]] int32_t workers() const noexcept override { return workers_; }
  // Loops of several callers run one after the other. A call from inside a task of this pool runs its tasks
  // there and then, in order, under the worker index of the outer task.
  void parallel_for(int64_t num_tasks, ramp_task_fn fn, void* arg) override;

 private:
  void worker_main(int32_t worker) noexcept;
  // Takes and runs tasks of the current loop until none is left. Returns whether it ran any.
  bool drain(int32_t worker) noexcept;
  void stop() noexcept;

  // One loop at a time. The ticket holds (loop number << 32 | next task): taking a task is one
  // compare-exchange on it, so a worker that wakes late can never take a task of a loop that it does not
  // mean. fn_, arg_ are written between loops only: a loop ends when all its tasks are done, and they are
  // read after a task was taken.
  alignas(64) std::atomic<uint64_t> ticket_{0};
  std::atomic<int64_t> num_tasks_{0};
  ramp_task_fn fn_ = nullptr;
  void* arg_ = nullptr;
  alignas(64) std::atomic<uint32_t> done_{0};   // tasks finished in this loop
  alignas(64) std::atomic<uint32_t> epoch_{0};  // bumped per loop; workers sleep on it
  std::atomic<bool> stopping_{false};
  std::mutex one_loop_;
  int32_t workers_;
  std::vector<std::thread> threads_;
};

}  // namespace ramp::core
