// Parameters of the plain expert block's GEMMs and of the combine kernels: the same structs on the host and
// in device code, hence no includes and no types but the language's own.
#pragma once

namespace ramp::core::cuda {

// Rows of a tile: [first, first + rows) of the sorted row index, all of one expert (prologue.hpp: Tile).
struct TileParams {
  int expert, first, rows, reserved;
};

// Which row of a matrix belongs to row r of the sorted row index.
enum RowSource { kRowSorted = 0, kRowSlot = 1, kRowToken = 2 };

// C[r, n] = sum over k of A[r, k] * W[expert(r), n, k]; A and W dequantised as they are read. All strides in
// elements.
struct PlainGemmParams {
  const TileParams* tiles;
  const int* num_tiles;
  const int* slots;  // sorted row -> flat slot
  int top_k;         // token = slot / top_k

  const void* a;
  long long a_stride;
  const float* a_scale;  // nullptr: a_static
  long long a_scale_stride;
  float a_static;
  int a_source, a_scale_source;  // RowSource
  int a_groups;                  // scales per row; 1: one scale, else one per 128 columns
  int a_aligned, w_aligned;      // 8 elements of a row may be read at once

  const void* w;
  long long w_expert, w_row;  // strides
  const float* w_scale;
  long long ws_expert, ws_row, ws_column;
  int n, depth;      // columns of C (of one half, where gated), K
  int up_row;        // first row of the up half in W
  int up_scale_row;  // ... and in its scales
  int activation;    // ramp_activation

  float* out;  // [rows, n] in sorted order; or [T, n], added to, where `accumulate`
  long long out_stride;
  const float* slot_weight;                       // nullptr: 1
  long long slot_weight_token, slot_weight_slot;  // strides of [T,k]
};

struct CombineParams {
  const void* rows;      // [*, hidden], contiguous: sorted rows, or [T, hidden] where positions is nullptr
  const int* positions;  // [T*k] flat slot -> row or -1
  int tokens, top_k, hidden;
  void* y;
  long long y_token, y_slot;  // strides; y_slot: per-slot output alone
  const void* addend;         // nullptr: none
  int addend_dtype;           // ramp_dtype
  long long addend_token;     // stride
  int y_aligned, addend_aligned;
  int keep_masked;  // per-slot: rows without an expert are left as they are (batched), else zeroed
};

}  // namespace ramp::core::cuda
