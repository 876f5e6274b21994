// Reading the log of ptxas -v, and the table.
#include "backend/cuda/kernel_report.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <charconv>
#include <optional>
#include <tuple>

#include "backend/cuda/nvrtc.hpp"
#include "base/error.hpp"

namespace ramp::core::cuda {
namespace {

// "..., 400 bytes smem" with unit " bytes smem" -> 400.
std::optional<int> number_before(std::string_view line, std::string_view unit) {
  const size_t end = line.find(unit);
  if (end == std::string_view::npos) return std::nullopt;
  size_t begin = end;
  while (begin > 0 && line[begin - 1] >= '0' && line[begin - 1] <= '9') --begin;
  int value = 0;
  if (std::from_chars(line.data() + begin, line.data() + end, value).ptr != line.data() + end || begin == end)
    return std::nullopt;
  return value;
}

std::string_view quoted(std::string_view line) {
  const size_t first = line.find('\'');
  const size_t last = first == std::string_view::npos ? first : line.find('\'', first + 1);
  return last == std::string_view::npos ? std::string_view() : line.substr(first + 1, last - first - 1);
}

}  // namespace

std::vector<KernelResources> parse_resources(std::string_view log) {
  std::vector<KernelResources> list;
  bool complete = true;
  std::string function;
  const auto finish = [&] {
    if (!complete)
      fail(RAMP_ERROR_INTERNAL,
           fmt::format("kernel report: got no register count for {}, expected one in the "
                       "compiler's log; this version's format is not known",
                       list.back().entry));
  };
  while (!log.empty()) {
    const size_t end = std::min(log.find('\n'), log.size());
    const std::string_view line = log.substr(0, end);
    log.remove_prefix(std::min(end + 1, log.size()));
    constexpr std::string_view kProperties = "Function properties for ";
    if (line.find("Compiling entry function") != std::string_view::npos) {
      finish();
      list.emplace_back();
      list.back().entry = quoted(line);
      complete = false;
    } else if (const size_t at = line.find(kProperties); at != std::string_view::npos) {
      function = line.substr(at + kProperties.size());
    } else if (list.empty()) {
      continue;
    } else if (const auto stack = number_before(line, " bytes stack frame")) {
      KernelResources& r = list.back();
      if (function == r.entry) r.stack = *stack;
      r.spill_stores += number_before(line, " bytes spill stores").value_or(0);
      r.spill_loads += number_before(line, " bytes spill loads").value_or(0);
    } else if (const auto registers = number_before(line, " registers")) {
      list.back().registers = *registers;
      list.back().static_shared = number_before(line, " bytes smem").value_or(0);
      complete = true;
    }
  }
  finish();
  return list;
}

std::vector<std::string> report_archs() {
  return {"sm_80", "sm_89", "sm_90a"};
}

std::vector<ReportRow> report_rows(const KernelProgram& program, const std::string& arch,
                                   const Cubin& cubin) {
  const std::vector<KernelResources> found = parse_resources(cubin.log);
  std::vector<ReportRow> rows;
  for (const std::string& entry : program.entries) {
    const auto at =
        std::find_if(found.begin(), found.end(), [&](const KernelResources& r) { return r.entry == entry; });
    if (at == found.end())
      fail(RAMP_ERROR_INTERNAL,
           fmt::format("kernel {}: got no entry '{}' for {}, expected it in the compiler's log", program.name,
                       entry, arch));
    rows.push_back({program.name, arch, *at});
  }
  return rows;
}

std::string report_markdown(std::vector<ReportRow> rows, const std::string& compiler) {
  std::sort(rows.begin(), rows.end(), [](const ReportRow& a, const ReportRow& b) {
    return std::tuple(a.program, a.resources.entry, arch_number(a.arch)) <
           std::tuple(b.program, b.resources.entry, arch_number(b.arch));
  });
  std::string text = fmt::format(
      "# What the kernels cost\n\n"
      "<!-- Made by `ramp cache warm --report docs/kernel-report.md`; a test compares. Do not edit. -->\n\n"
      "Every kernel that `ramp cache warm` compiles, what ships and what is on trial, as NVRTC {} does it: "
      "registers "
      "per thread, static shared memory per\n"
      "block in bytes (dynamic shared memory is not in it), stack and spills per thread in bytes. A spill is "
      "a failed\n"
      "test unless `tests/cuda/report_test.cpp` lists it with a reason.\n\n"
      "| program | kernel | arch | registers | static shared | stack | spill stores | spill loads |\n"
      "|---|---|---|--:|--:|--:|--:|--:|\n",
      compiler);
  for (const ReportRow& r : rows)
    text += fmt::format("| {} | {} | {} | {} | {} | {} | {} | {} |\n", r.program, r.resources.entry, r.arch,
                        r.resources.registers, r.resources.static_shared, r.resources.stack,
                        r.resources.spill_stores, r.resources.spill_loads);
  return text;
}

}  // namespace ramp::core::cuda
