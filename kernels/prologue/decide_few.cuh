// sort_few.cuh with a decision among several candidates (decide.cuh), for few slots in one block: the same
// order, the same results, and no more barriers.
#pragma once

#include "prologue/decide.cuh"
#include "prologue/sort_few.cuh"

// Up to 64 slots: every warp with slots holds all of them, and decides alone; the others write offsets. Any
// options.
template <u32 W>
__device__ __forceinline__ void decide_tiny(const SortParams& p, const DecideInput& in,
                                            const SortShared& shared) {
  const DecideParams& d = in.decide;
  const u32 lane = threadIdx.x % 32;
  const u32 warp = threadIdx.x / 32;
  TinySlots<W> s;
  rank_tiny(p, s);
  u32 option = 0, time_ns = 0;
  if (warp >= W) {
    const u32 first = threadIdx.x - 32 * W, step = kPrologueThreads - 32 * W;
    offsets_tiny<W>(p, s.masks, first, step, p.offsets);
    if (d.trace != nullptr) offsets_tiny<W>(p, s.masks, first, step, reinterpret_cast<i32*>(shared.first));
  } else {
    const Heights heights(in);
    // An expert's first slot stands for it.
    u32 rows[W];
#pragma unroll
    for (u32 w = 0; w < W; ++w) rows[w] = s.expert[w] >= 0 && s.rank[w] == 0 ? s.count[w] : 0;
    option = cheapest(in, sum_pairs<W>(d, LaneRows<W>(heights, rows)), time_ns);
    u32 begins[W][kMostCandidates], tile[W], in_tile[W], to[W];
#pragma unroll
    for (u32 w = 0; w < W; ++w) {
      to[w] = candidate_of(d.option[option], s.count[w]);
      u32 height = 0, inverse = 0;
#pragma unroll
      for (u32 c = 0; c < kMostCandidates; ++c) {
        height |= heights.tile_m[c] & mask_where(to[w] == c);
        inverse |= heights.inverse[c] & mask_where(to[w] == c);
      }
      tile[w] = divided(s.rank[w], height, inverse);
      in_tile[w] = s.rank[w] - tile[w] * height;
#pragma unroll
      for (u32 c = 0; c < kMostCandidates; ++c)
        begins[w][c] = __ballot_sync(kAllLanes, s.expert[w] >= 0 && in_tile[w] == 0 && to[w] == c);
    }
#pragma unroll
    for (u32 w = 0; w < W; ++w) {
      const u32 slot = 32 * w + lane;
      if (warp != w || slot >= p.slots) continue;
      if (s.expert[w] < 0) {
        p.positions[slot] = -1;
        continue;
      }
      const u32 row = s.first[w] + s.rank[w];
      p.rows[row] = (i32)slot;
      p.positions[slot] = (i32)row;
      if (in_tile[w] != 0) continue;
      const CandidatePlan& plan = d.plan[to[w]];
      u32 number = tile[w];
#pragma unroll
      for (u32 v = 0; v < W; ++v) {
        u32 same = 0;
#pragma unroll
        for (u32 c = 0; c < kMostCandidates; ++c) same |= begins[v][c] & mask_where(to[w] == c);
        number += __popc(s.at[w].lower[v] & same);
      }
      const u32 left = s.count[w] - s.rank[w];
      store_words(plan.tiles + 4 * (i64)number, (u32)s.expert[w], row,
                  left < plan.tile_m ? left : plan.tile_m, 0);
    }
    if (warp == 0) {
      counters_tiny(p, s);
#pragma unroll
      for (u32 c = 0; c < kMostCandidates; ++c) {
        u32 tiles = 0;
#pragma unroll
        for (u32 w = 0; w < W; ++w) tiles += __popc(begins[w][c]);
        if (lane == 0 && c < d.candidates) store_num_tiles(d.plan[c].num_tiles, tiles);
      }
    }
  }
  if (d.trace == nullptr) return;
  write_record(d, shared, p.experts, option, time_ns);
}

// Up to 512 slots and 512 experts, where every option gives all experts to one candidate: their tiles are
// counted for every candidate at once, 16 bits each above the rows. clear_sort() has been called.
__device__ __forceinline__ void decide_few(const SortParams& p, const SortShared& s, const DecideInput& in,
                                           const DecideShared& memory) {
  const DecideParams& d = in.decide;
  const u32 warp = threadIdx.x / 32;
  const u32 slot = threadIdx.x;
  const u32 e = threadIdx.x;
  const u32 warps = (p.experts + 31) / 32;  // that have experts
  const FewSlot at = rank_few(p, s);
  __syncthreads();
  const u32 rows[1] = {rows_few(p, s)};
  const LaneRows<1> of(Heights(in), rows);
  if (warp < warps) store_pairs(memory, sum_pairs<1>(d, of));
  const u64 mine = (u64)(rows[0] | of.tiles[0][0] << 16) | (u64)(of.tiles[0][1] | of.tiles[0][2] << 16) << 32;
  const u64 start_in_warp = scan_warp(s.sums, mine);
  __syncthreads();
  u64 before = start_in_warp, all = 0;
#pragma unroll
  for (u32 w = 0; w < kPrologueWarps; ++w) {
    const u64 v = s.sums[w];
    before += w < warp ? v : 0;
    all += v;
  }
  u32 time_ns;
  const u32 option = cheapest(in, load_pairs(memory, warps), time_ns);
  const u32 to = only_candidate(d.option[option]);
  const CandidatePlan& plan = d.plan[to];
  const u32 height = in.numbers[to].tile_m;
  const u32 inverse = in.numbers[to].tile_inverse;
  const auto of_plan = [&](u64 v) {  // rows, and the plan's tiles above them
    return ((u32)v & 0xffffu) | ((u32)(v >> (16 * (to + 1))) & 0xffffu) << 16;
  };
  const u32 start = of_plan(before);
  const u32 end = of_plan(all);
  if (e < p.experts) s.first[e] = start;
  if (threadIdx.x == 0) s.first[p.experts] = end;
  __syncthreads();

  if (at.expert >= 0) {
    const u32 rank = at.lower + at.ranks[at.expert];
    const u32 first = s.first[at.expert];
    const u32 row = (first & 0xffffu) + rank;
    p.rows[row] = (i32)slot;
    p.positions[slot] = (i32)row;
    const u32 number = divided(rank, height, inverse);
    if (number * height == rank) {
      const u32 left = (s.first[at.expert + 1] & 0xffffu) - row;
      store_words(plan.tiles + 4 * (i64)((first >> 16) + number), (u32)at.expert, row,
                  left < height ? left : height, 0);
    }
  } else if (at.expert != kNoSlot) {
    p.positions[slot] = -1;
  }
  if (e < p.experts) p.offsets[e] = (i32)(start & 0xffffu);
  if (threadIdx.x < d.candidates)
    store_num_tiles(d.plan[threadIdx.x].num_tiles, threadIdx.x == to ? end >> 16 : 0);
  if (threadIdx.x == 0) {
    p.offsets[p.experts] = (i32)(end & 0xffffu);
    add_counters(p, s.invalid[0], s.invalid[1]);
  }
  if (d.trace == nullptr) return;
  __syncthreads();  // write_record() has another one
  if (e < p.experts) s.first[e] = start & 0xffffu;
  if (threadIdx.x == 0) s.first[p.experts] = end & 0xffffu;
  write_record(d, s, p.experts, option, time_ns);
}
