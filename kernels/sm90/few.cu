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
// nothing (the instruction has 8 columns at least) and are dropped, and nothing is gathered.
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
#include "sm90/few_values.cuh"
#include "sm90/wgmma.cuh"

constexpr u32 kTile = 16384;  // bytes of a packed weight tile
constexpr u32 kMathThreads = 256;
constexpr u32 kMathWarps = kMathThreads / 32;
constexpr u32 kTokenBytes = WIDTH * 128;
constexpr u32 kStage = kTile + kTokenBytes;
constexpr u32 kScaleBytes = WIDTH * 4;
constexpr u32 kThreads = few_threads(DIRECT, STAGES);
static_assert(WINDOW > 0 && WINDOW <= STAGES, "a copy can only wait for one that has been started");
static_assert(kThreads >= kMathThreads + kFewSlots, "the plan takes a thread per slot");
constexpr u32 kMathBarrier = 1;  // number of the named barrier

// What a slot of the ring holds: step k of a piece. steps 0: there are no more pieces of this GEMM for the
// block; gemm 0: none of any.
struct __align__(16) Piece {
  u32 tile, slice, first, steps, k, gemm, reserved[2];
};
struct Ring {
  u32 tiles, scales;                      // [STAGES]; scales: a float per token
  u32 weights, tokens, announced, empty;  // barriers [STAGES]
  u32 go;                                 // barrier: what GEMM 1's codes are made of is there, then GEMM 2's
  u32 done;                               // barrier: GEMM 2's sums are there
};
struct Announced {
  Piece piece[STAGES];
  float2 factor[STAGES];  // of the weights: gate, up
};

__device__ __forceinline__ u32 parity(u32 at) {
  return at / STAGES & 1;
}

// ---------------------------------------------------------------- math

__device__ __forceinline__ void store_shared(u32 address, u32 v) {
  asm volatile("st.shared.u32 [%0], %1;" ::"r"(address), "r"(v) : "memory");
}
__device__ __forceinline__ void load_pair(float& a, float& b, u32 address) {
  asm volatile("ld.shared.v2.f32 {%0,%1}, [%2];" : "=f"(a), "=f"(b) : "r"(address));
}

// One step of depth 128: its products, and what they are scaled with.
template <int N>
struct Step {
  float part[N / 2], token[N / 4];
  float2 factor;
  __device__ __forceinline__ void start(const Ring& s, const Announced& said, u32 at) {
    const u32 slot = at % STAGES;
    barrier_wait(s.weights + 8 * slot, parity(at));
    barrier_wait(s.tokens + 8 * slot, parity(at));
    const u64 a = descriptor(s.tiles + slot * kStage + threadIdx.x / 128 * 8192);
    const u64 b = descriptor(s.tiles + slot * kStage + kTile);
    wgmma_fence();
#pragma unroll
    for (int j = 0; j < 4; ++j) wgmma<E4m3, N>(part, a + 2 * j, b + 2 * j, j != 0);
    wgmma_commit();
#pragma unroll
    for (int j = 0; j < N / 8; ++j)
      load_pair(token[2 * j], token[2 * j + 1],
                s.scales + slot * kScaleBytes + 4 * (8 * j + 2 * (threadIdx.x % 4)));
    factor = said.factor[slot];
  }
  // After its products have been waited for.
  __device__ __forceinline__ void finish(const Ring& s, u32 at, float (&sum)[N / 2]) {
    u32 loaded = __float_as_uint(factor.x) ^ __float_as_uint(factor.y);
#pragma unroll
    for (int j = 0; j < N / 8; ++j) loaded ^= __float_as_uint(token[2 * j]);
    barrier_arrive_after(s.empty + 8 * (at % STAGES), loaded);
#pragma unroll
    for (int i = 0; i < N / 2; ++i) {
      asm volatile("" : "+f"(part[i]));  // not read above the wait
      sum[i] = fmaf(part[i], (i % 4 >= 2 ? factor.y : factor.x) * token[i / 4 * 2 + i % 2], sum[i]);
    }
  }
};

// This block's pieces of a GEMM (the same code for both: the second time it is there already). `at`: position
// in the ring, counted on.
__device__ __forceinline__ void multiply(const FewParams& p, bool second_gemm, const FewPieces& pieces,
                                         const Ring& s, const Announced& said, const FewPlan& plan, u32& at) {
  constexpr int N = WIDTH;
  const u32 warp = threadIdx.x / 32;
  const u32 lane = threadIdx.x % 32;
  for (;;) {
    barrier_wait(s.weights + 8 * (at % STAGES), parity(at));
    const Piece piece = said.piece[at % STAGES];
    if (piece.steps == 0) {
      barrier_wait(s.tokens + 8 * (at % STAGES), parity(at));
      barrier_arrive(s.empty + 8 * (at % STAGES));
      ++at;
      return;
    }
    // Two steps are under way: while one's products are made, the other's are scaled and added.
    Step<N> even, odd;
    float sum[N / 2];
#pragma unroll
    for (int i = 0; i < N / 2; ++i) sum[i] = 0.0f;
    even.start(s, said, at);
    for (u32 k = 1;; k += 2) {
      if (k == piece.steps) {
        wgmma_wait<0>();
        even.finish(s, at + k - 1, sum);
        break;
      }
      odd.start(s, said, at + k);
      wgmma_wait<1>();
      even.finish(s, at + k - 1, sum);
      if (k + 1 == piece.steps) {
        wgmma_wait<0>();
        odd.finish(s, at + k, sum);
        break;
      }
      even.start(s, said, at + k + 1);
      wgmma_wait<1>();
      odd.finish(s, at + k, sum);
    }
    at += piece.steps;
    const FewTile tile = plan.tiles[piece.tile];
    const u32 columns = second_gemm ? p.hidden : 2 * p.intermediate;
    float* const out =
        (second_gemm ? p.out2 : p.out1) + (u64)(piece.first / pieces.length) * p.slots * columns;
    // This thread's two rows: of GEMM 1 gate and up of one column, of GEMM 2 8 apart.
    const u32 low =
        second_gemm ? piece.slice * 128 + warp * 16 + lane / 4 : piece.slice * 64 + warp * 8 + lane / 4;
    const u32 high = low + (second_gemm ? 8 : p.intermediate);
#pragma unroll
    for (int i = 0; i < N / 2; ++i) {
      const u32 token = 8 * (i / 4) + 2 * (lane % 4) + i % 2;
      if ((tile.tokens >> token & 1) != 0)
        out[(u64)row_of(tile, token) * columns + (i % 4 >= 2 ? high : low)] = sum[i];
    }
  }
}

// ---------------------------------------------------------------- copies

// One lane: takes pieces, announces their steps, brings their weights. Those of GEMM 2 do not wait for
// GEMM 1.
__device__ __forceinline__ void bring_weights(u32 gemm, const FewWeights& w, const FewPieces& pieces,
                                              u32 tiles, u32* ticket, const Ring& s, Announced& said,
                                              const FewPlan& plan, u32& at) {
  const u32 total = tiles * w.slices * pieces.parts;
  u32 number = blockIdx.x;
  for (;;) {
    Piece piece{};
    piece.gemm = gemm;
    const u8* from = nullptr;
    u32 next = 0;
    if (number < total) {
      next = atomicAdd(ticket, 1u);  // comes back while the copies below are started
      const u32 item = number / pieces.parts;
      piece.first = (number - item * pieces.parts) * pieces.length;
      piece.steps = w.steps - piece.first < pieces.length ? w.steps - piece.first : pieces.length;
      piece.tile = item / w.slices;
      piece.slice = item - piece.tile * w.slices;
      from = w.tiles +
             (((u64)plan.tiles[piece.tile].expert * w.slices + piece.slice) * w.steps + piece.first) * kTile;
    }
    const u32 steps = piece.steps == 0 ? 1 : piece.steps;
    for (u32 k = 0; k < steps; ++k, ++at, from += kTile) {
      const u32 slot = at % STAGES;
      if (at >= STAGES) barrier_wait(s.empty + 8 * slot, parity(at) ^ 1);
      piece.k = piece.first + k;
      said.piece[slot] = piece;
      barrier_arrive(s.announced + 8 * slot);
      if (piece.steps == 0) {
        barrier_arrive(s.weights + 8 * slot);
        continue;
      }
      if (at >= WINDOW) barrier_wait(s.weights + 8 * ((at - WINDOW) % STAGES), parity(at - WINDOW));
      barrier_expect(s.weights + 8 * slot, kTile);
      bulk_copy(s.tiles + slot * kStage, from, kTile, s.weights + 8 * slot);
    }
    if (piece.steps == 0) return;
    number = gridDim.x + next;
  }
}
#if DIRECT
// Tells the owners of all slots that there is nothing more.
__device__ __forceinline__ void stop_owners(const Ring& s, Announced& said, u32 at) {
  for (u32 i = 0; i < STAGES; ++i, ++at) {
    const u32 slot = at % STAGES;
    if (at >= STAGES) barrier_wait(s.empty + 8 * slot, parity(at) ^ 1);
    said.piece[slot] = Piece{};
    barrier_arrive(s.announced + 8 * slot);
  }
}
// One warp per slot: the codes and scales of the tokens, made on the spot from x or from GEMM 1's sums, and
// the scales of the weights.
__device__ __forceinline__ void make_tokens(const FewParams& p, const FewPieces& pieces1, const Ring& s,
                                            Announced& said, const FewPlan& plan, u32 slot) {
  const u32 lane = threadIdx.x % 32;
  const u32 to = s.tiles + slot * kStage + kTile;
  bool there = false;  // GEMM 1's sums
  for (u32 at = slot;; at += STAGES) {
    barrier_wait(s.announced + 8 * slot, parity(at));
    const Piece piece = said.piece[slot];
    if (piece.gemm == 0) return;
    if (piece.steps != 0) {
      const bool second = piece.gemm == 2;
      const FewWeights& w = second ? p.w2 : p.w13;
      const FewTile tile = plan.tiles[piece.tile];
      const float* const scales = w.scale + (i64)tile.expert * w.scale_expert +
                                  (i64)(second ? piece.slice : piece.slice / 2) * w.scale_row + piece.k;
      float2 factor;
      factor.x = __ldg(scales);
      factor.y = second ? factor.x : __ldg(scales + (i64)p.up_scale_row * w.scale_row);
#pragma unroll 1
      for (u32 pass = second && !there ? 0 : 1; pass < 2; ++pass) {
        if (second && !there && pass != 0) {
          barrier_wait(s.go, 0);
          there = true;
        }
#pragma unroll 1
        for (u32 left = tile.tokens; left != 0; left &= left - 1) {
          const u32 token = __ffs(left) - 1;
          float scale;
          const u32 codes = second ? encode_h(p, row_of(tile, token), piece.k, pieces1.parts, scale)
                                   : encode_x(p, load_x(p, token, piece.k), scale);
          store_shared(to + token * 128 + ((lane / 4) ^ (token % 8)) * 16 + lane % 4 * 4, codes);
          if (lane == 0) store_shared(s.scales + slot * kScaleBytes + 4 * token, __float_as_uint(scale));
        }
      }
      if (lane == 0) said.factor[slot] = factor;
      proxy_fence();
    }
    barrier_arrive(s.tokens + 8 * slot);
  }
}
#else
// One warp: the codes and scales of the tokens and the scales of the weights, a lane per step of a piece.
// Blocks of `in` per expert: 0 (x is the same for all), or the steps.
template <int GEMM>
__device__ __forceinline__ void bring_tokens(const FewParams& p, const FewWeights& w, const FewCodes& in,
                                             u32 per_tile, const Ring& s, Announced& said,
                                             const FewPlan& plan, u32& at) {
  const u32 lane = threadIdx.x % 32;
  bool there = false;
  for (;;) {
    barrier_wait(s.announced + 8 * (at % STAGES), parity(at));
    const Piece piece = said.piece[at % STAGES];
    __syncwarp();  // all have read it before any lets the ring go on
    if (piece.steps == 0) {
      // A block without a piece of GEMM 1 must not take this phase of `go` for the next.
      if (!there) barrier_wait(s.go, GEMM - 1);
      if (lane == 0) barrier_arrive(s.tokens + 8 * (at % STAGES));
      ++at;
      return;
    }
    float2 factor = make_float2(0.0f, 0.0f);
    if (lane < piece.steps) {
      const float* const scale = w.scale + (i64)plan.tiles[piece.tile].expert * w.scale_expert +
                                 (i64)(GEMM == 1 ? piece.slice / 2 : piece.slice) * w.scale_row +
                                 piece.first + lane;
      factor.x = __ldg(scale);
      factor.y = GEMM == 1 ? __ldg(scale + (i64)p.up_scale_row * w.scale_row) : factor.x;
    }
    if (!there) {
      barrier_wait(s.go, GEMM - 1);
      proxy_fence_global();
      there = true;
    }
    // Whoever's step has been announced goes ahead. A lane looks at its barrier only when those of the round
    // before have passed it, else it might take that round's phase for its own.
    u32 waiting = piece.steps == 32 ? 0xffffffffu : (1u << piece.steps) - 1u;
    while (waiting != 0) {
      const u32 mine = at + lane;
      const bool go = (waiting >> lane & 1) != 0 && lane < __ffs(waiting) - 1 + STAGES &&
                      barrier_test(s.announced + 8 * (mine % STAGES), parity(mine));
      if (go) {
        const u32 slot = mine % STAGES;
        const u64 block = (u64)piece.tile * per_tile + piece.first + lane;
        said.factor[slot] = factor;
        barrier_expect(s.tokens + 8 * slot, kTokenBytes + kScaleBytes);
        bulk_copy(s.tiles + slot * kStage + kTile, in.codes + block * kTokenBytes, kTokenBytes,
                  s.tokens + 8 * slot);
        bulk_copy(s.scales + slot * kScaleBytes, in.scales + block * WIDTH, kScaleBytes, s.tokens + 8 * slot);
      }
      waiting &= ~__ballot_sync(0xffffffffu, go);
    }
    at += piece.steps;
  }
}
#endif

// ---------------------------------------------------------------- the kernel

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
