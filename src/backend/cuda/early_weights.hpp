// Weights that the stream blocks' kernels ask L2 for before anybody can copy them. From the end of the layer
// in front until GEMM 1's blocks know their items, 4 to 5 us, memory has nothing else to do, and again where
// GEMM 2's blocks have to wait for those of GEMM 1 to leave. What it gives and what more of it costs:
// docs/kernel-log.md.
#pragma once

#include <algorithm>
#include <cstdint>

#include "backend/cuda/flat_params.hpp"
#include "backend/cuda/prologue.hpp"
#include "backend/cuda/weights.hpp"
#include "params/stream.hpp"

namespace ramp::core::cuda {

inline constexpr int64_t kPackedTileBytes = 16384;

// By the prologue: the first tile of each slice that GEMM 1's grid, `slices` at once, begins with. From two
// rows per expert on every expert is taken to have rows. Below, in calls of at least least_tokens tokens and
// at most kStreamOwnSlots slots, a few blocks of the prologue wait for the ids. tokens, top_k: as
// expected_rows.hpp has them.
inline EarlyWeights early_weights(const ExpertWeights& w, int64_t slices, int64_t tokens, int64_t top_k,
                                  int64_t least_tokens) noexcept {
  constexpr int64_t kRowsPerExpert = 2;
  constexpr unsigned kBlocks = 16;
  const int64_t all = 2 * w.intermediate / kFlatTileRows;  // slices of an expert
  EarlyWeights e{};
  if (tokens * top_k < kRowsPerExpert * w.experts) {
    constexpr int64_t kTokensForMore = 4;
    if (tokens < least_tokens || tokens * top_k > kStreamOwnSlots) return {};
    if (tokens >= kTokensForMore) slices += slices / 2;
    e.blocks = kBlocks;
    e.pieces = static_cast<unsigned>(all);
  }
  e.first = static_cast<const unsigned char*>(weight_views(w).w13.data);
  e.stride = static_cast<unsigned long long>(kFlatTileRows) *
             static_cast<unsigned long long>(w.hidden * element_bytes(w.format));
  e.count = static_cast<unsigned>(std::min(slices, w.experts * all));
  e.bytes = static_cast<unsigned>(kPackedTileBytes);
  return e;
}

// By GEMM 1 of a call of one or two tokens: 16 KB of what each block of GEMM 2 begins with. rows: of an item
// of GEMM 2, 64 or 128; else nothing.
inline StreamAhead stream_ahead(const ExpertWeights& w, int64_t rows, int64_t tokens) noexcept {
  constexpr int64_t kTokens = 2;
  if (tokens < 1 || tokens > kTokens || rows > kFlatTileRows) return {};
  StreamAhead a{};
  a.weights = static_cast<const unsigned char*>(weight_views(w).w2.data);
  a.slices = static_cast<int>(w.hidden / rows);
  a.steps = static_cast<int>(w.intermediate / flat_depth(w.format));
  a.part = static_cast<int>(kPackedTileBytes * rows / kFlatTileRows);
  a.tiles = static_cast<int>(kFlatTileRows / rows);
  return a;
}

}  // namespace ramp::core::cuda
