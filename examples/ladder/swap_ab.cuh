// Swap-AB: weights are wgmma's M side (two warpgroups of 64 rows), tokens its N side, N = 8, 16, 24 or 32.
// The main loop and the store of rungs 4 to 6. Thread (warp w of 8, lane l) holds weight rows 16w + l/4
// (gate: d[4j], d[4j+1]) and 8 below (up: d[4j+2], d[4j+3]) for tokens 8j + 2(l%4) and the next: column 8w +
// l/4 of the slice's 64.
#pragma once

#define WGMMA_E4M3
#include "ladder/common.cuh"
constexpr u32 kMathThreads = 256;
constexpr u32 kThreads = kMathThreads + 64;
#include "ladder/ring.cuh"
#include "sm90/wgmma.cuh"

__device__ __forceinline__ void load_pair(float& a, float& b, u32 address) {
  asm volatile("ld.shared.v2.f32 {%0,%1}, [%2];" : "=f"(a), "=f"(b) : "r"(address));
}

// The sums of one unit over its steps of depth, N tokens wide.
template <int N>
__device__ __forceinline__ void multiply(const Params& p, const Ring& ring, const Unit& unit, u32& at,
                                         float (&sum)[N / 2]) {
  const u32 half = threadIdx.x / 128 * (kTileBytes / 2);  // this warpgroup's 64 rows
  const WeightScales scale = weight_scales(p, unit.tile.expert, unit.slice);
#pragma unroll
  for (int i = 0; i < N / 2; ++i) sum[i] = 0.0f;
  float gate = __ldg(scale.gate + unit.begin);
  float up = __ldg(scale.gate + unit.begin + scale.up);
  for (u32 k = unit.begin; k < unit.end; ++k, ++at) {
    // A step ahead, since these come from global memory.
    const u32 next = k + 1 < unit.end ? k + 1 : k;
    const float next_gate = __ldg(scale.gate + next);
    const float next_up = __ldg(scale.gate + next + scale.up);
    ring.wait_full(at);
    const u64 a = descriptor(ring.weights(at) + half);
    const u64 b = descriptor(ring.tokens(at));
    float part[N / 2];
    wgmma_fence();
#pragma unroll
    for (int j = 0; j < 4; ++j) wgmma<E4m3, N>(part, a + 2 * j, b + 2 * j, j != 0);
    wgmma_commit();
    float token[N / 4];
    u32 loaded = 0;  // made from every load of token scales
#pragma unroll
    for (int j = 0; j < N / 8; ++j) {
      load_pair(token[2 * j], token[2 * j + 1], ring.token_scales(at) + 4 * (8 * j + 2 * (threadIdx.x % 4)));
      loaded ^= __float_as_uint(token[2 * j]);
    }
    wgmma_wait<0>();
    // The sums are read after the wait, whatever the compiler knows of it.
#pragma unroll
    for (int i = 0; i < N / 2; ++i) asm volatile("" : "+f"(part[i]));
    ring.release(at, loaded);
#pragma unroll
    for (int j = 0; j < N / 8; ++j) {
#pragma unroll
      for (int i = 0; i < 2; ++i) {
        sum[4 * j + i] = fmaf(part[4 * j + i], gate * token[2 * j + i], sum[4 * j + i]);
        sum[4 * j + 2 + i] = fmaf(part[4 * j + 2 + i], up * token[2 * j + i], sum[4 * j + 2 + i]);
      }
    }
    gate = next_gate;
    up = next_up;
  }
}

// One element of h: token row `t` of the tile.
__device__ __forceinline__ void store_one(const Params& p, const Unit& unit, u32 t, float gate, float up) {
  if (t >= (u32)unit.tile.rows) return;
  const u32 column = unit.slice * kColumns + threadIdx.x / 32 * 8 + threadIdx.x % 32 / 4;
  p.h[(u64)(unit.tile.first + t) * p.intermediate + column] = f32_to_bf16(silu_times(gate, up));
}

template <int N>
__device__ __forceinline__ void store(const Params& p, const Unit& unit, const float (&sum)[N / 2]) {
#pragma unroll
  for (int j = 0; j < N / 8; ++j)
#pragma unroll
    for (int i = 0; i < 2; ++i)
      store_one(p, unit, 8 * j + 2 * (threadIdx.x % 4) + i, sum[4 * j + i], sum[4 * j + 2 + i]);
}
