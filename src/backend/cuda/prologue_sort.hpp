// How the sort of T*k slots is divided among blocks and launches: by the number of slots alone, and by
// whether the GPU has clusters.
#pragma once

#include <algorithm>
#include <cstdint>

#include "params/prologue.hpp"

namespace ramp::core::cuda {

// Up to here one launch sorts.
inline constexpr int64_t kOneLaunchSlots = 10240;
// Up to here one block sorts even where there are clusters: 4 rounds of 32 slots per warp cost less than the
// cluster's barriers.
inline constexpr int64_t kOneBlockSlots = 2048;
inline constexpr unsigned kSortCluster = 8;  // blocks; every GPU with clusters can do 8
inline constexpr int64_t kMaxChunks = 512;   // of three launches

struct SortGrid {
  unsigned mode = kSortHere;
  unsigned blocks = 1;   // that sort; in one launch these are a cluster
  unsigned chunk = 1;    // slots of each
  unsigned entries = 1;  // slots that a block keeps in shared memory
};

inline SortGrid sort_grid(int64_t slots, bool clusters) noexcept {
  SortGrid g;
  const auto divide = [&](int64_t blocks) {
    const int64_t threads = kPrologueThreads;
    const int64_t each = (slots + blocks - 1) / blocks;
    g.chunk = static_cast<unsigned>(std::max<int64_t>(1, (each + threads - 1) / threads) * threads);
    g.blocks = static_cast<unsigned>(blocks);
    g.entries = g.chunk;
  };
  if (slots <= kOneLaunchSlots) {
    divide(clusters && slots > kOneBlockSlots ? kSortCluster : 1);
    return g;
  }
  divide(kMaxChunks);
  g.mode = kSortCounted;
  g.blocks = static_cast<unsigned>((slots + g.chunk - 1) / g.chunk);
  g.entries = std::min(g.chunk, kSubChunk);
  return g;
}

// Numbers of the scratch that three launches need, for any number of slots up to this.
inline int64_t sort_counts(int64_t slots, int64_t experts) noexcept {
  if (slots <= kOneLaunchSlots) return 0;
  return (std::min<int64_t>(kMaxChunks, (slots + kPrologueThreads - 1) / kPrologueThreads) + 1) * experts;
}

}  // namespace ramp::core::cuda
