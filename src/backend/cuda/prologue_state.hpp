// What prologue.cpp and route.cpp share: the Prologue's state, and pieces of parameter blocks.
#pragma once

#include <memory>

#include "backend/cuda/prologue.hpp"
#include "backend/cuda/prologue_kernels.hpp"
#include "backend/cuda/prologue_sort.hpp"
#include "params/prologue.hpp"

namespace ramp::core::cuda {

struct Prologue::State {
  State(std::shared_ptr<const Gpu> g, KernelLibrary& library, DecisionReads reads)
      : gpu(std::move(g)), kernels(library, reads) {}
  std::shared_ptr<const Gpu> gpu;
  PrologueKernels kernels;
  [[nodiscard]] bool clusters() const noexcept { return gpu->facts().major >= 9; }
  // Launches may overlap the end of the one in front.
  [[nodiscard]] bool dependent() const noexcept { return gpu->facts().major >= 9; }
  [[nodiscard]] unsigned sms() const noexcept { return static_cast<unsigned>(gpu->facts().sm_count); }

  // Prologue::block. behind_route: Prologue::route's launch is in front on the stream, and uses no scratch.
  GemmInput block(const BlockCall& call, const PrologueWorkspace& workspace, bool behind_route,
                  CUstream stream);
  // Launches one and two of three, for sort_grid's kSortCounted.
  void count(const SortParams& sort, CUstream stream);
};

// Whether every row of a tensor begins at a multiple of 16 bytes.
bool rows_aligned(const ramp_tensor& t) noexcept;
// Fills what a sort needs of ids and grid.
void describe_sort(const ramp_tensor& ids, const SortGrid& grid, SortParams& out) noexcept;

}  // namespace ramp::core::cuda
