// Parameters of the portable GEMMs (kernels/portable/gemm.cu); host and device share these structs.
#pragma once

namespace ramp::core::cuda {

struct PortableTile {  // prologue.hpp: Tile
  int expert, first, rows, reserved;
};

// C[r, n] = sum over k of A[r, k] * W[expert(r), n, k] for the rows of a plan. Rows of A and W begin at
// multiples of 16 bytes; strides of values in bytes, of scales and results in elements.
struct PortableParams {
  const PortableTile* tiles;
  const int* num_tiles;
  const int* offsets;  // [E+1]
  const int* slots;    // sorted row -> flat slot
  int top_k;           // token = slot / top_k
  int group;           // tiles of an expert that walk its slices side by side: 1 row-major, many column-major
  int second;          // 1: GEMM 2, which leaves rows times their router weights
  int early;           // 1: the next kernel may start while this one runs

  const unsigned char* x;
  long long x_stride;
  const float* x_scale;  // nullptr: x_static
  long long x_scale_stride;
  float x_static;
  int x_source, x_scale_source;  // RowSource (params/block.hpp)
  int groups;                    // of 128 columns in the depth (fp8_block)

  const unsigned char* w;
  long long w_expert, w_row;
  const float* w_scale;
  long long ws_expert, ws_row, ws_column;
  int n, depth;      // columns of C (of one half, where gated); bytes of depth
  int up_row;        // first row of the up half in W
  int up_scale_row;  // ... and in its scales
  int activation;    // ramp_activation

  void* out;  // GEMM 1: h f32 (fp8_block, fp8_channel) or GEMM 2's input; GEMM 2: rows, bf16 (fp16: f32); in
              // sorted order
  long long out_stride;
  float out_scale;           // fp8_tensor, GEMM 1: the static scale of GEMM 2's input
  const float* slot_weight;  // GEMM 2; nullptr: 1
  long long slot_weight_token, slot_weight_slot;

  int rotate;         // 1: a block meets all of a slice's tiles in turn (tile.cuh: find_unit)
  int out_groups;     // GEMM 1 with codes and scales as its output: scales of a row
  unsigned* tickets;  // units taken beyond each block's first; 0 when the kernel starts; nullptr: by stride
  float* h;           // ... where h waits, [rows, out_stride]
  float* out_scales;  // ... [rows, out_groups]
};

}  // namespace ramp::core::cuda
