// sort_few.cuh with a decision among several candidates (decide.cuh), for few slots in one block where one of
// them gets everything: the same order, the same results, and no more barriers.
#pragma once

#include "prologue/decide.cuh"
#include "prologue/sort_few.cuh"

// The chosen plan's tiles, as a sort's last step divides by them.
struct PlanDivider {
  u32 divisor, inverse;
  __device__ __forceinline__ u32 quotient(u32 n) const { return divided(n, divisor, inverse); }
};

// Up to 64 slots every warp with slots holds all of them, and decides alone, from a copy of its own of what
// it needs of the table: no expert has more than 64 rows.
struct TinyTable {
  struct alignas(16) Candidate {
    CandidateHead head;
    u32 ns[12];
  };
  Candidate candidate[kMostCandidates];
};
constexpr u32 kTinyQuads = sizeof(TinyTable::Candidate) / sizeof(TableWords);
constexpr u32 kTinyWarps = kTinySlots / 32;
static_assert(kTinySlots / 8 < 12 && kMostCandidates * kTinyQuads <= 32, "points, and lanes for them");
static_assert(kTinyWarps * sizeof(TinyTable) <= sizeof(DecideTable), "in the table's place");
// A lane's part of it on its way to shared memory.
struct TinyCopy {
  TableWords words;
  u32 warp, lane;
  bool mine;
  __device__ __forceinline__ TinyCopy(const DecideTable& data, u32 slots)
      : words{}, warp(warp_number()), lane(threadIdx.x % 32) {
    // The first warp decides even where there are no slots.
    const bool decides = warp == 0 || 32 * warp < slots;
    mine = kCopiesTable && decides && lane < kMostCandidates * kTinyQuads;
    if (mine)
      words = reinterpret_cast<const TableWords*>(data.candidate + lane / kTinyQuads)[lane % kTinyQuads];
  }
  // By all warps.
  __device__ __forceinline__ const TinyTable& store(DecideShared& shared) const {
    TinyTable* const own = reinterpret_cast<TinyTable*>(&shared.table) + warp;
    if (mine) reinterpret_cast<TableWords*>(own)[lane] = words;
    __syncwarp();
    return *own;
  }
};
// The deciding warps' part: `s` has been ranked.
template <u32 W, typename Table>
__device__ __forceinline__ void decide_tiny(const SortParams& p, const TinySlots<W>& s, const Table& table,
                                            DecideShared& notes, u32 warp, u32 choices) {
  const u32 lane = threadIdx.x % 32;
  u32 rows[W];  // an expert's first slot stands for it
#pragma unroll
  for (u32 w = 0; w < W; ++w) rows[w] = s.expert[w] >= 0 && s.rank[w] == 0 ? s.count[w] : 0;
  const LaneCosts<W, false> costs(table, rows);
  u32 ns = 0, tiles = 0;
#pragma unroll
  for (u32 c = 0; c < kMostCandidates; ++c) {
    const u32 sum = __reduce_add_sync(kAllLanes, sum_of(costs.ns[c]));
    const u32 count = __reduce_add_sync(kAllLanes, sum_of(costs.tiles[c]));
    if (lane == c) ns = sum;
    if (lane == c) tiles = count;
  }
  const LaneHead own(table.candidate[candidate_of_lane()].head);
  const Cheapest best = cheapest_candidate(candidate_ns(own.head.terms, ns, active_of(rows), tiles), choices);
  const CandidateHead& chosen = table.candidate[best.number].head;
  emit_tiny<W>(p, s, PlanDivider{chosen.tile_m, chosen.tile_inverse}, chosen.tile_m, chosen.tiles);
  if (warp != 0) return;
  own.store_tiles(lane == best.number ? tiles : 0);
  counters_tiny(p, s);
  if (lane != best.number) return;
  notes.option = own.head.option;
  notes.time_ns = best.time_ns;
}
// The others write offsets.
template <u32 W>
__device__ __forceinline__ void decide_tiny(const SortParams& p, const SortShared& shared,
                                            const DecideTable& parameters, const TinyCopy& copy,
                                            DecideShared& notes, u32 choices, bool traced) {
  TinySlots<W> s;
  load_tiny(p, s);
  const TinyTable& own = copy.store(notes);
  rank_tiny(s);
  if (copy.warp < W) {
    if constexpr (kCopiesTable) {
      decide_tiny<W>(p, s, own, notes, copy.warp, choices);
    } else {
      decide_tiny<W>(p, s, parameters, notes, copy.warp, choices);
    }
    return;
  }
  const u32 first = threadIdx.x - 32 * W, step = kPrologueThreads - 32 * W;
  offsets_tiny<W>(p, s.masks, first, step, p.offsets);
  if (traced) offsets_tiny<W>(p, s.masks, first, step, reinterpret_cast<i32*>(shared.first));
}

// Up to 512 slots and 512 experts: rows and the tiles of all candidates are scanned at once, 16 bits each.
// clear_sort() has been called.
__device__ __forceinline__ void decide_few(const SortParams& p, const SortShared& s, const DecideInput& in,
                                           const TableCopy& copy) {
  const u32 warp = warp_number();
  const u32 e = threadIdx.x;
  const bool mine = 32 * warp < p.experts;
  const FewSlot at = rank_few(p, s);
  copy.store(in.shared);
  __syncthreads();
  const u32 rows[1] = {e < p.experts ? prefix_counts(s, e) : 0};
  Scans<2> at_expert{};  // rows and the tiles of candidate 0; of candidates 1 and 2
  u32 own[2] = {};
  if (mine) {
    const LaneCosts<1, true> costs(in.table, rows);
    add_costs(in, costs, active_of(rows));
    own[0] = rows[0] | costs.tiles[0][0] << 16;
    own[1] = costs.tiles[1][0] | costs.tiles[2][0] << 16;
    at_expert = {{own[0], own[1]}};
    at_expert.begin(in.shared, warp);
  }
  __syncthreads();
  if (mine) {
    if (warp != 0) at_expert.end(in.shared, warp);
    const u32 to = decide_whole(in, warp);
    const auto of_plan = [to](u32 a, u32 b) {  // rows, and the plan's tiles above them
      return to == 0 ? a : (a & 0xffffu) | (to == 1 ? b << 16 : b & 0xffff0000u);
    };
    const u32 a = at_expert.v[0], b = at_expert.v[1];
    if (e < p.experts) {
      const u32 first = of_plan(a, b);
      s.first[e] = first;
      p.offsets[e] = (i32)(first & 0xffffu);
    }
    if (e + 1 == p.experts) {
      const u32 end = of_plan(a + own[0], b + own[1]);
      s.first[p.experts] = end;
      p.offsets[p.experts] = (i32)(end & 0xffffu);
    }
  }
  __syncthreads();

  const CandidateHead& chosen = in.shared.chosen;
  const PlanDivider tile{chosen.tile_m, chosen.tile_inverse};
  i32* const tiles = chosen.tiles;
  emit_few(p, s, at, tile, tile.divisor, tiles);
  if (threadIdx.x == 0) add_counters(p, s.invalid[0], s.invalid[1]);
}
