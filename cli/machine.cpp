// Facts about the machine from the system.
#include "cli/machine.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <filesystem>
#include <fstream>
#include <sstream>

#include "base/env.hpp"
#include "base/error.hpp"
#include "cli/output.hpp"

namespace ramp::cli {
namespace {

std::string first_line(const std::filesystem::path& path) {
  std::ifstream file(path);
  std::string line;
  std::getline(file, line);
  return line;
}

// "0-3,8" -> 5.
int count_cpus(const std::string& list) {
  int count = 0;
  std::istringstream parts(list);
  std::string part;
  while (std::getline(parts, part, ',')) {
    std::istringstream range(part);
    int first = 0;
    int last = 0;
    char dash = 0;
    if (!(range >> first)) continue;
    last = range >> dash >> last ? last : first;
    count += last - first + 1;
  }
  return std::max(count, 1);
}

}  // namespace

std::vector<Cache> caches() {
  std::vector<Cache> list;
  for (int index = 0; index < 16; ++index) {
    const std::filesystem::path dir = "/sys/devices/system/cpu/cpu0/cache/index" + std::to_string(index);
    std::istringstream size(first_line(dir / "size"));
    Cache c;
    char unit = 0;
    if (!(size >> c.bytes)) break;
    if (size >> unit) c.bytes *= unit == 'K' ? 1024 : unit == 'M' ? 1024 * 1024 : 1;
    std::istringstream(first_line(dir / "level")) >> c.level;
    c.type = first_line(dir / "type");
    std::transform(c.type.begin(), c.type.end(), c.type.begin(),
                   [](char ch) { return ch >= 'A' && ch <= 'Z' ? static_cast<char>(ch - 'A' + 'a') : ch; });
    c.shared_by = count_cpus(first_line(dir / "shared_cpu_list"));
    list.push_back(std::move(c));
  }
  return list;
}

int64_t last_level_cache_bytes() {
  int64_t bytes = 0;
  int level = 0;
  for (const Cache& c : caches()) {
    if (c.type == "instruction" || c.level < level) continue;
    level = c.level;
    // All instances of the last level: threads on other clusters have their own.
    bytes = c.bytes * ((core::available_cores() + c.shared_by - 1) / c.shared_by);
  }
  return bytes;
}

int64_t available_memory() {
  int64_t available = 0;
  std::ifstream file("/proc/meminfo");
  std::string key;
  std::string rest;
  int64_t value = 0;
  while (file >> key >> value && std::getline(file, rest))
    if (key == "MemAvailable:") available = value * 1024;
  // A container's own limit is tighter than the machine's memory (cgroup v2, then v1).
  struct Group {
    const char *limit, *used, *statistics, *cache;
  };
  for (const Group& g :
       {Group{"/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory.current", "/sys/fs/cgroup/memory.stat",
              "inactive_file"},
        Group{"/sys/fs/cgroup/memory/memory.limit_in_bytes", "/sys/fs/cgroup/memory/memory.usage_in_bytes",
              "/sys/fs/cgroup/memory/memory.stat", "total_inactive_file"}}) {
    int64_t limit = 0;
    int64_t used = 0;
    if (!(std::istringstream(first_line(g.limit)) >> limit)) continue;
    if (!(std::istringstream(first_line(g.used)) >> used)) continue;
    // Files that the system merely keeps count as used, and go when memory is wanted.
    std::ifstream statistics(g.statistics);
    while (statistics >> key >> value)
      if (key == g.cache) used -= value;
    if (limit > used && (available == 0 || limit - used < available)) available = limit - used;
  }
  return available;
}

void check_memory(const std::string& argument, const std::string& what, double bytes) {
  const int64_t available = available_memory();
  if (available == 0 || bytes <= static_cast<double>(available)) return;
  core::fail_argument(
      argument, fmt::format("{}, {} at least", what, bytes_text(bytes)),
      fmt::format("at most the {} of free memory", bytes_text(static_cast<double>(available))),
      "use fewer tokens or a smaller model", RAMP_ERROR_OUT_OF_MEMORY);
}

std::vector<std::string> vector_extensions() {
  std::vector<std::string> list;
#if defined(__x86_64__)
  // The builtin also asks the operating system (XGETBV), as a bare CPUID would not; it wants literals.
  __builtin_cpu_init();
#define RAMP_FEATURE(name) \
  if (__builtin_cpu_supports(name)) list.emplace_back(name)
  RAMP_FEATURE("sse4.2");
  RAMP_FEATURE("avx");
  RAMP_FEATURE("avx2");
  RAMP_FEATURE("fma");
  RAMP_FEATURE("avx512f");
  RAMP_FEATURE("avx512bw");
  RAMP_FEATURE("avx512vl");
  RAMP_FEATURE("avx512vnni");
  RAMP_FEATURE("avx512bf16");
#undef RAMP_FEATURE
  // Beyond what every compiler's builtin knows: as the kernel lists them.
  std::ifstream file("/proc/cpuinfo");
  std::string line;
  while (std::getline(file, line)) {
    if (!line.starts_with("flags")) continue;
    std::istringstream flags(line);
    std::string flag;
    while (flags >> flag)
      for (const char* const wanted : {"f16c", "avx_vnni", "avx512_fp16", "amx_tile", "amx_int8", "amx_bf16"})
        if (flag == wanted) list.push_back(flag);
    break;
  }
#endif
  return list;
}

}  // namespace ramp::cli
