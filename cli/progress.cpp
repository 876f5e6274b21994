// The progress line, its rhythm, and ^C.
#include "cli/progress.hpp"

#include <fmt/format.h>
#include <signal.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <cmath>
#include <cstdio>

#include "cli/output.hpp"

namespace ramp::cli {
namespace {

constexpr double kSilent = 1.0;          // seconds before the first sign of life
constexpr double kTerminalPeriod = 0.1;  // between rewrites of the line
constexpr double kLogPeriod = 5.0;       // between lines where there is no terminal

constexpr std::array<int, 3> kSignals = {SIGINT, SIGTERM, SIGHUP};
volatile sig_atomic_t g_signalled = 0;  // set by the handler below, which may do nothing else
void on_signal(int) {
  g_signalled = 1;
}

double seconds(std::chrono::steady_clock::duration d) {
  return std::chrono::duration<double>(d).count();
}

}  // namespace

InterruptGuard::InterruptGuard() {
  g_signalled = 0;
  struct sigaction action {};
  action.sa_handler = on_signal;
  action.sa_flags = static_cast<int>(SA_RESETHAND);
  for (size_t i = 0; i < kSignals.size(); ++i) {
    sigaction(kSignals[i], nullptr, &before_[i]);
    if (before_[i].sa_handler != SIG_IGN) sigaction(kSignals[i], &action, nullptr);
  }
}

InterruptGuard::~InterruptGuard() {
  for (size_t i = 0; i < kSignals.size(); ++i) sigaction(kSignals[i], &before_[i], nullptr);
}

void InterruptGuard::check() {
  if (g_signalled != 0) throw Interrupted();
}

Progress::Progress(const Io& io, std::string label)
    : label_(std::move(label)),
      enabled_(!io.quiet),
      terminal_(isatty(STDERR_FILENO) == 1),
      start_(Clock::now()),
      last_(start_) {}

Progress::~Progress() {
  if (shown_ && terminal_) fmt::print(stderr, "\r\x1b[K");
}

void Progress::update(double fraction, const std::string& what) {
  InterruptGuard::check();
  show(fraction, what);
}

void Progress::show(double fraction, const std::string& what) {
  if (!enabled_) return;
  const std::lock_guard lock(mutex_);
  if (!what.empty()) what_ = what;
  const Clock::time_point now = Clock::now();
  const double elapsed = seconds(now - start_);
  if (elapsed < kSilent || (shown_ && seconds(now - last_) < (terminal_ ? kTerminalPeriod : kLogPeriod)))
    return;
  last_ = now;
  shown_ = true;
  std::string line = fmt::format("ramp: {}", label_);
  if (fraction >= 0) {
    fraction = std::min(fraction, 1.0);
    line += fmt::format(" {:3.0f}%", 100 * fraction);
    // Below a few per cent the estimate would be noise.
    if (fraction > 0.02) line += fmt::format(", {} to go", duration_text(elapsed / fraction - elapsed));
  } else {
    line += fmt::format(", {} so far", duration_text(elapsed));
  }
  if (!what_.empty()) line += fmt::format(" ({})", what_);
  fmt::print(stderr, "{}{}{}", terminal_ ? "\r" : "", line, terminal_ ? "\x1b[K" : "\n");
  std::fflush(stderr);
}

Ticker::Ticker(Progress& progress, std::function<double()> fraction)
    : thread_([this, &progress, fraction = std::move(fraction)] {
        std::unique_lock lock(mutex_);
        while (!wake_.wait_for(lock, std::chrono::milliseconds(250), [this] { return stop_; }))
          progress.show(fraction ? std::max(0.0, fraction()) : -1.0);
      }) {}

Ticker::~Ticker() {
  {
    const std::lock_guard lock(mutex_);
    stop_ = true;
  }
  wake_.notify_one();
  thread_.join();
}

std::string duration_text(double seconds) {
  const auto s = static_cast<long long>(std::ceil(std::max(seconds, 0.0)));
  if (s < 60) return fmt::format("{} s", s);
  if (s < 3600) return fmt::format("{} min {} s", s / 60, s % 60);
  return fmt::format("{} h {} min", s / 3600, s % 3600 / 60);
}

}  // namespace ramp::cli
