// See build_id.hpp. RAMP_EMULATOR_TESTS: the directory above this one, whose headers translated programs
// include; RAMP_EMULATOR_COMPILER: what compiles them.
#include "emulator/build_id.hpp"

#include <algorithm>
#include <cstdint>
#include <cstdio>
#include <filesystem>
#include <fstream>
#include <iterator>

namespace emu {

std::vector<std::string> compiler_options() {
  std::vector<std::string> options = {
      "-std=c++20", "-O1", "-fPIC", "-w", "-fno-math-errno", "-ffp-contract=off", "-fwrapv",
      "-fno-strict-aliasing", "-fvisibility=hidden", "-fno-gnu-unique",
      // A trap where a pointer is not aligned or an index is outside of its array.
      "-fsanitize=alignment,bounds", "-fsanitize-undefined-trap-on-error"};
#if defined(__x86_64__)
  if (__builtin_cpu_supports("fma") != 0 && __builtin_cpu_supports("avx2") != 0)
    options.insert(options.end(), {"-mfma", "-mavx2"});
#endif
  return options;
}

const std::string& build_id() {
  static const std::string id = [] {
    std::vector<std::filesystem::path> files;
    std::error_code ignored;
    for (const auto& entry : std::filesystem::directory_iterator(RAMP_EMULATOR_TESTS "/emulator", ignored))
      if (entry.path().extension() == ".hpp" || entry.path().filename() == "translate.cpp" ||
          entry.path().filename() == "nvrtc.cpp")
        files.push_back(entry.path());
    std::sort(files.begin(), files.end());
    uint64_t hash = 14695981039346656037U;  // FNV-1a
    const auto feed = [&](const std::string& text) {
      for (const char c : text) hash = (hash ^ static_cast<unsigned char>(c)) * 1099511628211U;
    };
    feed(RAMP_EMULATOR_COMPILER "\n");
    for (const std::string& o : compiler_options()) feed(o + "\n");
    for (const auto& file : files) {
      std::ifstream in(file, std::ios::binary);
      feed(std::string(std::istreambuf_iterator<char>(in), {}));
    }
    char text[20];
    std::snprintf(text, sizeof text, "%016llx", static_cast<unsigned long long>(hash));
    return std::string(text);
  }();
  return id;
}

}  // namespace emu
