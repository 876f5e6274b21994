// The seam between the CPU backend's C++ and its per-ISA kernels: plain argument structs and one table of
// function pointers per ISA level. The files behind the table are compiled with that level's instructions, so
// this header must stay free of inline functions and of anything from the standard library: whatever such a
// file instantiates, the linker might pick for everybody.
#pragma once

#include <stdint.h>  // NOLINT(modernize-deprecated-headers): the C header on purpose, see above

#include "ramp/ramp.h"

namespace ramp::core {

// Layout constants of packed weights and tile scratch.
//
// A panel is 32 rows of a weight matrix. Panels of a gated w13 hold 16 gate rows and their 16 up rows (lanes
// 0-15 and 16-31), so that act(gate) * up stays within a lane; all others hold 32 consecutive rows. H and I
// are multiples of 32: there is never a partial panel.
//
// Within a panel, elements of 8 and 16 bits that belong together in a 32-bit word are consecutive depths:
//   f32, f16  [depth][32]
//   bf16      [depth / 2][32][2]: what a bf16 dot product takes from each lane, and a tile of AMX as it is
//   e4m3      [depth / 4][32][4]: one word gives the two pairs (k, k + 2) and (k + 1, k + 3) with shifts and
//             masks alone; a row of x that meets them has its values in that order ("quad order")
inline constexpr int32_t kPanelRows = 32;
inline constexpr int32_t kHalfPanel = 16;
// Limits of a tile, in rows of x, rows of weights, and depth; they size the scratch.
inline constexpr int32_t kMaxTileM = 128;
inline constexpr int32_t kMaxTileN = 1024;
inline constexpr int32_t kMaxTileK = 2048;
// Distance between two rows of x in tile scratch, in elements. A constant, so that kernels address all rows
// of a block from one pointer; 32 beyond the largest depth, so that rows stay aligned to cache lines as bf16
// and do not fall into one cache set.
inline constexpr int32_t kRowStride = kMaxTileK + 32;
// Distance between two rows of a tile's sums, in floats: as above, 4 KiB apart they would share a cache set.
inline constexpr int32_t kSumStride = kMaxTileN + 16;
// Depth of a scale group of fp8_block (weights/quantize.hpp's kGroup).
inline constexpr int32_t kScaleGroup = 128;
// Decoded e4m3 values of dot kernels are 2^-8 of the true ones, and their x rows 2^8: both exact in bf16, and
// the exponents then need no addition.
inline constexpr float kQuadScale = 256.0F;

// c[i][lane] += sum over k of a[i][k] * w[k][lane], for the 32 lanes of one panel and `rows` rows of x.
// Memory for kMaxTileM rows has to be there behind a and c, whatever `rows` is: tiles may compute a few rows
// too many.
struct GemmArgs {
  const void* w;  // panel at the first depth step, in its layout
  const void* a;  // rows at distance kRowStride: fp32, or bf16 (in quad order for e4m3) where dot is set
  float* c;       // rows at distance c_stride
  int64_t c_stride;
  int32_t rows;       // 1..kMaxTileM
  int32_t depth;      // a multiple of 32
  int32_t w_dtype;    // RAMP_F32, F16, BF16 or E4M3
  int32_t prefetch;   // bytes ahead of the reads; 0 = none
  int32_t dot;        // bf16 dot products: only where the table has has_dot, only for BF16 and E4M3
  int32_t nan_codes;  // e4m3: 0 promises that no code of the matrix is a NaN
  void* decoded;      // with dot: scratch, [2][kScaleGroup][32] bf16
  // scales == NULL: the sum continues from c in order of k (dot products: in pairs). Else, for each scale
  // group, the sum starts at zero and then c = c + sum * (scales[group][i] * w_scale[lane / 16][group]).
  const float* scales;      // [groups][kMaxTileM]
  const float* w_scale[2];  // [groups], of either half of the panel
};

// One row of activations on its way into tile scratch.
typedef enum LoadOp {
  kLoadPlain = 0,     // the value, rounded to `round_to`
  kLoadScaled = 1,    // value * factor in fp32, then rounded to `round_to`
  kLoadQuantise = 2,  // the e4m3 value (not multiplied back) of (value * factor) / scale
} LoadOp;             // NOLINT(modernize-use-using): C-style on purpose
typedef enum RowLayout {
  kRowF32 = 0,
  kRowBf16 = 1,       // values that bf16 holds exactly
  kRowBf16Quads = 2,  // the same in quad order, times kQuadScale
} RowLayout;          // NOLINT(modernize-use-using)
struct LoadArgs {
  const void* src;
  void* dst;
  int64_t n;
  int32_t src_dtype;  // F32, F16, BF16, E4M3
  int32_t round_to;   // F32 (no rounding), F16, BF16
  int32_t op;         // LoadOp
  int32_t layout;     // RowLayout
  float factor, scale;
};

// out = act(gate * scale) * (up * scale) for one row of accumulators [panels][32]; gated: 16 results per
// panel, else (relu2) 32. scale per lane = row_scale * lane_scale[lane] (lane_scale NULL: row_scale alone).
struct ActivateArgs {
  const float* c;
  float* out;
  const float* lane_scale;  // [panels][32] or NULL
  float row_scale;
  int32_t panels;
  int32_t activation;  // ramp_activation
};

// One row of y: sum over j < count, in order, of weight[j] * rows[j][0..n), + addend.
struct CombineArgs {
  const float* const* rows;
  const float* weights;
  const void* addend;  // or NULL
  void* y;
  int64_t n;
  int32_t count;
  int32_t addend_dtype, y_dtype;
};

// Dot products of up to 4 rows of x with up to 4 rows of w (the router): out[i * out_stride + j]. All 8
// pointers are read; x_rows and w_rows say how many results are stored. dtypes: F32, F16, BF16.
struct DotArgs {
  const void* x[4];
  const void* w[4];
  float* out;
  int64_t n, out_stride;
  int32_t x_rows, w_rows, x_dtype, w_dtype;
};

struct CpuKernels {
  const char* isa;
  int32_t vector_floats;
  // gemm takes dot: products of bf16 pairs, summed in fp32. A sum then differs in its last bits from the one
  // without.
  int32_t has_dot;
  // Around a thread's calls of gemm with dot and this many rows; NULL where there is nothing to set up. The
  // matrix unit takes hundreds of cycles to configure, and a thread that leaves it in use has 8 KiB more
  // state to switch.
  void (*begin_dot)(int32_t rows);
  void (*end_dot)();
  // Without dot: up to this many rows of x an f16 or e4m3 panel is decoded in registers while it streams;
  // above, decoding once into scratch pays. bf16 and f32 need no decoding to speak of.
  int32_t direct_rows;
  void (*gemm)(const GemmArgs* args);
  // Packed panel, f16 or e4m3 -> fp32 [depth][32].
  void (*decode_panel)(const void* w, int32_t dtype, int64_t depth, int32_t prefetch, float* out);
  // 2 x 16 rows of a row-major matrix (row_stride elements apart) -> fp32 [depth][32], or, with dot (bf16 and
  // e4m3), what the dot kernels read as a BF16 panel: bf16 [depth / 2][32][2], e4m3 in quad order.
  void (*decode_rows)(const void* first, const void* second, int64_t row_stride, int32_t dtype, int64_t depth,
                      int32_t dot, void* out);
  void (*load_row)(const LoadArgs* args);
  // max |value| over n elements; NaN does not count; 0 for none.
  float (*amax)(const void* src, int32_t dtype, int64_t n);
  // e4m3 codes of (value / scale), as quantize.hpp defines them.
  void (*quantise)(const void* src, int32_t dtype, int64_t n, float scale, uint8_t* q);
  void (*activate)(const ActivateArgs* args);
  // dst = src * (row_scale * lane_scale[i]) as dtype (lane_scale NULL: row_scale alone; both 1: a
  // conversion).
  void (*store_scaled)(const float* src, int64_t n, float row_scale, const float* lane_scale, int32_t dtype,
                       void* dst);
  // dst[i] = a[i] + b[i]
  void (*add)(const float* a, const float* b, int64_t n, float* dst);
  void (*combine)(const CombineArgs* args);
  void (*dot)(const DotArgs* args);
};

const CpuKernels* kernels_baseline();
const CpuKernels* kernels_avx2();
const CpuKernels* kernels_avx512();
const CpuKernels* kernels_avx512_bf16();
const CpuKernels* kernels_amx();

}  // namespace ramp::core
