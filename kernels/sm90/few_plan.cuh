// The plan of the few-token kernel, made by every block for itself from at most 128 ids: the active experts
// in order, and which tokens each one has. Counting, no atomics that order anything: all blocks find the same
// plan. Also the kernel's loads past L1 and its barrier over the grid.
#pragma once

#include "common/types.cuh"
#include "params/few.hpp"
#include "sm90/ptx.cuh"

using namespace ramp::core::cuda;

// ---------------------------------------------------------------- instructions

// Loads from L2: what is read here may have been written while this kernel was already on the machine, so
// neither the read-only path nor L1 will do.
__device__ __forceinline__ u32 load_u32(const void* p) {
  u32 v;
  asm volatile("ld.global.cg.u32 %0, [%1];" : "=r"(v) : "l"(p));
  return v;
}
__device__ __forceinline__ u64 load_u64(const void* p) {
  u64 v;
  asm volatile("ld.global.cg.u64 %0, [%1];" : "=l"(v) : "l"(p));
  return v;
}
__device__ __forceinline__ uint4 load_16(const void* p) {
  uint4 v;
  asm volatile("ld.global.cg.v4.u32 {%0,%1,%2,%3}, [%4];"
               : "=r"(v.x), "=r"(v.y), "=r"(v.z), "=r"(v.w)
               : "l"(p));
  return v;
}
__device__ __forceinline__ float4 load_floats(const float* p) {
  float4 v;
  asm volatile("ld.global.cg.v4.f32 {%0,%1,%2,%3}, [%4];"
               : "=f"(v.x), "=f"(v.y), "=f"(v.z), "=f"(v.w)
               : "l"(p));
  return v;
}
__device__ __forceinline__ float2 load_two(const float* p) {
  float2 v;
  asm volatile("ld.global.cg.v2.f32 {%0,%1}, [%2];" : "=f"(v.x), "=f"(v.y) : "l"(p));
  return v;
}
// This thread's ordinary writes to global memory before asynchronous copies that start behind it.
__device__ __forceinline__ void proxy_fence_global() {
  asm volatile("fence.proxy.async.global;" ::: "memory");
}
__device__ __forceinline__ void add_release(u32* p, u32 v) {
  asm volatile("red.release.gpu.global.add.u32 [%0], %1;" ::"l"(p), "r"(v) : "memory");
}
__device__ __forceinline__ u32 load_acquire(const u32* p) {
  u32 v;
  asm volatile("ld.acquire.gpu.global.u32 %0, [%1];" : "=r"(v) : "l"(p) : "memory");
  return v;
}

// Whether a phase is over, without waiting for it.
__device__ __forceinline__ bool barrier_test(u32 bar, u32 parity) {
  u32 done;
  asm volatile(
      "{\n.reg .pred p;\nmbarrier.test_wait.parity.shared::cta.b64 p, [%1], %2;\nselp.u32 %0, 1, 0, p;\n}"
      : "=r"(done)
      : "r"(bar), "r"(parity)
      : "memory");
  return done != 0;
}

// ---------------------------------------------------------------- a barrier over the grid

// One word: the lower bits count arrivals, the last of which brings them back to zero and flips the top one.
// The barriers of a call are an even number, so that every call begins with the top bit clear. All blocks are
// on the machine together (a cooperative launch).
__device__ __forceinline__ void grid_arrive(u32* word) {
  add_release(word, blockIdx.x == 0 ? 0x80000000u - (gridDim.x - 1) : 1u);
}
// `number`: of the barrier in this call, from 0.
__device__ __forceinline__ void grid_wait(const u32* word, u32 number) {
  while ((load_acquire(word) >> 31) != ((number + 1) & 1)) {
  }
}

// ---------------------------------------------------------------- the plan

constexpr int kFewMasked = -1;      // id -1, or mapped to -1
constexpr int kFewOutOfRange = -2;  // any other id that leads nowhere
constexpr u16 kFewNoTile = 0xffff;

struct FewTile {
  u32 expert;
  u16 first;   // row of its first token: an upper bound of the rows before, since ids may repeat
  u16 tokens;  // a bit per token
};
struct FewPlan {
  i32 expert[kFewSlots];  // of a slot, or negative
  FewTile tiles[kFewSlots];
  u16 row[kFewSlots];          // slot -> row, kFewNoTile: none
  u16 row_tile[kFewSlots];     // row -> tile, kFewNoTile: no such row
  u32 masks[kFewSlots];        // by rows: the tile's tokens, where one begins
  u32 begins[kFewSlots / 32];  // rows where an expert begins
  u32 active;                  // tiles
};

__device__ __forceinline__ const void* id_place(const FewParams& p, u32 slot) {
  const u32 t = slot / p.top_k;
  const i64 at = (i64)t * p.ids_stride + (i64)(slot - t * p.top_k);
  return static_cast<const u8*>(p.ids) + at * (p.ids_wide != 0 ? 8 : 4);
}
__device__ __forceinline__ i32 local_expert_of(const FewParams& p, u32 slot) {
  const void* const place = id_place(p, slot);
  const i64 id = p.ids_wide != 0 ? (i64)load_u64(place) : (i64)(i32)load_u32(place);
  if (p.map == nullptr) {
    if ((u64)id < (u64)p.experts) return (i32)id;
    return id == -1 ? kFewMasked : kFewOutOfRange;
  }
  if ((u64)id >= p.map_size) return id == -1 ? kFewMasked : kFewOutOfRange;
  const i32 local = (i32)load_u32(p.map + id);
  if ((u32)local < p.experts) return local;
  return local == -1 ? kFewMasked : kFewOutOfRange;
}

// Row of a tile's token: experts in order, tokens in order.
__device__ __forceinline__ u32 row_of(const FewTile& tile, u32 token) {
  return tile.first + __popc(tile.tokens & ((1u << token) - 1u));
}

__device__ __forceinline__ u32 rows_of(const FewTile& tile) {
  return __popc(tile.tokens);
}

constexpr u32 kPlanBarrier = 2, kPlanReadyBarrier = 3;  // numbers of named barriers

// kFewSlots threads of the block, `slot` their number; ids are visible. The plan may be read by these threads
// when it returns. `count`: this block counts the slots without an expert.
__device__ __forceinline__ void make_plan(const FewParams& p, FewPlan& s, u32 slot, bool count) {
  const bool mine = slot < p.slots;
  const u32 token = slot / p.top_k;
  i32 expert = kFewMasked;
  if (mine) expert = local_expert_of(p, slot);
  if (slot < kFewSlots) {
    s.expert[slot] = expert;
    s.masks[slot] = 0;
    s.row_tile[slot] = kFewNoTile;
    s.row[slot] = kFewNoTile;
    if (slot < kFewSlots / 32) s.begins[slot] = 0;
    if (count && p.counters != nullptr) {
      const u32 masked = __popc(__ballot_sync(0xffffffffu, mine && expert == kFewMasked));
      const u32 out_of_range = __popc(__ballot_sync(0xffffffffu, mine && expert == kFewOutOfRange));
      if (slot % 32 == 0 && masked != 0) atomicAdd((u64*)p.counters, (u64)masked);
      if (slot % 32 == 0 && out_of_range != 0) atomicAdd((u64*)p.counters + 1, (u64)out_of_range);
    }
  }
  named_barrier(kPlanBarrier, kFewSlots);
  u32 lower = 0;
  bool first = true;
  const bool valid = mine && expert >= 0;
  if (valid) {
    for (u32 j = 0; j < p.slots; j += 4) {  // entries from p.slots on are negative
      const int4 e = *(const int4*)&s.expert[j];
      const i32 four[4] = {e.x, e.y, e.z, e.w};
#pragma unroll
      for (u32 i = 0; i < 4; ++i) {
        lower += (u32)four[i] < (u32)expert;  // a negative one is a large number
        first = first && !(four[i] == expert && j + i < slot);
      }
    }
    atomicOr(&s.masks[lower], 1u << token);
    if (first) atomicOr(&s.begins[lower / 32], 1u << lower % 32);
  }
  named_barrier(kPlanBarrier, kFewSlots);
  u32 before = 0, tiles = 0;  // experts that begin at rows up to `lower`; all
#pragma unroll
  for (u32 w = 0; w < kFewSlots / 32; ++w) {
    const u32 word = s.begins[w];
    tiles += __popc(word);
    const u32 upto = lower / 32 == w ? 0xffffffffu >> (31 - lower % 32) : lower / 32 > w ? 0xffffffffu : 0u;
    before += __popc(word & upto);
  }
  if (valid) {
    const FewTile tile{(u32)expert, (u16)lower, (u16)s.masks[lower]};
    const u32 row = row_of(tile, token);
    s.row_tile[row] = (u16)(before - 1);  // slots of the same token and expert write the same
    s.row[slot] = (u16)row;
    if (first) s.tiles[before - 1] = tile;
  }
  if (slot == 0) s.active = tiles;
  named_barrier(kPlanBarrier, kFewSlots);
}
// All `threads` of the block: the number of tiles, one per active expert. Those that have not made the plan
// wait for it here.
__device__ __forceinline__ u32 plan_ready(const FewPlan& s, bool wait, u32 threads) {
  if (wait)
    named_barrier(kPlanReadyBarrier, threads);
  else
    named_arrive(kPlanReadyBarrier, threads);
  return s.active;
}

// How the items of both GEMMs are cut, by a whole warp: the cheapest of all numbers of parts, ties to the
// fewest.
struct FewCut {
  FewPieces gemm1, gemm2;
};
__device__ __forceinline__ FewCut cut_items(const FewParams& p, u32 tiles) {
  const u32 parts = threadIdx.x % kFewParts + 1;
  const bool second = threadIdx.x / kFewParts % 2 != 0;
  const u32 slices = second ? p.w2.slices : p.w13.slices;
  const u32 steps = second ? p.w2.steps : p.w13.steps;
  const u32 mine = few_cost(tiles * slices, steps, parts, gridDim.x) << 4 | parts;
  const u32 one = __reduce_min_sync(0xffffffffu, second ? 0xffffffffu : mine) & 15;
  const u32 two = __reduce_min_sync(0xffffffffu, second ? mine : 0xffffffffu) & 15;
  return {few_pieces(p.w13.steps, one), few_pieces(p.w2.steps, two)};
}
