// The math warps' side of the prefill kernel (prefill.cu): main loop and epilogues.
#pragma once

#include "sm90/prefill_bring.cuh"
#include "sm90/prefill_items.cuh"
#include "sm90/prefill_queue.cuh"
#include "sm90/prefill_store.cuh"
#include "sm90/wgmma.cuh"

// This warp has done with a slot: the lanes that have read scales from it say so here, one of them to the
// partner, whose copies write into this block's slots too.
__device__ __forceinline__ void release(const Shared& s, u32 slot) {
  const u32 bar = s.empty + 8 * slot;
  if (threadIdx.x % 4 == 0) barrier_arrive(bar);
  if (threadIdx.x % 32 == 0) barrier_arrive_remote(remote_address(bar, s.rank ^ 1));
}
// One step of one slice: 64 rows x 128 weight rows x 128 deep, from zero.
__device__ __forceinline__ void multiply(float (&part)[64], u64 a, u64 b) {
  wgmma_fence();
#pragma unroll
  for (int j = 0; j < 4; ++j) wgmma<E4m3, 128>(part, a + 2 * j, b + 2 * j, j != 0);
  wgmma_commit();
}

// What a step's sums of this thread are multiplied by: GEMM 1: gate and up rows, GEMM 2: the slices; each for
// rows 8 apart.
template <Part PART>
__device__ __forceinline__ void load_factors(float (&factor)[2][2], const Shared& s, u32 slot, u32 row,
                                             u32 group) {
  float token[2], scale[2];
  load_scales(token, scale, s.scales + slot * kScales + 4 * row, s.weight_scales + slot * kWeightScales,
              threadIdx.x % 4 == 0);
  token[0] = from_quad(token[0]);
  token[1] = from_quad(token[1]);
  scale[0] = from_quad(scale[0]);
  scale[1] = from_quad(scale[1]);
  if (GEMM == 2 && PART == kSlice) scale[0] = group != 0 ? scale[1] : scale[0];
#pragma unroll
  for (int i = 0; i < 2; ++i)
#pragma unroll
    for (int r = 0; r < 2; ++r) factor[i][r] = scale[i] * token[r];
}
template <Part PART>
__device__ __forceinline__ void promote(float (&sum)[64], const float (&part)[64],
                                        const float (&factor)[2][2], int slice) {
#pragma unroll
  for (int j = 0; j < 64; ++j)
    sum[j] = fmaf(part[j], factor[GEMM == 1 ? j / 4 % 2 : slice][j / 2 % 2], sum[j]);
}
// An item's main loop. What the next
// step needs (its barrier, its factors, its descriptors) is fetched while the last wgmmas of this one run;
// all of that sits in uniform registers, for which ptxas must see that the warps' way through the items does
// not diverge.
template <Part PART>
__device__ __forceinline__ void accumulate(const PrefillParams& p, const Shared& s, Place& at, u32 group,
                                           float (&sum)[kSlices<PART>][64], float (&weight)[2],
                                           const int (&slot)[2]) {
  const u32 lane = threadIdx.x % 32;
  const u32 row = first_row_of<PART>(group) + threadIdx.x % 128 / 32 * 16 + lane / 4;
#pragma unroll
  for (int i = 0; i < kSlices<PART>; ++i)
#pragma unroll
    for (int j = 0; j < 64; ++j) sum[i][j] = 0.0f;
  at.slot = (u32)uniform(at.slot);
  at.round = (u32)uniform(at.round);
  float factor[2][2];
  barrier_wait(s.full + 8 * at.slot, at.round);
  if (kGather) proxy_fence();
  load_factors<PART>(factor, s, at.slot, row, group);
  const u32 a_offset = first_row_of<PART>(group) * 128;
  const u32 b_offset = weights_offset<PART>(group);
  const u32 a_first = __shfl_sync(0xffffffffu, (u32)descriptor(s.ring + a_offset), 0);
  const u32 b_first = __shfl_sync(0xffffffffu, (u32)descriptor(s.ring + b_offset), 0);
  for (int k = 0; k < p.steps; ++k) {
    const u32 here = at.slot;
    const u64 high = descriptor(0) >> 32 << 32;
    const u64 a = high | (a_first + at.slot * (kStage / 16)), b = high | (b_first + at.slot * (kStage / 16));
    float part[64];
    float next[2][2] = {{0.0f, 0.0f}, {0.0f, 0.0f}};
    at.next();
#pragma unroll
    for (int i = 0; i < kSlices<PART>; ++i) {
      multiply(part, a, b + i * (kTile / 16));
      if (i == kSlices<PART> - 1 && k + 1 < p.steps) {
        barrier_wait(s.full + 8 * at.slot, at.round);
        if (kGather) proxy_fence();
        load_factors<PART>(next, s, at.slot, row, group);
      }
      wgmma_wait<0>();
#pragma unroll
      for (int j = 0; j < 64; ++j) pin(part[j]);
      if (i == kSlices<PART> - 1) release(s, here);
      promote<PART>(sum[i], part, factor, i);
    }
#pragma unroll
    for (int i = 0; i < 4; ++i) factor[i / 2][i % 2] = next[i / 2][i % 2];
    if (GEMM == 2 && k == 0 && p.slot_weight != nullptr) {
#pragma unroll
      for (int i = 0; i < 2; ++i) {
        const int t = slot[i] / p.top_k;
        weight[i] = p.slot_weight[t * p.slot_weight_token + (slot[i] - t * p.top_k) * p.slot_weight_slot];
      }
    }
  }
}
// silu(gate) * up, the group's scale, codes; packed as GEMM 2 reads them. Exchange: how the amax of a row's
// other half of the group becomes known where this warpgroup has one half: replaces this quad's
// two values by those of the whole rows.
template <Part PART, typename Exchange>
__device__ __forceinline__ void store_h(const PrefillParams& p, const Shared& s, const Item& item, u32 group,
                                        float (&sum)[kSlices<PART>][64], int done, const Exchange& exchange) {
  const u32 lane = threadIdx.x % 32;
  const u32 warp_row = threadIdx.x % 128 / 32 * 16;
  const u32 base = first_row_of<PART>(group) + warp_row;
  const u32 half = slice_of<PART>(s, group, 0);  // where there is one
  const u32 staging = s.staging + threadIdx.x / 32 * kStaging;
  tell_rows(p, done);  // the staging is free again, too
  float h[kSlices<PART>][32];
  float amax[2] = {0.0f, 0.0f};
#pragma unroll
  for (int i = 0; i < kSlices<PART>; ++i)
#pragma unroll
    for (int q = 0; q < 8; ++q)
#pragma unroll
      for (int c = 0; c < 4; ++c) {
        const float v = activate(sum[i][8 * q + c], sum[i][8 * q + 4 + c]);
        h[i][4 * q + c] = v;
        amax[c / 2] = fmaxf(amax[c / 2], fabsf(v));  // a NaN does not count
      }
#pragma unroll
  for (int r = 0; r < 2; ++r) {
    amax[r] = fmaxf(amax[r], __shfl_xor_sync(0xffffffffu, amax[r], 1));
    amax[r] = fmaxf(amax[r], __shfl_xor_sync(0xffffffffu, amax[r], 2));
  }
  if (PART != kRowsOfPair) exchange(amax, group);
  const u64 place =
      h_row(item) * (u32)p.h_steps + (u32)item.pair * h_rows(item) + base;  // in rows of 128 bytes
#pragma unroll
  for (int r = 0; r < 2; ++r) {
    const float scale = amax_scale(amax[r]);
    const float inverse = __frcp_rn(scale);
    const u32 row = lane / 4 + 8 * r;
#pragma unroll
    for (int i = 0; i < kSlices<PART>; ++i)
#pragma unroll
      for (int q = 0; q < 8; ++q) {
        const u32 chunk = 4 * (PART == kRowsOfPair ? i : half) + q / 2;
        store_u16(staging + row * 128 + (chunk ^ (row % 8)) * 16 + q % 2 * 8 + lane % 4 * 2,
                  (u16)e4m3_pair(quotient(h[i][4 * q + 2 * r], scale, inverse),
                                 quotient(h[i][4 * q + 2 * r + 1], scale, inverse)));
      }
    if (lane % 4 == 0 && (PART == kRowsOfPair || half == 0) && base + 8 * r < (u32)item.rows)
      p.h_scale[place + row] = scale;
  }
  u8* const to = p.h + place * 128;
  if (PART == kRowsOfPair) {
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
      const u32 chunk = (4 * half + lane % 4) ^ (row % 8);
      if (base + 8 * i < (u32)item.rows)
        store_global(to + row * 128 + chunk * 16, load_words(staging + row * 128 + chunk * 16));
    }
  }
}

// The other half is the other warpgroup's. at: 2 x 64 values in shared memory.
struct ExchangeBetweenWarpgroups {
  u32 at;
  __device__ __forceinline__ void operator()(float (&amax)[2], u32 group) const {
    const u32 lane = threadIdx.x % 32;
    const u32 warp_row = threadIdx.x % 128 / 32 * 16;
    const u32 mine = at + 4 * (64 * group + warp_row + lane / 4);
    if (lane % 4 == 0) {
      store_float(mine, amax[0]);
      store_float(mine + 32, amax[1]);
    }
    named_barrier(1, 2 * 128);
    const u32 other = at + 4 * (64 * (group ^ 1) + warp_row + lane / 4);
    amax[0] = fmaxf(amax[0], load_float(other));
    amax[1] = fmaxf(amax[1], load_float(other + 32));
  }
};

// Times the router weight, bf16, one row per row of the sorted index.
template <Part PART>
__device__ __forceinline__ void store_rows(const PrefillParams& p, const Shared& s, const Item& item,
                                           u32 group, float (&sum)[kSlices<PART>][64],
                                           const float (&weight)[2]) {
  const u32 lane = threadIdx.x % 32;
  const u32 base = first_row_of<PART>(group) + threadIdx.x % 128 / 32 * 16;
  const u32 staging = s.staging + threadIdx.x / 32 * kStaging;
  // This lane stores 16 bytes of row lane / 16 and of every second one below.
  const u32 to = staging + lane % 16 * 256;
  const u32 from = staging + lane / 16 * 256;
  const int left = item.rows - (int)(base + lane / 16);
  u16* const out = p.rows + (i64)(item.first + (int)(base + lane / 16)) * p.out_stride +
                   (2 * item.pair + (int)slice_of<PART>(s, group, 0)) * 128 + lane % 16 * 8;
  const i64 two_rows = 2 * p.out_stride;
#pragma unroll
  for (int i = 0; i < kSlices<PART>; ++i) {
    if (2 * item.pair + (int)slice_of<PART>(s, group, i) >= p.slices) break;
    stage_slice(to, sum[i], weight);
    __syncwarp();
    uint4 words[8];
#pragma unroll
    for (u32 r = 0; r < 8; ++r)
      words[r] = load_words(from + r * 512 + ((lane % 16) ^ (2 * r + lane / 16) % 8) * 16);
#pragma unroll
    for (int r = 0; r < 8; ++r)
      if (2 * r < left) store_global(out + r * two_rows + i * 128, words[r]);
    __syncwarp();
  }
}
