// The epilogues of the stream kernel (stream.cu): activation and GEMM 2's input, or router weight and rows.
#pragma once

#include "common/quotient.cuh"
#include "sm90/stream_math.cuh"

#if GEMM == 1
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
