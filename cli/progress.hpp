// Progress on stderr for anything over a second: on a terminal one rewritten line, elsewhere a line every few
// seconds, both with the time to go. Silent for the first second and with --quiet.
#pragma once

#include <signal.h>

#include <array>
#include <chrono>
#include <condition_variable>
#include <exception>
#include <functional>
#include <mutex>
#include <string>
#include <thread>

namespace ramp::cli {

class Io;

// Thrown by Progress::update after ^C while an InterruptGuard lives; main turns it into exit code 130.
class Interrupted : public std::exception {
 public:
  [[nodiscard]] const char* what() const noexcept override { return "interrupted"; }
};

// While it lives, the first SIGINT, SIGTERM or SIGHUP (a closed terminal) only asks for an end
// (Progress::update throws Interrupted), so that temporary files can be removed; a second one ends the
// process at once. Signals that the process was started to ignore (nohup) stay ignored.
class InterruptGuard {
 public:
  InterruptGuard();
  ~InterruptGuard();
  InterruptGuard(const InterruptGuard&) = delete;
  InterruptGuard& operator=(const InterruptGuard&) = delete;
  static void check();  // throws Interrupted if a signal came

 private:
  std::array<struct sigaction, 3> before_{};
};

class Progress {
 public:
  Progress(const Io& io, std::string label);
  ~Progress();  // clears the line
  Progress(const Progress&) = delete;
  Progress& operator=(const Progress&) = delete;
  // fraction in [0,1], negative when unknown; `what` says which part is running and stays until the next one.
  // Thread-safe. Throws
  // Interrupted (see InterruptGuard).
  void update(double fraction, const std::string& what = {});
  // The same without the exception, for threads of their own.
  void show(double fraction, const std::string& what = {});

 private:
  using Clock = std::chrono::steady_clock;
  std::string label_, what_;
  bool enabled_, terminal_, shown_ = false;
  Clock::time_point start_, last_;
  std::mutex mutex_;
};

// Shows progress while one long library call runs: asks `fraction` (none: unknown, elapsed time only) a few
// times a second from a thread of its own.
class Ticker {
 public:
  explicit Ticker(Progress& progress, std::function<double()> fraction = {});
  ~Ticker();
  Ticker(const Ticker&) = delete;
  Ticker& operator=(const Ticker&) = delete;

 private:
  std::mutex mutex_;
  std::condition_variable wake_;
  bool stop_ = false;
  std::thread thread_;
};

// "3 s", "2 min 10 s".
std::string duration_text(double seconds);

}  // namespace ramp::cli
