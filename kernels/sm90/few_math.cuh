// The math warps' main loop of the few-token kernel (few.cu), and what its roles agree on: sizes, pieces of
// work, the ring.
#pragma once

#include "sm90/few_plan.cuh"
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
    FewTile tile = plan.tiles[piece.tile];
    if (second_gemm) tile.tokens = (u16)((1u << rows_of(tile)) - 1u);  // its rows one after the other
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
