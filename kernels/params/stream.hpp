// Parameters of the stream kernels (sm_90a) and of packing; host and device share these structs.
#pragma once

namespace ramp::core::cuda {

struct StreamTile {  // prologue.hpp: Tile
  int expert, first, rows, reserved;
};

constexpr int kStreamOwnSlots = 64;

// Of few slots GEMM1's blocks make the plan themselves, so that weights come before the prologue has ended.
struct StreamOwnPlan {
  int slots;             // T*k, at most kStreamOwnSlots; 0: the prologue's plan is used
  int ids_wide;          // ids are i64
  const void* ids;       // [T,k] expert ids
  long long ids_stride;  // elements from token to token
  const int* map;        // global id -> local expert or -1; nullptr: ids are local
  unsigned long long map_size;
  unsigned experts;
};

// What GEMM 1's copying lanes ask L2 for besides what they copy, in calls of one or two tokens.
struct StreamAhead {
  const unsigned char* weights;  // GEMM 2's
  int slices, steps;             // ... items per tile of the plan, and steps of one
  int tiles;                     // at most, of the first item of the GEMM 2 block of the same number; 0: none
  int part;                      // bytes of a packed tile that are an item's: 16384, or 8192 (half slices)
  int own;                       // tiles behind those that GEMM 1's ring holds at first
};

// One GEMM over packed tiles. Packed weights of an expert: slices of 128 rows; a slice is its depth steps one
// after the other; a step is one 16 KB tile of 128 rows x 128 bytes with the 128-byte swizzle.
struct StreamParams {
  const unsigned char* weights;
  const float* weight_scale;  // checkpoint layout; fp8_block: [E, rows/128 blocks, depth/128]
  long long ws_expert, ws_row;
  int up_scale_row;        // GEMM1: first scale row of the up half
  unsigned up_scale;       // ... and its distance in elements, fp8_block
  const unsigned char* x;  // GEMM1: [T,H] or [T*k,H] codes; GEMM2: what GEMM1 has left in codes
  long long x_stride;      // bytes
  const float* x_scale;    // [.., depth/128]
  long long x_scale_stride;
  int x_source, x_scale_source;  // RowSource (params/block.hpp)
  const StreamTile* tiles;
  const int* num_tiles;
  const int* offsets;  // [E+1]
  const int* slots;
  int top_k;
  int slices, steps;     // per expert; per slice
  StreamOwnPlan own;     // GEMM1 of stream.cu
  StreamAhead ahead;     // GEMM1
  int early;             // 1: the next kernel may start while this one runs
  int beside;            // 1: GEMM1 behind GEMM1 of another plan: see GemmPair::beside (host)
  unsigned char* codes;  // GEMM1: [rows, I] e4m3 (stream_flat.cu: as the format wants h)
  float* scales;         // GEMM1: [rows, I/128]
  unsigned short* rows;  // GEMM2: bf16 (fp16: fp32) [rows, H]
  long long out_stride;  // elements from row to row of codes or rows
  long long scale_out_stride;
  const float* slot_weight;  // GEMM2: nullptr: 1
  long long slot_weight_token, slot_weight_slot;
  float x_static;  // stream_flat.cu, fp8: the tokens' scale where x_scale is nullptr
  float h_static;  // ..., fp8_tensor, GEMM1: the scale of h
};

// Packing of one expert (or unpacking): rows of the checkpoint layout into tiles. gated: rows 16q .. 16q+7 of
// a slice are gate rows 64s + 8q .., rows 16q+8 .. 16q+15 the up rows of the same numbers.
struct PackParams {
  const unsigned char* from;
  unsigned char* to;
  long long from_stride;  // bytes from row to row of the checkpoint layout, whichever side that is; a
                          // multiple of 16
  int rows, row_bytes;    // rows a multiple of 128, row_bytes of 128
  int gated;              // 1: w13
  int unpack;             // 1: `to` is the checkpoint layout, `from` the packed tiles
};

}  // namespace ramp::core::cuda
