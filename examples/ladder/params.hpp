// What every kernel of the ladder is told: the same structs on the host and in device code, hence no includes
// and no types but the language's own.
#pragma once

namespace ladder {

// Token rows [first, first + rows) of the sorted order, all of one expert.
struct Tile {
  int expert, first, rows, unused;
};

// One GEMM1 of one layer: h = silu(x * gate^T) * (x * up^T), for every (token, expert) pair of the step.
struct Params {
  const unsigned char* weights;  // W13 as checkpoints store it: [E, 2I, H] e4m3, gate rows, then up rows
  const unsigned char* packed;   // the same weights as 16 KB tiles (kernels/params/stream.hpp)
  const float* weight_scale;     // [E, 2I/128, H/128]: one per block of 128 x 128
  const unsigned char* x;        // [T, H] e4m3
  const float* x_scale;          // [T, H/128]: one per token and 128 columns
  const int* token;              // sorted row -> token
  const Tile* tiles;
  unsigned short* h;  // bf16 [rows, I], in sorted order
  int num_tiles, hidden, intermediate;
};

}  // namespace ladder
