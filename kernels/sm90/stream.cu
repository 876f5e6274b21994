// The stream kernel: one GEMM of the expert block at the speed of memory, for experts with few rows
// (fp8_block, sm_90a). Swap-AB: 128 weight rows are wgmma's M side (two warpgroups of 64), up to WIDTH token
// rows its N side, in steps of 8 chosen per tile at run time. Weights come as packed 16 KB tiles by one bulk
// copy each into a ring of STAGES; token rows are gathered by index with 16-byte copies and swizzled by hand.
// Each 128-deep step starts its sums from zero and is promoted into fp32 with the block scales.
//
//   GEMM    1: w13, SwiGLU and requantisation in the epilogue; blocks run in clusters of two, each with 64 of
//   a group's 128
//              columns, exchanging the group's amax through distributed shared memory. 2: w2, router weight,
//              bf16 rows.
//   ACTIVATION  GEMM 1: ramp_activation (0 silu, 1 gelu, 2 gelu_tanh, times up)
//   WIDTH   token rows per tile at most: 8, 32, 64, 128
//   STEP    the width of a tile is a multiple of it: 8, or 16 where 16 cases of wgmma would take NVRTC too
//   long STAGES  ring depth; BLOCKS: blocks per SM (register budget)
//
// Warps 0-7 do math, warp 8 brings weights, as far ahead as the ring allows, warp 9 gathers tokens. The grid
// is persistent: blocks stride over (tile, slice) items, ordered by expert, then slice, then tile, so that an
// expert's tiles share its weights in L2.
#define WGMMA_E4M3
#define SCALES 1
#include "common/types.cuh"
#include "params/block.hpp"
#include "params/stream.hpp"
#include "sm90/ptx.cuh"
#include "sm90/stream_copy.cuh"
#include "sm90/stream_items.cuh"
#include "sm90/wgmma.cuh"

constexpr u32 kOutPitch =
    GEMM == 1 ? 64 + 16 : 256 + 16;  // bytes per token row of the staged output; no bank conflicts

struct Shared {
  Ring ring;
  u32 out, amax, own, remote, exchange;
};

__device__ __forceinline__ void load_pair(float& a, float& b, u32 address) {
  asm volatile("ld.shared.v2.f32 {%0,%1}, [%2];" : "=f"(a), "=f"(b) : "r"(address));
}
// The math warps' side of one item with N token columns.
template <int N>
__device__ __forceinline__ void run_item(const StreamParams& p, const Shared& s, const Item& item, u32& at,
                                         u32 round, u32 rank) {
  const u32 group = threadIdx.x / 128;
  const u32 warp = threadIdx.x / 32;
  const u32 lane = threadIdx.x % 32;
  float sum[N / 2];
#pragma unroll
  for (int i = 0; i < N / 2; ++i) sum[i] = 0.0f;

  const float* gate_scale = p.weight_scale + (i64)item.expert * p.ws_expert +
                            (i64)(GEMM == 1 ? item.slice / 2 : item.slice) * p.ws_row;
  const float* up_scale = gate_scale + (GEMM == 1 ? (i64)p.up_scale_row * p.ws_row : 0);
  float gate = __ldg(gate_scale);
  float up = GEMM == 1 ? __ldg(up_scale) : gate;
  for (int k = 0; k < p.steps; ++k, ++at) {
    const int next = k + 1 < p.steps ? k + 1 : k;
    const float next_gate = __ldg(gate_scale + next);
    const float next_up = GEMM == 1 ? __ldg(up_scale + next) : next_gate;
    const u32 slot = at % STAGES;
    barrier_wait(s.ring.full + 8 * slot, (at / STAGES) & 1);
    const u64 a = descriptor(s.ring.tiles + slot * kStage + group * 8192);
    const u64 b = descriptor(s.ring.tiles + slot * kStage + kTile);
    float part[N / 2];
    wgmma_fence();
#pragma unroll
    for (int j = 0; j < 4; ++j) wgmma<E4m3, N>(part, a + 2 * j, b + 2 * j, j != 0);
    wgmma_commit();
    float token[N < 64 ? N / 4 : 2];
    if (N < 64) {
#pragma unroll
      for (int j = 0; j < (N < 64 ? N / 8 : 0); ++j)
        load_pair(token[2 * j], token[2 * j + 1],
                  s.ring.scales + slot * kScaleBytes + 4 * (8 * j + 2 * (lane % 4)));
    }
    wgmma_wait<0>();
    if (N < 64) release(s.ring, slot);
#pragma unroll
    for (int j = 0; j < N / 8; ++j) {
      // Wide tiles load their token scales as they use them: 16 registers fewer, but the slot is held longer.
      if (N >= 64)
        load_pair(token[0], token[1], s.ring.scales + slot * kScaleBytes + 4 * (8 * j + 2 * (lane % 4)));
      const float t0 = token[N < 64 ? 2 * j : 0];
      const float t1 = token[N < 64 ? 2 * j + 1 : 1];
      sum[4 * j + 0] = fmaf(part[4 * j + 0], gate * t0, sum[4 * j + 0]);
      sum[4 * j + 1] = fmaf(part[4 * j + 1], gate * t1, sum[4 * j + 1]);
      sum[4 * j + 2] = fmaf(part[4 * j + 2], up * t0, sum[4 * j + 2]);
      sum[4 * j + 3] = fmaf(part[4 * j + 3], up * t1, sum[4 * j + 3]);
    }
    if (N >= 64) release(s.ring, slot);
    gate = next_gate;
    up = next_up;
  }

#if GEMM == 1
  // h of this thread: column 8q + lane/4 of the slice, q = warp; tokens 8j + 2(lane%4) (+1).
  float h[N / 4];
#pragma unroll
  for (int j = 0; j < N / 8; ++j) {
    h[2 * j] = activate(sum[4 * j], sum[4 * j + 2]);
    h[2 * j + 1] = activate(sum[4 * j + 1], sum[4 * j + 3]);
  }
#pragma unroll
  for (int j = 0; j < N / 4; ++j) {
    float m = fabsf(h[j]);
    if (!(m == m)) m = 0.0f;  // a NaN does not count
    m = fmaxf(m, __shfl_xor_sync(0xffffffffu, m, 4));
    m = fmaxf(m, __shfl_xor_sync(0xffffffffu, m, 8));
    m = fmaxf(m, __shfl_xor_sync(0xffffffffu, m, 16));
    if (lane < 4) {
      asm volatile(
          "st.shared.f32 [%0], %1;" ::"r"(s.amax + 4 * (warp * WIDTH + 8 * (j / 2) + 2 * lane + j % 2)),
          "f"(m)
          : "memory");
    }
  }
  named_barrier(1, kMathThreads);
  // The group's other 64 columns are in the cluster's other block. Buffers and barriers alternate: the
  // partner can be one item ahead at most, since it needs this block's amax of that item.
  const u32 parity = round & 1;
  const u32 bar = s.exchange + 8 * parity;
  if (threadIdx.x < N) {
    float m = 0.0f;
#pragma unroll
    for (u32 w = 0; w < 8; ++w) {
      float v;
      asm volatile("ld.shared.f32 %0, [%1];" : "=f"(v) : "r"(s.amax + 4 * (w * WIDTH + threadIdx.x)));
      m = fmaxf(m, v);
    }
    asm volatile("st.shared.f32 [%0], %1;" ::"r"(s.own + 4 * threadIdx.x), "f"(m) : "memory");
    if (threadIdx.x == 0) barrier_expect(bar, N * 4);
    store_remote(remote_address(s.remote + 4 * (parity * WIDTH + threadIdx.x), rank ^ 1), m,
                 remote_address(bar, rank ^ 1));
  }
  barrier_wait_cluster(bar, (round >> 1) & 1);
  named_barrier(1, kMathThreads);
#pragma unroll
  for (int j = 0; j < N / 4; ++j) {
    const u32 column = 8 * (j / 2) + 2 * (lane % 4) + j % 2;
    float mine, other;
    asm volatile("ld.shared.f32 %0, [%1];" : "=f"(mine) : "r"(s.own + 4 * column));
    asm volatile("ld.shared.f32 %0, [%1];" : "=f"(other) : "r"(s.remote + 4 * (parity * WIDTH + column)));
    const u32 q = f32_to_e4m3(__fdiv_rn(h[j], amax_scale(fmaxf(mine, other))));
    asm volatile("st.shared.u8 [%0], %1;" ::"r"(s.out + column * kOutPitch + warp * 8 + lane / 4), "r"(q)
                 : "memory");
  }
  if (rank == 0 && threadIdx.x < (u32)item.rows) {
    float mine, other;
    asm volatile("ld.shared.f32 %0, [%1];" : "=f"(mine) : "r"(s.own + 4 * threadIdx.x));
    asm volatile("ld.shared.f32 %0, [%1];"
                 : "=f"(other)
                 : "r"(s.remote + 4 * (parity * WIDTH + threadIdx.x)));
    p.scales[(i64)(item.first + (int)threadIdx.x) * p.scale_out_stride + item.slice / 2] =
        amax_scale(fmaxf(mine, other));
  }
  named_barrier(1, kMathThreads);
  for (u32 c = threadIdx.x; c < (u32)item.rows * 4; c += kMathThreads) {
    const u32 row = c / 4;
    const u32 part16 = c % 4;
    uint4 v;
    asm volatile("ld.shared.v4.u32 {%0,%1,%2,%3}, [%4];"
                 : "=r"(v.x), "=r"(v.y), "=r"(v.z), "=r"(v.w)
                 : "r"(s.out + row * kOutPitch + part16 * 16));
    *(uint4*)(p.codes + (i64)(item.first + (int)row) * p.out_stride + item.slice * 64 + part16 * 16) = v;
  }
#else
  // Columns of W2's slice are warpgroup rows: lane/4 and lane/4 + 8 of the warp's 16.
#pragma unroll
  for (int j = 0; j < N / 4; ++j) {
    const u32 column = 8 * (j / 2) + 2 * (lane % 4) + j % 2;
    float weight = 1.0f;
    if (p.slot_weight != nullptr && column < (u32)item.rows) {
      const int slot = p.slots[item.first + (int)column];
      const int t = slot / p.top_k;
      weight = p.slot_weight[t * p.slot_weight_token + (slot - t * p.top_k) * p.slot_weight_slot];
    }
    const float low = sum[4 * (j / 2) + j % 2];
    const float high = sum[4 * (j / 2) + 2 + j % 2];
    const u32 to = s.out + column * kOutPitch + 2 * (warp * 16 + lane / 4);
    asm volatile("st.shared.u16 [%0], %1;" ::"r"(to),
                 "h"(f32_to_bf16(p.slot_weight != nullptr ? low * weight : low))
                 : "memory");
    asm volatile("st.shared.u16 [%0], %1;" ::"r"(to + 16),
                 "h"(f32_to_bf16(p.slot_weight != nullptr ? high * weight : high))
                 : "memory");
  }
  named_barrier(1, kMathThreads);
  for (u32 c = threadIdx.x; c < (u32)item.rows * 16; c += kMathThreads) {
    const u32 row = c / 16;
    const u32 part16 = c % 16;
    uint4 v;
    asm volatile("ld.shared.v4.u32 {%0,%1,%2,%3}, [%4];"
                 : "=r"(v.x), "=r"(v.y), "=r"(v.z), "=r"(v.w)
                 : "r"(s.out + row * kOutPitch + part16 * 16));
    *(uint4*)(p.rows + (i64)(item.first + (int)row) * p.out_stride + item.slice * 128 + part16 * 8) = v;
  }
  named_barrier(1, kMathThreads);  // the staging is free for the next item
#endif
}

#if GEMM == 1
#define CLUSTER __cluster_dims__(2, 1, 1)
#else
#define CLUSTER
#endif

extern "C" __global__ void CLUSTER __launch_bounds__(320, BLOCKS)
    stream(const __grid_constant__ StreamParams p) {
  extern __shared__ __align__(1024) u8 memory[];
  Shared s;
  const u32 base = shared_address(memory);
  s.out = base + kRingBytes;
  s.amax = s.out + WIDTH * kOutPitch;
  s.own = s.amax + (GEMM == 1 ? 8 * WIDTH * 4 : 0);
  s.remote = s.own + (GEMM == 1 ? WIDTH * 4 : 0);
  const u32 barriers = s.remote + (GEMM == 1 ? 2 * WIDTH * 4 : 0);
  s.ring = make_ring(base, barriers);
  s.exchange = barriers + 16 * STAGES;
  const u32 rank = GEMM == 1 ? cluster_rank() : 0;
  if (threadIdx.x == 0) {
    init_ring(s.ring);
    barrier_init(s.exchange, 1);
    barrier_init(s.exchange + 8, 1);
    barrier_init_fence();
  }
  if (GEMM == 1)
    cluster_sync();
  else
    __syncthreads();
#if GEMM == 1
  dependency_wait();
  if (p.early) launch_dependents();
#endif
  const u32 slices = GEMM == 1 ? (u32)p.slices / 2 : (u32)p.slices;
  const u32 units = (u32)*p.num_tiles * slices;
  const u32 first = GEMM == 1 ? blockIdx.x / 2 : blockIdx.x;
  const u32 stride = GEMM == 1 ? gridDim.x / 2 : gridDim.x;
  const u32 warp = threadIdx.x / 32;
  if (warp == 8) {
    if (threadIdx.x % 32 == 0) bring_weights(p, s.ring, first, stride, units, slices, rank);
    __syncwarp();
    if (GEMM == 2) dependency_wait();
  } else if (warp == 9) {
    if (GEMM == 2) dependency_wait();
    gather_tokens(p, s.ring, first, stride, units, slices);
  } else {
#if GEMM == 2
    dependency_wait();
    if (p.early) launch_dependents();
#endif
    u32 at = 0;
    u32 round = 0;
    for (u32 unit = first; unit < units; unit += stride, ++round) {
      Item item = find_item(p, unit, slices);
      if (GEMM == 1) item.slice = 2 * item.slice + (int)rank;
      switch ((item.rows + STEP - 1) / STEP) {
#define RAMP_WIDTH(n)                                \
  case n:                                            \
    run_item<STEP * n>(p, s, item, at, round, rank); \
    break;
        RAMP_WIDTH(1)
#if WIDTH / STEP >= 4
        RAMP_WIDTH(2)
        RAMP_WIDTH(3)
        RAMP_WIDTH(4)
#endif
#if WIDTH / STEP >= 8
        RAMP_WIDTH(5)
        RAMP_WIDTH(6)
        RAMP_WIDTH(7)
        RAMP_WIDTH(8)
#endif
#undef RAMP_WIDTH
      }
    }
  }
  if (GEMM == 1) cluster_sync();  // no block leaves while its partner may still write to it
}
