// Shipped programs compiled once per process, for all tests that look at the results.
#pragma once

#include <algorithm>
#include <map>
#include <memory>
#include <mutex>
#include <string>
#include <utility>
#include <vector>

#include "backend/cuda/kernel_report.hpp"
#include "backend/cuda/nvrtc.hpp"
#include "backend/cuda/programs.hpp"

namespace ramp::cuda_test {

inline const core::cuda::Cubin& compiled(const core::cuda::KernelProgram& program, const std::string& arch) {
  static std::map<std::pair<std::string, std::string>, core::cuda::Cubin> done;
  const auto key = std::pair(program.name, arch);
  const auto at = done.find(key);
  return at != done.end() ? at->second
                          : done.emplace(key, core::cuda::compile_program(program, arch)).first->second;
}

// Every program of the report's architectures, with those that it is for.
struct ShippedProgram {
  std::string name;
  std::vector<std::pair<core::cuda::KernelProgram, std::string>> variants;
};
inline std::vector<ShippedProgram> all_programs() {
  std::vector<ShippedProgram> list;
  for (const std::string& arch : core::cuda::report_archs()) {
    for (core::cuda::KernelProgram& p : core::cuda::shipped_programs(core::cuda::arch_number(arch))) {
      auto at =
          std::find_if(list.begin(), list.end(), [&](const ShippedProgram& s) { return s.name == p.name; });
      if (at == list.end()) at = list.insert(list.end(), {p.name, {}});
      at->variants.emplace_back(std::move(p), arch);
    }
  }
  return list;
}

}  // namespace ramp::cuda_test
