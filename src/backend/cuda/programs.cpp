// The list of shipped programs (and of those on trial, so that CI compiles them), one line per part, and the
// search for the files behind a program.
#include "backend/cuda/programs.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <set>

#include "backend/cuda/few_block.hpp"
#include "backend/cuda/flat_block.hpp"
#include "backend/cuda/flat_prefill_block.hpp"
#include "backend/cuda/plain_block.hpp"
#include "backend/cuda/portable_block.hpp"
#include "backend/cuda/prefill_block.hpp"
#include "backend/cuda/prologue.hpp"
#include "backend/cuda/stream_block.hpp"
#include "base/error.hpp"

namespace ramp::core::cuda {
namespace {

// Each part of the backend names its own programs. A new part is one line here.
using Part = std::vector<KernelProgram> (*)(int arch);
constexpr Part kParts[] = {
    copy_programs,          // device_memory.cpp
    portable_programs,      // portable_block.cpp
    plain_programs,         // plain_block.cpp
    combine_programs,       // combine.cpp
    prologue_programs,      // prologue_kernels.cpp
    route_programs,         // route.cpp
    pack_programs,          // weights.cpp
    stream_programs,        // stream_variants.cpp
    flat_programs,          // flat_variants.cpp
    flat_prefill_programs,  // flat_prefill_block.cpp
    prefill_programs,       // prefill_block.cpp
    few_programs,           // few_block.cpp
};

const EmbeddedFile* find_file(std::string_view name) {
  for (const EmbeddedFile& f : embedded_files())
    if (f.name == name) return &f;
  return nullptr;
}

// Names in the #include lines of a text. Lines that the preprocessor would skip count too: a name too many
// only makes a key that changes more often than it must.
std::vector<std::string_view> includes_of(std::string_view text) {
  std::vector<std::string_view> names;
  while (!text.empty()) {
    const size_t end = std::min(text.find('\n'), text.size());
    std::string_view line = text.substr(0, end);
    text.remove_prefix(std::min(end + 1, text.size()));
    const auto skip = [&line](std::string_view what) {
      line.remove_prefix(std::min(line.find_first_not_of(" \t"), line.size()));
      if (!line.starts_with(what)) return false;
      line.remove_prefix(what.size());
      return true;
    };
    if (!skip("#") || !skip("include") || !(skip("\"") || skip("<"))) continue;
    const size_t close = line.find_first_of("\">");
    if (close != std::string_view::npos) names.push_back(line.substr(0, close));
  }
  return names;
}

}  // namespace

bool compiles_for(const KernelProgram& program, int arch) noexcept {
  return program.min_arch == 90 ? arch == 90 : arch >= program.min_arch;
}

std::vector<EmbeddedFile> files_of(const KernelProgram& program) {
  const EmbeddedFile* const source = find_file(program.source);
  if (source == nullptr)
    fail(RAMP_ERROR_INTERNAL,
         fmt::format("kernel {}: got source '{}', expected an embedded file", program.name, program.source));
  std::vector<EmbeddedFile> files = {*source};
  std::set<std::string_view> seen = {source->name};
  for (size_t i = 0; i < files.size(); ++i) {
    for (const std::string_view name : includes_of(files[i].text)) {
      const EmbeddedFile* const file = find_file(name);
      if (file != nullptr && seen.insert(file->name).second) files.push_back(*file);
    }
  }
  std::sort(files.begin() + 1, files.end(),
            [](const EmbeddedFile& a, const EmbeddedFile& b) { return a.name < b.name; });
  return files;
}

std::vector<KernelProgram> shipped_programs(int arch) {
  std::vector<KernelProgram> programs;
  for (const Part part : kParts)
    for (KernelProgram& p : part(arch))
      if (compiles_for(p, arch)) programs.push_back(std::move(p));
  return programs;
}

}  // namespace ramp::core::cuda
