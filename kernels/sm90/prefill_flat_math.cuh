// The math warps' main loop of prefill_flat.cu, and the values that its epilogues apply. A thread's sums of
// slice i are sum[64i .. 64i + 63]: rows lane/4 and + 8 of the warp's 16, columns as wgmma.cuh tells.
#pragma once

#include "sm90/prefill_flat_copy.cuh"
#include "sm90/wgmma.cuh"

#if FORMAT == 2
using Type = Bf16;
#elif FORMAT == 3
using Type = F16;
#else
using Type = E4m3;
#endif

// This warp has done with a slot. One lane says so, here and to the partner, whose copies write into this
// block's slots too: nothing but wgmma has read from it (and the item, on which the warp has branched since).
__device__ __forceinline__ void release_flat(const Shared& s, u32 slot) {
  const u32 bar = s.empty + 8 * slot;
  if (threadIdx.x % 32 == 0) {
    barrier_arrive(bar);
    barrier_arrive_remote(remote_address(bar, s.rank ^ 1));
  }
}

// The first row of this warp's 16 in the item.
template <int SLICES>
__device__ __forceinline__ u32 warp_row(u32 group) {
  return (SLICES == 2 ? group * 64 : 0) + threadIdx.x % 128 / 32 * 16;
}

// What belongs to this thread's two rows. Loaded in two rounds, the second while the first products run.
struct RowValues {
  int slot[2];
  float weight[2], scale[2];

  template <int SLICES>
  __device__ __forceinline__ void find(const PrefillParams& p, const Item& item, u32 group) {
    const u32 row = warp_row<SLICES>(group) + threadIdx.x % 32 / 4;
#pragma unroll
    for (u32 i = 0; i < 2; ++i) {
      slot[i] = p.slots[item.first + (int)(row + 8 * i < (u32)item.rows ? row + 8 * i : 0)];
      weight[i] = 1.0f;
      scale[i] = p.x_static;
    }
  }
  template <int SLICES>
  __device__ __forceinline__ void load(const PrefillParams& p, const Item& item, u32 group) {
    const u32 row = warp_row<SLICES>(group) + threadIdx.x % 32 / 4;
#pragma unroll
    for (u32 i = 0; i < 2; ++i) {
      const int t = slot[i] / p.top_k;
      if (GEMM == 2 && p.slot_weight != nullptr)
        weight[i] = p.slot_weight[t * p.slot_weight_token + (slot[i] - t * p.top_k) * p.slot_weight_slot];
      if (FP8 && p.x_scale != nullptr) {
        const int sorted = item.first + (int)(row + 8 * i < (u32)item.rows ? row + 8 * i : 0);
        const int from = p.x_scale_source == kRowSorted ? sorted : p.x_scale_source == kRowSlot ? slot[i] : t;
        scale[i] = p.x_scale[(i64)from * p.x_scale_stride];
      }
    }
  }
};

// An item's main loop. SLICES: 2, or 1 where the warpgroups share an item of at most 64 rows. The sums start
// from zero and are always added to: the instruction's own start from zero, by a predicate, makes ptxas
// serialise.
template <int SLICES>
__device__ __forceinline__ void accumulate(const PrefillParams& p, const Shared& s, const Item& item,
                                           Place& at, u32 group, float (&sum)[64 * SLICES],
                                           RowValues& values) {
#pragma unroll
  for (int i = 0; i < 64 * SLICES; ++i) sum[i] = 0.0f;
  if (FP8 || GEMM == 2) values.find<SLICES>(p, item, group);
  const u32 a_offset = SLICES == 2 ? group * 8192 : 0;
  const u32 b_offset = kTile + (SLICES == 2 ? 0 : group * kTile);
#if FP8
  // e4m3 products keep 13 bits behind the largest term: 128 deep from zero, then into fp32.
  for (int k = 0; k < p.steps; ++k) {
    const u32 stage = s.ring + at.slot * kStage;
    barrier_wait(s.full + 8 * at.slot, at.round);
    if (GATHERED) proxy_fence();  // for rows that ordinary copies have brought
    const u64 a = descriptor(stage + a_offset);
    const u64 b = descriptor(stage + b_offset);
#pragma unroll
    for (int i = 0; i < SLICES; ++i) {
      float part[64];
      wgmma_fence();
#pragma unroll
      for (int j = 0; j < 4; ++j) wgmma<Type, 128>(part, a + 2 * j, b + i * (kTile / 16) + 2 * j, j != 0);
      wgmma_commit();
      wgmma_wait<0>();
#pragma unroll
      for (int j = 0; j < 64; ++j) pin(part[j]);
      if (i == SLICES - 1) release_flat(s, at.slot);
#pragma unroll
      for (int j = 0; j < 64; ++j) sum[64 * i + j] += part[j];
    }
    at.next();
    if (k == 0) values.load<SLICES>(p, item, group);
  }
#else
  // One chain over the whole depth. A slot is released when the step behind it has been issued, so that the
  // tensor cores always have one waiting.
  u32 last = 0;
  for (int k = 0; k < p.steps; ++k) {
    const u32 stage = s.ring + at.slot * kStage;
    barrier_wait(s.full + 8 * at.slot, at.round);
    if (GATHERED) proxy_fence();  // for rows that ordinary copies have brought
    const u64 a = descriptor(stage + a_offset);
    const u64 b = descriptor(stage + b_offset);
    wgmma_fence();
#pragma unroll
    for (int j = 0; j < 4; ++j) wgmma<Type, 128 * SLICES>(sum, a + 2 * j, b + 2 * j, 1);
    wgmma_commit();
    if (k != 0) {
      wgmma_wait<1>();
      release_flat(s, last);
    } else if (GEMM == 2) {
      values.load<SLICES>(p, item, group);
    }
    last = at.slot;
    at.next();
  }
  wgmma_wait<0>();
  release_flat(s, last);
#pragma unroll
  for (int i = 0; i < 64 * SLICES; ++i) pin(sum[i]);
#endif
}

#if FP8
// The scale of a row of the weights: of one (fp8_channel), else of gate or up, or of all.
__device__ __forceinline__ float row_scale(const PrefillParams& p, const Item& item, u32 row, bool up) {
  const u32 at = (FORMAT == 6 ? row : 0) + (up ? (u32)p.up_scale_row : 0);
  return __ldg(p.weight_scale + (i64)item.expert * p.ws_expert + (i64)at * p.ws_row);
}
// Scales of tokens and weight rows are factors of whole rows: after the sums.
template <int SLICES>
__device__ __forceinline__ void apply_scales(const PrefillParams& p, const Item& item, u32 group,
                                             float (&sum)[64 * SLICES], const RowValues& values) {
#pragma unroll
  for (int i = 0; i < SLICES; ++i) {
    const u32 slice = 2 * (u32)item.pair + (SLICES == 2 ? i : group);
    if (slice >= (u32)p.slices) break;
#pragma unroll
    for (int j = 0; j < 16; ++j) {
      const bool up = GEMM == 1 && j % 2 != 0;
      const u32 row = (GEMM == 1 ? slice * 64 + j / 2 * 8 : slice * 128 + j * 8) + threadIdx.x % 4 * 2;
#pragma unroll
      for (u32 c = 0; c < 2; ++c) {
        const float scale = row_scale(p, item, row + c, up);
        sum[64 * i + 4 * j + c] *= scale * values.scale[0];
        sum[64 * i + 4 * j + 2 + c] *= scale * values.scale[1];
      }
    }
  }
}
#endif
