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
#include "sm90/stream_math.cuh"
#include "sm90/stream_plan.cuh"
#include "sm90/stream_store.cuh"

static_assert(WIDTH % STEP == 0 && WIDTH <= 64, "the switch over widths covers these");
static_assert(STEP == 8, "a case of the switch is 8 token columns wide");
static_assert(SLICES == 1 && !(GEMM == 1 && HALVES), "GEMM 1 has two warpgroups and one slice");

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
