// Started by tests as a process of its own:
//   cuda_helper driver            prints the line that says why there is no driver, or "driver VERSION"
//   cuda_helper warm DIR ARCH     brings all programs into the cache; prints "NAME BYTES XXH" lines of the
//   cubins
#include <fmt/format.h>

#include <cstdio>
#include <functional>
#include <string>

#include "backend/cuda/cubin_cache.hpp"
#include "backend/cuda/driver.hpp"
#include "backend/cuda/nvrtc.hpp"

int main(int argc, char** argv) {
  namespace cuda = ramp::core::cuda;
  const std::string command = argc > 1 ? argv[1] : "";
  try {
    if (command == "driver") {
      std::string why;
      const cuda::Driver* const d = cuda::find_driver(&why);
      std::puts(d == nullptr ? why.c_str()
                             : fmt::format("driver {}", cuda::version_text(d->version)).c_str());
      return 0;
    }
    if (command == "warm" && argc == 4) {
      int warnings = 0;
      cuda::CubinCache cache(argv[2], {[](void* user, ramp_log_level level, const char* message) {
                                         if (level > RAMP_LOG_WARNING) return;
                                         ++*static_cast<int*>(user);
                                         std::puts(message);
                                       },
                                       &warnings});
      for (const cuda::KernelProgram& p : cuda::shipped_programs(cuda::arch_number(argv[3]))) {
        const cuda::Cubin cubin = cuda::find_or_compile(cache, p, argv[3]);
        std::puts(fmt::format("{} {} {:x}", p.name, cubin.bytes.size(), std::hash<std::string>()(cubin.bytes))
                      .c_str());
      }
      return warnings == 0 ? 0 : 1;
    }
  } catch (const std::exception& e) {
    std::puts(e.what());
    return 1;
  }
  return 2;
}
