// The math warps' main loop of the stream kernel (stream.cu): a step's products and how they are promoted,
// the sums of an item; the layout of shared memory that all of it agrees on.
#pragma once

#include "sm90/stream_copy.cuh"
#include "sm90/wgmma.cuh"

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
