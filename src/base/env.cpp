// The environment and the machine, read here and nowhere else.
#include "base/env.hpp"

#include <sched.h>

#include <cstdlib>
#include <fstream>
#include <string_view>
#include <thread>

namespace ramp::core {

std::optional<std::string> env(const char* name) {
  // getenv races only with setenv; the header of the library tells callers when it reads the environment.
  const char* value = std::getenv(name);  // NOLINT(concurrency-mt-unsafe)
  if (value == nullptr || *value == '\0') return std::nullopt;
  return std::string(value);
}

int32_t available_cores() {
  // The kernel refuses a mask shorter than its own: grow until it fits (machines with more than 1024 CPUs).
  for (int cpus = 1024; cpus <= (1 << 20); cpus *= 2) {
    cpu_set_t* set = CPU_ALLOC(static_cast<size_t>(cpus));
    if (set == nullptr) break;
    const size_t bytes = CPU_ALLOC_SIZE(static_cast<size_t>(cpus));
    CPU_ZERO_S(bytes, set);
    const bool ok = sched_getaffinity(0, bytes, set) == 0;
    const int count = ok ? CPU_COUNT_S(bytes, set) : 0;
    CPU_FREE(set);
    if (ok) return count > 0 ? count : 1;
  }
  const unsigned fallback = std::thread::hardware_concurrency();
  return fallback > 0 ? static_cast<int32_t>(fallback) : 1;
}

std::string cpu_model_name() {
  std::ifstream file("/proc/cpuinfo");
  std::string line;
  while (std::getline(file, line)) {
    if (!line.starts_with("model name")) continue;
    const size_t colon = line.find(':');
    if (colon == std::string::npos) continue;
    const size_t first = line.find_first_not_of(" \t", colon + 1);
    if (first == std::string::npos) continue;
    return line.substr(first, line.find_last_not_of(" \t\r") - first + 1);
  }
  return "unknown CPU";
}

std::string cache_directory(const std::string& explicit_dir) {
  if (!explicit_dir.empty()) return explicit_dir;
  if (const auto dir = env("RAMP_CACHE_DIR")) return *dir;
  // The XDG specification: a relative path is invalid and must be ignored.
  if (const auto dir = env("XDG_CACHE_HOME"); dir && dir->front() == '/') return *dir + "/ramp";
  if (const auto home = env("HOME")) return *home + "/.cache/ramp";
  return {};
}

}  // namespace ramp::core
