// The portable GEMMs of the expert block: mma.sync out of a ring that cp.async fills, for every NVIDIA GPU
// from sm_80 on, H and I multiples of 32, weights in the checkpoint layout. Weight rows are mma's 16-row
// side, tokens its 8-column side, so that a tile of few tokens pads at most 7. FP8 weights and inputs stay
// FP8 in memory and in shared memory; they are decoded to f16 (exactly) in registers, or multiplied as they
// are where the tensor cores can (ptx.cuh).
//
//   GATED    1: GEMM 1 with gate and up; 0: GEMM 1 without, or GEMM 2, as the parameters tell
//   FORMAT   ramp_format: 1 fp8_block, 2 bf16, 3 fp16, 5 fp8_tensor, 6 fp8_channel
//   ROWS     weight rows per tile; gated: half of them gate rows, half up rows, by eights in turn
//   TOKENS   token rows per tile at most (the plan's tile_m)
//   KW       warps that share the depth: each takes 128 bytes of every KW * 128; their sums are added in a
//   fixed order WR, WT   warps that share the weight rows and the tokens of a tile STAGES   ring depth;
//   BLOCKS: blocks per SM (register budget)
//
// fp8_block: a 128-deep step is summed from zero and promoted into fp32 with its block scales. The other FP8
// formats scale once, in the epilogue. Blocks stride over (tile, slice) units in the order that `group`
// chooses. The epilogue passes through shared memory: sums of the KW warps, activation, router weight,
// 16-byte stores.
#include "common/types.cuh"
#include "params/block.hpp"
#include "params/portable.hpp"
#include "portable/ptx.cuh"

using namespace ramp::core::cuda;

#define IS_FP8 (FORMAT == 1 || FORMAT == 5 || FORMAT == 6)
#define PROMOTED (FORMAT == 1 || (IS_FP8 && NATIVE_E4M3))
constexpr int kThreads = 32 * KW * WR * WT;
constexpr int kRowBytes = 128;         // of depth per warp and step
constexpr int kStep = KW * kRowBytes;  // of depth per step
constexpr int kMt = ROWS / WR / 16;    // m16 tiles of a warp
constexpr int kNt = TOKENS / WT / 8;   // n8 tiles of a warp
constexpr int kPairs = kNt > 1 ? kNt / 2 : 1;
constexpr int kWeightBytes = ROWS * kStep;
constexpr int kTokenBytes = TOKENS * kStep;
constexpr int kScaleBytes = FORMAT == 1 ? KW * (TOKENS + 2) * 4 : 0;
constexpr int kStage = kWeightBytes + kTokenBytes;
constexpr int kChunks = kStep / 16;             // 16-byte chunks of a row and step
constexpr int kRowsApart = kThreads / kChunks;  // rows that the block copies at a time
constexpr int kWeightCopies = ROWS / kRowsApart;
constexpr int kTokenCopies = TOKENS / kRowsApart;
constexpr int kPitch = ROWS + 4;  // floats per token row of the staged sums: no bank conflicts
static_assert(kNt == 1 || kNt % 2 == 0, "tokens of a warp: 8, or a multiple of 16");
static_assert(KW * TOKENS <= kThreads || FORMAT != 1, "a token scale per thread");
static_assert(kThreads % kChunks == 0 && ROWS % kRowsApart == 0 && TOKENS % kRowsApart == 0,
              "every thread copies whole rows' parts");

struct Unit {
  int expert, first, rows, n0;
};

// Unit number `unit` of tiles * slices. Units of an expert: groups of `group` tiles, each group slice by
// slice.
__device__ __forceinline__ Unit find_unit(const PortableParams& p, u32 unit, u32 slices, int slice_columns) {
  const PortableTile base = p.tiles[unit / slices];
  const int begin = p.offsets[base.expert];
  const int count = p.offsets[base.expert + 1] - begin;
  const u32 tiles = (u32)(count + TOKENS - 1) / TOKENS;
  const u32 first_tile = unit / slices - (u32)(base.first - begin) / TOKENS;
  const u32 local = unit - first_tile * slices;
  const u32 group = (u32)p.group < tiles ? (u32)p.group : tiles;
  const u32 done = local / (group * slices);
  const u32 rest = local - done * group * slices;
  const u32 left = tiles - done * group;
  const u32 width = left < group ? left : group;
  const u32 slice = rest / width;
  const int first = begin + (int)(done * group + rest - slice * width) * TOKENS;
  const int rows = begin + count - first;
  return {base.expert, first, rows < TOKENS ? rows : TOKENS, (int)slice * slice_columns};
}

__device__ __forceinline__ i64 source_row(int source, const PortableParams& p, int sorted) {
  if (source == kRowSorted) return sorted;
  const int slot = p.slots[sorted];
  return source == kRowSlot ? slot : slot / p.top_k;
}

// The activations of src/weights/activation.hpp, in the same forms: the gated ones, times up.
__device__ __forceinline__ float activate(int kind, float g, float u) {
  switch (kind) {
    case 0:
      return g / (1.0f + expf(-g)) * u;
    case 1:
      return 0.5f * g * (1.0f + erff(g * 0.70710678f)) * u;
    default: {
      const float z = 0.79788456f * (g + 0.044715f * g * g * g);
      return 0.5f * g * (1.0f + tanhf(z)) * u;
    }
  }
}
__device__ __forceinline__ float relu2(float g) {
  return g <= 0.0f ? 0.0f : g * g;
}

// Row r of the tile is column column_of_row(r) of C, counted from n0; gated: eights of gate and up rows in
// turn.
__device__ __forceinline__ constexpr int column_of_row(int r) {
  return GATED ? r / 16 * 8 + r % 8 : r;
}
__device__ __forceinline__ constexpr bool is_up(int r) {
  return GATED && r / 8 % 2 != 0;
}
// A thread copies rows `row` + i * kRowsApart; with kRowsApart 4, 8 or a multiple of 16 column and half of
// row `row` + i * kRowsApart are those of `row` plus (or in the other half, as tells) those of i *
// kRowsApart.
static_assert(kRowsApart <= 8 || kRowsApart % 16 == 0, "gate and up rows of a thread");

// What a thread copies of a unit: 16 bytes of each of its rows and steps.
struct Copies {
  const u8* w;
  const u8* x[kTokenCopies];
  const float* x_scale;
  const float* w_scale;
  u32 to;            // within 128 bytes of depth of a stage
  int row;           // first row
  int chunk;         // of a row's step
  int columns_left;  // from the first row's on
};

__device__ __forceinline__ Copies plan_copies(const PortableParams& p, const Unit& unit) {
  Copies c;
  c.chunk = (int)threadIdx.x % kChunks;
  c.row = (int)threadIdx.x / kChunks;
  c.to = (u32)(c.row * kRowBytes + ((c.chunk % 8) ^ (c.row % 8)) * 16);
  const int column = column_of_row(c.row);
  c.columns_left = p.n - unit.n0 - column;
  c.w = p.w + (i64)unit.expert * p.w_expert +
        (i64)(unit.n0 + column + (is_up(c.row) ? p.up_row : 0)) * p.w_row + c.chunk * 16;
#if FORMAT == 1
  const int half = GATED && threadIdx.x % 2 != 0 ? p.up_scale_row : 0;
  c.w_scale = p.w_scale + (i64)unit.expert * p.ws_expert + (i64)(unit.n0 / 128 + half) * p.ws_row;
#endif
  return c;
}
__device__ __forceinline__ void plan_token_copies(const PortableParams& p, const Unit& unit, Copies& c) {
#pragma unroll
  for (int i = 0; i < kTokenCopies; ++i) {
    const int r = c.row + i * kRowsApart;
    c.x[i] =
        p.x + source_row(p.x_source, p, unit.first + (r < unit.rows ? r : 0)) * p.x_stride + c.chunk * 16;
  }
#if FORMAT == 1
  const int r = (int)threadIdx.x % TOKENS;
  c.x_scale =
      p.x_scale + source_row(p.x_scale_source, p, unit.first + (r < unit.rows ? r : 0)) * p.x_scale_stride;
#endif
}
// Where in a stage row `row` + i * kRowsApart goes: its chunk number is xored with the row's number modulo 8.
__device__ __forceinline__ u32 place_of_copy(const Copies& c, int i) {
  return (kRowsApart % 8 != 0 && i % 2 != 0 ? c.to ^ 64u : c.to) + (u32)(i * kRowsApart * kRowBytes);
}

// Weight rows that are not there are zeros, and so is the depth behind its end. (The address of a copy of no
// bytes is not read.)
__device__ __forceinline__ void copy_weights(const PortableParams& p, const Copies& c, u32 stage, int step) {
  const bool inside = step * kStep + c.chunk * 16 < p.depth;
  const u32 to = stage + (u32)(c.chunk / 8 * ROWS * kRowBytes);
  const i64 up = (i64)p.up_row * p.w_row;
  const u8* const from = c.w + step * kStep;
#pragma unroll
  for (int i = 0; i < kWeightCopies; ++i) {
    const int column = column_of_row(i * kRowsApart);
    copy16(to + place_of_copy(c, i), from + column * p.w_row + (is_up(i * kRowsApart) ? up : 0),
           inside && column < c.columns_left);
  }
}
// Token rows that are not there are zeros with scale 0.
__device__ __forceinline__ void copy_tokens(const PortableParams& p, const Copies& c, const Unit& unit,
                                            u32 stage, u32 scales, int step) {
  const bool inside = step * kStep + c.chunk * 16 < p.depth;
  const u32 to = stage + kWeightBytes + (u32)(c.chunk / 8 * TOKENS * kRowBytes);
#pragma unroll
  for (int i = 0; i < kTokenCopies; ++i) {
    const int r = c.row + i * kRowsApart;
    copy16(to + place_of_copy(c, i), c.x[i] + step * kStep, inside && r < unit.rows);
  }
#if FORMAT == 1
  {
    const int group = step * KW + (int)threadIdx.x / TOKENS;
    copy4_if(threadIdx.x < KW * TOKENS, scales + 4 * threadIdx.x, c.x_scale + group,
             (int)threadIdx.x % TOKENS < unit.rows && group < p.groups);
  }
  {
    const int group = step * KW + (int)threadIdx.x / 2;
    copy4_if(threadIdx.x < 2 * KW, scales + 4 * (KW * TOKENS + threadIdx.x), c.w_scale + group * p.ws_column,
             group < p.groups);
  }
#endif
}

__device__ __forceinline__ float load_shared(u32 address) {
  float v;
  asm volatile("ld.shared.f32 %0, [%1];" : "=f"(v) : "r"(address) : "memory");
  return v;
}

// A warp's fragments of 32 bytes of depth: f16 or bf16 pairs for one mma each, or twice as many decoded
// codes.
#if IS_FP8 && !NATIVE_E4M3
constexpr int kParts = 2;
__device__ __forceinline__ void weight_fragment(const u32 (&raw)[4], u32 (&a)[kParts][4]) {
  decode4(raw[0], a[0][0], a[0][2]);
  decode4(raw[1], a[0][1], a[0][3]);
  decode4(raw[2], a[1][0], a[1][2]);
  decode4(raw[3], a[1][1], a[1][3]);
}
__device__ __forceinline__ void token_fragment(u32 low, u32 high, u32 (&b)[kParts][2]) {
  decode4(low, b[0][0], b[0][1]);
  decode4(high, b[1][0], b[1][1]);
}
#else
constexpr int kParts = 1;
__device__ __forceinline__ void weight_fragment(const u32 (&raw)[4], u32 (&a)[kParts][4]) {
#pragma unroll
  for (int i = 0; i < 4; ++i) a[0][i] = raw[i];
}
__device__ __forceinline__ void token_fragment(u32 low, u32 high, u32 (&b)[kParts][2]) {
  b[0][0] = low;
  b[0][1] = high;
}
#endif
__device__ __forceinline__ void multiply(float (&d)[4], const u32 (&a)[4], const u32 (&b)[2]) {
#if IS_FP8 && NATIVE_E4M3
  mma32(d, a, b[0], b[1]);
#else
  mma16<FORMAT == 2 ? 2 : 3>(d, a, b[0], b[1]);
#endif
}

// What a warp loads of 32 bytes of depth; ACTIVE pairs of n8 tiles have tokens.
template <int ACTIVE>
struct Raw {
  u32 a[kMt][4];
  u32 b[ACTIVE][4];
  // a, b: this lane's addresses of the first 32 bytes; `at`: bytes of depth, which the swizzle xors.
  __device__ __forceinline__ void load(u32 a_row, u32 b_row, u32 at) {
    if constexpr (kNt == 1) {
      u32 two[2];
      load_matrix2(two, b_row ^ at);
      b[0][0] = two[0];
      b[0][1] = two[1];
    } else {
#pragma unroll
      for (int j = 0; j < ACTIVE; ++j) load_matrix4(b[j], (b_row ^ at) + (u32)(j * WT * 16 * kRowBytes));
    }
#pragma unroll
    for (int i = 0; i < kMt; ++i) load_matrix4(a[i], (a_row ^ at) + (u32)(i * 16 * kRowBytes));
  }
};

template <int ACTIVE>
__device__ __forceinline__ void multiply_raw(float (&sum)[kMt][kNt][4], const Raw<ACTIVE>& now) {
  u32 b[kNt][kParts][2];
#pragma unroll
  for (int j = 0; j < ACTIVE; ++j) {
    token_fragment(now.b[j][0], now.b[j][1], b[2 * j]);
    if constexpr (kNt > 1) token_fragment(now.b[j][2], now.b[j][3], b[2 * j + 1]);
  }
#pragma unroll
  for (int i = 0; i < kMt; ++i) {
    u32 a[kParts][4];
    weight_fragment(now.a[i], a);
#pragma unroll
    for (int part = 0; part < kParts; ++part)
#pragma unroll
      for (int j = 0; j < (kNt == 1 ? 1 : 2 * ACTIVE); ++j) multiply(sum[i][j], a[part], b[j][part]);
  }
}

// Adds the products of this warp's 128 bytes of one step. Fragments are loaded 32 bytes ahead; `between` (the
// copies of a step to come) runs behind the first loads.
template <int ACTIVE, typename Between>
__device__ __forceinline__ void multiply_step(float (&sum)[kMt][kNt][4], u32 weights, u32 tokens, u32 lane,
                                              const Between& between) {
  const u32 a = weights + lane % 16 * kRowBytes + (lane / 16 ^ lane % 8) * 16;
  const u32 b =
      tokens + (kNt > 1 ? lane / 16 * 8 + lane % 8 : lane % 8) * kRowBytes + (lane / 8 % 2 ^ lane % 8) * 16;
  Raw<ACTIVE> even, odd;
  even.load(a, b, 0);
  between();
#pragma unroll
  for (u32 at = 0; at < kRowBytes; at += 64) {
    odd.load(a, b, at + 32);
    multiply_raw(sum, even);
    if (at + 64 < kRowBytes) even.load(a, b, at + 64);
    multiply_raw(sum, odd);
  }
}

// One step of a warp, promoted where the format asks for it. scales: the token scales of the warp's 128-deep
// group.
template <int ACTIVE, typename Between>
__device__ __forceinline__ void run_step(float (&sum)[kMt][kNt][4], u32 weights, u32 tokens, u32 token_scales,
                                         u32 weight_scales, u32 lane, const Between& between) {
#if PROMOTED
  float part[kMt][kNt][4];
#pragma unroll
  for (int i = 0; i < kMt; ++i)
#pragma unroll
    for (int j = 0; j < kNt; ++j)
#pragma unroll
      for (int v = 0; v < 4; ++v) part[i][j][v] = 0.0f;
  multiply_step<ACTIVE>(part, weights, tokens, lane, between);
#if FORMAT == 1
  const float low = load_shared(weight_scales);
  const float high = GATED ? load_shared(weight_scales + 4) : low;
#endif
#pragma unroll
  for (int j = 0; j < (kNt == 1 ? 1 : 2 * ACTIVE); ++j) {
#if FORMAT == 1
    const u32 token = (u32)(j / 2 * WT * 16 + j % 2 * 8) + 2 * (lane % 4);
    const float t0 = load_shared(token_scales + 4 * token);
    const float t1 = load_shared(token_scales + 4 * token + 4);
    const float s0 = low * t0, s1 = low * t1;
    const float s2 = GATED ? high * t0 : s0;
    const float s3 = GATED ? high * t1 : s1;
#else
    constexpr float s0 = 1.0f, s1 = 1.0f, s2 = 1.0f, s3 = 1.0f;
#endif
#pragma unroll
    for (int i = 0; i < kMt; ++i) {
      sum[i][j][0] = fmaf(part[i][j][0], s0, sum[i][j][0]);
      sum[i][j][1] = fmaf(part[i][j][1], s1, sum[i][j][1]);
      sum[i][j][2] = fmaf(part[i][j][2], s2, sum[i][j][2]);
      sum[i][j][3] = fmaf(part[i][j][3], s3, sum[i][j][3]);
    }
  }
#else
  multiply_step<ACTIVE>(sum, weights, tokens, lane, between);
#endif
}

struct Eight {
  float v[8];
};
// Eight neighbouring rows of a token's sums, over the KW warps in order.
__device__ __forceinline__ Eight staged(const float* sums, int token, int row) {
  Eight e;
#pragma unroll
  for (int k = 0; k < KW; ++k) {
    const float* const from = sums + (k * TOKENS + token) * kPitch + row;
    const float4 a = *(const float4*)from;
    const float4 b = *(const float4*)(from + 4);
    const float v[8] = {a.x, a.y, a.z, a.w, b.x, b.y, b.z, b.w};
#pragma unroll
    for (int i = 0; i < 8; ++i) e.v[i] = k == 0 ? v[i] : e.v[i] + v[i];
  }
  return e;
}

// The scales that fp8_channel and fp8_tensor apply at the end. row: of W; half: 1 for up.
__device__ __forceinline__ void scale_eight(const PortableParams& p, const Unit& unit, int token, int row,
                                            int half, Eight& e) {
#if FORMAT == 5 || FORMAT == 6
  const float x = p.x_scale == nullptr
                      ? p.x_static
                      : p.x_scale[source_row(p.x_scale_source, p, unit.first + token) * p.x_scale_stride];
  const float* const w = p.w_scale + (i64)unit.expert * p.ws_expert;
#pragma unroll
  for (int i = 0; i < 8; ++i) e.v[i] *= x * w[(i64)(FORMAT == 5 ? half : row + i) * p.ws_row];
#endif
}

__device__ __forceinline__ u32 pack16(float a, float b) {
  return FORMAT == 3 ? (u32)f32_to_f16(a) | ((u32)f32_to_f16(b) << 16)
                     : (u32)f32_to_bf16(a) | ((u32)f32_to_bf16(b) << 16);
}

// h in the type that it leaves in.
__device__ __forceinline__ void store_h(const PortableParams& p, i64 at, const Eight& h) {
#if FORMAT == 2 || FORMAT == 3
  *(uint4*)((u16*)p.out + at) = make_uint4(pack16(h.v[0], h.v[1]), pack16(h.v[2], h.v[3]),
                                           pack16(h.v[4], h.v[5]), pack16(h.v[6], h.v[7]));
#elif FORMAT == 5
  u32 w[2] = {0, 0};
#pragma unroll
  for (int i = 0; i < 8; ++i) w[i / 4] |= (u32)f32_to_e4m3(__fdiv_rn(h.v[i], p.out_scale)) << (i % 4 * 8);
  *(uint2*)((u8*)p.out + at) = make_uint2(w[0], w[1]);
#else
  float* const to = (float*)p.out + at;
  *(float4*)to = make_float4(h.v[0], h.v[1], h.v[2], h.v[3]);
  *(float4*)(to + 4) = make_float4(h.v[4], h.v[5], h.v[6], h.v[7]);
#endif
}

__device__ __forceinline__ void finish(const PortableParams& p, const Unit& unit, const float* sums) {
  constexpr int kColumns = GATED ? ROWS / 2 : ROWS;
  constexpr int kEights = kColumns / 8;
  for (int at = (int)threadIdx.x; at < unit.rows * kEights; at += kThreads) {
    const int token = at / kEights;
    const int column = at % kEights * 8;
    const int n = unit.n0 + column;
    if (n >= p.n) continue;
    const int row = unit.first + token;
    Eight v = staged(sums, token, GATED ? 2 * column : column);
    scale_eight(p, unit, token, n, 0, v);
    if (!GATED && p.second) {
      if (p.slot_weight != nullptr) {
        const int slot = p.slots[row];
        const int t = slot / p.top_k;
        const float weight =
            p.slot_weight[t * p.slot_weight_token + (slot - t * p.top_k) * p.slot_weight_slot];
#pragma unroll
        for (int i = 0; i < 8; ++i) v.v[i] *= weight;
      }
      u32 w[4];
#pragma unroll
      for (int i = 0; i < 4; ++i)
        w[i] = (u32)f32_to_bf16(v.v[2 * i]) | ((u32)f32_to_bf16(v.v[2 * i + 1]) << 16);
      *(uint4*)((u16*)p.out + (i64)row * p.out_stride + n) = make_uint4(w[0], w[1], w[2], w[3]);
      continue;
    }
    Eight up = v;
    if (GATED) {
      up = staged(sums, token, 2 * column + 8);
      scale_eight(p, unit, token, p.up_row + n, 1, up);
    }
#pragma unroll
    for (int i = 0; i < 8; ++i) v.v[i] = GATED ? activate(p.activation, v.v[i], up.v[i]) : relu2(v.v[i]);
    store_h(p, (i64)row * p.out_stride + n, v);
  }
}

__device__ __forceinline__ void run_gemm(const PortableParams& p) {
  extern __shared__ __align__(128) u8 memory[];
  const u32 ring = shared_address(memory);
  const u32 scales = ring + STAGES * kStage;
  const u32 lane = threadIdx.x % 32;
  const u32 warp = threadIdx.x / 32;
  const u32 wk = warp % KW;
  const u32 wr = warp / KW % WR;
  const u32 wt = warp / (KW * WR);
  // GEMM 2's plan is older than the kernel in front of it, so it asks for weights before it waits.
  bool waited = GATED || !p.second;
  if (waited) {
    dependency_wait();
    if (p.early) launch_dependents();
  }
  constexpr int kColumns = GATED ? ROWS / 2 : ROWS;
  const u32 slices = (u32)(p.n + kColumns - 1) / kColumns;
  const u32 units = (u32)*p.num_tiles * slices;
  const int steps = (p.depth + kStep - 1) / kStep;
  for (u32 number = blockIdx.x; number < units; number += gridDim.x) {
    const Unit unit = find_unit(p, number, slices, kColumns);
    Copies copies = plan_copies(p, unit);
#pragma unroll
    for (int s = 0; s < STAGES - 1; ++s) copy_weights(p, copies, ring + s * kStage, s);
    if (!waited) {
      dependency_wait();
      if (p.early) launch_dependents();
      waited = true;
    }
    plan_token_copies(p, unit, copies);
#pragma unroll
    for (int s = 0; s < STAGES - 1; ++s) {
      copy_tokens(p, copies, unit, ring + s * kStage, scales + s * kScaleBytes, s);
      copy_commit();
    }

    float sum[kMt][kNt][4];
#pragma unroll
    for (int i = 0; i < kMt; ++i)
#pragma unroll
      for (int j = 0; j < kNt; ++j)
#pragma unroll
        for (int v = 0; v < 4; ++v) sum[i][j][v] = 0.0f;
    // Pairs of n8 tiles are dealt out to the WT warps in turn.
    const int pairs = (unit.rows + 15) / 16;
    const int active = kNt == 1 ? (unit.rows > 8 * (int)wt ? 1 : 0) : (pairs - (int)wt + WT - 1) / WT;
    u32 slot = 0;
    for (int k = 0; k < steps; ++k) {
      copy_wait<STAGES - 2>();
      __syncthreads();
      const auto copy_ahead = [&] {
        const u32 to = slot == 0 ? STAGES - 1 : slot - 1;
        copy_weights(p, copies, ring + to * kStage, k + STAGES - 1);
        copy_tokens(p, copies, unit, ring + to * kStage, scales + to * kScaleBytes, k + STAGES - 1);
        copy_commit();
      };
      const u32 stage = ring + slot * kStage;
      const u32 weights = stage + wk * (ROWS * kRowBytes) + wr * (kMt * 16 * kRowBytes);
      const u32 tokens =
          stage + kWeightBytes + wk * (TOKENS * kRowBytes) + wt * ((kNt > 1 ? 16 : 8) * kRowBytes);
      const u32 stage_scales = scales + slot * kScaleBytes;
      const u32 token_scales = stage_scales + 4 * (wk * TOKENS + wt * (kNt > 1 ? 16 : 8));
      const u32 weight_scales = stage_scales + 4 * (KW * TOKENS + 2 * wk);
      // All of a warp's pairs, or half of them: rows that are not there are zeros.
      if (2 * active > kPairs)
        run_step<kPairs>(sum, weights, tokens, token_scales, weight_scales, lane, copy_ahead);
      else if (kPairs > 1 && active > 0)
        run_step<(kPairs + 1) / 2>(sum, weights, tokens, token_scales, weight_scales, lane, copy_ahead);
      else
        copy_ahead();
      slot = slot + 1 == STAGES ? 0 : slot + 1;
    }

    copy_wait<0>();
    __syncthreads();  // the ring is free: sums take its place
    float* const sums = (float*)memory;
    if (active > 0) {
      const u32 row = wr * (kMt * 16) + lane / 4;
#pragma unroll
      for (int j = 0; j < kNt; ++j) {
        const u32 token = (kNt > 1 ? (u32)(j / 2 * WT * 16 + j % 2 * 8) + wt * 16 : wt * 8) + 2 * (lane % 4);
        float* const to = sums + (wk * TOKENS + token) * kPitch + row;
#pragma unroll
        for (int i = 0; i < kMt; ++i) {
          to[16 * i] = sum[i][j][0];
          to[16 * i + kPitch] = sum[i][j][1];
          to[16 * i + 8] = sum[i][j][2];
          to[16 * i + 8 + kPitch] = sum[i][j][3];
        }
      }
    }
    __syncthreads();
    finish(p, unit, sums);
    __syncthreads();  // ... and the ring's again
  }
  if (!waited) dependency_wait();
}

extern "C" __global__ void __launch_bounds__(kThreads, BLOCKS)
    gemm(const __grid_constant__ PortableParams p) {
  run_gemm(p);
}
