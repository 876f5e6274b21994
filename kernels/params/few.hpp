// Parameters of the few-token kernels (sm_90a) and the division of their work; host and device share both.
#pragma once

#if defined(__CUDACC__)
#define RAMP_FEW_FN __host__ __device__ constexpr
#else
#define RAMP_FEW_FN constexpr
#endif

namespace ramp::core::cuda {

constexpr unsigned kFewSlots = 128;      // T*k at most
constexpr unsigned kFewMaxBlocks = 144;  // of a GEMM: one per SM, and no more than this
// An expert's slice is divided among kFewParts + 1 blocks at most, so that whoever adds the parts up reads
// few.
constexpr unsigned kFewParts = 4;
constexpr unsigned kFewCombineThreads = 128;
constexpr unsigned kFewColumns = 2;  // of y per thread of the combine kernel

// The steps (16 KB of weights each) of a GEMM, all items' one after the other, are dealt out in runs of
// this many, one run per block. An item is (tile, slice), tiles outermost; its steps are its depth.
RAMP_FEW_FN unsigned few_share(unsigned tiles, unsigned slices, unsigned steps, unsigned blocks) {
  const unsigned even = (tiles * slices * steps + blocks - 1) / blocks;
  const unsigned least = (steps + kFewParts - 1) / kFewParts;
  return even > least ? even : least;
}

// Where the slots' experts come from: every kernel makes the plan from these by itself.
struct FewIds {
  const void* ids;       // i32 or i64 [tokens, top_k]
  long long ids_stride;  // elements from token to token
  const int* map;        // global id -> local expert or -1; nullptr: ids are local
  unsigned long long map_size;
  unsigned ids_wide;  // ids are i64
  unsigned top_k, slots, experts;
};

// The sums that a GEMM leaves in fp32: what the block with an item's first step has goes to `first`, what
// other blocks have of it to `rest`, a place per block (a block has one such item at most).
struct FewSums {
  float* first;  // [rows, columns]; GEMM 1: columns = 2I, gate then up
  float* rest;   // [blocks][WIDTH][128]; GEMM 1: 64 gate, then 64 up columns
};

struct FewParams {
  FewIds ids;
  long long* counters;           // [2]: += masked, += out of range; or nullptr; GEMM 1
  const unsigned char* weights;  // packed tiles, see params/stream.hpp
  const float* weight_scale;     // checkpoint layout [E, rows/128 blocks, depth/128]
  long long ws_expert, ws_row;
  int up_scale_row;                      // GEMM 1: first scale row of the up half
  unsigned slices, steps;                // of this GEMM: per expert; per slice
  unsigned before_slices, before_steps;  // GEMM 2: of GEMM 1
  unsigned blocks;                       // that the work of either GEMM is divided among: the grid
  unsigned lead;                         // copies left to start when the next kernel may begin
  // GEMM 1: x [tokens, H], rows aligned to 16 bytes.
  const void* x;
  long long x_stride;    // elements
  int x_dtype;           // ramp_dtype
  const float* x_scale;  // e4m3 x
  long long x_scale_stride;
  const float* input_weight;  // router weights that multiply x, or nullptr
  long long input_weight_token, input_weight_slot;
  int activation;  // GEMM 2: ramp_activation
  FewSums in;      // GEMM 2: GEMM 1's
  FewSums out;
};

struct FewCombineParams {
  FewIds ids;
  FewSums in;  // GEMM 2's
  unsigned tokens, hidden;
  unsigned slices, steps, blocks;  // GEMM 2's
  const float* weights;            // [T,k] router weights, or nullptr: 1
  long long weights_token, weights_slot;
  void* y;
  long long y_token;
  int y_dtype;
  const void* addend;  // nullptr: none
  int addend_dtype;
  long long addend_token;
};

}  // namespace ramp::core::cuda
