// The rungs: which source each is, how it is compiled, and how it is launched.
#pragma once

#include <cuda.h>

#include <optional>
#include <span>
#include <string>

#include "backend/cuda/kernel_report.hpp"
#include "backend/cuda/launch.hpp"
#include "ladder/layers.hpp"

namespace ladder {

struct Rung {
  const char* name;
  const char* source;
  int tile_height;    // token rows per tile at most (kTileHeights)
  bool tensor_cores;  // its sums are wgmma's; decides the bound
  unsigned threads;
  // Of the ring (ring.cuh); blocks 0: one block per item of work instead of a persistent grid.
  int width = 0, stages = 0, blocks = 0, split = 1;
};
std::span<const Rung> rungs() noexcept;
// Copies of weights alone: the floor is the fastest of these.
std::span<const Rung> floors() noexcept;

struct Compiled {
  std::string image;
  std::optional<ramp::core::cuda::KernelResources> resources;  // not where NVRTC took it from its own cache
  double seconds = 0;
};
// With NVRTC, for sm_90a. directory: where the ladder's sources are.
Compiled compile(const Rung& rung, const std::string& directory);

// A kernel on the GPU; its module lives as long as the program.
CUfunction load(const Rung& rung, const Compiled& compiled);
ramp::core::cuda::Grid grid_of(const Rung& rung, const Params& p, int sm_count);

}  // namespace ladder
