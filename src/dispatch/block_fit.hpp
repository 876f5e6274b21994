// Fits of ramp's own expert block: what a fit file has to say to be used by a backend, and the list of fits
// that a backend goes by.
//
// A fit belongs to one layer shape, weight format, activation, backend, ISA level, number of workers and
// device; the file's metadata says which (`kernel` holds format, activation, backend and ISA level). Anything
// else than that is not used, with a warning that names the file and the command that makes a good one.
#pragma once

#include <atomic>
#include <functional>
#include <memory>
#include <mutex>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "dispatch/dispatcher.hpp"
#include "dispatch/metadata.hpp"
#include "geometry/config.hpp"
#include "geometry/model.hpp"

namespace ramp::core {

// The weights that a fit serves.
struct WeightKind {
  int64_t experts = 0, hidden = 0, intermediate = 0;
  ramp_format format = RAMP_FORMAT_NONE;
  ramp_activation activation = RAMP_ACTIVATION_SILU_AND_MUL;
  friend bool operator==(const WeightKind&, const WeightKind&) = default;
};

// Metadata::kernel of a profile or fit of the expert block: "ramp cpu avx512 bf16 silu_and_mul".
struct BlockKernel {
  std::string backend, isa;
  ramp_format format = RAMP_FORMAT_NONE;
  ramp_activation activation = RAMP_ACTIVATION_SILU_AND_MUL;
};
std::string block_kernel_name(const BlockKernel& k);
std::optional<BlockKernel> parse_block_kernel(std::string_view name);  // nullopt: some other kernel

// The machine that runs the block.
struct BlockMachine {
  std::string backend, isa, device;  // "cpu", "avx512", "Intel(R) Xeon(R) Processor"
  int32_t workers = 0;
};
Metadata block_metadata(const BlockMachine& machine, ramp_format format, ramp_activation activation);

// A config table of backend configs: names by config_name, all columns of a CPU kernel, and `order` (a
// TaskOrder) as an extra one. residency: of each config on a GPU (blocks that share an SM), a column that
// cost models read; empty: none.
ConfigTable block_configs(std::span<const KernelConfig> configs, std::span<const int32_t> residency = {});
// Files carry names and columns but neither order nor blocks: sets each config to what its name says. Throws
// Error(BAD_FILE) naming `file` for a name that is no config or contradicts its columns.
void restore_configs(ConfigTable& table, const std::string& file);

// "cpu_64x8x2048x1024_bf16_silu_and_mul_avx512_w2": stem of the files of one profile.
std::string block_file_stem(const BlockMachine& machine, const ModelShape& model, ramp_format format,
                            ramp_activation activation);
// Where fits are looked for when nobody names a file: "fits" in the cache directory; "" when there is none.
std::string fit_directory(const std::string& cache_directory);

class FitList {
 public:
  struct Entry {
    WeightKind kind;
    int64_t top_k = 0;
    std::string file;
    Dispatcher dispatcher;
    std::vector<KernelConfig> configs;  // by the dispatcher's index

    Entry(WeightKind k, int64_t top_k_, std::string file_, Dispatcher d, std::vector<KernelConfig> c)
        : kind(k), top_k(top_k_), file(std::move(file_)), dispatcher(std::move(d)), configs(std::move(c)) {}
    // The config for a step. histogram: kind.experts counts >= 0. Neither allocates nor locks.
    [[nodiscard]] const KernelConfig& choose(std::span<const int32_t> histogram) const noexcept {
      return configs[dispatcher.choose(histogram)];
    }
  };

  FitList() = default;
  ~FitList();
  FitList(const FitList&) = delete;
  FitList& operator=(const FitList&) = delete;

  // Any thread, at any time. Entries are never changed or freed while the list lives, so a reader that found
  // one may keep it; a later entry for the same weights takes precedence in every find() that begins after.
  void add(std::unique_ptr<Entry> entry);
  // The fit for these weights: the last one added with this top_k, else the last one with any (times depend
  // on the histogram, hardly on how many slots a token has); top_k 0 = not known. nullptr: none. Wait-free.
  [[nodiscard]] const Entry* find(const WeightKind& kind, int64_t top_k = 0) const noexcept;

 private:
  struct Node {
    std::unique_ptr<Entry> entry;
    Node* next = nullptr;
  };
  std::atomic<Node*> head_{nullptr};
  std::mutex writers_;
};

// Whether a backend runs this config for a shape, format and activation today.
using ConfigCheck = std::function<bool(const KernelConfig&, const ModelShape&, ramp_format, ramp_activation)>;

struct BlockFitReport {
  int32_t used = 0;                   // shapes taken over
  std::vector<std::string> warnings;  // one line each
};
// One file. Throws Error(IO) or Error(BAD_FILE) as read_fit does.
BlockFitReport load_block_fit(const std::string& path, const BlockMachine& here, const ConfigCheck& legal,
                              FitList& fits);
// Every *.fit.json of a directory, by name. Files of other backends, ISA levels or worker counts belong there
// and are passed over in silence; a file that cannot be read is a warning. A directory that does not exist
// holds none.
BlockFitReport load_block_fits(const std::string& directory, const BlockMachine& here,
                               const ConfigCheck& legal, FitList& fits);

}  // namespace ramp::core
