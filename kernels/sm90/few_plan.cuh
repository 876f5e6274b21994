// The plan of the few-token kernels, made by every block for itself from at most 128 ids: slots with a local
// expert sorted by expert, then slot (rows), and cut into tiles of up to WIDTH rows of one expert. Counting,
// no atomics that order anything: all blocks of all three kernels find the same plan. Also what those kernels
// share: loads past L1 and the sums that several blocks have parts of.
#pragma once

#include "common/types.cuh"
#include "params/few.hpp"
#include "sm90/ptx.cuh"

using namespace ramp::core::cuda;

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
// Brings the line of p to L2. No value is read, so this may run ahead of dependency_wait().
__device__ __forceinline__ void prefetch_l2(const void* p) {
  asm volatile("prefetch.global.L2 [%0];" ::"l"(p));
}

constexpr int kFewMasked = -1;      // id -1, or mapped to -1
constexpr int kFewOutOfRange = -2;  // any other id that leads nowhere

struct FewTile {
  u16 expert, first, rows, reserved;
};
struct FewPlan {
  i32 expert[kFewSlots];   // of a slot, or negative
  u16 row[kFewSlots];      // slot -> row
  u16 tile_of[kFewSlots];  // slot -> tile
  u16 slot[kFewSlots];     // row -> slot
  u16 token[kFewSlots];    // row -> token
  FewTile tiles[kFewSlots];
  u32 begins[kFewSlots / 32];  // rows that begin a tile
  u32 rows;
};

__device__ __forceinline__ const void* id_place(const FewIds& p, u32 slot) {
  const u32 t = slot / p.top_k;
  const i64 at = (i64)t * p.ids_stride + (i64)(slot - t * p.top_k);
  return static_cast<const u8*>(p.ids) + at * (p.ids_wide != 0 ? 8 : 4);
}
__device__ __forceinline__ i32 local_expert_of(const FewIds& p, u32 slot) {
  const void* const place = id_place(p, slot);
  const i64 id = p.ids_wide != 0 ? (i64)load_u64(place) : (i64)(i32)load_u32(place);
  if (p.map == nullptr) {
    if ((u64)id < (u64)p.experts) return (i32)id;
    return id == -1 ? kFewMasked : kFewOutOfRange;
  }
  if ((u64)id >= p.map_size) return id == -1 ? kFewMasked : kFewOutOfRange;
  const i32 local = __ldg(p.map + id);
  if ((u32)local < p.experts) return local;
  return local == -1 ? kFewMasked : kFewOutOfRange;
}

// All threads of the block, at least kFewSlots; ids are visible. Returns the number of tiles. The plan may be
// read by all when it returns. `counters`: this block counts the slots without an expert.
__device__ __forceinline__ u32 make_plan(const FewIds& p, FewPlan& s, long long* counters) {
  const u32 slot = threadIdx.x;
  const bool mine = slot < p.slots;
  i32 expert = kFewMasked;
  if (mine) expert = local_expert_of(p, slot);
  if (slot < kFewSlots) {
    s.expert[slot] = expert;
    if (slot < kFewSlots / 32) s.begins[slot] = 0;
    if (counters != nullptr) {
      const u32 masked = __popc(__ballot_sync(0xffffffffu, mine && expert == kFewMasked));
      const u32 out_of_range = __popc(__ballot_sync(0xffffffffu, mine && expert == kFewOutOfRange));
      if (slot % 32 == 0 && masked != 0) atomicAdd((u64*)counters, (u64)masked);
      if (slot % 32 == 0 && out_of_range != 0) atomicAdd((u64*)counters + 1, (u64)out_of_range);
    }
  }
  __syncthreads();
  u32 row = 0, rank = 0, count = 0;
  const bool valid = mine && expert >= 0;
  if (valid) {
    for (u32 j = 0; j < p.slots; j += 4) {  // entries from p.slots on are negative
      const int4 e = *(const int4*)&s.expert[j];
      const i32 four[4] = {e.x, e.y, e.z, e.w};
#pragma unroll
      for (u32 i = 0; i < 4; ++i) {
        const bool same = four[i] == expert;
        row += (u32)four[i] < (u32)expert;  // a negative one is a large number
        rank += same && j + i < slot;
        count += same;
      }
    }
    row += rank;
    s.row[slot] = (u16)row;
    s.slot[row] = (u16)slot;
    s.token[row] = (u16)(slot / p.top_k);
    if (rank % WIDTH == 0) atomicOr(&s.begins[row / 32], 1u << row % 32);
  }
  __syncthreads();
  u32 before = 0, tiles = 0;  // tiles that begin at rows up to this one; all
#pragma unroll
  for (u32 w = 0; w < kFewSlots / 32; ++w) {
    const u32 word = s.begins[w];
    tiles += __popc(word);
    const u32 upto = row / 32 == w ? 0xffffffffu >> (31 - row % 32) : row / 32 > w ? 0xffffffffu : 0u;
    before += __popc(word & upto);
  }
  if (valid) {
    s.tile_of[slot] = (u16)(before - 1);
    if (rank % WIDTH == 0) {
      const u32 left = count - rank;
      s.tiles[before - 1] = {(u16)expert, (u16)row, (u16)(left < WIDTH ? left : WIDTH), 0};
    }
  }
  __syncthreads();
  return tiles;
}

// The blocks after the one with an item's first step that have a part of it: (first, last].
struct FewParts {
  u32 first, last;
};
__device__ __forceinline__ FewParts parts_of(u32 item, u32 steps, u32 share) {
  const u32 begin = item * steps;
  return {begin / share, (begin + steps - 1) / share};
}
// Where a block's part of an item lies in FewSums::rest: column `column` of the tile, from row `at` of the
// slice on.
__device__ __forceinline__ u32 part_place(u32 block, u32 column, u32 at) {
  return (block * WIDTH + column) * 128 + at;
}
