// The library's handles as the CLI uses them: owners that free, statuses that throw, the options that make a
// context, and threads for preparing data.
#pragma once

#include <CLI/CLI.hpp>
#include <cstdint>
#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "backend/backend.hpp"
#include "cli/output.hpp"
#include "cli/trace.hpp"
#include "ramp/ramp.h"

namespace ramp::cli {

// Throws core::Error with the library's own message unless status is RAMP_OK.
void check(ramp_status status);

struct Destroy {
  void operator()(ramp_context* c) const noexcept {
    finish_trace(c);
    ramp_context_destroy(c);
  }
  void operator()(ramp_weights* w) const noexcept { ramp_weights_destroy(w); }
  void operator()(ramp_checkpoint* c) const noexcept { ramp_checkpoint_close(c); }
};
using ContextPtr = std::unique_ptr<ramp_context, Destroy>;
using WeightsPtr = std::unique_ptr<ramp_weights, Destroy>;
using CheckpointPtr = std::unique_ptr<ramp_checkpoint, Destroy>;

// --backend, --device, --threads, --isa: what runs the block. "auto" is the GPU where a context can be made
// on it, else the CPU; --threads and --isa without --backend are about the CPU.
struct BackendChoice {
  std::string backend = "auto", isa;
  int64_t threads = 0;
  std::string fit = "auto";  // "auto", "none", a file or a directory
  int64_t device = 0;        // which GPU
};
// with_fit: also --fit, for commands that run a block.
void add_backend_options(CLI::App& app, BackendChoice& choice, bool with_fit = true);
void add_determinism_option(CLI::App& app, std::string& determinism);
ContextPtr make_context(const BackendChoice& choice, const Io& io);

struct ContextFacts {
  std::string backend, isa, device;
  int32_t workers = 1;
};
ContextFacts facts_of(const ramp_context* context);
// "cuda plain, 132 SMs"; "cpu avx512, 2 workers".
std::string backend_text(const ContextFacts& facts);

// The seam behind a context and the weights behind a handle, for what the ABI does not offer: lists of
// configs with reasons, the config that would be chosen, checkpoint-layout values for the reference.
core::Backend& backend_of(ramp_context* context);
const core::ExpertWeights& values_of(const ramp_weights* weights);
// The fit file by which the context chooses configs for such weights; "" = the analytic default.
std::string fit_of(ramp_context* context, const core::ExpertWeights& weights, int64_t top_k);

// Names of the configs that the context has for these weights.
std::vector<std::string> config_names(ramp_context* context, const ramp_weights* weights);
// "auto" -> 0, a name -> its number + 1. Throws with near names.
int32_t config_number(ramp_context* context, const ramp_weights* weights, const std::string& name);

// Scratch memory of at least `bytes` on the context's device, aligned as the ABI wants workspaces.
class Workspace {
 public:
  Workspace() = default;  // the host's
  explicit Workspace(ramp_context* context) : memory_(backend_of(context).memory()) {}
  void reserve(uint64_t bytes);
  [[nodiscard]] void* data() const noexcept { return data_; }
  [[nodiscard]] uint64_t size() const noexcept { return bytes_; }

 private:
  const core::DeviceMemory* memory_ = nullptr;
  std::shared_ptr<void> device_;
  core::AlignedBuffer buffer_;
  void* data_ = nullptr;
  uint64_t bytes_ = 0;
};

// Runs task(0..count-1) on all available cores (threads > 0: that many), rethrows the first exception.
void parallel_for(int64_t count, const std::function<void(int64_t)>& task, int threads = 0);

// The same as a value, for library functions that take one; every finished task moves the progress.
class Progress;
std::function<void(int64_t, const std::function<void(int64_t)>&)> progress_for(Progress& progress);

}  // namespace ramp::cli
