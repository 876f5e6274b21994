// What the epilogues of both prefill kernels (prefill_math.cuh, prefill_flat_store.cuh) do alike with a slice
// of rows. (The other thing that they have in common, how codes of h leave shared memory, is written in both:
// as a function it compiles to other code.)
#pragma once

#include "sm90/prefill_items.cuh"

// A slice's 64 sums of this thread, times the router weights of its two rows, as bf16 to the warp's 16 rows
// of 256 bytes. to: row lane % 16. (Lane l names row l % 16 of the 8 columns of n8 block j (l < 16) or j
// + 1.)
__device__ __forceinline__ void stage_slice(u32 to, const float* sum, const float (&weight)[2]) {
  const u32 lane = threadIdx.x % 32;
#pragma unroll
  for (u32 j = 0; j < 16; j += 2) {
    const float* const v = sum + 4 * j;
    store_matrices(to + ((j + lane / 16) ^ (lane % 8)) * 16, bf16_pair(v[0] * weight[0], v[1] * weight[0]),
                   bf16_pair(v[2] * weight[1], v[3] * weight[1]),
                   bf16_pair(v[4] * weight[0], v[5] * weight[0]),
                   bf16_pair(v[6] * weight[1], v[7] * weight[1]));
  }
}
