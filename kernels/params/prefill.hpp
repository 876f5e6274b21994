// Parameters of the prefill kernels (sm_90a): the same struct on the host and in device code.
#pragma once

#include "params/stream.hpp"

namespace ramp::core::cuda {

// Token rows of a row tile. The plan (prologue.hpp: Tile) is made with tiles of this many rows.
constexpr int kPrefillRows = 128;

// One GEMM over packed weight tiles (params/stream.hpp). Between the GEMMs, h is packed too: per row tile of
// the plan and per group of 128 columns one tile of 128 rows x 128 bytes, 128-byte swizzle applied, and 128
// scales. Of a tile's rows, those up to the next multiple of 8 are written and read.
struct PrefillParams {
  const unsigned char* weights;
  const float* weight_scale;  // checkpoint layout [E, rows/128 blocks, depth/128]
  long long ws_expert, ws_row;
  int up_scale_row;        // GEMM1: first scale row of the up half
  const unsigned char* x;  // GEMM1: [T,H] or [T*k,H] codes
  unsigned x_stride;       // bytes
  const float* x_scale;    // GEMM1: [.., H/128]
  long long x_scale_stride;
  int x_source, x_scale_source;  // RowSource (params/block.hpp)
  const StreamTile* tiles;       // of kPrefillRows rows
  const int* num_tiles;
  const int* offsets;  // [E+1]
  const int* slots;
  int top_k;
  int slices, steps;         // of 128 weight rows per expert; of 128 columns of depth per slice
  int early;                 // 1: the next kernel may start while this one runs
  unsigned char* h;          // [tiles][I/128][16 KB]: written by GEMM1, read by GEMM2
  float* h_scale;            // [tiles][I/128][128]
  int h_steps;               // I/128
  unsigned short* rows;      // GEMM2: bf16 [rows, H]
  long long out_stride;      // elements from row to row
  const float* slot_weight;  // GEMM2: nullptr: 1
  long long slot_weight_token, slot_weight_slot;
};

}  // namespace ramp::core::cuda
