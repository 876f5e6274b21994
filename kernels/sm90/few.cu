// The few-token kernel: the expert block for T <= WIDTH tokens and T*k <= 128 in one launch (fp8_block,
// sm_90a, packed weights), so that weights never stop coming. One block per SM; every block makes the plan
// from the ids (few_plan.cuh). Items (128 weight rows of an active expert) are cut into pieces of equal
// depth, and whichever block is free takes the next piece: SMs differ in what they get of the memory's
// bandwidth. A piece's sums have a place of their own, and whoever reads them adds an item's up in order of
// depth: the bits do not depend on who did what. Barriers over the grid lie between the stages; the ring of
// weights runs ahead over them.
//
//   x -> codes | GEMM 1 -> sums | act(gate) * up -> codes | GEMM 2 -> sums | y
//
// All tokens are wgmma's N side for every expert: an expert's products with tokens that are not its own cost
// nothing (the instruction has 8 columns at least) and are dropped, and nothing is gathered. (In GEMM 2 they
// are the expert's own.) What shared memory holds in the columns behind them does not matter either.
//
//   DIRECT  1: for the very fewest tokens: no stages for codes, they are made where they are used, again by
//   every block
//           that needs them: a warp per slot of the ring makes codes of x, or of GEMM 1's sums, on the spot
//   WIDTH   tokens at most: 8 or 16
//   STAGES  ring depth
//   WINDOW  copies of weights under way at most: more of them only make everybody's other requests wait
//
// Warps 0-7 do math and everything between the GEMMs. Warps 8-11 make the plan while those convert x; then
// one lane of warp 8 takes pieces and brings their weights, and warp 9 (DIRECT: the slots' warps) the codes
// and scales that go with them. What is short and runs once, between two barriers, takes longer to fetch than
// to run: such code runs once without effect while its warps would wait.
#define WGMMA_E4M3
#include "sm90/few_copy.cuh"
#include "sm90/few_math.cuh"
#include "sm90/few_values.cuh"

// The grid's barrier for the math threads: all of their writes come before it, ASYNC: for asynchronous copies
// too. Thread 0 alone waits, and for every one of them: whoever left one out might find the word as it was
// two before.
template <bool ASYNC>
__device__ __forceinline__ void math_arrive(const FewParams& p) {
  if (ASYNC) proxy_fence_global();
  named_barrier(kMathBarrier, kMathThreads);
  if (threadIdx.x == 0) grid_arrive(p.barrier);
}
// What the block's other warps wait for is told by `bar`; 0: nobody does. The math warps wait only where
// `all`.
__device__ __forceinline__ void math_wait(const FewParams& p, u32 number, u32 bar, bool all) {
  if (threadIdx.x == 0) {
    grid_wait(p.barrier, number);
    if (bar != 0) barrier_arrive(bar);
  }
  if (all)
    named_barrier(kMathBarrier, kMathThreads);
  else
    __syncwarp();
}

// y, by all warps: those that are free before the math warps first. `done`: to be waited for; 0: it has been.
__device__ __forceinline__ void combine_strips(const FewParams& p, const FewPlan& plan, u32 parts, u32 warp,
                                               u32 done) {
  const u32 strips = p.hidden / kStrip;
  const u32 first = (kThreads / 32 - 1 - warp) * gridDim.x + blockIdx.x;
#pragma unroll 1
  for (u32 pass = done == 0 ? 1 : 0; pass < 2; ++pass) {
    if (pass != 0 && done != 0) barrier_wait(done, 0);
    for (u32 i = first; i < p.tokens * strips; i += kThreads / 32 * gridDim.x) {
      const u32 token = i / strips;
      combine(p, plan, token, i - token * strips, parts, pass != 0);
      if (pass == 0) break;
    }
  }
}

extern "C" __global__ void __launch_bounds__(kThreads, 1) few(const __grid_constant__ FewParams p) {
  extern __shared__ __align__(1024) u8 memory[];
  __shared__ __align__(16) FewPlan plan;
  __shared__ Announced said;
  Ring s;
  s.tiles = shared_address(memory);
  s.scales = s.tiles + STAGES * kStage;
  s.weights = s.scales + STAGES * kScaleBytes;
  s.tokens = s.weights + 8 * STAGES;
  s.announced = s.tokens + 8 * STAGES;
  s.empty = s.announced + 8 * STAGES;
  s.go = s.empty + 8 * STAGES;
  s.done = s.go + 8;
  if (threadIdx.x == 0) {
    for (u32 i = 0; i < STAGES; ++i) {
      barrier_init(s.weights + 8 * i, 1);
      barrier_init(s.tokens + 8 * i, DIRECT ? 32 : 1);
      barrier_init(s.announced + 8 * i, 1);
      barrier_init(s.empty + 8 * i, kMathThreads);
    }
    barrier_init(s.go, 1);
    barrier_init(s.done, 1);
    barrier_init_fence();
  }
  prefetch_inputs(p, kThreads);
  __syncthreads();  // the barriers are there
  dependency_wait();
  launch_dependents();
  const u32 warp = threadIdx.x / 32;
#if !DIRECT
  // Units of work between the GEMMs go to all blocks' first warps, then to their second ones, ...
  const u32 first = warp * gridDim.x + blockIdx.x;
  const u32 stride = kMathWarps * gridDim.x;
  if (warp < kMathWarps) {
    for (u32 i = first; i < p.tokens * p.w13.steps; i += stride) {
      const u32 token = i / p.w13.steps;
      convert_x(p, token, i - token * p.w13.steps);
    }
    math_arrive<true>(p);
  }
#endif
  const bool plans = warp >= kMathWarps && warp < kMathWarps + kFewSlots / 32;
  if (plans) make_plan(p, plan, threadIdx.x - kMathThreads, blockIdx.x == 0);
  // The plan's warps go on at once, the others when it is there.
  const u32 tiles = plan_ready(plan, !plans, kThreads);
  const FewCut cut = cut_items(p, tiles);
  u32* const tickets = p.barrier + kFewTickets;
  if (warp >= kMathWarps) {
    if (warp == kMathWarps) {
      if (threadIdx.x % 32 == 0) {
        u32 at = 0;
#pragma unroll 1
        for (u32 gemm = 1; gemm <= 2; ++gemm)
          bring_weights(gemm, gemm == 1 ? p.w13 : p.w2, gemm == 1 ? cut.gemm1 : cut.gemm2, tiles,
                        tickets + (gemm - 1) * kFewTickets, s, said, plan, at);
#if DIRECT
        stop_owners(s, said, at);
#endif
      }
      __syncwarp();
    }
#if DIRECT
    if (warp > kMathWarps) make_tokens(p, cut.gemm1, s, said, plan, warp - kMathWarps - 1);
#else
    if (warp == kMathWarps + 1) {
      u32 at = 0;
      bring_tokens<1>(p, p.w13, p.in1, 0, s, said, plan, at);
      bring_tokens<2>(p, p.w2, p.in2, p.w2.steps, s, said, plan, at);
    }
#endif
    combine_strips(p, plan, cut.gemm2.parts, warp, s.done);
    return;
  }

  u32 at = 0;
#if !DIRECT
  math_wait(p, 0, s.go, false);
#endif
#pragma unroll 1
  for (u32 gemm = 1; gemm <= 2; ++gemm) {
    multiply(p, gemm == 2, gemm == 1 ? cut.gemm1 : cut.gemm2, s, said, plan, at);
    math_arrive<false>(p);
    if (gemm == 2) break;
#if DIRECT
    math_wait(p, 0, s.go, false);
#else
#pragma unroll 1
    for (u32 pass = 0; pass < 2; ++pass) {
      if (pass != 0) math_wait(p, 1, 0, true);
      for (u32 i = first; i < p.slots * p.w2.steps; i += stride) {
        const u32 row = i / p.w2.steps;
        convert_h(p, plan, row, i - row * p.w2.steps, cut.gemm1.parts, pass != 0);
        if (pass == 0) break;
      }
    }
    math_arrive<true>(p);
    math_wait(p, 2, s.go, false);
#endif
  }
  math_wait(p, DIRECT ? 1 : 3, s.done, true);
  combine_strips(p, plan, cut.gemm2.parts, warp, 0);
  // All pieces have been taken, by everyone.
  if (blockIdx.x == 0 && threadIdx.x < 2) tickets[threadIdx.x * kFewTickets] = 0;
}
