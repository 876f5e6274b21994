// The epilogues of prefill_flat.cu: activation and h in the type that GEMM 2 reads, or router weight and
// rows. The same bits as stream_flat.cu's.
#pragma once

#include "sm90/flat_silu.cuh"
#include "sm90/prefill_flat_math.cuh"
#include "sm90/prefill_store.cuh"

constexpr u32 kFlatStaging = 4096;  // per math warp: 16 rows of 256 bytes

__device__ __forceinline__ void store_pair(float* address, float a, float b) {
  asm volatile("st.global.v2.f32 [%0], {%1,%2};" ::"l"(address), "f"(a), "f"(b) : "memory");
}
__device__ __forceinline__ u32 half_pair(float low, float high) {
  return FORMAT == 3 ? f16_pair(low, high) : bf16_pair(low, high);
}

#if GEMM == 1 && FORMAT == 6
// fp32 rows in sorted order: their scale is that of the whole row.
template <int SLICES>
__device__ __forceinline__ void store_h(const PrefillParams& p, const Shared&, const Item& item, u32 group,
                                        float (&sum)[64 * SLICES]) {
  const u32 row = warp_row<SLICES>(group) + threadIdx.x % 32 / 4;
#pragma unroll
  for (int i = 0; i < SLICES; ++i) {
    const u32 slice = 2 * (u32)item.pair + (SLICES == 2 ? i : group);
    if (slice >= (u32)p.slices) break;
    float* const to =
        (float*)p.h + (i64)(item.first + (int)row) * p.out_stride + slice * 64 + threadIdx.x % 4 * 2;
#pragma unroll
    for (int q = 0; q < 8; ++q) {
      const float* const v = &sum[64 * i + 8 * q];
      const float h[4] = {gated(v[0], v[4]), gated(v[1], v[5]), gated(v[2], v[6]), gated(v[3], v[7])};
      if (row < (u32)item.rows) store_pair(to + 8 * q, h[0], h[1]);
      if (row + 8 < (u32)item.rows) store_pair(to + 8 * p.out_stride + 8 * q, h[2], h[3]);
    }
  }
}
#elif GEMM == 1 && FORMAT == 5
// Codes by the static scale, packed. A slice has half of a row's 128 bytes.
template <int SLICES>
__device__ __forceinline__ void store_h(const PrefillParams& p, const Shared& s, const Item& item, u32 group,
                                        float (&sum)[64 * SLICES]) {
  const u32 lane = threadIdx.x % 32;
  const u32 base = warp_row<SLICES>(group);
  const u32 staging = s.staging + threadIdx.x / 32 * kFlatStaging;
  bulk_wait_read();  // the staging is free again
  __syncwarp();
  float scale = p.h_static;
  // The quotient's shortcut wants ordinary scales, and magnitudes of at most 1025 of them (448 saturates).
  const bool plain = !(scale >= 0x1p-60f && scale <= 0x1p60f);
  float h[32 * SLICES];
#pragma unroll
  for (int q = 0; q < 8 * SLICES; ++q)
#pragma unroll
    for (int c = 0; c < 4; ++c) h[4 * q + c] = gated(sum[8 * q + c], sum[8 * q + 4 + c]);
  if (plain) {
#pragma unroll
    for (int i = 0; i < 32 * SLICES; ++i) h[i] = __fdiv_rn(h[i], scale);
    scale = 1.0f;
  }
  const float inverse = __frcp_rn(scale);
  const float bound = 1024.0f * scale;
#pragma unroll
  for (int i = 0; i < 32 * SLICES; ++i) {
    const float v = fabsf(h[i]) > bound ? copysignf(bound, h[i]) : h[i];  // NaN stays
    h[i] = quotient(v, scale, inverse);
  }
#pragma unroll
  for (int r = 0; r < 2; ++r) {
    const u32 row = lane / 4 + 8 * r;
#pragma unroll
    for (int q = 0; q < 8 * SLICES; ++q) {
      const u32 chunk = (SLICES == 2 ? 0 : 4 * group) + q / 2;
      store_u16(staging + row * 128 + (chunk ^ (row % 8)) * 16 + q % 2 * 8 + lane % 4 * 2,
                (u16)e4m3_pair(h[4 * q + 2 * r], h[4 * q + 2 * r + 1]));
    }
  }
  u8* const to = p.h + (h_row(item) * (u32)p.h_steps + (u32)item.pair * h_rows(item) + base) * 128;
  if (SLICES == 2) {
    proxy_fence();
    __syncwarp();
    if (lane == 0 && base < (u32)item.rows) {
      bulk_store(to, staging, base + 8 < (u32)item.rows ? 2048 : 1024);
      bulk_commit();
    }
  } else {
    __syncwarp();
#pragma unroll
    for (u32 i = 0; i < 2; ++i) {
      const u32 row = lane / 4 + 8 * i;
      const u32 chunk = (4 * group + lane % 4) ^ (row % 8);
      if (base + 8 * i < (u32)item.rows)
        store_global(to + row * 128 + chunk * 16, load_words(staging + row * 128 + chunk * 16));
    }
  }
}
#elif GEMM == 1
// bf16 or fp16, packed: a slice has a whole row's 128 bytes.
template <int SLICES>
__device__ __forceinline__ void store_h(const PrefillParams& p, const Shared& s, const Item& item, u32 group,
                                        float (&sum)[64 * SLICES]) {
  const u32 lane = threadIdx.x % 32;
  const u32 base = warp_row<SLICES>(group);
  const u32 staging = s.staging + threadIdx.x / 32 * kFlatStaging;
  bulk_wait_read();  // the staging is free again
  __syncwarp();
#pragma unroll
  for (int i = 0; i < SLICES; ++i) {
    // Lane l names row l % 16 of the 8 columns of block q (l < 16) or q + 1.
    const u32 to = staging + i * 2048 + lane % 16 * 128;
#pragma unroll
    for (u32 q = 0; q < 8; q += 2) {
      u32 word[4];
#pragma unroll
      for (int m = 0; m < 4; ++m) {
        const float* const v = &sum[64 * i + 8 * (q + m / 2) + m % 2 * 2];
        word[m] = half_pair(gated(v[0], v[4]), gated(v[1], v[5]));
      }
      store_matrices(to + ((q + lane / 16) ^ (lane % 8)) * 16, word[0], word[1], word[2], word[3]);
    }
  }
  proxy_fence();
  __syncwarp();
  if (lane == 0 && base < (u32)item.rows) {
    const u32 bytes = base + 8 < (u32)item.rows ? 2048 : 1024;
#pragma unroll
    for (int i = 0; i < SLICES; ++i) {
      const u32 slice = 2 * (u32)item.pair + (SLICES == 2 ? i : group);
      if (slice < (u32)p.slices)
        bulk_store(p.h + (h_row(item) * (u32)p.h_steps + slice * h_rows(item) + base) * 128,
                   staging + i * 2048, bytes);
    }
    bulk_commit();
  }
}
#endif

#if GEMM == 2 && FORMAT == 3
// Times the router weight, fp32: bf16 would lose fp16's precision, and the weighted row might leave its
// range.
template <int SLICES>
__device__ __forceinline__ void store_rows(const PrefillParams& p, const Shared&, const Item& item, u32 group,
                                           float (&sum)[64 * SLICES], const float (&weight)[2]) {
  const u32 row = warp_row<SLICES>(group) + threadIdx.x % 32 / 4;
#pragma unroll
  for (int i = 0; i < SLICES; ++i) {
    const u32 slice = 2 * (u32)item.pair + (SLICES == 2 ? i : group);
    if (slice >= (u32)p.slices) break;
    float* const to =
        (float*)p.rows + (i64)(item.first + (int)row) * p.out_stride + slice * 128 + threadIdx.x % 4 * 2;
#pragma unroll
    for (int j = 0; j < 16; ++j) {
      const float* const v = &sum[64 * i + 4 * j];
      if (row < (u32)item.rows) store_pair(to + 8 * j, v[0] * weight[0], v[1] * weight[0]);
      if (row + 8 < (u32)item.rows)
        store_pair(to + 8 * p.out_stride + 8 * j, v[2] * weight[1], v[3] * weight[1]);
    }
  }
}
#elif GEMM == 2
// Times the router weight, bf16, one row per row of the sorted index.
template <int SLICES>
__device__ __forceinline__ void store_rows(const PrefillParams& p, const Shared& s, const Item& item,
                                           u32 group, float (&sum)[64 * SLICES], const float (&weight)[2]) {
  const u32 lane = threadIdx.x % 32;
  const u32 base = warp_row<SLICES>(group);
  const u32 staging = s.staging + threadIdx.x / 32 * kFlatStaging;
  const u32 to = staging + lane % 16 * 256;
#pragma unroll
  for (int i = 0; i < SLICES; ++i) {
    const u32 slice = 2 * (u32)item.pair + (SLICES == 2 ? i : group);
    if (slice >= (u32)p.slices) break;
    stage_slice(to, sum + 64 * i, weight);
    __syncwarp();
    // All loads before the first store, so that their latency is met once.
    uint4 words[8];
#pragma unroll
    for (u32 r = 0; r < 8; ++r) {
      const u32 row = 2 * r + lane / 16;
      words[r] = load_words(staging + row * 256 + ((lane % 16) ^ (row % 8)) * 16);
    }
    u16* const rows = p.rows + (i64)(item.first + (int)base) * p.out_stride + slice * 128 + lane % 16 * 8;
#pragma unroll
    for (u32 r = 0; r < 8; ++r) {
      const u32 row = 2 * r + lane / 16;
      if (base + row < (u32)item.rows) store_global(rows + (i64)row * p.out_stride, words[r]);
    }
    __syncwarp();
  }
}
#endif
