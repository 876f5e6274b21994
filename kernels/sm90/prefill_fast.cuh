// GEMM 2's epilogue of the prefill kernels where the call is in fast mode and the config says `sums`: rows
// times their router weights are added to their tokens' fp32 sums in memory, in any order, instead of being
// stored for combine. The sums are zero before GEMM 2 begins (prefill_zero.cu); combine converts them. Why
// so, and who waits for what: docs/kernel-log.md.
//
//   FAST   GEMM 2: 1: this epilogue; PrefillParams.rows are float sums, [tokens, out_stride]
#pragma once

#include "common/types.cuh"
#include "sm90/prefill_items.cuh"

#ifndef FAST
#define FAST 0
#endif
#if FAST && GEMM != 2
#error "FAST: sums are GEMM 2's"
#endif

// to: aligned to 16 bytes. Subnormal sums may become zero.
__device__ __forceinline__ void add_words(float* to, float a, float b, float c, float d) {
  asm volatile("red.relaxed.gpu.global.add.v4.f32 [%0], {%1,%2,%3,%4};" ::"l"(to), "f"(a), "f"(b), "f"(c),
               "f"(d)
               : "memory");
}

// A warp's 16 rows x 128 columns of one slice. sum: 64 of this thread, as wgmma.cuh tells: of n8 block j, 4j
// and 4j + 1 belong to row lane/4, columns lane%4*2 and + 1, 4j + 2 and 4j + 3 to the row 8 below. Neighbours
// exchange halves: the even lane gets four columns of block j, the odd one of block j + 1.
// to: where the two rows' columns of the slice begin. here: whether there are such rows.
__device__ __forceinline__ void add_slice(float* const (&to)[2], const bool (&here)[2], const float* sum,
                                          const float (&weight)[2]) {
  const bool odd = threadIdx.x % 2 != 0;
  const u32 column = threadIdx.x % 4 / 2 * 4 + (odd ? 8 : 0);
  float words[2][8][4];  // by row, pair of blocks
#pragma unroll
  for (u32 r = 0; r < 2; ++r) {
#pragma unroll
    for (u32 j = 0; j < 8; ++j) {
      const float* const v = sum + 8 * j + 2 * r;
      const float first[2] = {v[0] * weight[r], v[1] * weight[r]};   // of block 2j
      const float second[2] = {v[4] * weight[r], v[5] * weight[r]};  // of block 2j + 1
      const float got[2] = {__shfl_xor_sync(0xffffffffu, odd ? first[0] : second[0], 1),
                            __shfl_xor_sync(0xffffffffu, odd ? first[1] : second[1], 1)};
      words[r][j][0] = odd ? got[0] : first[0];
      words[r][j][1] = odd ? got[1] : first[1];
      words[r][j][2] = odd ? second[0] : got[0];
      words[r][j][3] = odd ? second[1] : got[1];
    }
  }
#pragma unroll
  for (u32 r = 0; r < 2; ++r) {
    if (!here[r]) continue;
#pragma unroll
    for (u32 j = 0; j < 8; ++j)
      add_words(to[r] + 16 * j + column, words[r][j][0], words[r][j][1], words[r][j][2], words[r][j][3]);
  }
}

// An item's rows. base: the first row of this warp's 16 in the item; slot: of this thread's two rows.
// of(i): the 64 sums of slice i.
template <int SLICES, typename Of>
__device__ __forceinline__ void add_rows(const PrefillParams& p, const Item& item, u32 group, u32 base,
                                         const int (&slot)[2], const float (&weight)[2], const Of& of) {
  const u32 row = base + threadIdx.x % 32 / 4;
  const bool here[2] = {row < (u32)item.rows, row + 8 < (u32)item.rows};
  float* const sums = (float*)p.rows + (u32)(2 * item.pair + (SLICES == 2 ? 0 : (int)group)) * 128;
  float* to[2] = {sums + (i64)(slot[0] / p.top_k) * p.out_stride,
                  sums + (i64)(slot[1] / p.top_k) * p.out_stride};
#pragma unroll
  for (int i = 0; i < SLICES; ++i) {
    if (2 * item.pair + (SLICES == 2 ? i : (int)group) >= p.slices) break;
    float* const slice[2] = {to[0] + i * 128, to[1] + i * 128};
    add_slice(slice, here, of(i), weight);
  }
}
