// Passes over all threads in lockstep, each timed from the moment when the last thread is ready to the moment
// when the last one is done: the slowest thread counts.
#pragma once

#include <time.h>

#include <barrier>
#include <chrono>
#include <thread>
#include <vector>

namespace ramp::cli {

struct PassTimes {
  std::vector<double> seconds;  // of every pass after the warm-up
  double cpu_share = 0;  // CPU time of the threads over wall time: below 1 where they had to share cores
};

inline double thread_cpu_seconds() {
  timespec t{};
  clock_gettime(CLOCK_THREAD_CPUTIME_ID, &t);
  return static_cast<double>(t.tv_sec) + 1e-9 * static_cast<double>(t.tv_nsec);
}

// Runs `work(thread, pass)`: pass 0 to warm up, then for about `seconds` and at least `least` passes.
template <typename Work>
PassTimes timed_passes(int threads, double seconds, int least, const Work& work) {
  using Clock = std::chrono::steady_clock;
  const auto between = [](Clock::time_point from, Clock::time_point to) {
    return std::chrono::duration<double>(to - from).count();
  };
  PassTimes result;
  // Only the barrier's completion step, which runs while every thread waits, writes these.
  int pass = -1;
  bool running = false;
  bool more = true;
  Clock::time_point first;
  Clock::time_point start;
  const auto step = [&]() noexcept {
    const Clock::time_point now = Clock::now();
    running = !running;
    if (running) {
      ++pass;
      start = now;
      if (pass == 1) first = now;
      return;
    }
    if (pass == 0) return;
    result.seconds.push_back(between(start, now));
    more = between(first, now) < seconds || static_cast<int>(result.seconds.size()) < least;
  };
  std::barrier gate(threads, step);
  std::vector<double> cpu(static_cast<size_t>(threads));
  const auto body = [&](int thread) {
    double before = 0;
    while (more) {  // NOLINT(bugprone-infinite-loop): the barrier's step, run by one of the threads, ends it
      gate.arrive_and_wait();
      if (pass == 1) before = thread_cpu_seconds();
      work(thread, pass);
      gate.arrive_and_wait();
    }
    cpu[static_cast<size_t>(thread)] = thread_cpu_seconds() - before;
  };
  std::vector<std::thread> others;
  for (int t = 1; t < threads; ++t) others.emplace_back(body, t);
  body(0);
  for (std::thread& t : others) t.join();
  double used = 0;
  for (const double c : cpu) used += c;
  const double wall = between(first, Clock::now());
  result.cpu_share = wall > 0 ? used / (wall * threads) : 1;
  return result;
}

}  // namespace ramp::cli
