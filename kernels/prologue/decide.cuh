// The device's side of params/decide.hpp, for a block that knows how many rows every expert has: it adds up
// what they cost every candidate and takes the cheapest.
//
// Parameters lie in memory that nobody has read before, and a warp that reads them as constants gets one
// address after the other, each time it has to wait for. So the threads of the block ask for all of them at
// once, as they would for data, before anything else, and put them into shared memory in front of a barrier
// that is there anyway. (DECIDE_CONSTANTS: not so, to be timed beside it.)
#pragma once

#include "params/decide.hpp"
#include "prologue/sort.cuh"

#ifndef DECIDE_CONSTANTS
#define DECIDE_CONSTANTS 0
#endif
constexpr bool kCopiesTable = DECIDE_CONSTANTS == 0;

// A decision's parameters, and where it works. choices: as in DecideTable.
struct DecideInput {
  const DecideTable& table;
  DecideShared& shared;
  u32 choices;
};

struct alignas(16) TableWords {
  u32 v[4];
};
constexpr u32 kTableQuads = sizeof(DecideTable) / sizeof(TableWords);
static_assert(sizeof(DecideTable) % sizeof(TableWords) == 0 && kTableQuads <= kPrologueThreads,
              "a thread each");
// A parameter's address, to be read as data. It is a constant itself: to be asked for along with the first
// ones.
template <typename T>
__device__ __forceinline__ const T& as_data(const T& parameter) {
  return *reinterpret_cast<const T*>(not_before(reinterpret_cast<u64>(&parameter)));
}
// This thread's part of the table, on its way to shared memory.
struct TableCopy {
  TableWords words;
  __device__ __forceinline__ explicit TableCopy(const DecideTable& data) : words{} {
    if (kCopiesTable && threadIdx.x < kTableQuads)
      words = reinterpret_cast<const TableWords*>(&data)[threadIdx.x];
  }
  // A barrier must follow before others read.
  __device__ __forceinline__ void store(DecideShared& shared) const {
    if (kCopiesTable && threadIdx.x < kTableQuads)
      reinterpret_cast<TableWords*>(&shared.table)[threadIdx.x] = words;
  }
};

constexpr u32 kPairs = kMostOptions * kMostCandidates;
static_assert(4 * kMostCandidates <= 32 && kPairs >= 8 && kPairs <= 32, "a lane each, a word for each lane");
// Before dependency_wait(); a barrier follows.
__device__ __forceinline__ void clear_totals(DecideShared& shared) {
  if (threadIdx.x < 4 * kPairs) (&shared.totals[0][0])[threadIdx.x] = 0;
}
// The warp's number, which the compiler then knows to be the same for its lanes.
__device__ __forceinline__ u32 warp_number() {
  return __shfl_sync(kAllLanes, threadIdx.x / 32, 0);
}

// What R experts of every lane cost every candidate, and how many tiles they make. kLong: there may be more
// than kFineRows rows.
template <u32 R, bool kLong>
struct LaneCosts {
  u32 ns[kMostCandidates][R], tiles[kMostCandidates][R];
  template <typename Table>
  __device__ __forceinline__ LaneCosts(const Table& table, const u32 (&rows)[R]) {
    CurvePlace at[R];
#pragma unroll
    for (u32 r = 0; r < R; ++r) at[r] = kLong ? curve_place(rows[r]) : CurvePlace{(rows[r] + 7) / 8, 0, 0};
#pragma unroll
    for (u32 c = 0; c < kMostCandidates; ++c) {
      const auto& of = table.candidate[c];
#pragma unroll
      for (u32 r = 0; r < R; ++r) {
        tiles[c][r] = divided(rows[r] + of.head.tile_m - 1, of.head.tile_m, of.head.tile_inverse);
        ns[c][r] = of.ns[at[r].point];
      }
    }
#pragma unroll
    for (u32 r = 0; r < R; ++r) {
      if (at[r].into == 0) continue;
#pragma unroll
      for (u32 c = 0; c < kMostCandidates; ++c) ns[c][r] += curve_rise(table.candidate[c].ns, at[r]);
    }
  }
};
template <u32 R>
__device__ __forceinline__ u32 sum_of(const u32 (&v)[R]) {
  u32 sum = 0;
#pragma unroll
  for (u32 r = 0; r < R; ++r) sum += v[r];
  return sum;
}
// Experts of the warp that have rows.
template <u32 R>
__device__ __forceinline__ u32 active_of(const u32 (&rows)[R]) {
  u32 active = 0;
#pragma unroll
  for (u32 r = 0; r < R; ++r) active += __popc(__ballot_sync(kAllLanes, rows[r] != 0));
  return active;
}
// A warp's costs of all candidates to the totals: a lane adds a word of them.
template <u32 R>
__device__ __forceinline__ void add_costs(const DecideInput& in, const LaneCosts<R, true>& costs,
                                          u32 active) {
  const u32 lane = threadIdx.x % 32;
  u32 mine = active;  // lanes beyond the candidates: into words that nobody reads
#pragma unroll
  for (u32 c = 0; c < kMostCandidates; ++c) {
    const u32 ns = __reduce_add_sync(kAllLanes, sum_of(costs.ns[c]));
    const u32 tiles = __reduce_add_sync(kAllLanes, sum_of(costs.tiles[c]));
    if (lane == 4 * c) mine = ns & 0xffffu;
    if (lane == 4 * c + 1) mine = ns >> 16;
    if (lane == 4 * c + 2) mine = tiles;
  }
  atomicAdd(&in.shared.totals[0][0] + lane, mine);
}
// Nanoseconds of a total, at most 2^32 - 1.
__device__ __forceinline__ u32 total_ns(const TableWords& total) {
  const u32 upper = total.v[1] + (total.v[0] >> 16);
  return upper > 0xffffu ? 0xffffffffu : upper << 16 | (total.v[0] & 0xffffu);
}
__device__ __forceinline__ TableWords total_of(const DecideShared& shared, u32 pair) {
  return *reinterpret_cast<const TableWords*>(shared.totals[pair]);
}

// The first of the cheapest of lanes' times.
struct Cheapest {
  u32 number, time_ns;
};
// Lane c's candidate; of lanes without one the last.
__device__ __forceinline__ u32 candidate_of_lane() {
  const u32 lane = threadIdx.x % 32;
  return lane < kMostCandidates ? lane : kMostCandidates - 1;
}
// Of the first `choices` lanes, which may be as many as there are candidates.
__device__ __forceinline__ Cheapest cheapest_candidate(u32 ns, u32 choices) {
  const u32 mine = threadIdx.x % 32 < choices ? ns : 0xffffffffu;
  Cheapest best{0, __shfl_sync(kAllLanes, mine, 0)};
#pragma unroll
  for (u32 c = 1; c < kMostCandidates; ++c) {
    const u32 other = __shfl_sync(kAllLanes, mine, c);
    if (other < best.time_ns) best = Cheapest{c, other};
  }
  return best;
}
// A candidate's head, for the lane that works its cost out.
struct LaneHead {
  CandidateHead head;
  __device__ __forceinline__ explicit LaneHead(const CandidateHead& of) : head(of) {}
  // The plan has `tiles`: for the first warp's lanes.
  __device__ __forceinline__ void store_tiles(u32 tiles) const {
    if (threadIdx.x < kMostCandidates && head.num_tiles != nullptr) store_num_tiles(head.num_tiles, tiles);
  }
};
// By every warp that calls it, from the totals behind a barrier: the candidate that gets everything. The
// first warp notes it, and the first block tells the plans; a barrier must follow before others read.
__device__ __forceinline__ u32 decide_whole(const DecideInput& in, u32 warp) {
  const u32 c = candidate_of_lane();
  const LaneHead own(in.table.candidate[c].head);
  const TableWords total = total_of(in.shared, c);
  const Cheapest best =
      cheapest_candidate(candidate_ns(own.head.terms, total_ns(total), total.v[3], total.v[2]), in.choices);
  if (warp != 0) return best.number;
  if (threadIdx.x == best.number) {
    in.shared.chosen.tiles = own.head.tiles;
    in.shared.chosen.tile_m = own.head.tile_m;
    in.shared.chosen.tile_inverse = own.head.tile_inverse;
    in.shared.option = own.head.option;
    in.shared.time_ns = best.time_ns;
  }
  if (blockIdx.x == 0) own.store_tiles(c == best.number ? total.v[2] : 0);
  return best.number;
}

// Where options divide experts: the totals of every option's candidates. No call is captured with such a set
// unless it is asked for, so what counts is that this is short.
__device__ __forceinline__ void add_options(const DecideInput& in, const LaneCosts<2, true>& costs,
                                            const u32 (&rows)[2]) {
  const u32 lane = threadIdx.x % 32;
  u32 ns = 0, tiles = 0, active = 0;
#pragma unroll 1
  for (u32 o = 0; o < in.table.options; ++o) {
    const DecideOption option = in.table.option[o];
#pragma unroll
    for (u32 c = 0; c < kMostCandidates; ++c) {
      u32 sum[3] = {0, 0, 0};
#pragma unroll
      for (u32 r = 0; r < 2; ++r) {
        if (rows[r] == 0 || candidate_of(option, rows[r]) != c) continue;
        sum[0] += costs.ns[c][r];
        sum[1] += costs.tiles[c][r];
        sum[2] += 1;
      }
#pragma unroll
      for (u32 i = 0; i < 3; ++i) sum[i] = __reduce_add_sync(kAllLanes, sum[i]);
      if (lane != kMostCandidates * o + c) continue;
      ns = sum[0];
      tiles = sum[1];
      active = sum[2];
    }
  }
  if (lane >= kPairs) return;
  u32* const total = in.shared.totals[lane];
  atomicAdd(total, ns & 0xffffu);
  atomicAdd(total + 1, ns >> 16);
  atomicAdd(total + 2, tiles);
  atomicAdd(total + 3, active);
}
__device__ __forceinline__ Cheapest cheapest_option(const DecideInput& in) {
  const u32 lane = threadIdx.x % 32;
  const TableWords total = total_of(in.shared, lane < kPairs ? lane : 0);
  const u32 mine = candidate_ns(in.table.candidate[lane % kMostCandidates].head.terms, total_ns(total),
                                total.v[3], total.v[2]);
  u32 sum = 0;
#pragma unroll
  for (u32 c = 0; c < kMostCandidates; ++c) {
    const u32 of = __shfl_sync(kAllLanes, mine, (kMostCandidates * lane + c) % 32);
    if (c < in.table.candidates) sum = saturating_sum(sum, of);
  }
  const u32 least = __reduce_min_sync(kAllLanes, lane < in.table.options ? sum : 0xffffffffu);
  return {(u32)__ffs((int)__ballot_sync(kAllLanes, sum == least)) - 1u, least};
}

// s.tile of a decided plan: an expert's first tile, and its candidate in the upper bits.
constexpr u32 kCandidateShift = 30;
// Scans side by side, by the warps that have experts.
template <u32 N>
struct Scans {
  u32 v[N];
  // Between these two a barrier: exclusive prefixes in the warp; in the block.
  __device__ __forceinline__ void begin(DecideShared& shared, u32 warp) {
    const u32 lane = threadIdx.x % 32;
    u32 sum[N];
#pragma unroll
    for (u32 i = 0; i < N; ++i) {
      sum[i] = scan_warp(v[i], lane);
      v[i] = sum[i] - v[i];
    }
    if (lane != 31) return;
#pragma unroll
    for (u32 i = 0; i < N; ++i) shared.scan[warp][i] = sum[i];
  }
  __device__ __forceinline__ void end(const DecideShared& shared, u32 warp) {
    const u32 lane = threadIdx.x % 32;
#pragma unroll
    for (u32 i = 0; i < N; ++i) v[i] += __reduce_add_sync(kAllLanes, lane < warp ? shared.scan[lane][i] : 0);
  }
};
// Of a decision: rows, and the tiles of every candidate.
using PlanScans = Scans<1 + kMostCandidates>;
__device__ __forceinline__ u32 tiles_of_plan(const PlanScans& at, u32 c) {
  return c == 0 ? at.v[1] : c == 1 ? at.v[2] : at.v[3];
}
// Experts 2i and 2i + 1, whose candidates are `to`, to shared memory.
__device__ __forceinline__ void store_planned(const SortShared& s, u32 experts, const PlanScans& at,
                                              const u32 (&count)[2], const u32 (&before)[2],
                                              const u32 (&to)[2], u32 tile0, u32 tile1) {
  const u32 e = 2 * threadIdx.x;
  store_experts(s, experts, e, at.v[0], count[0], tile0 | to[0] << kCandidateShift,
                tile1 | to[1] << kCandidateShift, before[0], before[1]);
  if (e < experts && e + 2 >= experts) s.first[experts] = at.v[0] + count[0] + count[1];
}

// The plans of all candidates: what sort_block() and the batched entry ask of a plan (sort.cuh: OnePlan).
struct DecidedPlans {
  const DecideInput& in;
  const TableCopy& copy;
  __device__ __forceinline__ void prepare() const { copy.store(in.shared); }
  __device__ __forceinline__ void prepare_alone() const {
    prepare();
    __syncthreads();
  }
  // Everything to one candidate: tiles are counted for all of them beside the decision. One barrier.
  __device__ __forceinline__ void scan_whole(const SortShared& s, u32 experts, const u32 (&count)[2],
                                             const u32 (&before)[2]) const {
    const u32 warp = warp_number();
    const bool mine = 64 * warp < experts;
    PlanScans at{};
    u32 tiles0[kMostCandidates] = {};
    if (mine) {
      const LaneCosts<2, true> costs(in.table, count);
      add_costs(in, costs, active_of(count));
      at.v[0] = count[0] + count[1];
#pragma unroll
      for (u32 c = 0; c < kMostCandidates; ++c) {
        tiles0[c] = costs.tiles[c][0];
        at.v[1 + c] = sum_of(costs.tiles[c]);
      }
      at.begin(in.shared, warp);
    }
    __syncthreads();
    if (!mine) return;
    if (warp != 0) at.end(in.shared, warp);
    const u32 to = decide_whole(in, warp);
    const u32 tile = tiles_of_plan(at, to);
    store_planned(s, experts, at, count, before, {to, to}, tile,
                  tile + (to == 0   ? tiles0[0]
                          : to == 1 ? tiles0[1]
                                    : tiles0[2]));
  }
  // Options divide experts. Two barriers.
  __device__ __forceinline__ void scan_divided(const SortShared& s, u32 experts, const u32 (&count)[2],
                                               const u32 (&before)[2]) const {
    const u32 warp = warp_number();
    const bool mine = 64 * warp < experts;
    if (mine) add_options(in, LaneCosts<2, true>(in.table, count), count);
    __syncthreads();
    PlanScans at{};
    u32 to[2] = {0, 0}, tiles[2] = {0, 0};
    if (mine) {
      const Cheapest best = cheapest_option(in);
      at.v[0] = count[0] + count[1];
#pragma unroll
      for (u32 i = 0; i < 2; ++i) {
        to[i] = candidate_of(in.table.option[best.number], count[i]);
        const CandidateHead& head = in.table.candidate[to[i]].head;
        tiles[i] = divided(count[i] + head.tile_m - 1, head.tile_m, head.tile_inverse);
#pragma unroll
        for (u32 c = 0; c < kMostCandidates; ++c) at.v[1 + c] += to[i] == c ? tiles[i] : 0;
      }
      at.begin(in.shared, warp);
      if (blockIdx.x == 0 && warp == 0) {
        const u32 c = candidate_of_lane();
        LaneHead(in.table.candidate[c].head)
            .store_tiles(in.shared.totals[kMostCandidates * best.number + c][2]);
      }
      if (threadIdx.x == 0) {
        in.shared.option = best.number;
        in.shared.time_ns = best.time_ns;
      }
    }
    __syncthreads();
    if (!mine) return;
    at.end(in.shared, warp);
    store_planned(s, experts, at, count, before, to, tiles_of_plan(at, to[0]),
                  tiles_of_plan(at, to[1]) + (to[0] == to[1] ? tiles[0] : 0));
  }
  __device__ __forceinline__ void scan(const SortParams& p, const SortShared& s, u32 count0, u32 count1,
                                       u32 before0, u32 before1) const {
    if (in.choices != 0) {
      scan_whole(s, p.experts, {count0, count1}, {before0, before1});
    } else {
      scan_divided(s, p.experts, {count0, count1}, {before0, before1});
    }
  }
  __device__ __forceinline__ void store(const SortParams&, const SortShared&) const {}  // scan() has
  __device__ __forceinline__ void store_tile(const SortParams&, const SortShared& s, u32 e, u32 row) const {
    const u32 word = s.tile[e];
    const CandidateHead& head = in.table.candidate[word >> kCandidateShift].head;
    const u32 in_expert = row - s.first[e];
    const u32 tile = divided(in_expert, head.tile_m, head.tile_inverse);
    if (tile * head.tile_m == in_expert)
      ::store_tile(head.tiles, (word & ((1u << kCandidateShift) - 1u)) + tile, e, row, s.first[e + 1] - row,
                   head.tile_m);
  }
};

// A trace: how many records have been written, and behind it a ring of them, trace_words words each: the
// header (kTraceHeader), then the rows of every expert, from where these begin (the bits `mask` of s.first).
// Its parameters are read as data: of constants the compiler brings one to the beginning of the kernel, where
// every block waits for it, trace or not.
__device__ __forceinline__ void write_record(const DecideTable& d, const DecideShared& shared,
                                             const SortShared& s, u32 experts, u32 mask) {
  if (threadIdx.x == 0) s.sums[0] = atomicAdd(d.trace, 1ull);
  __syncthreads();
  const u64 number = s.sums[0];
  u32* const record =
      reinterpret_cast<u32*>(d.trace + 1) + (u64)(number % d.trace_records) * (u64)d.trace_words;
  for (u32 e = threadIdx.x; e < experts; e += kPrologueThreads)
    record[kTraceHeader + e] = (s.first[e + 1] - s.first[e]) & mask;
  if (threadIdx.x != 0) return;
  record[0] = (u32)number + 1;
  record[1] = d.trace_call;
  record[2] = shared.option;
  record[3] = shared.time_ns;
  record[4] = d.trace_tag;
}
