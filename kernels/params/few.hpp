// Parameters of the few-token kernel (sm_90a) and the division of its work; host and device share both.
#pragma once

#if defined(__CUDACC__)
#define RAMP_FEW_FN __host__ __device__ constexpr
#else
#define RAMP_FEW_FN constexpr
#endif

namespace ramp::core::cuda {

constexpr unsigned kFewSlots = 128;      // T*k at most
constexpr unsigned kFewMaxBlocks = 144;  // one per SM, and no more than this
// A block takes steps of a GEMM (16 KB of weights each) as pieces: whole items ((active expert, slice), as
// deep as the GEMM) or equal parts of them. A warp holds the scales of a piece, a step per lane.
constexpr unsigned kFewParts = 8, kFewLength = 32;
constexpr unsigned kFewDepth = kFewParts * kFewLength;  // steps of an item at most

struct FewPieces {
  unsigned parts, length;  // of an item; of every part but the last
};
RAMP_FEW_FN FewPieces few_pieces(unsigned steps, unsigned parts) {
  return {parts, (steps + parts - 1) / parts};
}
// What this many parts cost, in steps of the block that has most: a piece costs about a step beside its own
// (H200, T = 1: 0.4 us). Not for parts that are too long or empty.
RAMP_FEW_FN unsigned few_cost(unsigned items, unsigned steps, unsigned parts, unsigned blocks) {
  const unsigned length = (steps + parts - 1) / parts;
  if (length > kFewLength || (parts - 1) * length >= steps) return 0xfffffffu;
  return (items * parts + blocks - 1) / blocks * (length + 1);
}

// Warps 0-7 do math; then 4 more, or (direct) one for weights and one per stage.
RAMP_FEW_FN unsigned few_threads(bool direct, unsigned stages) {
  return 256 + 32 * (direct ? 1 + stages : 4);
}
// Dynamic shared memory: the ring, scales and barriers. Plan and announcements are static.
RAMP_FEW_FN unsigned few_shared(unsigned width, unsigned stages) {
  return stages * (16384 + width * 128 + width * 4 + 32) + 16;
}

// Words of FewParams::barrier, apart so that they share no line: arrivals, then pieces taken of either GEMM.
constexpr unsigned kFewTickets = 32;
constexpr unsigned kFewBarrierBytes = 512;

// Packed weights of one GEMM (params/stream.hpp) and their scales in the checkpoint layout.
struct FewWeights {
  const unsigned char* tiles;
  const float* scale;
  long long scale_expert, scale_row;
  unsigned slices, steps;  // per expert; per slice
};

// Activations as GEMMs read them: a block of WIDTH rows x 128 bytes per (expert and) step, swizzled, and
// WIDTH scales. Rows are the tokens, for GEMM 2 the expert's own one after the other; no more codes than
// these are written, or read; scales up to a multiple of 4.
struct FewCodes {
  unsigned char* codes;
  float* scales;
};

struct FewParams {
  const void* ids;       // i32 or i64 [tokens, top_k]
  long long ids_stride;  // elements from token to token
  const int* map;        // global id -> local expert or -1; nullptr: ids are local
  unsigned long long map_size;
  unsigned ids_wide;  // ids are i64
  unsigned tokens, top_k, slots, experts;
  long long* counters;  // [2]: += masked, += out of range; or nullptr
  unsigned* barrier;    // kFewBarrierBytes, zero before and after every call
  FewWeights w13, w2;
  unsigned up_scale_row;  // first scale row of the up half of w13
  unsigned hidden, intermediate;
  // x [tokens, H], rows aligned to 16 bytes.
  const void* x;
  long long x_stride;    // elements
  int x_dtype;           // ramp_dtype
  int activation;        // ramp_activation
  const float* x_scale;  // e4m3 x
  long long x_scale_stride;
  FewCodes in1, in2;
  // Sums of the GEMMs' pieces [parts][T*k, columns]; GEMM 1: columns = 2I, gate then up.
  float *out1, *out2;
  const float* weights;  // [T,k] router weights
  long long weights_token, weights_slot;
  void* y;
  long long y_token;
  int y_dtype;
  int addend_dtype;
  const void* addend;  // nullptr: none
  long long addend_token;
};

}  // namespace ramp::core::cuda
