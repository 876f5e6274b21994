// Parameters of the prefill kernels (sm_90a): the same struct on the host and in device code.
#pragma once

#include "params/stream.hpp"

namespace ramp::core::cuda {

// Token rows of a row tile. The plan (prologue.hpp: Tile) is made with tiles of this many rows. Tall tiles:
// -DTALL=1.
constexpr int kPrefillRows = 128;
constexpr int kPrefillTallRows = 192;

// One GEMM over packed weight tiles (params/stream.hpp). Between the GEMMs, h is packed too: a row tile of
// the plan is rounded up to 8 rows (which are written and read like the others) and begins at row
// (first + 7 * tile) / 8 * 8 of h. From there on, per group of 128 columns, its rows x 128 bytes with the
// 128-byte swizzle, and likewise its scales. prefill_flat.cu: per group of 128 bytes of columns, no scales
// (fp8_channel: fp32 rows of I columns in sorted order, and codes likewise).
struct PrefillParams {
  const unsigned char* weights;
  const float* weight_scale;  // checkpoint layout [E, rows/128 blocks, depth/128]
  long long ws_expert, ws_row;
  int up_scale_row;        // GEMM1: first scale row of the up half
  const unsigned char* x;  // GEMM1: [T,H] or [T*k,H] codes
  long long x_stride;      // bytes
  const float* x_scale;    // GEMM1: [.., H/128]
  long long x_scale_stride;
  int x_source, x_scale_source;  // RowSource (params/block.hpp)
  StreamTile* tiles;  // of kPrefillRows or kPrefillTallRows rows; reserved counts what is done of h
  const int* num_tiles;
  const int* offsets;  // [E+1]
  const int* slots;
  int top_k;
  int slices, steps;  // of 128 weight rows per expert; of 128 columns of depth per slice
  int early;          // 1: the next kernel may start while this one runs
  int beside;         // 1: GEMM1 behind GEMM1 of another plan: see GemmPair::beside (host)
  unsigned char* h;   // written by GEMM1, read by GEMM2
  float* h_scale;
  int h_steps;               // I/128
  unsigned short* rows;      // GEMM2: bf16 [rows, H]; -DFAST=1: float sums [tokens, H]
  long long out_stride;      // elements from row to row
  const float* slot_weight;  // GEMM2: nullptr: 1
  long long slot_weight_token, slot_weight_slot;
  // fp8_block, zeroed by the prologue: units taken by GEMM 1 and by GEMM 2, 1 when the plan is there
  // (sm90/prefill_queue.cuh).
  int* tickets;
  // prefill_flat.cu alone, FP8:
  float x_static;  // the tokens' scale where x_scale is nullptr
  float h_static;  // fp8_tensor, GEMM1: the scale of h
  // prefill.cu, MIXED:
  int experts;
};

// Rows of x as GEMM 1 reads them without a gather (sm90/prefill_pack.cu): packed as h is.
struct PrefillPackParams {
  const unsigned char* x;
  long long x_stride;  // bytes
  const float* x_scale;
  long long x_scale_stride;
  int x_source, x_scale_source;
  const StreamTile* tiles;
  const int* num_tiles;
  const int* slots;
  int top_k, steps;
  unsigned char* packed;
  float* packed_scale;
};

// Sums that GEMM 2 adds to (sm90/prefill_zero.cu).
struct PrefillZeroParams {
  float* sums;
  long long vectors;  // of four
};

}  // namespace ramp::core::cuda
