// cpuid, once, and the list of levels it allows.
#include "backend/cpu/isa.hpp"

#include <fmt/format.h>

#include <array>
#include <vector>

#include "base/error.hpp"

#if defined(RAMP_CPU_X86_KERNELS)
#include <cpuid.h>
#endif

namespace ramp::core {
namespace {

constexpr std::array<std::string_view, 3> kKnownLevels = {"baseline", "avx2", "avx512"};

#if defined(RAMP_CPU_X86_KERNELS)
// The compiler's runtime checks the operating system's register saving (xgetbv) along with the cpuid bits.
bool has_avx2() {
  __builtin_cpu_init();
  unsigned eax = 0;
  unsigned ebx = 0;
  unsigned ecx = 0;
  unsigned edx = 0;
  const bool f16c = __get_cpuid(1, &eax, &ebx, &ecx, &edx) != 0 && (ecx & bit_F16C) != 0;
  return f16c && __builtin_cpu_supports("avx2") != 0 && __builtin_cpu_supports("fma") != 0;
}
bool has_avx512() {
  return has_avx2() && __builtin_cpu_supports("avx512f") != 0 && __builtin_cpu_supports("avx512bw") != 0 &&
         __builtin_cpu_supports("avx512vl") != 0 && __builtin_cpu_supports("avx512dq") != 0;
}
#endif

std::vector<const CpuKernels*> find_levels() {
  std::vector<const CpuKernels*> levels = {kernels_baseline()};
#if defined(RAMP_CPU_X86_KERNELS)
  if (has_avx2()) levels.push_back(kernels_avx2());
  if (has_avx512()) levels.push_back(kernels_avx512());
#endif
  return levels;
}

}  // namespace

std::span<const CpuKernels* const> available_isa_levels() {
  static const std::vector<const CpuKernels*> levels = find_levels();
  return levels;
}

const CpuKernels& select_isa(std::string_view name) {
  const auto levels = available_isa_levels();
  if (name.empty()) return *levels.back();
  std::string have;
  for (const CpuKernels* level : levels) {
    if (name == level->isa) return *level;
    have += (have.empty() ? "" : ", ") + std::string(level->isa);
  }
  for (const std::string_view known : kKnownLevels) {
    if (name == known) {
      fail_argument("isa", fmt::format("'{}'", name), fmt::format("one that this machine has ({})", have),
                    "leave it empty for the best one", RAMP_ERROR_UNSUPPORTED);
    }
  }
  fail_argument("isa", fmt::format("'{}'", printable(name)), fmt::format("one of {}", have),
                "leave it empty for the best one");
}

}  // namespace ramp::core
