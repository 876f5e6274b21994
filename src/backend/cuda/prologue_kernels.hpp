// The prologue's kernels as the host knows them: their programs, the functions once loaded, and launches.
#pragma once

#include <cuda.h>

#include <array>
#include <atomic>
#include <vector>

#include "backend/cuda/gpu.hpp"
#include "backend/cuda/kernel_library.hpp"
#include "backend/cuda/prologue.hpp"
#include "params/prologue.hpp"
#include "ramp/ramp.h"

namespace ramp::core::cuda {

// The main kernel (kernels/prologue/prologue.cu). x: RAMP_DTYPE_NONE where x is read in place; format counts
// only where x has to be converted (not for e4m3 either).
KernelProgram main_program(ramp_format format, ramp_dtype x);
// The main kernel's decision with its parameters read as constants.
KernelProgram decide_constants_program(ramp_dtype x);
KernelProgram requantize_program(ramp_format format);
KernelProgram index_program();
// experts <= 1024. Its entries are the kinds of RouteKind.
KernelProgram route_program(int64_t experts);
// The router GEMM for operands of both these types, and for few or many tokens.
KernelProgram router_gemm_program(ramp_dtype x, ramp_dtype w, bool many_tokens);
struct GemmTile {
  unsigned tokens, experts;
};
GemmTile router_gemm_tile(ramp_dtype x, ramp_dtype w, bool many_tokens) noexcept;
inline constexpr int64_t kMostGroups = 8;    // of kRouteGrouped
inline constexpr int64_t kManyTokens = 256;  // from here on the larger tile of the router GEMM

// What a launch may ask for as dynamic shared memory; within the opt-in limit of every GPU from sm_80 on
// (sm_86 and sm_89 have 99 KiB).
inline constexpr unsigned kMaxShared = 96 * 1024;

// A kernel that is brought in on first use. Thread-safe; the hot path is one atomic load.
class LazyKernel {
 public:
  template <typename MakeProgram>
  CUfunction get(KernelLibrary& library, MakeProgram&& make, const char* entry) {
    CUfunction f = function_.load(std::memory_order_acquire);
    return f != nullptr ? f : load(library, make(), entry);
  }

 private:
  CUfunction load(KernelLibrary& library, const KernelProgram& program, const char* entry);
  std::atomic<CUfunction> function_{nullptr};
};

class PrologueKernels {
 public:
  explicit PrologueKernels(KernelLibrary& library, DecisionReads reads) : library_(library), reads_(reads) {}
  CUfunction main(ramp_format format, ramp_dtype x);
  CUfunction decide(ramp_dtype x);  // the same for several candidates: fp8_block
  CUfunction requantize(ramp_format format);
  CUfunction count_chunks();
  CUfunction scan_chunks();
  CUfunction drop();
  CUfunction route(int64_t experts, RouteKind kind);
  CUfunction router_gemm(ramp_dtype x, ramp_dtype w, bool many_tokens);
  [[nodiscard]] KernelLibrary& library() noexcept { return library_; }

 private:
  static constexpr size_t kFormats = 7, kTypes = 5;  // ramp_format and ramp_dtype up to e4m3
  KernelLibrary& library_;
  DecisionReads reads_;
  std::array<LazyKernel, kFormats * kTypes> main_;
  std::array<LazyKernel, kTypes> decide_;
  std::array<LazyKernel, kFormats> requantize_;
  std::array<LazyKernel, size_t{5} * kRouteKinds> route_;
  std::array<LazyKernel, 6> gemm_;
  LazyKernel count_, scan_, drop_;
};

struct Launch {
  unsigned grid_x = 1, grid_y = 1, threads = 1;
  unsigned shared = 0;   // bytes
  unsigned cluster = 1;  // blocks; grid_x is a multiple
  // May begin before the launch in front has ended (it waits itself): from sm_90 on.
  bool dependent = false;
};
void launch_kernel(CUfunction kernel, const Launch& launch, CUstream stream, const void* params);

}  // namespace ramp::core::cuda
