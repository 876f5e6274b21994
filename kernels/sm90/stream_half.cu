// The stream kernel for 16-bit weights (bf16, fp16; sm_90a): one GEMM of the expert block at the speed of
// memory, for experts with few rows. As stream.cu: swap-AB, packed 16 KB tiles (here 128 rows x 64 columns)
// by bulk copies into a ring, token rows gathered by index, the width of a tile chosen at run time. There are
// no scales, so sums stay in the tensor cores' fp32 accumulators over the whole depth, and twice the width of
// stream.cu's fits the registers; h needs no group's maximum, so no clusters either. Warps write results
// straight from registers, transposed 8 x 8 by movmatrix: nothing waits for the rest of the block but the
// ring.
//
//   GEMM    1: w13, activation; h as TYPE. 2: w2, router weight; rows as bf16 (TYPE bf16), or fp32 (TYPE
//   fp16,
//           whose range the weighted row might leave, and whose precision bf16 would lose)
//   TYPE    of weights and tokens (ramp_dtype): 2 f16, 3 bf16
//   ROWS    weight rows of an item: 128; 64, for twice as many items where there are few; 256, where rows of
//   x
//           are so many that gathering them for each 128 takes its share of what the L2 cache can send
//   ACTIVATION, WIDTH, STEP, STAGES, BLOCKS  as in stream.cu; WIDTH 8, 16, 32, 64, 128
//
// The first warps do math (a warpgroup per 64 weight rows), the last but one brings weights, the last one
// gathers tokens.
#if TYPE == 3
#define WGMMA_BF16
#else
#define WGMMA_F16
#endif
#define SCALES 0
#include "common/types.cuh"
#include "params/block.hpp"
#include "params/stream.hpp"
#include "sm90/ptx.cuh"
#include "sm90/stream_copy.cuh"
#include "sm90/stream_items.cuh"
#include "sm90/wgmma.cuh"

#if TYPE == 3
using Type = Bf16;
__device__ __forceinline__ u16 rounded(float v) {
  return f32_to_bf16(v);
}
#else
using Type = F16;
__device__ __forceinline__ u16 rounded(float v) {
  return f32_to_f16(v);
}
#endif

// Two neighbours of a row of an 8 x 8 matrix, rounded, become two of a column: lane l held [l/4][2(l%4)] and
// the next, and gets [2(l%4)][l/4] and the one below.
__device__ __forceinline__ u32 transposed(float a, float b) {
  return transpose_8x8((u32)rounded(a) | (u32)rounded(b) << 16);
}

// The router weight of a tile's token column.
__device__ __forceinline__ float router_weight(const StreamParams& p, const Item& item, u32 column) {
  if (p.slot_weight == nullptr || column >= (u32)item.rows) return 1.0f;
  const int slot = p.slots[item.first + (int)column];
  const int t = slot / p.top_k;
  return p.slot_weight[t * p.slot_weight_token + (slot - t * p.top_k) * p.slot_weight_slot];
}

// A slot is released when the step after it has been issued, so that the tensor cores always have one
// waiting; a ring of three cannot wait so long, since arrivals are signalled kLag steps late.
constexpr bool kHold = STAGES > 3;
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

#if GEMM == 1
  // h of this thread: column 8 * warp + lane/4 of the slice's ROWS / 2; tokens 8j + 2(lane%4) (+1).
#pragma unroll
  for (int j = 0; j < N / 8; ++j) {
    const float low = activate(sum[4 * j], sum[4 * j + 2]);
    const float high = activate(sum[4 * j + 1], sum[4 * j + 3]);
    const u32 pair = transposed(low, high);
    const u32 row = 8 * j + lane / 4;
    if (row < (u32)item.rows)
      *(u32*)((u16*)p.codes + (i64)(item.first + (int)row) * p.out_stride + item.slice * (ROWS / 2) +
              8 * warp + 2 * (lane % 4)) = pair;
  }
#else
  // Columns of W2's slice are warpgroup rows: lane/4 and lane/4 + 8 of the warp's 16.
#pragma unroll
  for (int j = 0; j < N / 8; ++j) {
    const u32 token = 8 * j + 2 * (lane % 4);
    const float w0 = router_weight(p, item, token);
    const float w1 = router_weight(p, item, token + 1);
#if TYPE == 3
    const u32 low = transposed(sum[4 * j] * w0, sum[4 * j + 1] * w1);
    const u32 high = transposed(sum[4 * j + 2] * w0, sum[4 * j + 3] * w1);
    const u32 row = 8 * j + lane / 4;
    if (row < (u32)item.rows) {
      u16* const to = p.rows + (i64)(item.first + (int)row) * p.out_stride + item.slice * ROWS + 16 * warp +
                      2 * (lane % 4);
      *(u32*)to = low;
      *(u32*)(to + 8) = high;
    }
#else
    float* const to = (float*)p.rows + (i64)(item.first + (int)token) * p.out_stride + item.slice * ROWS +
                      16 * warp + lane / 4;
    if (token < (u32)item.rows) {
      to[0] = sum[4 * j] * w0;
      to[8] = sum[4 * j + 2] * w0;
    }
    if (token + 1 < (u32)item.rows) {
      to[p.out_stride] = sum[4 * j + 1] * w1;
      to[p.out_stride + 8] = sum[4 * j + 3] * w1;
    }
#endif
  }
#endif
}

extern "C" __global__ void __launch_bounds__(kMathThreads + 64, BLOCKS)
    stream_half(const __grid_constant__ StreamParams p) {
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
