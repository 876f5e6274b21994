// The stream kernel for weights without scales along the depth (bf16, fp16, fp8_tensor, fp8_channel; sm_90a):
// one GEMM of the expert block at the speed of memory, for experts with few rows. As stream.cu: swap-AB,
// packed 16 KB tiles (128 rows x 128 bytes) by bulk copies into a ring, token rows gathered by index, the
// width of a tile chosen at run time. 16-bit sums stay in the tensor cores' fp32 accumulators over the whole
// depth, so twice the width of stream.cu's fits the registers; e4m3 ones, of which the tensor cores keep 13
// bits, start anew every 128 and are added up in fp32. Scales are factors of rows: the epilogue applies them.
// h needs no group's maximum, so there are no clusters, and warps write results straight from registers,
// transposed 8 x 8 by movmatrix: nothing waits for the rest of the block but the ring.
//
//   FORMAT  ramp_format: 2 bf16, 3 fp16, 5 fp8_tensor, 6 fp8_channel
//   GEMM    1: w13, activation; h in the type of the weights (fp8_tensor: by GEMM 2's static scale;
//   fp8_channel, whose
//           scale is that of a whole row: fp32, requantised behind). 2: w2, router weight; rows as bf16
//           (fp16: fp32, since the weighted row might leave fp16's range, and bf16 would lose its precision)
//   ROWS    weight rows of an item: 128; 64, for twice as many items where there are few; 256, where rows of
//   x are so
//           many that gathering them for each 128 takes its share of what the L2 cache can send
//   ACTIVATION, WIDTH, STEP, STAGES, BLOCKS  as in stream.cu; WIDTH a multiple of 8
//
// The first warps do math (a warpgroup per 64 weight rows), the last but one brings weights, the last one
// gathers tokens.
#if FORMAT == 2
#define WGMMA_BF16
#elif FORMAT == 3
#define WGMMA_F16
#else
#define WGMMA_E4M3
#endif
#define SCALES 0
#include "common/types.cuh"
#include "params/block.hpp"
#include "params/stream.hpp"
#include "sm90/ptx.cuh"
#include "sm90/stream_copy.cuh"
#include "sm90/stream_items.cuh"
#include "sm90/wgmma.cuh"

#if FORMAT == 2
using Type = Bf16;
#elif FORMAT == 3
using Type = F16;
#else
using Type = E4m3;
#endif
constexpr bool kFp8 = FORMAT >= 5;

// What h and rows are stored as: 16 bits (e4m3 codes in the lower half), or fp32 as it is.
constexpr bool kFloatH = FORMAT == 6;
constexpr bool kFloatRows = FORMAT == 3;

__device__ __forceinline__ u16 rounded(float v) {
  return FORMAT == 3 && GEMM == 1 ? f32_to_f16(v) : f32_to_bf16(v);
}

// Two neighbours of a row of an 8 x 8 matrix become two of a column: lane l held [l/4][2(l%4)] and the next,
// and gets [2(l%4)][l/4] and the one below.
__device__ __forceinline__ u32 transposed(u16 a, u16 b) {
  return transpose_8x8((u32)a | (u32)b << 16);
}

// The router weight of a tile's token column.
__device__ __forceinline__ float router_weight(const StreamParams& p, const Item& item, u32 column) {
  if (p.slot_weight == nullptr || column >= (u32)item.rows) return 1.0f;
  const int slot = p.slots[item.first + (int)column];
  const int t = slot / p.top_k;
  return p.slot_weight[t * p.slot_weight_token + (slot - t * p.top_k) * p.slot_weight_slot];
}

// The scale of a tile's token column.
__device__ __forceinline__ float token_scale(const StreamParams& p, const Item& item, u32 column) {
  if (p.x_scale == nullptr || column >= (u32)item.rows) return p.x_static;
  return p.x_scale[(u64)source_row(p.x_scale_source, p, item.first + (int)column) * (u64)p.x_scale_stride];
}
// The scale of a weight row of the item's expert.
__device__ __forceinline__ float row_scale(const StreamParams& p, const Item& item, u32 row) {
  return __ldg(p.weight_scale + (i64)item.expert * p.ws_expert + (i64)row * p.ws_row);
}

// 16 bits: a slot is released when the step after it has been issued, so that the tensor cores always have
// one waiting; a ring of three cannot wait so long, since arrivals are signalled kLag steps late.
constexpr bool kHold = !kFp8 && STAGES > 3;
static_assert(STAGES >= kLag + 1 + (kHold ? 1 : 0), "the ring would wait for itself");

// The math warps' side of one item with N token columns.
template <int N>
__device__ __forceinline__ void run_item(const StreamParams& p, const Ring& ring, const Item& item, u32& at) {
  const u32 group = threadIdx.x / 128;
  const u32 warp = threadIdx.x / 32;
  const u32 lane = threadIdx.x % 32;
  // From zero and always added to: a predicate that starts the sums instead (add = 0 at k = 0) makes ptxas
  // serialise the instructions and spill from 32 columns on.
  float sum[N / 2];
#pragma unroll
  for (int i = 0; i < N / 2; ++i) sum[i] = 0.0f;
  u32 last = 0;  // slot of the step before, still being read
  for (int k = 0; k < p.steps; ++k, ++at) {
    const u32 slot = at % STAGES;
    barrier_wait(ring.full + 8 * slot, (at / STAGES) & 1);
    const u64 a = descriptor(ring.tiles + slot * kStage + group * 8192);
    const u64 b = descriptor(ring.tiles + slot * kStage + kTile);
    wgmma_fence();
    if constexpr (kFp8) {
      float part[N / 2];
#pragma unroll
      for (int j = 0; j < 4; ++j) wgmma<Type, N>(part, a + 2 * j, b + 2 * j, j != 0);
      wgmma_commit();
      wgmma_wait<0>();
      release(ring, slot);
#pragma unroll
      for (int i = 0; i < N / 2; ++i) sum[i] += part[i];
      continue;
    }
#pragma unroll
    for (int j = 0; j < 4; ++j) wgmma<Type, N>(sum, a + 2 * j, b + 2 * j, 1);
    wgmma_commit();
    if (!kHold) {
      wgmma_wait<0>();
      release(ring, slot);
    } else if (k != 0) {
      wgmma_wait<1>();
      release(ring, last);
    }
    last = slot;
  }
  if (kHold) {
    wgmma_wait<0>();
    release(ring, last);
  }

  // Rows of the warp's 16: lane/4 and lane/4 + 8; GEMM 1: gate and up of the same column. Tokens 8j +
  // 2(lane%4) and the next one.
  const u32 column = item.slice * (GEMM == 1 ? ROWS / 2 : ROWS) + (GEMM == 1 ? 8 : 16) * warp;
  float low_scale = 1.0f;
  float high_scale = 1.0f;
  if (kFp8) {
    const u32 row = FORMAT == 6 ? column + lane / 4 : 0;
    low_scale = row_scale(p, item, row);
    high_scale = row_scale(p, item, GEMM == 1 ? row + (u32)p.up_scale_row : FORMAT == 6 ? row + 8 : 0);
  }
#pragma unroll
  for (int j = 0; j < N / 8; ++j) {
    const u32 token = 8 * j + 2 * (lane % 4);
    const u32 row = 8 * j + lane / 4;  // the token once transposed
    if (kFp8) {
      const float t0 = token_scale(p, item, token);
      const float t1 = token_scale(p, item, token + 1);
      sum[4 * j] *= low_scale * t0;
      sum[4 * j + 1] *= low_scale * t1;
      sum[4 * j + 2] *= high_scale * t0;
      sum[4 * j + 3] *= high_scale * t1;
    }
#if GEMM == 1
    const float h0 = activate(sum[4 * j], sum[4 * j + 2]);
    const float h1 = activate(sum[4 * j + 1], sum[4 * j + 3]);
    if constexpr (kFloatH) {
      float* const to = (float*)p.codes + (i64)(item.first + (int)token) * p.out_stride + column + lane / 4;
      if (token < (u32)item.rows) to[0] = h0;
      if (token + 1 < (u32)item.rows) to[p.out_stride] = h1;
    } else {
      const i64 at = (i64)(item.first + (int)row) * p.out_stride + column + 2 * (lane % 4);
#if FORMAT == 5
      const u32 pair =
          transposed(f32_to_e4m3(__fdiv_rn(h0, p.h_static)), f32_to_e4m3(__fdiv_rn(h1, p.h_static)));
      if (row < (u32)item.rows) *(u16*)(p.codes + at) = (u16)((pair & 0xffu) | (pair >> 8 & 0xff00u));
#else
      const u32 pair = transposed(rounded(h0), rounded(h1));
      if (row < (u32)item.rows) *(u32*)((u16*)p.codes + at) = pair;
#endif
    }
#else
    const float w0 = router_weight(p, item, token);
    const float w1 = router_weight(p, item, token + 1);
    if constexpr (kFloatRows) {
      float* const to = (float*)p.rows + (i64)(item.first + (int)token) * p.out_stride + column + lane / 4;
      if (token < (u32)item.rows) {
        to[0] = sum[4 * j] * w0;
        to[8] = sum[4 * j + 2] * w0;
      }
      if (token + 1 < (u32)item.rows) {
        to[p.out_stride] = sum[4 * j + 1] * w1;
        to[p.out_stride + 8] = sum[4 * j + 3] * w1;
      }
    } else {
      const u32 low = transposed(rounded(sum[4 * j] * w0), rounded(sum[4 * j + 1] * w1));
      const u32 high = transposed(rounded(sum[4 * j + 2] * w0), rounded(sum[4 * j + 3] * w1));
      if (row < (u32)item.rows) {
        u16* const to = p.rows + (i64)(item.first + (int)row) * p.out_stride + column + 2 * (lane % 4);
        *(u32*)to = low;
        *(u32*)(to + 8) = high;
      }
    }
#endif
  }
}

extern "C" __global__ void __launch_bounds__(kMathThreads + 64, BLOCKS)
    stream_flat(const __grid_constant__ StreamParams p) {
  extern __shared__ __align__(1024) u8 memory[];
  const u32 base = shared_address(memory);
  const Ring ring = make_ring(base, base + kRingBytes);
  if (threadIdx.x == 0) {
    init_ring(ring);
    barrier_init_fence();
  }
  __syncthreads();
#if GEMM == 1
  dependency_wait();
  if (p.early) launch_dependents();
#endif
  const u32 slices = (u32)p.slices;
  const u32 units = (u32)*p.num_tiles * slices;
  const u32 first = blockIdx.x;
  const u32 stride = gridDim.x;
  const u32 warp = threadIdx.x / 32;
  if (warp == kMathThreads / 32) {
    if (threadIdx.x % 32 == 0) bring_weights(p, ring, first, stride, units, slices, 0);
    __syncwarp();
    if (GEMM == 2) dependency_wait();
  } else if (warp == kMathThreads / 32 + 1) {
    if (GEMM == 2) dependency_wait();
    gather_tokens(p, ring, first, stride, units, slices);
  } else {
#if GEMM == 2
    dependency_wait();
    if (p.early) launch_dependents();
#endif
    u32 at = 0;
    for (u32 unit = first; unit < units; unit += stride) {
      const Item item = find_item(p, unit, slices);
      switch ((item.rows + STEP - 1) / STEP) {
#define RAMP_WIDTH(n)                      \
  case n:                                  \
    run_item<STEP * n>(p, ring, item, at); \
    break;
        RAMP_WIDTH(1)
#if WIDTH / STEP >= 2
        RAMP_WIDTH(2)
#endif
#if WIDTH / STEP >= 4
        RAMP_WIDTH(3)
        RAMP_WIDTH(4)
#endif
#if WIDTH / STEP >= 6
        RAMP_WIDTH(5)
        RAMP_WIDTH(6)
#endif
#if WIDTH / STEP >= 8
        RAMP_WIDTH(7)
        RAMP_WIDTH(8)
#endif
#undef RAMP_WIDTH
      }
    }
  }
}
