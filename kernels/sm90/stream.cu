// The stream kernel: one GEMM of the expert block at the speed of memory, for experts with few rows
// (fp8_block, sm_90a). Swap-AB: 128 weight rows are wgmma's M side (two warpgroups of 64), up to WIDTH token
// rows its N side, in steps of STEP chosen per tile at run time. Weights come as packed 16 KB tiles by one
// bulk copy each into a ring of STAGES. Each 128-deep step starts its sums from zero and is promoted into
// fp32 with the block scales.
//
//   GEMM    1: w13, SwiGLU and requantisation in the epilogue, which leaves GEMM 2's input packed: a tile's
//              steps one after the other, each its rows of 128 bytes, swizzled, and their scales. 2: w2,
//              router weight, bf16 rows.
//   ACTIVATION  GEMM 1: ramp_activation (0 silu, 1 gelu, 2 gelu_tanh, times up)
//   WIDTH   token rows per tile at most: 8 to 64 in steps of 8
//   STEP    the width of a tile is a multiple of it: 8
//   STAGES  ring depth; BLOCKS: blocks per SM (register budget)
//   HALVES  1: GEMM 2 works on half slices of 64 rows with one warpgroup: more items where there are few
//   OWN_PLAN  1: of few slots GEMM 1's blocks make the plan themselves (stream_plan.cuh)
//
// GEMM 1's blocks run in clusters of two, each with 64 of a group's 128 columns, exchanging the group's amax
// through distributed shared memory. The first warps do math, the last but one brings weights, as far ahead
// as the ring allows, the last one tokens: GEMM 1 gathers them by index with 16-byte copies, swizzled by
// hand; GEMM 2's are one bulk copy a step. The grid is persistent: blocks stride over (tile, slice) items,
// ordered by expert, then slice, then tile, so that an expert's tiles share its weights in L2.
#define WGMMA_E4M3
#define SCALES 1
#if GEMM == 1
#define ROWS kRowsAsync
#else
#define ROWS kRowsPacked
#endif
#include "common/types.cuh"
#include "params/block.hpp"
#include "params/stream.hpp"
#include "sm90/ptx.cuh"
#include "sm90/stream_copy.cuh"
#include "sm90/stream_plan.cuh"
#include "sm90/wgmma.cuh"

static_assert(WIDTH % STEP == 0 && WIDTH <= 64, "the switch over widths covers these");
static_assert(STEP == 8, "a case of the switch is 8 token columns wide");
static_assert(SLICES == 1 && !(GEMM == 1 && HALVES), "GEMM 1 has two warpgroups and one slice");

constexpr u32 kMathWarps = kMathThreads / 32;
constexpr u32 kThreads = kMathThreads + 64;
[[maybe_unused]] constexpr u32 kMathBarrier = 1;  // number of the named barrier
// Widths up to which two steps are under way, as far as registers go.
constexpr int kTwoSteps = BLOCKS > 3 ? 0 : WIDTH* BLOCKS <= 32 ? 16 : WIDTH* BLOCKS <= 64 ? 8 : 0;
constexpr bool kPaired = GEMM == 1;  // a cluster of two blocks shares a group

struct Shared {
  Ring ring;
  u32 amax;      // GEMM 1: [math warp][token]
  u32 scale;     // GEMM 1: [token] scale, its inverse
  u32 remote;    // kPaired: [2][token], the other block's amax
  u32 exchange;  // kPaired: 2 barriers
  u32 plan;      // GEMM 1: the block's own
};

__device__ __forceinline__ void load_pair(float& a, float& b, u32 address) {
  asm volatile("ld.shared.v2.f32 {%0,%1}, [%2];" : "=f"(a), "=f"(b) : "r"(address));
}
__device__ __forceinline__ float load_shared(u32 address) {
  float v;
  asm volatile("ld.shared.f32 %0, [%1];" : "=f"(v) : "r"(address));
  return v;
}
__device__ __forceinline__ void store_shared(u32 address, float v) {
  asm volatile("st.shared.f32 [%0], %1;" ::"r"(address), "f"(v) : "memory");
}

// The scales of an item's weights, a step ahead of their use, since they come from memory.
struct WeightScales {
  const float* next;
  float gate, up;
  __device__ __forceinline__ WeightScales(const StreamParams& p, const Item& item)
      : next(p.weight_scale + (i64)item.expert * p.ws_expert +
             (i64)(GEMM == 1 || HALVES ? item.slice / 2 : item.slice) * p.ws_row) {
    load(p, p.steps > 1);
  }
  __device__ __forceinline__ void load(const StreamParams& p, bool more) {
    gate = __ldg(next);
    up = GEMM == 1 ? __ldg(next + p.up_scale) : gate;
    if (more) ++next;
  }
};

// One step: its products, N token columns, and what they are scaled with. Wide tiles load their token scales
// as they use them: 12 registers fewer, but the slot is held longer.
template <int N>
struct Step {
  static constexpr bool kAhead = N < 56;
  float part[N / 2], token[kAhead ? N / 4 : 2], gate, up;
  __device__ __forceinline__ void start(const StreamParams& p, const Ring& ring, WeightScales& scales, u32 at,
                                        u32 end) {
    gate = scales.gate;
    up = scales.up;
    const u32 slot = at % STAGES;
    barrier_wait(ring.full + 8 * slot, (at / STAGES) & 1);
    if (ROWS == kRowsAsync) proxy_fence();
    const u64 a = descriptor(ring.tiles + slot * kStage + threadIdx.x / 128 * 8192);
    const u64 b = descriptor(ring.tiles + slot * kStage + kPart);
    wgmma_fence();
#pragma unroll
    for (int j = 0; j < 4; ++j) wgmma<E4m3, N>(part, a + 2 * j, b + 2 * j, j != 0);
    wgmma_commit();
    scales.load(p, at + 2 < end);
    if constexpr (kAhead) {
#pragma unroll
      for (int j = 0; j < N / 8; ++j)
        load_pair(token[2 * j], token[2 * j + 1], token_scales(ring, slot) + 32 * j);
    }
  }
  // Once its products have been waited for.
  __device__ __forceinline__ void finish(const Ring& ring, u32 at, float (&sum)[N / 2]) {
    const u32 slot = at % STAGES;
    // The sums are read after the wait, whatever the compiler knows of it.
#pragma unroll
    for (int i = 0; i < N / 2; ++i) asm volatile("" : "+f"(part[i]));
    u32 loaded = 0;  // made from every load of token scales
    if (kAhead) {
#pragma unroll
      for (int j = 0; j < N / 8; ++j) loaded ^= __float_as_uint(token[2 * j]);
      barrier_arrive_after(ring.empty + 8 * slot, loaded);
    }
#pragma unroll
    for (int j = 0; j < N / 8; ++j) {
      if (!kAhead) load_pair(token[0], token[1], token_scales(ring, slot) + 32 * j);
      const float t0 = token[kAhead ? 2 * j : 0];
      const float t1 = token[kAhead ? 2 * j + 1 : 1];
      sum[4 * j + 0] = fmaf(part[4 * j + 0], gate * t0, sum[4 * j + 0]);
      sum[4 * j + 1] = fmaf(part[4 * j + 1], gate * t1, sum[4 * j + 1]);
      sum[4 * j + 2] = fmaf(part[4 * j + 2], up * t0, sum[4 * j + 2]);
      sum[4 * j + 3] = fmaf(part[4 * j + 3], up * t1, sum[4 * j + 3]);
    }
    if constexpr (!kAhead) {
#pragma unroll
      for (int j = 0; j < N / 8; ++j) loaded ^= __float_as_uint(sum[4 * j]);
      barrier_arrive_after(ring.empty + 8 * slot, loaded);
    }
  }
  static __device__ __forceinline__ u32 token_scales(const Ring& ring, u32 slot) {
    return ring.scales + slot * kScaleBytes + threadIdx.x % 4 * 8;
  }
};

// Sums of one item over its depth, N token columns: columns 8j + 2(lane%4) (+1) of rows lane/4 and (4j+2, +3)
// lane/4 + 8 of the warp's 16.
template <int N>
__device__ __forceinline__ void accumulate(const StreamParams& p, const Shared& s, const Item& item, u32& at,
                                           float (&sum)[N / 2]) {
#pragma unroll
  for (int i = 0; i < N / 2; ++i) sum[i] = 0.0f;
  WeightScales scales(p, item);
  const u32 end = at + (u32)p.steps;
  if constexpr (N <= kTwoSteps) {
    // Two steps under way: one's products are made while the other's are scaled and added. Where steps wait
    // for each other rather than for memory, at the end of a GEMM, this is what they take.
    Step<N> even, odd;
    even.start(p, s.ring, scales, at, end);
    for (++at;; at += 2) {
      if (at == end) {
        wgmma_wait<0>();
        even.finish(s.ring, at - 1, sum);
        break;
      }
      odd.start(p, s.ring, scales, at, end);
      wgmma_wait<1>();
      even.finish(s.ring, at - 1, sum);
      if (at + 1 == end) {
        wgmma_wait<0>();
        odd.finish(s.ring, at, sum);
        break;
      }
      even.start(p, s.ring, scales, at + 1, end);
      wgmma_wait<1>();
      odd.finish(s.ring, at, sum);
    }
    at = end;
  } else {
    Step<N> step;
    for (; at != end; ++at) {
      step.start(p, s.ring, scales, at, end);
      wgmma_wait<0>();
      step.finish(s.ring, at, sum);
    }
  }
}

#if GEMM == 1
// Two codes of h / scale, given the inverse of the scale: the division's Newton step, exact where it matters
// (prologue/quantize.cuh: quotient()). Both are 0 for an infinite scale: 0, and NaN where h is not finite.
__device__ __forceinline__ float quotient(float h, float scale, float inverse) {
  const float q = __fmul_rn(h, inverse);
  return __fmaf_rn(__fmaf_rn(-scale, q, h), inverse, q);
}

// Activation, the groups' scales and codes, packed.
template <int N>
__device__ __forceinline__ void finish_item(const StreamParams& p, const Shared& s, const Item& item,
                                            const float (&sum)[N / 2], u32 round, u32 rank) {
  const u32 warp = threadIdx.x / 32;
  const u32 lane = threadIdx.x % 32;
  // This thread's column is 8 * warp + lane/4 of the block's 64; its tokens 8j + 2(lane%4) (+1).
  float h[N / 4];
#pragma unroll
  for (int j = 0; j < N / 8; ++j) {
    h[2 * j] = activate(sum[4 * j], sum[4 * j + 2]);
    h[2 * j + 1] = activate(sum[4 * j + 1], sum[4 * j + 3]);
  }
#pragma unroll
  for (int j = 0; j < N / 4; ++j) {
    float m = fmaxf(fabsf(h[j]), 0.0f);  // a NaN does not count
    m = fmaxf(m, __shfl_xor_sync(0xffffffffu, m, 4));
    m = fmaxf(m, __shfl_xor_sync(0xffffffffu, m, 8));
    m = fmaxf(m, __shfl_xor_sync(0xffffffffu, m, 16));
    if (lane < 4) store_shared(s.amax + 4 * (warp * WIDTH + 8 * (j / 2) + 2 * lane + j % 2), m);
  }
  named_barrier(kMathBarrier, kMathThreads);
  const int group = item.slice / 2;
  const u64 row = packed_row(item);
  if (threadIdx.x < N) {
    float m = 0.0f;
#pragma unroll
    for (u32 w = 0; w < kMathWarps; ++w) m = fmaxf(m, load_shared(s.amax + 4 * (w * WIDTH + threadIdx.x)));
    if (kPaired) {
      // The group's other 64 columns are in the cluster's other block. Buffers and barriers alternate: the
      // partner can be one item ahead at most, since it needs this block's amax of that item.
      const u32 parity = round & 1;
      const u32 bar = s.exchange + 8 * parity;
      const u32 other = s.remote + 4 * (parity * WIDTH + threadIdx.x);
      if (threadIdx.x == 0) barrier_expect(bar, N * 4);
      store_remote(remote_address(other, rank ^ 1), m, remote_address(bar, rank ^ 1));
      barrier_wait_cluster(bar, (round >> 1) & 1);
      m = fmaxf(m, load_shared(other));
    }
    const float scale = amax_scale(m);
    const bool finite = scale < __uint_as_float(0x7f800000u);
    store_shared(s.scale + 8 * threadIdx.x, finite ? scale : 0.0f);
    store_shared(s.scale + 8 * threadIdx.x + 4, finite ? __frcp_rn(scale) : 0.0f);
    if (rank == 0) p.scales[row * (u64)p.scale_out_stride + (u64)((u32)group * N) + threadIdx.x] = scale;
  }
  named_barrier(kMathBarrier, kMathThreads);
  // Where lane l stores columns 2(l%4) and + 1 of the warp's eight, for token l/4 of eight.
  const u32 eight = 8 * rank + warp;
  u8* to = p.codes + row * (u64)p.out_stride +
           (u64)((u32)group * (N * kRowBytes) + lane / 4 * kRowBytes + ((eight / 2) ^ (lane / 4)) * 16 +
                 eight % 2 * 8 + lane % 4 * 2);
#pragma unroll
  for (int j = 0; j < N / 8; ++j) {
    float s0, i0, s1, i1;
    asm volatile("ld.shared.v4.f32 {%0,%1,%2,%3}, [%4];"
                 : "=f"(s0), "=f"(i0), "=f"(s1), "=f"(i1)
                 : "r"(s.scale + 8 * (8 * j + 2 * (lane % 4))));
    const u32 codes = e4m3_pair(quotient(h[2 * j], s0, i0), quotient(h[2 * j + 1], s1, i1));
    const u32 turned = transpose(__byte_perm(codes, 0, 0x4140));
    *(u16*)(to + 8 * j * kRowBytes) = (u16)__byte_perm(turned, 0, 0x4420);
  }
}
#else
// Router weights of an item's tokens lane, lane + 32, ...; before the sums, so that nobody waits for them.
struct TokenWeights {
  float of[(WIDTH + 31) / 32];
  __device__ __forceinline__ void load(const StreamParams& p, const Item& item) {
#pragma unroll
    for (int i = 0; i < (WIDTH + 31) / 32; ++i) {
      const int column = (int)(threadIdx.x % 32) + 32 * i;
      of[i] = 1.0f;
      if (p.slot_weight == nullptr || column >= item.rows) continue;
      const int slot = p.slots[item.first + column];
      const int t = slot / p.top_k;
      of[i] = p.slot_weight[t * p.slot_weight_token + (slot - t * p.top_k) * p.slot_weight_slot];
    }
  }
};

// Times the router weight, rounded to bf16. A warp turns its 16 rows x 8 tokens about and writes 32 bytes per
// token; nothing goes through shared memory, and no warp waits for another.
template <int N>
__device__ __forceinline__ void finish_item(const StreamParams& p, const Item& item,
                                            const float (&sum)[N / 2], const TokenWeights& weights) {
  const u32 warp = threadIdx.x / 32;
  const u32 lane = threadIdx.x % 32;
  const u32 quad = lane % 4;
  // Lane 4t + q stores rows 4q .. 4q+3 of token t: they are in lanes 4t + 2(q%2) (+1), of the upper eight
  // rows from q = 2 on.
  const u32 from = lane - quad + 2 * (quad % 2);
  u16* to = p.rows + (u64)(u32)item.first * (u64)p.out_stride +
            (u64)((u32)item.slice * (HALVES ? 64 : 128) + warp * 16) + (u64)(lane / 4) * (u64)p.out_stride +
            quad * 4;
#pragma unroll
  for (int j = 0; j < N / 8; ++j) {
    const float w0 = __shfl_sync(0xffffffffu, weights.of[j / 4], 8 * (j % 4) + 2 * quad);
    const float w1 = __shfl_sync(0xffffffffu, weights.of[j / 4], 8 * (j % 4) + 2 * quad + 1);
    const u32 low = transpose(bf16_pair(sum[4 * j] * w0, sum[4 * j + 1] * w1));
    const u32 high = transpose(bf16_pair(sum[4 * j + 2] * w0, sum[4 * j + 3] * w1));
    const u32 low0 = __shfl_sync(0xffffffffu, low, from);
    const u32 low1 = __shfl_sync(0xffffffffu, low, from + 1);
    const u32 high0 = __shfl_sync(0xffffffffu, high, from);
    const u32 high1 = __shfl_sync(0xffffffffu, high, from + 1);
    if (8 * j + lane / 4 < (u32)item.rows)
      *(uint2*)(to + (u64)(8 * j) * (u64)p.out_stride) =
          make_uint2(quad < 2 ? low0 : high0, quad < 2 ? low1 : high1);
  }
}
#endif

#if GEMM == 1
struct TokenWeights {
  __device__ __forceinline__ void load(const StreamParams&, const Item&) {}
};
#endif

// The math warps' side of one item with N token columns. Sums live and die in here: merged after the switch
// over N they would go through local memory.
template <int N>
__device__ __forceinline__ void run_item(const StreamParams& p, const Shared& s, const Item& item, u32& at,
                                         const TokenWeights& weights, u32 round, u32 rank) {
  float sum[N / 2];
  accumulate<N>(p, s, item, at, sum);
#if GEMM == 1
  finish_item<N>(p, s, item, sum, round, rank);
#else
  finish_item<N>(p, item, sum, weights);
#endif
}

// The math warps' side of all items. What the first one needs besides GEMM 1's results is loaded while GEMM 1
// ends.
__device__ __forceinline__ void compute(const StreamParams& p, const Shared& s, const Work& work, Item item,
                                        u32 rank) {
  TokenWeights weights;
  if (first_unit() < work.units) {
    weights.load(p, item);
    if (GEMM == 2) {
      const WeightScales warm(p, item);  // to L1
      asm volatile("" ::"f"(warm.gate));
    }
  }
  if (GEMM == 2 || p.beside == 0) dependency_wait();
  if (p.early) launch_dependents();
  u32 at = 0;
  u32 round = 0;
  for (u32 unit = first_unit(); unit < work.units; ++round) {
    if (kPaired) item.slice = 2 * item.slice + (int)rank;
    switch ((item.rows + STEP - 1) / STEP) {
#define RAMP_WIDTH(n)                                         \
  case n:                                                     \
    run_item<STEP * n>(p, s, item, at, weights, round, rank); \
    break;
      RAMP_WIDTH(1)
#if WIDTH / STEP >= 2
      RAMP_WIDTH(2)
#endif
#if WIDTH / STEP >= 3
      RAMP_WIDTH(3)
#endif
#if WIDTH / STEP >= 4
      RAMP_WIDTH(4)
#endif
#if WIDTH / STEP >= 5
      RAMP_WIDTH(5)
#endif
#if WIDTH / STEP >= 6
      RAMP_WIDTH(6)
#endif
#if WIDTH / STEP >= 7
      RAMP_WIDTH(7)
#endif
#if WIDTH / STEP >= 8
      RAMP_WIDTH(8)
#endif
#undef RAMP_WIDTH
    }
    unit += unit_stride();
    if (unit < work.units) {
      item = find_item(p, work, unit);
      weights.load(p, item);
    }
  }
}

#if GEMM == 1
#define CLUSTER __cluster_dims__(2, 1, 1)
#else
#define CLUSTER
#endif

extern "C" __global__ void CLUSTER __launch_bounds__(kThreads, BLOCKS)
    stream(const __grid_constant__ StreamParams p) {
  extern __shared__ __align__(1024) u8 memory[];
  Shared s;
  const u32 base = shared_address(memory);
  s.scale = base + kRingBytes;
  s.amax = s.scale + (GEMM == 1 ? 8 * WIDTH : 0);
  s.remote = s.amax + (GEMM == 1 ? 4 * kMathWarps * WIDTH : 0);
  const u32 barriers = s.remote + (kPaired ? 2 * 4 * WIDTH : 0);
  s.ring = make_ring(base, barriers);
  s.exchange = barriers + 16 * STAGES;
  s.plan = s.exchange + 16;                       // OWN_PLAN: kOwnPlanBytes
  const u32 rank = kPaired ? blockIdx.x % 2 : 0;  // in its cluster; held in no register
  const u32 warp = threadIdx.x / 32;
  if (threadIdx.x == 0) {
    init_ring(s.ring);
    barrier_init(s.exchange, 1);
    barrier_init(s.exchange + 8, 1);
    barrier_init_fence();
  }
  const bool own = OWN_PLAN && p.own.slots != 0;
  // The ids are older than the prologue's launch, and thus than this one.
  if (own && warp == kMathWarps) make_own_plan(p, s.plan);
  if (kPaired)
    cluster_sync();
  else
    __syncthreads();
  if (GEMM == 1 && !own && p.beside == 0) dependency_wait();  // for the plan
  const u32 slices = (kPaired ? (u32)p.slices / 2 : HALVES ? 2 * (u32)p.slices : (u32)p.slices);
  const Work work = find_work(p, own ? s.plan : 0, slices);
  Item item;
  if (first_unit() < work.units) item = find_item(p, work, first_unit());
  if (warp == kMathWarps) {
    if (threadIdx.x % 32 == 0) bring_weights(p, s.ring, work, item, rank);
    __syncwarp();
    if (GEMM == 2 || p.beside == 0) dependency_wait();
  } else if (warp == kMathWarps + 1) {
    if (GEMM == 2 || p.beside == 0) dependency_wait();
#if GEMM == 1
    gather_tokens(p, s.ring, work, item);
#else
    if (threadIdx.x % 32 == 0) bring_tokens(p, s.ring, work, item);
#endif
  } else {
    compute(p, s, work, item, rank);
  }
  if (kPaired) cluster_sync();  // no block leaves while its partner may still write to it
  // Whoever waits for this kernel has waited for those in front of it.
  if (GEMM == 1 && p.beside != 0) dependency_wait();
}
