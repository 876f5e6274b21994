// cpuid, once, and the list of levels it allows.
#include "backend/cpu/isa.hpp"

#include <fmt/format.h>

#include <array>
#include <cerrno>
#include <system_error>
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
// The CPU has the matrix unit with bf16, and the operating system saves its registers.
bool has_amx() {
  unsigned eax = 0;
  unsigned ebx = 0;
  unsigned ecx = 0;
  unsigned edx = 0;
  constexpr unsigned kAmxBf16 = 1U << 22;
  constexpr unsigned kAmxTile = 1U << 24;
  if (!has_avx512_bf16() || __get_cpuid_count(7, 0, &eax, &ebx, &ecx, &edx) == 0) return false;
  if ((edx & kAmxBf16) == 0 || (edx & kAmxTile) == 0) return false;
  constexpr unsigned kOsxsave = 1U << 27;
  if (__get_cpuid(1, &eax, &ebx, &ecx, &edx) == 0 || (ecx & kOsxsave) == 0) return false;
  constexpr unsigned kTileState = 3U << 17;  // XTILECFG and XTILEDATA of XCR0
  __asm__ volatile("xgetbv" : "=a"(eax), "=d"(edx) : "c"(0));
  return (eax & kTileState) == kTileState;
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

bool permit_isa(const CpuKernels& level) noexcept {
  if (std::string_view(level.isa) != "amx") return true;
#if defined(RAMP_CPU_X86_KERNELS) && defined(__linux__)
  constexpr int kRequestPermission = 0x1023;  // ARCH_REQ_XCOMP_PERM of asm/prctl.h
  constexpr int kTileData = 18;               // XFEATURE_XTILEDATA
  return syscall(SYS_arch_prctl, kRequestPermission, kTileData) == 0;
#else
  return false;
#endif
}

const CpuKernels& select_isa(std::string_view name, const LogSink& log) {
  const auto levels = available_isa_levels();
  if (name.empty()) {
    if (permit_isa(*levels.back())) return *levels.back();
    const CpuKernels& next = *levels[levels.size() - 2];
    if (log.fn != nullptr) {
      log(RAMP_LOG_WARNING,
          fmt::format("isa: the system did not permit '{}' ({}); going on with '{}'", levels.back()->isa,
                      std::generic_category().message(errno), next.isa));
    }
    return next;
  }
  std::string have;
  for (const CpuKernels* level : levels) {
    if (name == level->isa) {
      if (permit_isa(*level)) return *level;
      fail_argument(
          "isa",
          fmt::format("'{}', which the system did not permit ({})", name,
                      std::generic_category().message(errno)),
          "one that this process may use",
          "give threads' alternate signal stacks at least sysconf(_SC_SIGSTKSZ) bytes, or leave isa empty",
          RAMP_ERROR_UNSUPPORTED);
    }
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
