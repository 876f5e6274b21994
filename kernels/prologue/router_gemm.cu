// Router logits: x [T, H] times w [E, H] transposed, accumulated in fp32, in an order that depends on H alone
// (so a token's logits do not depend on the batch). Columns are taken in chunks of 32 (H is a multiple); the
// 8 warps of a block share the chunks (chunk c to warp c mod 8) and add their sums in the order of the warps.
//
//   MMA  0: any types, CUDA cores; 2 (f16) or 3 (bf16): tensor cores, both operands of that type
//   TOKENS, EXPERTS  the tile of a block: multiples of 16 and 8 with MMA
//
// With MMA fragments come straight from global memory: which of the chunk's 32 columns a fragment register
// holds does not matter as long as x and w agree, so a lane takes 8 consecutive columns (16 bytes) of a row,
// and its quad a chunk. The first half of each lane's columns makes one m16n8k16, the second half another.
#include "params/prologue.hpp"
#include "prologue/ptx.cuh"

using namespace ramp::core::cuda;

constexpr u32 kWarps = 8;
constexpr u32 kChunk = 32;

#if MMA
__device__ __forceinline__ void mma_16x8x16(float (&d)[4], u32 a0, u32 a1, u32 a2, u32 a3, u32 b0, u32 b1) {
#if MMA == 3
  asm("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, "
      "{%0, %1, "
      "%2, %3};"
      : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
      : "r"(a0), "r"(a1), "r"(a2), "r"(a3), "r"(b0), "r"(b1));
#else
  asm("mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, "
      "%1, "
      "%2, %3};"
      : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
      : "r"(a0), "r"(a1), "r"(a2), "r"(a3), "r"(b0), "r"(b1));
#endif
}
__device__ __forceinline__ Words4 load_8(const void* base, i64 at, bool aligned) {
  const u16* const p = static_cast<const u16*>(base) + at;
  if (aligned) return load_words(p);
  Words4 r;
#pragma unroll
  for (u32 i = 0; i < 4; ++i) r.v[i] = (u32)p[2 * i] | ((u32)p[2 * i + 1] << 16);
  return r;
}

extern "C" __global__ void __launch_bounds__(32 * kWarps)
    router_gemm(const __grid_constant__ RouterGemmParams p) {
  constexpr u32 kM = TOKENS / 16;
  constexpr u32 kN = EXPERTS / 8;
  __shared__ float tile[kWarps][16][EXPERTS + 1];
  const u32 lane = threadIdx.x % 32;
  const u32 warp = threadIdx.x / 32;
  const u32 token0 = blockIdx.x * TOKENS;
  const u32 expert0 = blockIdx.y * EXPERTS;
  const u32 row = lane / 4;
  const u32 part = lane % 4 * 8;
  float acc[kM][kN][4] = {};
  dependency_wait();
  launch_dependents();
  // Rows past the end repeat the last one; their sums are not stored.
  const auto x_at = [&](u32 r) {
    const u32 t = token0 + r < p.tokens ? token0 + r : p.tokens - 1;
    return (i64)t * p.x_stride + (i64)part;
  };
  const auto w_at = [&](u32 r) {
    const u32 e = expert0 + r < p.experts ? expert0 + r : p.experts - 1;
    return (i64)e * p.w_stride + (i64)part;
  };
  const u32 chunks = p.hidden / kChunk;
#pragma unroll 2
  for (u32 c = warp; c < chunks; c += kWarps) {
    const i64 column = (i64)c * kChunk;
    Words4 a[kM][2];
    Words4 b[kN];
#pragma unroll
    for (u32 m = 0; m < kM; ++m) {
      a[m][0] = load_8(p.x, x_at(16 * m + row) + column, p.x_aligned != 0);
      a[m][1] = load_8(p.x, x_at(16 * m + row + 8) + column, p.x_aligned != 0);
    }
#pragma unroll
    for (u32 n = 0; n < kN; ++n) b[n] = load_8(p.w, w_at(8 * n + row) + column, p.w_aligned != 0);
#pragma unroll
    for (u32 half = 0; half < 2; ++half) {
#pragma unroll
      for (u32 m = 0; m < kM; ++m) {
#pragma unroll
        for (u32 n = 0; n < kN; ++n) {
          mma_16x8x16(acc[m][n], a[m][0].v[2 * half], a[m][1].v[2 * half], a[m][0].v[2 * half + 1],
                      a[m][1].v[2 * half + 1], b[n].v[2 * half], b[n].v[2 * half + 1]);
        }
      }
    }
  }
  // acc[m][n]: rows 16m + row and + 8, columns 8n + 2 (lane % 4) and the next.
#pragma unroll
  for (u32 m = 0; m < kM; ++m) {
#pragma unroll
    for (u32 n = 0; n < kN; ++n) {
#pragma unroll
      for (u32 i = 0; i < 4; ++i) tile[warp][row + i / 2 * 8][8 * n + lane % 4 * 2 + i % 2] = acc[m][n][i];
    }
    __syncthreads();
    for (u32 i = threadIdx.x; i < 16 * EXPERTS; i += 32 * kWarps) {
      const u32 t = token0 + 16 * m + i / EXPERTS;
      const u32 e = expert0 + i % EXPERTS;
      float sum = 0.0f;
#pragma unroll
      for (u32 w = 0; w < kWarps; ++w) sum += tile[w][i / EXPERTS][i % EXPERTS];
      if (t < p.tokens && e < p.experts) p.logits[(i64)t * p.experts + e] = sum;
    }
    __syncthreads();
  }
}
#else
__device__ __forceinline__ float load_value(const void* base, int dtype, i64 at) {
  if (dtype == 1) return static_cast<const float*>(base)[at];
  const u16 bits = static_cast<const u16*>(base)[at];
  return dtype == 3 ? bf16_to_f32(bits) : f16_to_f32(bits);
}

// A warp takes its chunks' columns with one column per lane; TOKENS x EXPERTS sums per lane.
extern "C" __global__ void __launch_bounds__(32 * kWarps)
    router_gemm(const __grid_constant__ RouterGemmParams p) {
  __shared__ float sums[kWarps][TOKENS * EXPERTS];
  const u32 lane = threadIdx.x % 32;
  const u32 warp = threadIdx.x / 32;
  const u32 token0 = blockIdx.x * TOKENS;
  const u32 expert0 = blockIdx.y * EXPERTS;
  float acc[TOKENS][EXPERTS] = {};
  dependency_wait();
  launch_dependents();
  for (u32 c = warp; c < p.hidden / kChunk; c += kWarps) {
    const i64 column = (i64)c * kChunk + lane;
    float x[TOKENS];
#pragma unroll
    for (u32 t = 0; t < TOKENS; ++t) {
      const u32 at = token0 + t < p.tokens ? token0 + t : p.tokens - 1;
      x[t] = load_value(p.x, p.x_dtype, (i64)at * p.x_stride + column);
    }
#pragma unroll
    for (u32 e = 0; e < EXPERTS; ++e) {
      const u32 at = expert0 + e < p.experts ? expert0 + e : p.experts - 1;
      const float w = load_value(p.w, p.w_dtype, (i64)at * p.w_stride + column);
#pragma unroll
      for (u32 t = 0; t < TOKENS; ++t) acc[t][e] = __fmaf_rn(x[t], w, acc[t][e]);
    }
  }
#pragma unroll
  for (u32 t = 0; t < TOKENS; ++t) {
#pragma unroll
    for (u32 e = 0; e < EXPERTS; ++e) {
      float v = acc[t][e];
#pragma unroll
      for (u32 d = 16; d > 0; d /= 2) v += __shfl_xor_sync(0xffffffffu, v, d);
      if (lane == 0) sums[warp][t * EXPERTS + e] = v;
    }
  }
  __syncthreads();
  if (threadIdx.x >= TOKENS * EXPERTS) return;
  const u32 t = token0 + threadIdx.x / EXPERTS;
  const u32 e = expert0 + threadIdx.x % EXPERTS;
  float sum = 0.0f;
#pragma unroll
  for (u32 w = 0; w < kWarps; ++w) sum += sums[w][threadIdx.x];
  if (t < p.tokens && e < p.experts) p.logits[(i64)t * p.experts + e] = sum;
}
#endif
