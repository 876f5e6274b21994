// The executors: every task once, worker indices exclusive, memory visible, nested and concurrent use, no
// allocation, and a caller's executor that breaks its promises.
#include "backend/cpu/thread_pool.hpp"

#include <gtest/gtest.h>

#include <atomic>
#include <chrono>
#include <numeric>
#include <stdexcept>
#include <thread>
#include <vector>

#include "base/error.hpp"
#include "cpu/allocations.hpp"

namespace ramp::core {
namespace {

class PoolSizes : public testing::TestWithParam<int32_t> {};
INSTANTIATE_TEST_SUITE_P(Workers, PoolSizes, testing::Values(1, 2, 3, 4, 8, 17));

TEST_P(PoolSizes, RunsEveryTaskOnceUnderExclusiveWorkers) {
  ThreadPool pool(GetParam());
  EXPECT_EQ(pool.workers(), GetParam());
  for (const int64_t tasks : {0, 1, 2, 3, 7, 64, 1000}) {
    std::vector<std::atomic<int>> runs(static_cast<size_t>(tasks));
    std::vector<std::atomic<int>> inside(static_cast<size_t>(GetParam()));
    std::atomic<int> clashes{0};
    pool.run(tasks, [&](int64_t task, int32_t worker) {
      auto& mine = inside.at(static_cast<size_t>(worker));
      if (mine.fetch_add(1) != 0) ++clashes;
      ++runs.at(static_cast<size_t>(task));
      mine.fetch_sub(1);
    });
    for (const auto& r : runs) EXPECT_EQ(r.load(), 1);
    EXPECT_EQ(clashes.load(), 0);
  }
}

// Thousands of short loops in a row with changing sizes: a late worker must never run a task of another loop.
// Plain (not atomic) memory: the loop's edges alone order it, which TSan checks.
TEST_P(PoolSizes, ManyShortLoopsSeeEachOthersWrites) {
  ThreadPool pool(GetParam());
  std::vector<int64_t> values(64, 0);
  int64_t expected = 0;
  for (int64_t round = 1; round <= 3000; ++round) {
    const int64_t tasks = 1 + round * 7 % 64;
    pool.run(tasks, [&](int64_t task, int32_t) { values[static_cast<size_t>(task)] += round; });
    expected += tasks * round;
    if (round % 500 == 0) {
      ASSERT_EQ(std::accumulate(values.begin(), values.end(), int64_t{0}), expected);
    }
  }
}

TEST(ThreadPool, UsesMoreThanTheCallersThread) {
  ThreadPool pool(4);
  // A task that waits until another one has started: passes only when two run at once.
  std::atomic<int> started{0};
  pool.run(2, [&](int64_t, int32_t) {
    ++started;
    while (started.load() < 2) std::this_thread::yield();
  });
  EXPECT_EQ(started.load(), 2);
}

TEST(ThreadPool, WorkersWakeAfterSleeping) {
  ThreadPool pool(3);
  for (int i = 0; i < 3; ++i) {
    std::this_thread::sleep_for(std::chrono::milliseconds(5));  // far longer than they spin
    std::atomic<int64_t> sum{0};
    pool.run(100, [&](int64_t task, int32_t) { sum += task; });
    EXPECT_EQ(sum.load(), 4950);
  }
}

TEST(ThreadPool, NestedCallsRunUnderTheOuterWorker) {
  ThreadPool pool(3);
  std::atomic<int64_t> inner_runs{0};
  std::atomic<int> wrong_worker{0};
  pool.run(8, [&](int64_t, int32_t outer) {
    pool.run(5, [&](int64_t, int32_t inner) {
      ++inner_runs;
      if (inner != outer) ++wrong_worker;
    });
  });
  EXPECT_EQ(inner_runs.load(), 40);
  EXPECT_EQ(wrong_worker.load(), 0);
}

TEST(ThreadPool, NestingAcrossPoolsUsesBoth) {
  ThreadPool outer(2);
  ThreadPool inner(2);
  std::atomic<int64_t> runs{0};
  outer.run(4, [&](int64_t, int32_t) { inner.run(6, [&](int64_t, int32_t) { ++runs; }); });
  EXPECT_EQ(runs.load(), 24);
}

TEST(ThreadPool, ConcurrentCallersTakeTurns) {
  ThreadPool pool(3);
  constexpr int kCallers = 4;
  std::vector<int64_t> sums(kCallers, 0);
  std::vector<std::thread> callers;
  for (int c = 0; c < kCallers; ++c) {
    callers.emplace_back([&, c] {
      for (int round = 0; round < 200; ++round) {
        std::atomic<int64_t> sum{0};
        pool.run(10, [&](int64_t task, int32_t) { sum += task + c; });
        sums[static_cast<size_t>(c)] += sum.load();
      }
    });
  }
  for (auto& t : callers) t.join();
  for (int c = 0; c < kCallers; ++c) EXPECT_EQ(sums[static_cast<size_t>(c)], 200 * (45 + 10 * c));
}

TEST(ThreadPool, LoopsDoNotAllocate) {
  ThreadPool pool(3);
  std::atomic<int64_t> sum{0};
  const auto body = [&](int64_t task, int32_t) { sum += task; };
  pool.run(10, body);
  const test::AllocationCount count;
  for (int i = 0; i < 100; ++i) pool.run(10, body);
  EXPECT_EQ(count.so_far(), 0);
}

TEST(ThreadPool, RefusesFewerThanOneWorker) {
  EXPECT_THROW(ThreadPool(0), Error);
  EXPECT_THROW(ThreadPool(-3), Error);
}

// ---------------------------------------------------------------- the caller's executor

// Runs tasks on the calling thread, with one trick at most.
struct TestExecutor {
  enum class Trick { kNone, kSkipsTask, kRunsTwice, kBadWorker, kBadTask, kThrows };
  Trick trick = Trick::kNone;
  int64_t loops = 0;
  ramp_executor executor(int32_t workers) {
    return {workers,
            [](void* user, int64_t tasks, ramp_task_fn fn, void* arg) {
              auto& self = *static_cast<TestExecutor*>(user);
              ++self.loops;
              if (self.trick == Trick::kThrows) throw std::runtime_error("no");
              for (int64_t t = 0; t < tasks; ++t) {
                if (self.trick == Trick::kSkipsTask && t == 1) continue;
                fn(arg, self.trick == Trick::kBadTask && t == 1 ? tasks : t,
                   self.trick == Trick::kBadWorker && t == 1 ? 99 : 0);
                if (self.trick == Trick::kRunsTwice && t == 1) fn(arg, t, 0);
              }
            },
            this};
  }
};

TEST(CallerExecutor, RunsTasksThere) {
  TestExecutor user;
  const auto executor = make_caller_executor(user.executor(3));
  EXPECT_EQ(executor->workers(), 3);
  std::vector<int> runs(20, 0);
  executor->run(20, [&](int64_t task, int32_t) { ++runs[static_cast<size_t>(task)]; });
  EXPECT_EQ(runs, std::vector<int>(20, 1));
  EXPECT_EQ(user.loops, 1);
  const test::AllocationCount count;
  executor->run(20, [&](int64_t task, int32_t) { ++runs[static_cast<size_t>(task)]; });
  EXPECT_EQ(count.so_far(), 0);
}

std::string message_of(TestExecutor::Trick trick) {
  TestExecutor user;
  user.trick = trick;
  const auto executor = make_caller_executor(user.executor(2));
  try {
    executor->run(5, [](int64_t, int32_t worker) { ASSERT_LT(worker, 2); });
  } catch (const Error& e) {
    EXPECT_EQ(e.status(), RAMP_ERROR_INVALID_ARGUMENT);
    return e.what();
  }
  return "no error";
}

TEST(CallerExecutor, BrokenPromisesAreErrors) {
  EXPECT_NE(message_of(TestExecutor::Trick::kSkipsTask).find("every one of 5 tasks"), std::string::npos);
  EXPECT_NE(message_of(TestExecutor::Trick::kRunsTwice).find("got 6 task runs"), std::string::npos);
  EXPECT_NE(message_of(TestExecutor::Trick::kBadWorker).find("worker index 99"), std::string::npos);
  EXPECT_NE(message_of(TestExecutor::Trick::kBadTask).find("got task 5"), std::string::npos);
  EXPECT_NE(message_of(TestExecutor::Trick::kThrows).find("threw"), std::string::npos);
}

TEST(CallerExecutor, WrongStructsAreRefused) {
  TestExecutor user;
  ramp_executor e = user.executor(0);
  EXPECT_THROW(make_caller_executor(e), Error);
  e.num_workers = 2;
  e.parallel_for = nullptr;
  EXPECT_THROW(make_caller_executor(e), Error);
}

}  // namespace
}  // namespace ramp::core
