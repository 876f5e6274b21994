// The pool's protocol: publish a loop by storing its ticket and bumping the epoch; workers take tasks by
// compare-exchange; the last finished task wakes the caller.
#include "backend/cpu/thread_pool.hpp"

#include <fmt/format.h>

#include <chrono>
#include <system_error>

#include "base/error.hpp"

namespace ramp::core {
namespace {

// How long a waiting thread spins before it sleeps. The gap between two loops of one layer is a few
// microseconds; a futex wake costs 5-50. Kept short, since spinning takes the core from everybody else.
constexpr auto kSpin = std::chrono::microseconds(30);
constexpr int kPausesPerClockRead = 32;

void cpu_pause() noexcept {
#if defined(__x86_64__) || defined(__i386__)
  __builtin_ia32_pause();
#endif
}

// Spins until ready() or until kSpin has passed; -> ready().
template <typename Ready>
bool spin_until(const Ready& ready) noexcept {
  const auto end = std::chrono::steady_clock::now() + kSpin;
  do {
    for (int i = 0; i < kPausesPerClockRead; ++i) {
      if (ready()) return true;
      cpu_pause();
    }
  } while (std::chrono::steady_clock::now() < end);
  return ready();
}

// The pool and worker index that this thread is running a task for, if any: how nested calls are recognised.
struct Inside {
  const ThreadPool* pool = nullptr;
  int32_t worker = 0;
};
thread_local Inside inside;

}  // namespace

ThreadPool::ThreadPool(int32_t workers) : workers_(workers) {
  if (workers < 1) fail_argument("num_threads", fmt::format("{}", workers), "at least 1");
  try {
    threads_.reserve(static_cast<size_t>(workers - 1));
    for (int32_t w = 1; w < workers; ++w) threads_.emplace_back([this, w] { worker_main(w); });
  } catch (const std::system_error& error) {
    const size_t started = threads_.size();
    stop();
    fail(RAMP_ERROR_OUT_OF_MEMORY,
         fmt::format("num_threads: the system gave {} of {} threads ({}); ask for fewer", started,
                     workers - 1, error.what()));
  } catch (...) {
    stop();
    throw;
  }
}

ThreadPool::~ThreadPool() {
  stop();
}

void ThreadPool::stop() noexcept {
  stopping_.store(true, std::memory_order_release);
  epoch_.fetch_add(1, std::memory_order_acq_rel);
  epoch_.notify_all();
  for (std::thread& t : threads_) t.join();
  threads_.clear();
}

bool ThreadPool::drain(int32_t worker) noexcept {
  const Inside outer = inside;
  inside = {this, worker};
  bool any = false;
  uint64_t ticket = ticket_.load(std::memory_order_acquire);
  for (;;) {
    const auto next = static_cast<int64_t>(ticket & 0xffffffffU);
    const int64_t tasks = num_tasks_.load(std::memory_order_acquire);
    // `tasks` may already belong to a later loop; then the exchange below fails: that loop's number was
    // stored in the ticket before its task count, and the acquire load orders the two here as well.
    if (next >= tasks) {
      const uint64_t again = ticket_.load(std::memory_order_acquire);
      if (again == ticket) break;
      ticket = again;
      continue;
    }
    if (!ticket_.compare_exchange_weak(ticket, ticket + 1, std::memory_order_acq_rel,
                                       std::memory_order_acquire)) {
      continue;
    }
    fn_(arg_, next, worker);
    any = true;
    if (done_.fetch_add(1, std::memory_order_acq_rel) + 1 == static_cast<uint32_t>(tasks)) done_.notify_one();
    ticket = ticket_.load(std::memory_order_acquire);
  }
  inside = outer;
  return any;
}

void ThreadPool::worker_main(int32_t worker) noexcept {
  uint32_t seen = 0;
  while (!stopping_.load(std::memory_order_acquire)) {
    const auto moved = [&] { return epoch_.load(std::memory_order_acquire) != seen; };
    if (!spin_until(moved)) epoch_.wait(seen, std::memory_order_acquire);
    seen = epoch_.load(std::memory_order_acquire);
    drain(worker);
  }
}

void ThreadPool::parallel_for(int64_t num_tasks, ramp_task_fn fn, void* arg) {
  if (num_tasks <= 0) return;
  if (inside.pool == this || workers_ == 1 || num_tasks == 1) {
    const int32_t worker = inside.pool == this ? inside.worker : 0;
    for (int64_t task = 0; task < num_tasks; ++task) fn(arg, task, worker);
    return;
  }
  if (num_tasks >= (int64_t{1} << 31)) {
    fail(RAMP_ERROR_INTERNAL, fmt::format("thread pool: got {} tasks, expected less than 2^31", num_tasks));
  }
  const std::lock_guard lock(one_loop_);
  fn_ = fn;
  arg_ = arg;
  done_.store(0, std::memory_order_relaxed);
  // A late worker may hold the previous loop's ticket and see the new number of tasks. Moving the loop number
  // first, with no task to take yet (low half all ones), makes its exchange fail.
  const uint64_t loop = (ticket_.load(std::memory_order_relaxed) >> 32) + 1;
  ticket_.store((loop << 32) | 0xffffffffU, std::memory_order_seq_cst);
  num_tasks_.store(num_tasks, std::memory_order_seq_cst);
  ticket_.store(loop << 32, std::memory_order_release);
  epoch_.fetch_add(1, std::memory_order_acq_rel);
  epoch_.notify_all();

  drain(0);
  const auto finished = [&] {
    return done_.load(std::memory_order_acquire) == static_cast<uint32_t>(num_tasks);
  };
  if (!spin_until(finished)) {
    for (uint32_t done = done_.load(std::memory_order_acquire); done != static_cast<uint32_t>(num_tasks);
         done = done_.load(std::memory_order_acquire)) {
      done_.wait(done, std::memory_order_acquire);
    }
  }
}

}  // namespace ramp::core
