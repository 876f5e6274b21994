// What the compiler says a kernel costs: registers, shared memory, stack and spills, from the log of ptxas;
// and the page docs/kernel-report.md made of it.
#pragma once

#include <string>
#include <string_view>
#include <vector>

#include "backend/cuda/kernel_library.hpp"

namespace ramp::core::cuda {

struct KernelResources {
  std::string entry;
  int registers = 0;                      // per thread
  int static_shared = 0;                  // bytes per block
  int stack = 0;                          // bytes per thread
  int spill_stores = 0, spill_loads = 0;  // bytes per thread, functions that were not inlined included
};
// In the order of the log. Throws INTERNAL where an entry's report is not complete.
std::vector<KernelResources> parse_resources(std::string_view log);

// Architectures of the report: one per kind of code that the library has.
std::vector<std::string> report_archs();

struct ReportRow {
  std::string program, arch;
  KernelResources resources;
};
// Rows of one compiled program, in the order of its entries. Throws INTERNAL where an entry is missing.
std::vector<ReportRow> report_rows(const KernelProgram& program, const std::string& arch, const Cubin& cubin);
// The whole page. compiler: NVRTC's version, "13.0". Rows are sorted by program, entry, then arch.
std::string report_markdown(std::vector<ReportRow> rows, const std::string& compiler);

}  // namespace ramp::core::cuda
