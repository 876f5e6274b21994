// Owners, options and threads behind runtime.hpp.
#include "cli/runtime.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <atomic>
#include <exception>
#include <filesystem>
#include <mutex>
#include <thread>
#include <utility>

#include "abi/handles.hpp"
#include "base/env.hpp"
#include "base/error.hpp"
#include "cli/gpu.hpp"
#include "cli/machine.hpp"
#include "cli/options.hpp"
#include "cli/progress.hpp"
#include "dispatch/block_fit.hpp"

namespace ramp::cli {
namespace {

void log_line(void*, ramp_log_level level, const char* message) {
  if (level <= RAMP_LOG_WARNING)
    say(fmt::format("{}: {}", level == RAMP_LOG_ERROR ? "error" : "warning", message));
}

}  // namespace

void check(ramp_status status) {
  if (status != RAMP_OK) throw core::Error(status, ramp_last_error());
}

void add_backend_options(CLI::App& app, BackendChoice& choice, bool with_fit) {
  add_choice(
      app, "--backend", choice.backend, backend_names(),
      "what runs the block; auto: a GPU where there is one, else (and with --threads or --isa) the CPU")
      ->group("Running");
  add_integer(app, "--threads", choice.threads, {1, 4096}, "N",
              "workers of the CPU backend (default: RAMP_NUM_THREADS, else one per available core)")
      ->group("Running");
  add_text(app, "--isa", choice.isa, "NAME",
           "ISA level of the CPU backend, as 'ramp info' lists them (default: RAMP_CPU_ISA, else the best); "
           "kernel family of the CUDA backend: sm90, sm90_few, portable, plain, plain_f64")
      ->group("Running");
  add_integer(app, "--device", choice.device, {0, 1023}, "N", "which GPU")->group("Running");
  if (!with_fit) return;
  add_text(app, "--fit", choice.fit, "PATH",
           "fits to choose configs by: a file, a directory, 'none', or 'auto' for what ships and what 'ramp "
           "profile' wrote "
           "by default")
      ->group("Running");
}

void add_determinism_option(CLI::App& app, std::string& determinism) {
  add_choice(app, "--determinism", determinism, determinism_names(),
             "what the bits of y depend on: the inputs alone, for each token its own inputs alone, or also "
             "the schedule "
             "(respectively)")
      ->group("Running");
}

namespace {

ContextPtr create_context(const BackendChoice& choice, ramp_backend backend, const Io& io) {
  ramp_context_options options = ramp_context_options_init();
  options.backend = backend;
  if (backend == RAMP_BACKEND_CUDA) options.device = {RAMP_DEVICE_CUDA, static_cast<int32_t>(choice.device)};
  options.num_threads = static_cast<int32_t>(choice.threads);
  options.isa = choice.isa.empty() ? nullptr : choice.isa.c_str();
  options.log = io.quiet ? nullptr : log_line;
  ramp_context* context = nullptr;
  try {
    check(ramp_context_create(&options, &context));
  } catch (const core::Error& e) {
    // The ABI's "isa" is our "--isa", unless the environment set it; the same for the device.
    const std::string message = e.what();
    if (!choice.isa.empty() && message.starts_with("isa:")) throw core::Error(e.status(), "--" + message);
    if (message.starts_with("device.index:"))
      throw core::Error(e.status(), "--device" + message.substr(std::string_view("device.index").size()));
    throw;
  }
  return ContextPtr(context);
}

// Silent where nothing looks like a GPU; one line where there is one that cannot be used.
ContextPtr create_automatic(const BackendChoice& choice, const Io& io) {
  if (choice.isa.empty() && choice.threads == 0 && gpu_plausible()) {
    try {
      return create_context(choice, RAMP_BACKEND_CUDA, io);
    } catch (const core::Error& e) {
      if (e.status() == RAMP_ERROR_INVALID_ARGUMENT || choice.device != 0)
        throw;  // a GPU that was asked for by number
      io.note(fmt::format("running on the CPU: {}", e.what()));
    }
  }
  if (choice.device != 0)
    core::fail_argument("--device", fmt::format("{} on the CPU", choice.device), "a machine with that GPU",
                        "leave it out to run on the CPU", RAMP_ERROR_UNSUPPORTED);
  return create_context(choice, RAMP_BACKEND_AUTO, io);
}

// Beside the command: where `cmake --install` puts profiles/, else where a build finds them.
std::string shipped_profiles() {
  std::error_code unknown;
  const std::filesystem::path here = std::filesystem::read_symlink("/proc/self/exe", unknown).parent_path();
  if (unknown) return {};
  for (const char* const place : {"../share/ramp/profiles", "../../profiles"})
    if (std::filesystem::is_directory(here / place, unknown))
      return (here / place).lexically_normal().string();
  return {};
}

// Fits of GPUs that ship with the library. A file of another GPU is no fault of this one: one line for all.
void load_shipped_fits(ramp_context* context, const Io& io) {
  core::Backend& backend = backend_of(context);
  if (backend.memory() == nullptr) return;  // nothing ships for CPUs, which differ too much
  const std::string directory = shipped_profiles();
  if (directory.empty()) return;
  const core::BackendInfo& info = backend.info();
  const core::BlockFitReport report = core::load_block_fits(
      directory, {info.name, info.isa, info.device_name, info.workers},
      [&](const core::KernelConfig& c, const core::ModelShape& model, ramp_format format,
          ramp_activation activation) { return backend.runs(c, model, format, activation); },
      *backend.fits());
  if (report.used == 0 && !report.warnings.empty())
    io.note(
        fmt::format("{}: nothing there is of this {}; 'ramp profile --backend cuda --model NAME' makes fits "
                    "for it ({})",
                    directory, info.device_name, report.warnings.front()));
}

}  // namespace

ContextPtr make_context(const BackendChoice& choice, const Io& io) {
  const ramp_backend backend = parse_backend(choice.backend);
  if (choice.device != 0 && (backend == RAMP_BACKEND_CPU || backend == RAMP_BACKEND_REFERENCE))
    core::fail_argument("--device", fmt::format("{} with --backend {}", choice.device, choice.backend),
                        "it with a GPU", "leave it out, or say --backend cuda");
  ContextPtr owner =
      backend == RAMP_BACKEND_AUTO ? create_automatic(choice, io) : create_context(choice, backend, io);
  ramp_context* const context = owner.get();
  begin_trace(context);
  if (choice.fit == "none" || backend_of(context).fits() == nullptr) return owner;
  const bool found = choice.fit == "auto";
  if (found)
    load_shipped_fits(context, io);  // first: what was measured on this very machine takes precedence
  int32_t used = 0;
  check(ramp_context_load_fit(context, found ? nullptr : choice.fit.c_str(), &used));
  if (!found && used == 0)
    io.note(fmt::format("{}: no fit for this machine there; the analytic default chooses", choice.fit));
  return owner;
}

ContextFacts facts_of(const ramp_context* context) {
  ramp_context_info info = ramp_context_info_init();
  check(ramp_context_get_info(context, &info));
  return {info.backend_name, info.isa, info.device_name, info.num_workers};
}

std::string backend_text(const ContextFacts& f) {
  const char* const unit = f.backend == "cuda" ? "SM" : "worker";
  return fmt::format("{}{}, {} {}{}", f.backend, f.isa.empty() ? "" : " " + f.isa, f.workers, unit,
                     f.workers == 1 ? "" : "s");
}

core::Backend& backend_of(ramp_context* context) {
  return *core::context_of(context).backend;
}
const core::ExpertWeights& values_of(const ramp_weights* weights) {
  return *core::weights_of(weights).weights;
}

std::string fit_of(ramp_context* context, const core::ExpertWeights& w, int64_t top_k) {
  const core::FitList* const fits = backend_of(context).fits();
  if (fits == nullptr) return {};
  const core::FitList::Entry* const fit =
      fits->find({w.experts, w.hidden, w.intermediate, w.format, w.activation}, top_k);
  return fit == nullptr ? std::string() : fit->file;
}

std::vector<std::string> config_names(ramp_context* context, const ramp_weights* weights) {
  std::vector<std::string> names;
  for (int32_t i = 0;; ++i) {
    const char* const name = ramp_config_name(context, weights, i);
    if (name == nullptr) return names;
    names.emplace_back(name);
  }
}

int32_t config_number(ramp_context* context, const ramp_weights* weights, const std::string& name) {
  if (name == "auto") return 0;
  const std::vector<std::string> names = config_names(context, weights);
  const auto number_in = [&](const std::vector<std::string>& list) {
    const auto at = std::find(list.begin(), list.end(), name);
    return at == list.end() ? 0 : static_cast<int32_t>(at - list.begin()) + 1;
  };
  if (const int32_t number = number_in(names)) return number;
  // Perhaps one that does not ship. Both lists begin alike, so numbers stay what they are.
  ramp_context& c = core::context_of(context);
  const bool before = std::exchange(c.whole_space, true);
  if (const int32_t number = number_in(config_names(context, weights))) return number;
  c.whole_space = before;
  core::fail_argument("--config", fmt::format("'{}'", core::printable(name)),
                      fmt::format("'auto' or one of the {} configs that 'ramp configs' lists", names.size()),
                      names.empty()
                          ? std::string("this backend has no configs to choose from")
                          : fmt::format("for example '{}'{}", names.front(), did_you_mean(name, names)));
}

void Workspace::reserve(uint64_t bytes) {
  constexpr uint64_t kAlignment = 256;
  if (bytes <= bytes_) return;
  if (memory_ != nullptr) {
    bytes_ = 0;
    device_.reset();
    device_ = memory_->allocate(bytes);
    data_ = device_.get();
    bytes_ = bytes;
    return;
  }
  buffer_ = {};  // first, so that both are never held at once
  check_memory("workspace", "scratch", static_cast<double>(bytes));
  buffer_ = core::AlignedBuffer(bytes + kAlignment);
  const auto address = reinterpret_cast<uintptr_t>(buffer_.data());
  data_ = buffer_.as<std::byte>() + (kAlignment - address % kAlignment) % kAlignment;
  bytes_ = bytes;
}

void parallel_for(int64_t count, const std::function<void(int64_t)>& task, int threads) {
  const int64_t wanted = threads > 0 ? threads : core::available_cores();
  const auto workers = static_cast<int>(std::min(count, wanted));
  std::atomic<int64_t> next{0};
  std::exception_ptr failure;
  std::mutex mutex;
  const auto body = [&] {
    try {
      for (int64_t i = next++; i < count; i = next++) task(i);
    } catch (...) {
      next = count;
      const std::lock_guard lock(mutex);
      if (failure == nullptr) failure = std::current_exception();
    }
  };
  std::vector<std::thread> others;
  for (int t = 1; t < workers; ++t) others.emplace_back(body);
  body();
  for (std::thread& t : others) t.join();
  if (failure != nullptr) std::rethrow_exception(failure);
}

std::function<void(int64_t, const std::function<void(int64_t)>&)> progress_for(Progress& progress) {
  return [&progress](int64_t count, const std::function<void(int64_t)>& task) {
    std::atomic<int64_t> done{0};
    parallel_for(count, [&](int64_t i) {
      task(i);
      progress.update(static_cast<double>(++done) / static_cast<double>(count));
    });
  };
}

}  // namespace ramp::cli
