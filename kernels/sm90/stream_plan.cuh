// A block's items, from the prologue's plan or (OWN_PLAN) from its own. That is made by one warp from the ids
// where slots are few (T*k <= 64): tiles ordered by expert, rows by expert, then slot, exactly as
// kernels/prologue/sort_few.cuh makes them. The ids are older than the prologue's launch, so GEMM 1's weights
// are on their way while the prologue still converts x.
#pragma once

#include "sm90/ptx.cuh"
#include "sm90/stream_items.cuh"

#ifndef OWN_PLAN
#define OWN_PLAN 0
#endif

// In shared memory: a pair of words per tile (expert; its first row, its rows and its first tile, 8 bits
// each), the slot of every row, the number of tiles.
constexpr u32 kOwnSlots = kStreamOwnSlots;
constexpr u32 kOwnPlanBytes = 8 * kOwnSlots + 4 * kOwnSlots + 16;

__device__ __forceinline__ void store_word(u32 address, u32 v) {
  asm volatile("st.shared.u32 [%0], %1;" ::"r"(address), "r"(v) : "memory");
}
__device__ __forceinline__ u32 load_word(u32 address) {
  u32 v;
  asm volatile("ld.shared.u32 %0, [%1];" : "=r"(v) : "r"(address) : "memory");
  return v;
}
// From L2. No acquire is needed: whoever wrote ids and map had completed before this grid began. Every block
// of the prologue has waited for what is in front of it (griddepcontrol.wait: its writes are performed for
// all of the GPU) before it lets this grid begin or ends itself. What is left is an L1 that holds a line from
// before that write, and these loads do not look there. (To the PTX memory model .cg is a hint; the
// instruction that ptxas makes of it for sm_90, LDG.STRONG.GPU, is that of ld.relaxed.gpu, the strong load
// which the model asks for.)
__device__ __forceinline__ int load_fresh(const int* p) {
  int v;
  asm volatile("ld.global.cg.s32 %0, [%1];" : "=r"(v) : "l"(p));
  return v;
}
__device__ __forceinline__ i64 load_fresh(const i64* p) {
  i64 v;
  asm volatile("ld.global.cg.s64 %0, [%1];" : "=l"(v) : "l"(p));
  return v;
}

// Local expert of a slot; -1: none.
__device__ __forceinline__ int own_expert(const StreamParams& p, u32 slot) {
  const StreamOwnPlan& o = p.own;
  if (slot >= (u32)o.slots) return -1;
  const u32 token = slot / (u32)p.top_k;
  const i64 at = (i64)token * o.ids_stride + (i64)(slot - token * (u32)p.top_k);
  const i64 id = o.ids_wide != 0 ? load_fresh(static_cast<const i64*>(o.ids) + at)
                                 : (i64)load_fresh(static_cast<const int*>(o.ids) + at);
  if (o.map == nullptr) return (u64)id < (u64)o.experts ? (int)id : -1;
  if ((u64)id >= o.map_size) return -1;
  const int local = load_fresh(o.map + id);
  return (u32)local < o.experts ? local : -1;
}

// One warp, lane l with slots l and (WORDS 2) l + 32. A barrier of the block follows.
template <int WORDS>
__device__ __forceinline__ void make_own_plan(const StreamParams& p, u32 table) {
  constexpr u32 kAll = 0xffffffffu;
  const u32 lane = threadIdx.x % 32;
  int expert[WORDS];
  u32 valid[WORDS], same[WORDS][WORDS], lower[WORDS][WORDS];  // [slot of this lane][word of slots]
#pragma unroll
  for (int i = 0; i < WORDS; ++i) expert[i] = own_expert(p, lane + 32 * i);
#pragma unroll
  for (int i = 0; i < WORDS; ++i) valid[i] = __ballot_sync(kAll, expert[i] >= 0);
#pragma unroll
  for (int i = 0; i < WORDS; ++i) {
#pragma unroll
    for (int w = 0; w < WORDS; ++w) {
      same[i][w] = valid[w];
      lower[i][w] = 0;
    }
  }
  // Experts are compared bit by bit, from the highest one on.
#pragma unroll 1
  for (int b = 31 - __clz((int)p.own.experts); b >= 0; --b) {
    u32 ones[WORDS];
#pragma unroll
    for (int w = 0; w < WORDS; ++w) ones[w] = __ballot_sync(kAll, (expert[w] >> b & 1) != 0);
#pragma unroll
    for (int i = 0; i < WORDS; ++i) {
      const u32 mine = 0u - ((u32)expert[i] >> b & 1u);
#pragma unroll
      for (int w = 0; w < WORDS; ++w) {
        lower[i][w] |= same[i][w] & ~ones[w] & mine;
        same[i][w] &= ~(ones[w] ^ mine);
      }
    }
  }
  u32 begins[WORDS];  // slots that begin a tile
  int rank[WORDS];    // among the expert's slots
#pragma unroll
  for (int i = 0; i < WORDS; ++i) {
    rank[i] = __popc(same[i][i] & ((1u << lane) - 1u));
#pragma unroll
    for (int w = 0; w < i; ++w) rank[i] += __popc(same[i][w]);
    begins[i] = __ballot_sync(kAll, expert[i] >= 0 && rank[i] % WIDTH == 0);
  }
#pragma unroll
  for (int i = 0; i < WORDS; ++i) {
    if (expert[i] < 0) continue;
    u32 begin = 0, count = 0, first_tile = 0;
#pragma unroll
    for (int w = 0; w < WORDS; ++w) {
      begin += __popc(lower[i][w]);
      count += __popc(same[i][w]);
      first_tile += __popc(lower[i][w] & begins[w]);
    }
    store_word(table + 8 * kOwnSlots + 4 * (begin + rank[i]), lane + 32 * i);
    if (rank[i] % WIDTH != 0) continue;
    const u32 entry = table + 8 * (first_tile + rank[i] / WIDTH);
    store_word(entry, (u32)expert[i]);
    store_word(entry + 4, begin | count << 8 | first_tile << 16);
  }
  u32 tiles = 0;
#pragma unroll
  for (int w = 0; w < WORDS; ++w) tiles += __popc(begins[w]);
  if (lane == 0) store_word(table + 12 * kOwnSlots, tiles);
}
__device__ __forceinline__ void make_own_plan(const StreamParams& p, u32 table) {
  if (p.own.slots <= 32)
    make_own_plan<1>(p, table);
  else
    make_own_plan<2>(p, table);
}

__device__ __forceinline__ u32 own_tiles(u32 table) {
  return load_word(table + 12 * kOwnSlots);
}
__device__ __forceinline__ Item own_item(u32 table, u32 unit, u32 slices) {
  const u32 entry = table + 8 * (unit / slices);
  const u32 expert = load_word(entry);
  const u32 rest = load_word(entry + 4);
  return item_of((int)expert, (int)(rest & 255), (int)(rest >> 8 & 255), rest >> 16, unit, slices);
}
__device__ __forceinline__ int own_slot(u32 table, int row) {
  return (int)load_word(table + 8 * kOwnSlots + 4 * (u32)row);
}

// ---------------------------------------------------------------- either plan
//
// The prologue's plan is read by ordinary loads before this grid's dependency_wait() where GEMM 1 runs beside
// another plan's GEMM 1 (StreamParams::beside) and by GEMM 2, which wants its weights early. Both begin when
// every block of a GEMM 1 in front has waited for the prologue, so its writes are performed for all of the
// GPU. Could L1 still hold a line of the plan from before? It would have been read on this SM in front of the
// prologue's write, by another call's kernels, and have stayed:
//   - where a block of that GEMM 1 has run on this SM, its griddepcontrol.wait has made the prologue's writes
//     visible to ordinary loads through this very L1, so the line is gone; its grid is persistent and as
//     large as the GPU, so that is every SM, unless the GPU is shared or a GPC has an odd number of SMs;
//   - elsewhere the launch of this grid has emptied L1, as that of any grid whose blocks read by ordinary
//     loads what kernels in front have written. It comes after the prologue's end, since the blocks that let
//     this grid begin have waited for that.
// The PTX memory model does not promise the second (launch_dependents orders nothing). Where it matters,
// loads as load_fresh() are the way out; they would take L1 from the block's ten warps, which all find the
// same item. The words of the prefill kernels' queue (prefill_queue.cuh) are acquired and need none of this.

__device__ __forceinline__ Item find_item(const StreamParams& p, const Work& work, u32 unit) {
  if (OWN_PLAN && work.own != 0) return own_item(work.own, unit, work.slices);
  return planned_item(p, work, unit);
}
__device__ __forceinline__ u32 source_row(int source, const StreamParams& p, const Work& work, int sorted) {
  if (OWN_PLAN && work.own != 0 && source != kRowSorted)
    return row_of_slot(source, p, own_slot(work.own, sorted));
  return source_row(source, p, sorted);
}

// `slices` items per tile.
__device__ __forceinline__ Work find_work(const StreamParams& p, u32 own, u32 slices) {
  const bool from_own = OWN_PLAN && own != 0;
  const u32 tiles = from_own ? own_tiles(own) : (u32)*p.num_tiles;
  return {tiles * slices, slices, from_own ? own : 0};
}
