// Modules and their kernels: one module per program, brought in once per library from the cache or the
// compiler, each under a lock of its own, so that several threads compile several programs at once.
#include "backend/cuda/kernel_library.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <atomic>
#include <exception>
#include <map>
#include <mutex>
#include <system_error>
#include <thread>

#include "backend/cuda/cubin_cache.hpp"
#include "backend/cuda/driver.hpp"
#include "backend/cuda/nvrtc.hpp"
#include "base/env.hpp"
#include "base/error.hpp"

namespace ramp::core::cuda {
namespace {

struct Module {
  std::mutex mutex;  // guards what follows
  KernelProgram program;
  CUmodule handle = nullptr;
  std::map<std::string, CUfunction> functions;
};

}  // namespace

struct KernelLibrary::State {
  std::shared_ptr<const Gpu> gpu;
  std::string arch;
  LogSink log;
  CubinCache cache;
  std::mutex mutex;  // guards the map, not the modules
  std::map<std::string, std::unique_ptr<Module>> modules;

  State(std::shared_ptr<const Gpu> g, const std::string& cache_dir, LogSink sink)
      : gpu(std::move(g)), arch(gpu->facts().arch()), log(sink), cache(cache_dir, sink) {}

  Module& module_of(const KernelProgram& program) {
    const std::lock_guard lock(mutex);
    std::unique_ptr<Module>& slot = modules[program.name];
    if (slot == nullptr) {
      slot = std::make_unique<Module>();
      slot->program = program;
    } else if (slot->program.source != program.source || slot->program.options != program.options) {
      fail(RAMP_ERROR_INTERNAL,
           fmt::format("kernel {}: got two programs of this name, expected names that tell programs apart",
                       program.name));
    }
    return *slot;
  }

  // With m.mutex held and the context current. Loads all entries as well, and asks each for an attribute:
  // under lazy loading (the default since CUDA 12) that is what brings the code to the device, which a first
  // launch inside a stream capture cannot do; here it may happen during one.
  void bring_in(Module& m) {
    if (m.handle != nullptr) return;
    const RelaxedCapture relaxed;
    const CubinKey key = cubin_key(m.program, arch, nvrtc().version());
    std::optional<std::string> image = cache.find(m.program.name, arch, key);
    CUmodule handle = nullptr;
    if (image) {
      const CUresult r = driver().cuModuleLoadData(&handle, image->data());
      if (r == CUDA_ERROR_OUT_OF_MEMORY) check_result(r, "cuModuleLoadData", m.program.name);
      if (r != CUDA_SUCCESS) {
        handle = nullptr;
        log(RAMP_LOG_WARNING,
            fmt::format("kernel cache: {}: the driver refuses it (CUresult {}); compiling it again",
                        cache.path(m.program.name, arch, key), static_cast<int>(r)));
      }
    }
    if (handle == nullptr) {
      const Cubin cubin = compile_program(m.program, arch);
      const CUresult r = driver().cuModuleLoadData(&handle, cubin.bytes.data());
      if (r != CUDA_SUCCESS)
        check_result(r, "cuModuleLoadData",
                     fmt::format("{} for {}, compiled by NVRTC {}, driver of CUDA {}", m.program.name, arch,
                                 nvrtc().version(), version_text(driver().version)));
      // Only what the driver takes is stored.
      if (image)
        cache.store(m.program.name, arch, key, cubin.bytes);
      else
        run_what_is_shared(handle, cubin.bytes, cache.publish(m.program.name, arch, key, cubin.bytes));
      log(RAMP_LOG_DEBUG,
          fmt::format("compiled kernel {} for {} in {:.2f} s", m.program.name, arch, cubin.seconds));
    }
    try {
      for (const std::string& entry : m.program.entries) find_entry(m, handle, entry);
    } catch (...) {
      m.functions.clear();
      driver().cuModuleUnload(handle);
      throw;
    }
    m.handle = handle;
  }

  // Instead of `mine`, which `handle` is, where another process was first.
  static void run_what_is_shared(CUmodule& handle, const std::string& mine, const std::string& shared) {
    CUmodule theirs = nullptr;
    if (shared == mine || driver().cuModuleLoadData(&theirs, shared.data()) != CUDA_SUCCESS) return;
    driver().cuModuleUnload(handle);
    handle = theirs;
  }

  CUfunction find_entry(Module& m, CUmodule handle, const std::string& entry) {
    const auto at = m.functions.find(entry);
    if (at != m.functions.end()) return at->second;
    CUfunction function = nullptr;
    const CUresult r = driver().cuModuleGetFunction(&function, handle, entry.c_str());
    if (r == CUDA_ERROR_NOT_FOUND)
      fail(RAMP_ERROR_INTERNAL,
           fmt::format("kernel {}: got no entry '{}', expected one of its extern \"C\" kernels",
                       m.program.name, entry));
    if (r != CUDA_SUCCESS) check_result(r, "cuModuleGetFunction", m.program.name + ", " + entry);
    int registers = 0;
    RAMP_CU(cuFuncGetAttribute, &registers, CU_FUNC_ATTRIBUTE_NUM_REGS, function);
    m.functions.emplace(entry, function);
    return function;
  }
};

KernelLibrary::KernelLibrary(std::shared_ptr<const Gpu> gpu, const std::string& cache_dir, LogSink log)
    : state_(std::make_unique<State>(std::move(gpu), cache_dir, log)) {}

KernelLibrary::~KernelLibrary() {
  try {
    const ScopedContext scope(*state_->gpu);
    const RelaxedCapture relaxed;
    for (const auto& [name, module] : state_->modules)
      if (module->handle != nullptr) driver().cuModuleUnload(module->handle);
  } catch (const std::exception&) {
    // The caller's context is gone, and the modules with it.
  }
}

CUfunction KernelLibrary::get(const KernelProgram& program, const std::string& entry) {
  Module& m = state_->module_of(program);
  const std::lock_guard lock(m.mutex);
  const auto at = m.functions.find(entry);
  if (at != m.functions.end()) return at->second;
  const ScopedContext scope(*state_->gpu);
  state_->bring_in(m);
  return state_->find_entry(m, m.handle, entry);
}

void KernelLibrary::load(std::span<const KernelProgram> programs) {
  std::atomic<size_t> next{0};
  std::exception_ptr failure;
  std::mutex mutex;
  const auto body = [&] {
    try {
      for (size_t i = next++; i < programs.size(); i = next++) {
        Module& m = state_->module_of(programs[i]);
        const std::lock_guard lock(m.mutex);
        if (m.handle != nullptr) continue;
        const ScopedContext scope(*state_->gpu);
        state_->bring_in(m);
      }
    } catch (...) {
      next = programs.size();
      const std::lock_guard lock(mutex);
      if (failure == nullptr) failure = std::current_exception();
    }
  };
  std::vector<std::thread> others;
  const size_t workers = std::min<size_t>(programs.size(), static_cast<size_t>(available_cores()));
  try {
    for (size_t t = 1; t < workers; ++t) others.emplace_back(body);
  } catch (const std::system_error&) {
    // Fewer threads than cores is only slower.
  }
  body();
  for (std::thread& t : others) t.join();
  if (failure != nullptr) std::rethrow_exception(failure);
}

}  // namespace ramp::core::cuda
