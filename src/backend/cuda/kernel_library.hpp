// Device code at run time: programs (an embedded source and its options), compiled by NVRTC or taken from the
// cubin cache, loaded once per context.
#pragma once

#include <cuda.h>

#include <memory>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "backend/cuda/gpu.hpp"
#include "base/log.hpp"

namespace ramp::core::cuda {

// A translation unit for NVRTC. Its name is also the name of its cache entry, its report line and its test.
struct KernelProgram {
  std::string name;                  // "route_e256", unique among the shipped ones; [a-z0-9_]
  std::string source;                // an embedded file, by its path below kernels/: "prologue/route.cu"
  std::vector<std::string> options;  // "-DNV=8", "-fmad=false"; arch, -std=c++17 and -v of ptxas are added
  std::vector<std::string> entries;  // extern "C" kernels that it defines
  int min_arch = 80;                 // does not compile below; 90: needs sm_90a
};

// Every file below kernels/, and the host headers that are device twins ("routing/score_math.hpp"), as the
// library was built with. Programs include them by these names.
struct EmbeddedFile {
  std::string_view name, text;
};
std::span<const EmbeddedFile> embedded_files() noexcept;

struct Cubin {
  std::string bytes;
  std::string log;     // the compiler's, with the resource report of ptxas ("" when it came from the cache)
  double seconds = 0;  // compilation; 0 from the cache
};
// Compiles with NVRTC, without the cache. arch: "sm_90a". Throws UNSUPPORTED without NVRTC (one line),
// INTERNAL with the compiler's log.
Cubin compile_program(const KernelProgram& program, const std::string& arch);

// All programs that the library compiles ahead, those on trial included, for an architecture (compute
// capability as 80, 89, 90 ...).
std::vector<KernelProgram> shipped_programs(int arch);

class KernelLibrary {
 public:
  KernelLibrary(std::shared_ptr<const Gpu> gpu, const std::string& cache_dir, LogSink log);
  ~KernelLibrary();
  KernelLibrary(const KernelLibrary&) = delete;
  KernelLibrary& operator=(const KernelLibrary&) = delete;
  // The kernel `entry` of a program; compiled (or read from the cache) and loaded on first use. Thread-safe.
  // Also while a stream is being captured, in every capture mode.
  CUfunction get(const KernelProgram& program, const std::string& entry);
  // Brings several programs in at once, compiling in parallel.
  void load(std::span<const KernelProgram> programs);

 private:
  struct State;
  std::unique_ptr<State> state_;
};

}  // namespace ramp::core::cuda
