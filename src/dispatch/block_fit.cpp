// Matching fit files with the machine and the backend at hand.
#include "dispatch/block_fit.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <filesystem>

#include "base/error.hpp"
#include "dispatch/fit_file.hpp"
#include "ramp/version.h"

namespace ramp::core {
namespace {

std::vector<std::string> words(std::string_view text) {
  std::vector<std::string> out;
  for (size_t begin = 0; begin <= text.size();) {
    const size_t end = std::min(text.find(' ', begin), text.size());
    out.emplace_back(text.substr(begin, end - begin));
    begin = end + 1;
  }
  return out;
}

// The command that makes the fit that was wanted.
std::string mend(const std::string& path, const BlockMachine& here, const Fit& fit,
                 const std::optional<BlockKernel>& kernel) {
  std::string text = fmt::format("ramp profile --backend {} --threads {}", here.backend, here.workers);
  if (!here.isa.empty()) text += " --isa " + here.isa;
  if (!fit.models.empty()) {
    const ModelShape& m = fit.models.front().predictor->model();
    text += fmt::format(" --model {},{},{},{}", m.experts, m.top_k, m.hidden, m.intermediate);
  }
  if (kernel)
    text += fmt::format(" --format {} --activation {}", format_name(kernel->format),
                        activation_name(kernel->activation));
  return text + " -o " + path;
}

bool same_place(const BlockKernel& k, int32_t workers, const BlockMachine& here) {
  return k.backend == here.backend && k.isa == here.isa && (workers == 0 || workers == here.workers);
}

// Takes over what fits; `quiet`: other ISA levels and worker counts are none of our business.
void take(const std::string& path, const BlockMachine& here, const ConfigCheck& legal, bool quiet,
          FitList& fits, BlockFitReport& report) {
  LoadedFit loaded = read_fit(path, {});
  if (!loaded.compatibility.usable) {
    for (std::string& w : loaded.compatibility.warnings) report.warnings.push_back(std::move(w));
    return;
  }
  const Metadata& theirs = loaded.fit.metadata;
  const std::optional<BlockKernel> kernel = parse_block_kernel(theirs.kernel);
  const std::string fix = mend(path, here, loaded.fit, kernel);
  if (!kernel) {
    report.warnings.push_back(fmt::format(
        "{}: a fit of kernel '{}', expected one of ramp's own expert block; not used; to mend: {}", path,
        printable(theirs.kernel, 80), fix));
    return;
  }
  if (quiet && !same_place(*kernel, theirs.sm_count, here)) return;
  Compatibility c =
      compare_metadata(theirs, block_metadata(here, kernel->format, kernel->activation), path, fix);
  for (std::string& w : c.warnings) report.warnings.push_back(std::move(w));
  if (!c.usable) return;
  for (const FittedModel& m : loaded.fit.models) {
    const ModelShape& shape = m.predictor->model();
    ConfigTable table = m.predictor->configs();
    restore_configs(table, path);
    const auto bad = std::find_if(table.configs.begin(), table.configs.end(), [&](const KernelConfig& k) {
      return !legal(k, shape, kernel->format, kernel->activation);
    });
    if (bad != table.configs.end()) {
      report.warnings.push_back(fmt::format(
          "{}: config '{}' is none that the {} backend has for {},{},{},{} (E,k,H,I) in {}; not used; to "
          "mend: {}",
          path, config_name(*bad), here.backend, shape.experts, shape.top_k, shape.hidden, shape.intermediate,
          format_name(kernel->format), fix));
      continue;
    }
    fits.add(std::make_unique<FitList::Entry>(
        WeightKind{shape.experts, shape.hidden, shape.intermediate, kernel->format, kernel->activation},
        shape.top_k, path, Dispatcher(m), std::move(table.configs)));
    ++report.used;
  }
}

}  // namespace

std::string block_kernel_name(const BlockKernel& k) {
  return fmt::format("ramp {} {} {} {}", k.backend, k.isa.empty() ? "-" : k.isa, format_name(k.format),
                     activation_name(k.activation));
}

std::optional<BlockKernel> parse_block_kernel(std::string_view name) {
  const std::vector<std::string> w = words(name);
  if (w.size() != 5 || w[0] != "ramp") return std::nullopt;
  BlockKernel k;
  k.backend = w[1];
  k.isa = w[2] == "-" ? "" : w[2];
  try {
    k.format = parse_format(w[3]);
    k.activation = parse_activation(w[4]);
  } catch (const Error&) {
    return std::nullopt;
  }
  return k;
}

Metadata block_metadata(const BlockMachine& machine, ramp_format format, ramp_activation activation) {
  Metadata m;
  m.library_version = RAMP_VERSION_STRING;
  m.kernel = block_kernel_name({machine.backend, machine.isa, format, activation});
  m.device = machine.device;
  m.sm_count = machine.workers;
  m.date_utc = utc_now();
  return m;
}

ConfigTable block_configs(std::span<const KernelConfig> configs, std::span<const int32_t> residency) {
  ConfigTable t;
  t.known_columns = {"tile_m", "tile_n", "tile_k", "stages", "split_k", "group_m"};
  t.extra_columns = {"order"};
  if (!residency.empty()) {  // a GPU's
    t.known_columns.insert(t.known_columns.end() - 2, "threads");
    t.extra_columns.emplace_back("residency");
  }
  // Or cost models would take a config with sums for its twin without.
  const bool sums = std::any_of(configs.begin(), configs.end(), [](const KernelConfig& c) { return c.sums; });
  if (sums) t.extra_columns.emplace_back("sums");
  for (size_t i = 0; i < configs.size(); ++i) {
    t.names.push_back(config_name(configs[i]));
    t.configs.push_back(configs[i]);
    t.extra.push_back(static_cast<double>(configs[i].order));
    if (!residency.empty()) t.extra.push_back(residency[i]);
    if (sums) t.extra.push_back(configs[i].sums ? 1 : 0);
  }
  return t;
}

void restore_configs(ConfigTable& table, const std::string& file) {
  for (size_t i = 0; i < table.size(); ++i) {
    const KernelConfig& columns = table.configs[i];
    KernelConfig named;
    std::string why;
    try {
      named = parse_config(table.names[i]);
      KernelConfig both = named;  // what no column carries
      both.order = columns.order;
      both.blocks = columns.blocks;
      both.sums = columns.sums;
      if (!(both == columns)) why = "columns that say otherwise";
    } catch (const Error& e) {
      why = "a name that is no config";
    }
    if (!why.empty()) {
      fail_argument(fmt::format("{}: config '{}'", file, printable(table.names[i])), why,
                    "names as `ramp configs` prints them, with their columns", "profile again: ramp profile",
                    RAMP_ERROR_BAD_FILE);
    }
    table.configs[i] = named;
  }
}

std::string block_file_stem(const BlockMachine& machine, const ModelShape& model, ramp_format format,
                            ramp_activation activation) {
  return fmt::format("{}_{}x{}x{}x{}_{}_{}{}{}_w{}", machine.backend, model.experts, model.top_k,
                     model.hidden, model.intermediate, format_name(format), activation_name(activation),
                     machine.isa.empty() ? "" : "_", machine.isa, machine.workers);
}

std::string fit_directory(const std::string& cache_directory) {
  return cache_directory.empty() ? std::string() : cache_directory + "/fits";
}

FitList::~FitList() {
  for (Node* n = head_.load(std::memory_order_relaxed); n != nullptr;) {
    Node* const next = n->next;
    delete n;
    n = next;
  }
}

void FitList::add(std::unique_ptr<Entry> entry) {
  auto node = std::make_unique<Node>();
  node->entry = std::move(entry);
  const std::lock_guard lock(writers_);
  node->next = head_.load(std::memory_order_relaxed);
  head_.store(node.release(), std::memory_order_release);
}

const FitList::Entry* FitList::find(const WeightKind& kind, int64_t top_k) const noexcept {
  const Entry* any = nullptr;
  for (const Node* n = head_.load(std::memory_order_acquire); n != nullptr; n = n->next) {
    const Entry& e = *n->entry;
    if (!(e.kind == kind)) continue;
    if (top_k == 0 || e.top_k == top_k) return &e;
    if (any == nullptr) any = &e;
  }
  return any;
}

BlockFitReport load_block_fit(const std::string& path, const BlockMachine& here, const ConfigCheck& legal,
                              FitList& fits) {
  BlockFitReport report;
  take(path, here, legal, false, fits, report);
  return report;
}

BlockFitReport load_block_fits(const std::string& directory, const BlockMachine& here,
                               const ConfigCheck& legal, FitList& fits) {
  BlockFitReport report;
  std::vector<std::string> files;
  std::error_code error;
  for (std::filesystem::directory_iterator it(directory, error), end; !error && it != end;
       it.increment(error)) {
    const std::string name = it->path().filename().string();
    if (name.ends_with(".fit.json")) files.push_back(it->path().string());
  }
  if (error && error != std::errc::no_such_file_or_directory && error != std::errc::not_a_directory) {
    fail_argument(directory, error.message(), "a directory that can be read", "correct its permissions",
                  RAMP_ERROR_IO);
  }
  std::sort(files.begin(), files.end());
  for (const std::string& file : files) {
    try {
      take(file, here, legal, true, fits, report);
    } catch (const Error& e) {
      report.warnings.push_back(fmt::format("{}; not used", e.what()));
    }
  }
  return report;
}

}  // namespace ramp::core
