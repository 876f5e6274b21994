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
//   GEMM    1: w13, activation; h in the type of the weights, packed as GEMM 2 brings it (fp8_tensor: by GEMM
//   2's
//           static scale; fp8_channel, whose scale is that of a whole row: fp32 rows, requantised behind).
//           2: w2, router weight; rows as bf16 (fp16: fp32, since the weighted row might leave fp16's range,
//           and bf16 would lose its precision)
//   SLICES  2: items of 256 weight rows, which share the token rows that were brought; HALVES  1: of 64, for
//   twice as
//           many items where there are few
//   ACTIVATION, WIDTH, STEP, STAGES, BLOCKS  as in stream.cu
//
// The first warps do math (a warpgroup per 64 weight rows), the last but one brings weights, the last one
// tokens.
#define FP8 (FORMAT >= 5)
#if FORMAT == 2
#define WGMMA_BF16
#elif FORMAT == 3
#define WGMMA_F16
#else
#define WGMMA_E4M3
#endif
#define SCALES 0
#define PAIRED 0
#if GEMM == 1 || FORMAT == 6
#define ROWS kRowsAsync
#else
#define ROWS kRowsPacked
#endif
#include "common/types.cuh"
#include "params/block.hpp"
#include "params/stream.hpp"
#include "sm90/flat_silu.cuh"
#include "sm90/ptx.cuh"
#include "sm90/stream_copy.cuh"
#include "sm90/stream_plan.cuh"
#include "sm90/wgmma.cuh"

#if FORMAT == 2
using Type = Bf16;
#elif FORMAT == 3
using Type = F16;
#else
using Type = E4m3;
#endif

static_assert(WIDTH % STEP == 0 && (WIDTH / STEP == 1 || WIDTH / STEP == 2 || WIDTH / STEP == 4 ||
                                    WIDTH / STEP == 6 || WIDTH / STEP == 8 || WIDTH / STEP == 12),
              "a width without its cases in the switch below would hang");
constexpr u32 kItemRows = HALVES ? 64 : 128 * SLICES;  // weight rows

// Values that belong to an item's tokens lane, lane + 32, ...; loaded before the sums, so that nobody waits
// for them.
struct TokenValues {
  float of[(WIDTH + 31) / 32];
  // Of token column 8j + i.
  __device__ __forceinline__ float get(int j, u32 i) const {
    return __shfl_sync(0xffffffffu, of[j / 4], 8 * (j % 4) + i);
  }
};
__device__ __forceinline__ TokenValues router_weights(const StreamParams& p, const Item& item) {
  TokenValues v;
#pragma unroll
  for (int i = 0; i < (WIDTH + 31) / 32; ++i) {
    const int column = (int)(threadIdx.x % 32) + 32 * i;
    v.of[i] = 1.0f;
    if (p.slot_weight == nullptr || column >= item.rows) continue;
    const int slot = p.slots[item.first + column];
    const int t = slot / p.top_k;
    v.of[i] = p.slot_weight[t * p.slot_weight_token + (slot - t * p.top_k) * p.slot_weight_slot];
  }
  return v;
}
__device__ __forceinline__ TokenValues token_scales(const StreamParams& p, const Item& item) {
  TokenValues v;
#pragma unroll
  for (int i = 0; i < (WIDTH + 31) / 32; ++i) {
    const int column = (int)(threadIdx.x % 32) + 32 * i;
    v.of[i] = p.x_static;
    if (p.x_scale == nullptr || column >= item.rows) continue;
    v.of[i] = p.x_scale[(u64)source_row(p.x_scale_source, p, item.first + column) * (u64)p.x_scale_stride];
  }
  return v;
}
// The scale of a weight row of the item's expert.
__device__ __forceinline__ float row_scale(const StreamParams& p, const Item& item, u32 row) {
  return __ldg(p.weight_scale + (i64)item.expert * p.ws_expert + (i64)row * p.ws_row);
}

// The math warps' side of one item with N token columns.
template <int N>
__device__ __forceinline__ void run_item(const StreamParams& p, const Ring& ring, const Item& item,
                                         const TokenValues& weights, u32& at) {
  const u32 group = threadIdx.x / 128;
  const u32 warp = threadIdx.x / 32;
  const u32 lane = threadIdx.x % 32;
  // Rows of the warp's 16: lane/4 and lane/4 + 8; GEMM 1: gate and up of the same column. Tokens 8j +
  // 2(lane%4) and the next one.
  const u32 column = GEMM == 1 ? item.slice * (kItemRows / 2) + 8 * warp : item.slice * kItemRows + 16 * warp;
#if FP8
  const u32 scaled = FORMAT == 6 ? column + lane / 4 : 0;
  const float low_scale = row_scale(p, item, scaled);
  const float high_scale = row_scale(p, item,
                                     GEMM == 1     ? scaled + (u32)p.up_scale_row
                                     : FORMAT == 6 ? scaled + 8
                                                   : 0);
  const TokenValues scales = token_scales(p, item);
#endif
  // From zero and always added to: a predicate that starts the sums instead (add = 0 at k = 0) makes ptxas
  // serialise the instructions and spill from 32 columns on.
  float sum[N / 2];
#pragma unroll
  for (int i = 0; i < N / 2; ++i) sum[i] = 0.0f;
#if !FP8
  u32 last = 0;  // slot of the step before, still being read
#endif
  for (int k = 0; k < p.steps; ++k, ++at) {
    const u32 slot = at % STAGES;
    barrier_wait(ring.full + 8 * slot, (at / STAGES) & 1);
    if (ROWS == kRowsAsync) proxy_fence();
    const u64 a = descriptor(ring.tiles + slot * kStage + group * 8192);
    const u64 b = descriptor(ring.tiles + slot * kStage + SLICES * kPart);
    wgmma_fence();
#if FP8
    float part[N / 2];
#pragma unroll
    for (int j = 0; j < 4; ++j) wgmma<Type, N>(part, a + 2 * j, b + 2 * j, j != 0);
    wgmma_commit();
    wgmma_wait<0>();
    release(ring, slot);
#pragma unroll
    for (int i = 0; i < N / 2; ++i) {
      asm volatile("" : "+f"(part[i]));  // not read above the wait
      sum[i] += part[i];
    }
#else
#pragma unroll
    for (int j = 0; j < 4; ++j) wgmma<Type, N>(sum, a + 2 * j, b + 2 * j, 1);
    wgmma_commit();
    // A slot is released when the step after it has been issued: the tensor cores always have one waiting.
    if (k != 0) {
      wgmma_wait<1>();
      release(ring, last);
    }
    last = slot;
#endif
  }
#if !FP8
  wgmma_wait<0>();
  release(ring, last);
#pragma unroll
  for (int i = 0; i < N / 2; ++i) asm volatile("" : "+f"(sum[i]));  // not read above the wait
#endif

#pragma unroll
  for (int j = 0; j < N / 8; ++j) {
#if FP8
    const float t0 = scales.get(j, 2 * (lane % 4));
    const float t1 = scales.get(j, 2 * (lane % 4) + 1);
    sum[4 * j] *= low_scale * t0;
    sum[4 * j + 1] *= low_scale * t1;
    sum[4 * j + 2] *= high_scale * t0;
    sum[4 * j + 3] *= high_scale * t1;
#endif
#if GEMM == 1
    const float h0 = gated(sum[4 * j], sum[4 * j + 2]);
    const float h1 = gated(sum[4 * j + 1], sum[4 * j + 3]);
#if FORMAT == 6
    const u32 token = 8 * j + 2 * (lane % 4);
    float* const to = (float*)p.codes + (i64)(item.first + (int)token) * p.out_stride + column + lane / 4;
    if (token < (u32)item.rows) to[0] = h0;
    if (token + 1 < (u32)item.rows) to[p.out_stride] = h1;
#else
    // Packed: the tile's steps of 128 bytes one after the other, each its N rows, swizzled. Turned about, a
    // lane has columns 2(l%4) and + 1 of the warp's eight, for token l/4 of eight.
    constexpr u32 kElement = FP8 ? 1 : 2;
    const u32 byte = column * kElement;
    u8* const to = p.codes + packed_row(item) * (u64)p.out_stride +
                   (u64)(byte / kRowBytes * (N * kRowBytes)) + (8 * j + lane / 4) * kRowBytes +
                   ((byte % kRowBytes / 16) ^ (lane / 4)) * 16 + byte % 16 + lane % 4 * 2 * kElement;
#if FP8
    const u32 codes = e4m3_pair(__fdiv_rn(h0, p.h_static), __fdiv_rn(h1, p.h_static));
    *(u16*)to = (u16)__byte_perm(transpose(__byte_perm(codes, 0, 0x4140)), 0, 0x4420);
#else
    *(u32*)to = transpose(FORMAT == 2 ? bf16_pair(h0, h1) : f16_pair(h0, h1));
#endif
#endif
#else
    const float w0 = weights.get(j, 2 * (lane % 4));
    const float w1 = weights.get(j, 2 * (lane % 4) + 1);
#if FORMAT == 3
    const u32 token = 8 * j + 2 * (lane % 4);
    float* const to = (float*)p.rows + (i64)(item.first + (int)token) * p.out_stride + column + lane / 4;
    if (token < (u32)item.rows) {
      to[0] = sum[4 * j] * w0;
      to[8] = sum[4 * j + 2] * w0;
    }
    if (token + 1 < (u32)item.rows) {
      to[p.out_stride] = sum[4 * j + 1] * w1;
      to[p.out_stride + 8] = sum[4 * j + 3] * w1;
    }
#else
    // Lane 4t + q stores rows 4q .. 4q+3 of token t: they are in lanes 4t + 2(q%2) (+1), of the upper eight
    // rows from q = 2 on.
    const u32 quad = lane % 4;
    const u32 from = lane - quad + 2 * (quad % 2);
    const u32 low = transpose(bf16_pair(sum[4 * j] * w0, sum[4 * j + 1] * w1));
    const u32 high = transpose(bf16_pair(sum[4 * j + 2] * w0, sum[4 * j + 3] * w1));
    const u32 low0 = __shfl_sync(0xffffffffu, low, from);
    const u32 low1 = __shfl_sync(0xffffffffu, low, from + 1);
    const u32 high0 = __shfl_sync(0xffffffffu, high, from);
    const u32 high1 = __shfl_sync(0xffffffffu, high, from + 1);
    const u32 row = 8 * j + lane / 4;
    if (row < (u32)item.rows)
      *(uint2*)(p.rows + (i64)(item.first + (int)row) * p.out_stride + column + 4 * quad) =
          make_uint2(quad < 2 ? low0 : high0, quad < 2 ? low1 : high1);
#endif
#endif
  }
}

// The math warps' side of all items. What the first one needs besides GEMM 1's results is loaded while GEMM 1
// ends.
__device__ __forceinline__ void compute(const StreamParams& p, const Ring& ring, const Work& work,
                                        Item item) {
  TokenValues weights{};
#if GEMM == 2
  if (first_unit() < work.units) weights = router_weights(p, item);
#endif
  dependency_wait();
  if (p.early) launch_dependents();
  u32 at = 0;
  for (u32 unit = first_unit(); unit < work.units;) {
    switch ((item.rows + STEP - 1) / STEP) {
#define RAMP_WIDTH(n)                               \
  case n:                                           \
    run_item<STEP * n>(p, ring, item, weights, at); \
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
#if WIDTH / STEP >= 12
      RAMP_WIDTH(9)
      RAMP_WIDTH(10)
      RAMP_WIDTH(11)
      RAMP_WIDTH(12)
#endif
#undef RAMP_WIDTH
      default:
        __trap();
    }
    unit += unit_stride();
    if (unit < work.units) {
      item = find_item(p, work, unit);
#if GEMM == 2
      weights = router_weights(p, item);
#endif
    }
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
  if (GEMM == 1) dependency_wait();                                        // for the plan
  const u32 slices = HALVES ? 2 * (u32)p.slices : (u32)p.slices / SLICES;  // items per tile
  const Work work = find_work(p, 0, slices);
  Item item;
  if (first_unit() < work.units) item = find_item(p, work, first_unit());
  const u32 warp = threadIdx.x / 32;
  if (warp == kMathThreads / 32) {
    if (threadIdx.x % 32 == 0) bring_weights(p, ring, work, item, 0);
    __syncwarp();
    dependency_wait();
  } else if (warp == kMathThreads / 32 + 1) {
    dependency_wait();
#if ROWS == kRowsPacked
    if (threadIdx.x % 32 == 0) bring_tokens(p, ring, work, item);
#else
    gather_tokens(p, ring, work, item);
#endif
  } else {
    compute(p, ring, work, item);
  }
}
