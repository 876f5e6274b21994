// What a prologue asks L2 for ahead of GEMM 1 (src/backend/cuda/early_weights.hpp says what and when).
#pragma once

namespace ramp::core::cuda {

// `count` pieces of `bytes`, a multiple of 16. Where the experts that have rows are not foreseen, the last
// `blocks` blocks of the grid wait for the ids (at most kPrologueThreads slots) and ask for those experts'
// pieces, and for so much more of each as makes up `count`.
struct EarlyWeights {
  const unsigned char* first;
  unsigned long long stride;  // from piece to piece, in bytes
  unsigned count;             // 0: none
  unsigned bytes;
  unsigned blocks;  // 0: all experts are taken to have rows, and pieces are asked for before anything else
  unsigned pieces;  // of an expert
};

// Shared memory of such a block, in 4-byte words: a bit for each expert; behind these a number for each.
constexpr unsigned kEarlySetWords = 32;

}  // namespace ramp::core::cuda
