// The prologue's part of the workspace: how many tiles there can be, and where everything lies.
#include <algorithm>

#include "backend/cuda/prologue.hpp"
#include "backend/cuda/prologue_sort.hpp"
#include "backend/cuda/workspace.hpp"
#include "weights/quantize.hpp"

namespace ramp::core::cuda {
namespace {

int64_t activation_bytes(ramp_format format) noexcept {
  switch (format) {
    case RAMP_FORMAT_F32:
      return 4;
    case RAMP_FORMAT_BF16:
    case RAMP_FORMAT_F16:
      return 2;
    default:
      return 1;
  }
}

}  // namespace

int64_t max_tiles(int64_t slots, int64_t experts, int32_t tile_m) noexcept {
  return std::min(slots, experts + slots / tile_m);
}

uint64_t carve_prologue(const ExpertWeights& weights, int64_t tokens, int64_t top_k, int32_t tile_m,
                        void* workspace, PrologueWorkspace& out) {
  const int64_t slots = tokens * top_k;
  WorkspaceLayout layout(workspace);
  out.index.tile_m = tile_m;
  out.index.offsets = layout.take<int32_t>(weights.experts + 1);
  out.index.slots = layout.take<int32_t>(slots);
  out.index.positions = layout.take<int32_t>(slots);
  out.index.tiles = layout.take<Tile>(max_tiles(slots, weights.experts, tile_m));
  out.index.num_tiles = layout.take<int32_t>(kTileCounters);
  out.counts = layout.take<int32_t>(sort_counts(slots, weights.experts));
  // Router weights on the input make a row per slot of any x.
  out.codes = layout.take<std::byte>(slots * weights.hidden * activation_bytes(weights.format));
  const int64_t groups = weights.format == RAMP_FORMAT_FP8_BLOCK ? (weights.hidden + kGroup - 1) / kGroup
                         : activation_bytes(weights.format) == 1 ? 1
                                                                 : 0;
  out.scales = layout.take<float>(slots * groups);
  return layout.used();
}

uint64_t prologue_workspace(const ExpertWeights& weights, int64_t tokens, int64_t top_k, int32_t tile_m) {
  PrologueWorkspace unused;
  return carve_prologue(weights, tokens, top_k, tile_m, nullptr, unused);
}

}  // namespace ramp::core::cuda
