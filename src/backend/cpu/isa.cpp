// cpuid, once, and the list of levels it allows.
#include "backend/cpu/isa.hpp"

#include <fmt/format.h>

#include <array>
#include <vector>

#include "base/error.hpp"

#if defined(RAMP_CPU_X86_KERNELS)
#include <cpuid.h>
#include <sys/syscall.h>
#include <unistd.h>
#endif

namespace ramp::core {
namespace {

constexpr std::array<std::string_view, 5> kKnownLevels = {"baseline", "avx2", "avx512", "avx512_bf16", "amx"};

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
bool has_avx512_bf16() {
  return has_avx512() && __builtin_cpu_supports("avx512bf16") != 0;
}
// The CPU has the matrix unit with bf16, and the kernel lets this process use its registers (Linux hands them
// out on request, since they are 8 KiB more to save per thread; once granted, all threads have them).
bool has_amx() {
  unsigned eax = 0;
  unsigned ebx = 0;
  unsigned ecx = 0;
  unsigned edx = 0;
  constexpr unsigned kAmxBf16 = 1U << 22;
  constexpr unsigned kAmxTile = 1U << 24;
  if (!has_avx512_bf16() || __get_cpuid_count(7, 0, &eax, &ebx, &ecx, &edx) == 0) return false;
  if ((edx & kAmxBf16) == 0 || (edx & kAmxTile) == 0) return false;
#if defined(__linux__)
  constexpr int kRequestPermission = 0x1023;  // ARCH_REQ_XCOMP_PERM of asm/prctl.h
  constexpr int kTileData = 18;               // XFEATURE_XTILEDATA
  return syscall(SYS_arch_prctl, kRequestPermission, kTileData) == 0;
#else
  return false;
#endif
}
#endif

std::vector<const CpuKernels*> find_levels() {
  std::vector<const CpuKernels*> levels = {kernels_baseline()};
#if defined(RAMP_CPU_X86_KERNELS)
  if (has_avx2()) levels.push_back(kernels_avx2());
  if (has_avx512()) levels.push_back(kernels_avx512());
  if (has_avx512_bf16()) levels.push_back(kernels_avx512_bf16());
  if (has_amx()) levels.push_back(kernels_amx());
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
