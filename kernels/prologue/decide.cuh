// The device's side of params/decide.hpp, for a block that knows how many rows every expert has: it reads the
// candidates' curves from the parameters (few different points, so no copy of them all), adds up what every
// option costs and takes the cheapest. Every block that writes a part of the plan decides by itself, from the
// same numbers; where it can, every warp.
#pragma once

#include "params/decide.hpp"
#include "prologue/sort.cuh"

// Per option and candidate two sums: nanoseconds; active experts and tiles (kActiveShift). At most 1024
// experts and 2^21 - 1 tiles (the host sees to it).
constexpr u32 kActiveShift = 21;

struct DecideShared {
  u32* sums;   // [warps][kDecideSums]
  u64* scan;   // [warps]
  u32* notes;  // [kDecideNotes]
};
static_assert(kDecideWords == kPrologueWarps * (kDecideSums + 2) + kDecideNotes, "these");

__device__ __forceinline__ DecideShared carve_decide(u32* shared) {
  return {shared, reinterpret_cast<u64*>(shared + kPrologueWarps * kDecideSums),
          shared + kPrologueWarps * (kDecideSums + 2)};
}
// A decision's parameters, by reference.
struct DecideInput {
  const DecideParams& decide;
  const CandidateNumbers (&numbers)[kMostCandidates];
};

// Lane kMostCandidates * o + c works out what option o's experts cost candidate c.
constexpr u32 kPairs = kMostOptions * kMostCandidates;
static_assert(kPairs <= 32 && kDecideSums == 2 * kPairs, "a lane per option and candidate");
// The tile heights of all candidates, with dividers.
struct Heights {
  u32 tile_m[kMostCandidates], inverse[kMostCandidates];
  __device__ __forceinline__ explicit Heights(const DecideInput& in) {
#pragma unroll
    for (u32 c = 0; c < kMostCandidates; ++c) {
      tile_m[c] = in.numbers[c].tile_m;
      inverse[c] = in.numbers[c].tile_inverse;
    }
  }
  __device__ __forceinline__ u32 tiles(u32 rows, u32 c) const {
    return divided(rows + tile_m[c] - 1, tile_m[c], inverse[c]);
  }
};
__device__ __forceinline__ u32 tiles_of_candidate(const DecideInput& in, u32 rows, u32 c) {
  const CandidateNumbers& n = in.numbers[c];
  return divided(rows + n.tile_m - 1, n.tile_m, n.tile_inverse);
}

// All bits, or none. (Where an array's element is taken on the condition that its index is some number, the
// compiler would index with that number instead, and keep the array in memory.)
__device__ __forceinline__ u32 mask_where(bool condition) {
  return not_before(condition ? 0xffffffffu : 0);
}

// The warp's sums for the option and the candidate of this lane, over R experts of every lane: their rows,
// and the tiles that they would make of every candidate.
struct PairSums {
  u32 ns, counts;
};
template <u32 R>
struct LaneRows {
  u32 rows[R], tiles[R][kMostCandidates];
  __device__ __forceinline__ LaneRows(const Heights& heights, const u32 (&of)[R]) {
#pragma unroll
    for (u32 i = 0; i < R; ++i) {
      rows[i] = of[i];
#pragma unroll
      for (u32 c = 0; c < kMostCandidates; ++c) tiles[i][c] = heights.tiles(of[i], c);
    }
  }
};
template <u32 R>  // 1 or 2
__device__ __forceinline__ PairSums sum_pairs(const DecideParams& d, const LaneRows<R>& of) {
  const u32 lane = threadIdx.x % 32;
  u32 ns[R][kMostCandidates];
#pragma unroll
  for (u32 i = 0; i < R; ++i) {
#pragma unroll
    for (u32 c = 0; c < kMostCandidates; ++c)
      ns[i][c] = c < d.candidates ? curve_ns(d.cost[c].ns, of.rows[i]) : 0;
  }
  const u32 active0 = of.rows[0] != 0 ? 1u << kActiveShift : 0;
  const u32 active1 = of.rows[R - 1] != 0 ? 1u << kActiveShift : 0;
  PairSums mine{0, 0};
#pragma unroll 1
  for (u32 o = 0; o < d.options; ++o) {
    const DecideOption option = d.option[o];
    const u32 only = only_candidate(option);
    const u32 to0 = candidate_of(option, of.rows[0]);
    const u32 to1 = candidate_of(option, of.rows[R - 1]);
#pragma unroll
    for (u32 c = 0; c < kMostCandidates; ++c) {
      if (c < d.candidates && (only == kMostCandidates || only == c)) {
        const u32 given0 = mask_where(to0 == c);
        const u32 given1 = R > 1 ? mask_where(to1 == c) : 0;
        u32 sum = (ns[0][c] & given0) + (ns[R - 1][c] & given1);
        u32 count = ((of.tiles[0][c] + active0) & given0) + ((of.tiles[R - 1][c] + active1) & given1);
        sum = __reduce_add_sync(kAllLanes, sum);
        count = __reduce_add_sync(kAllLanes, count);
        if (lane == kMostCandidates * o + c) mine = PairSums{sum, count};
      }
    }
  }
  return mine;
}
// The number of the cheapest option, from the sums over all experts. time_ns: of that option.
__device__ __forceinline__ u32 cheapest(const DecideInput& in, const PairSums& all, u32& time_ns) {
  const u32 lane = threadIdx.x % 32;
  const DecideParams& d = in.decide;
  const CandidateTerms terms = in.numbers[lane % kMostCandidates].terms;
  const u32 mine =
      candidate_ns(terms, all.ns, all.counts >> kActiveShift, all.counts & ((1u << kActiveShift) - 1u));
  u32 total = 0;
#pragma unroll
  for (u32 c = 0; c < kMostCandidates; ++c) {
    const u32 of = __shfl_sync(kAllLanes, mine, (kMostCandidates * lane + c) % 32);
    if (c < d.candidates) total = saturating_sum(total, of);
  }
  total = lane < d.options ? total : 0xffffffffu;
  time_ns = __reduce_min_sync(kAllLanes, total);
  return (u32)__ffs((int)__ballot_sync(kAllLanes, total == time_ns)) - 1u;
}
// Between these two a barrier: the sums of a warp, and of all `warps` that have experts.
__device__ __forceinline__ void store_pairs(const DecideShared& s, const PairSums& mine) {
  const u32 lane = threadIdx.x % 32;
  if (lane < kPairs)
    *reinterpret_cast<uint2*>(s.sums + threadIdx.x / 32 * kDecideSums + 2 * lane) =
        make_uint2(mine.ns, mine.counts);
}
__device__ __forceinline__ PairSums load_pairs(const DecideShared& s, u32 warps) {
  const u32 pair = threadIdx.x % 32 < kPairs ? threadIdx.x % 32 : 0;
  PairSums all{0, 0};
#pragma unroll 8
  for (u32 w = 0; w < kPrologueWarps; ++w) {
    if (w >= warps) continue;
    const uint2 one = *reinterpret_cast<const uint2*>(s.sums + w * kDecideSums + 2 * pair);
    all.ns = saturating_sum(all.ns, one.x);
    all.counts += one.y;
  }
  return all;
}

// What is left of a sort once every expert's candidate is known: rows as in scan_experts(), and tiles of the
// candidates' plans. s.tile holds an expert's first tile in its plan, and its candidate in the upper bits.
// The tiles of all plans, the option and its time are noted. A barrier must follow before others read.
constexpr u32 kCandidateShift = 30;
// Exclusive prefix of `mine` in its warp; the warp's sum goes to sums[warp].
__device__ __forceinline__ u64 scan_warp(u64* sums, u64 mine) {
  const u32 lane = threadIdx.x % 32;
  u64 sum = mine;
#pragma unroll
  for (u32 d = 1; d < 32; d *= 2) {
    const u64 left = __shfl_up_sync(kAllLanes, sum, d);
    if (lane >= d) sum += left;
  }
  if (lane == 31) sums[threadIdx.x / 32] = sum;
  return sum - mine;
}
// Thread 0's notes: tiles of all plans, the option and its time.
__device__ __forceinline__ void note_decision(const DecideShared& s, const u32 (&tiles)[kMostCandidates],
                                              u32 option, u32 time_ns) {
#pragma unroll
  for (u32 c = 0; c < kMostCandidates; ++c) s.notes[c] = tiles[c];
  s.notes[kMostCandidates] = option;
  s.notes[kMostCandidates + 1] = time_ns;
}
// The sum over all warps, from what scan_warp() left behind a barrier; before: over the warps in front.
__device__ __forceinline__ u64 scan_block(u64 of_lane, u64& before) {
  const u32 lane = threadIdx.x % 32;
  const u32 warp = threadIdx.x / 32;
#pragma unroll
  for (u32 w = 1; w < kPrologueWarps; w *= 2) {
    const u64 left = __shfl_up_sync(kAllLanes, of_lane, w);
    if (lane >= w) of_lane += left;
  }
  const u64 earlier = __shfl_sync(kAllLanes, of_lane, warp == 0 ? 0 : warp - 1);
  before = warp == 0 ? 0 : earlier;
  return __shfl_sync(kAllLanes, of_lane, kPrologueWarps - 1);
}
// Decides, and scans by what is decided. Two barriers.
__device__ __forceinline__ void scan_plans(const DecideInput& in, const SortShared& s,
                                           const DecideShared& memory, u32 experts, u32 count0, u32 count1,
                                           u32 before0, u32 before1) {
  const u32 lane = threadIdx.x % 32;
  const u32 warp = threadIdx.x / 32;
  const u32 warps = (experts + 63) / 64;  // that have experts
  const u32 count[2] = {count0, count1};
  if (warp < warps) store_pairs(memory, sum_pairs<2>(in.decide, LaneRows<2>(Heights(in), count)));
  __syncthreads();
  u32 time_ns;
  const u32 option = cheapest(in, load_pairs(memory, warps), time_ns);
  u64 mine[2] = {(u64)(count0 + count1), 0};  // rows and tiles of plan 0; tiles of plans 1 and 2
  u32 to[2], tiles[2];
#pragma unroll
  for (u32 i = 0; i < 2; ++i) {
    to[i] = candidate_of(in.decide.option[option], count[i]);
    tiles[i] = tiles_of_candidate(in, count[i], to[i]);
    if (to[i] == 0) mine[0] += (u64)tiles[i] << 32;
    if (to[i] == 1) mine[1] += (u64)tiles[i];
    if (to[i] == 2) mine[1] += (u64)tiles[i] << 32;
  }
  u64 before[2] = {scan_warp(s.sums, mine[0]), scan_warp(memory.scan, mine[1])};
  u64 all[2];
  __syncthreads();
#pragma unroll
  for (u32 i = 0; i < 2; ++i) {
    u64 earlier;
    all[i] = scan_block(lane < kPrologueWarps ? (i == 0 ? s.sums : memory.scan)[lane] : 0, earlier);
    before[i] += earlier;
  }
  const u32 e = 2 * threadIdx.x;
  const u32 row = (u32)before[0];
  u32 tile[kMostCandidates] = {(u32)(before[0] >> 32), (u32)before[1], (u32)(before[1] >> 32)};
  const u32 rows[2] = {row, row + count0};
  const u32 earlier_blocks[2] = {before0, before1};
#pragma unroll
  for (u32 i = 0; i < 2; ++i) {
    if (e + i < experts) {
      s.first[e + i] = rows[i];
      s.base[e + i] = rows[i] + earlier_blocks[i];
      const u32 first = to[i] == 0 ? tile[0] : to[i] == 1 ? tile[1] : tile[2];
      s.tile[e + i] = first | to[i] << kCandidateShift;
    }
#pragma unroll
    for (u32 c = 0; c < kMostCandidates; ++c) tile[c] += to[i] == c ? tiles[i] : 0;
  }
  if (threadIdx.x != 0) return;
  s.first[experts] = (u32)all[0];
  note_decision(memory, {(u32)(all[0] >> 32), (u32)all[1], (u32)(all[1] >> 32)}, option, time_ns);
}
// The same where every option gives all experts to one candidate: tiles are counted for all candidates beside
// the decision. One barrier.
__device__ __forceinline__ void scan_whole(const DecideInput& in, const SortShared& s,
                                           const DecideShared& memory, u32 experts, u32 count0, u32 count1,
                                           u32 before0, u32 before1) {
  const u32 lane = threadIdx.x % 32;
  const u32 warp = threadIdx.x / 32;
  const u32 warps = (experts + 63) / 64;  // that have experts
  const u32 count[2] = {count0, count1};
  const LaneRows<2> of(Heights(in), count);
  // Rows and tiles of plan 0; tiles of plans 1 and 2.
  const u64 before_a =
      scan_warp(s.sums, (u64)(count0 + count1) | (u64)(of.tiles[0][0] + of.tiles[1][0]) << 32);
  const u64 before_b = scan_warp(
      memory.scan, (u64)(of.tiles[0][1] + of.tiles[1][1]) | (u64)(of.tiles[0][2] + of.tiles[1][2]) << 32);
  if (warp < warps) store_pairs(memory, sum_pairs<2>(in.decide, of));
  __syncthreads();
  u32 time_ns;
  const u32 option = cheapest(in, load_pairs(memory, warps), time_ns);
  const u32 to = only_candidate(in.decide.option[option]);
  const auto of_plan = [to](u64 a, u64 b) {  // rows, and the plan's tiles above them
    const u32 tiles = to == 0 ? (u32)(a >> 32) : to == 1 ? (u32)b : (u32)(b >> 32);
    return (u64)(u32)a | (u64)tiles << 32;
  };
  const u32 from = lane < kPrologueWarps ? lane : 0;
  const u64 of_warp = of_plan(s.sums[from], memory.scan[from]);
  u64 earlier;
  const u64 all = scan_block(lane < kPrologueWarps ? of_warp : 0, earlier);
  const u64 start = of_plan(before_a, before_b) + earlier;
  const u32 e = 2 * threadIdx.x;
  const u32 row = (u32)start;
  const u32 tile = (u32)(start >> 32);
  if (e < experts) {
    s.first[e] = row;
    s.base[e] = row + before0;
    s.tile[e] = tile | to << kCandidateShift;
  }
  if (e + 1 < experts) {
    s.first[e + 1] = row + count0;
    s.base[e + 1] = row + count0 + before1;
    s.tile[e + 1] = (tile + tiles_of_candidate(in, count0, to)) | to << kCandidateShift;
  }
  if (threadIdx.x != 0) return;
  s.first[experts] = (u32)all;
  const u32 tiles = (u32)(all >> 32);
  note_decision(memory, {to == 0 ? tiles : 0, to == 1 ? tiles : 0, to == 2 ? tiles : 0}, option, time_ns);
}

// A trace: how many records have been written, and behind it a ring of them, d.trace_words words each: the
// header (kTraceHeader), then the rows of every expert.
__device__ __forceinline__ void write_record(const DecideParams& d, const SortShared& s, u32 experts,
                                             u32 option, u32 time_ns) {
  if (threadIdx.x == 0) s.sums[0] = atomicAdd(d.trace, 1ull);
  __syncthreads();
  const u64 number = s.sums[0];
  u32* const record =
      reinterpret_cast<u32*>(d.trace + 1) + (u64)(number % d.trace_records) * (u64)d.trace_words;
  for (u32 e = threadIdx.x; e < experts; e += kPrologueThreads)
    record[kTraceHeader + e] = s.first[e + 1] - s.first[e];
  if (threadIdx.x != 0) return;
  record[0] = (u32)number + 1;
  record[1] = d.trace_call;
  record[2] = option;
  record[3] = time_ns;
  record[4] = d.trace_tag;
}

// The plans of all candidates: what sort_block() and the batched entry ask of a plan (sort.cuh: OnePlan).
struct DecidedPlans {
  const DecideInput& in;
  const DecideShared& shared;
  bool whole;
  __device__ __forceinline__ DecidedPlans(const DecideInput& input, const DecideShared& memory,
                                          bool all_whole)
      : in(input), shared(memory), whole(all_whole) {}
  __device__ __forceinline__ void scan(const SortParams& p, const SortShared& s, u32 count0, u32 count1,
                                       u32 before0, u32 before1) {
    if (whole) {
      scan_whole(in, s, shared, p.experts, count0, count1, before0, before1);
    } else {
      scan_plans(in, s, shared, p.experts, count0, count1, before0, before1);
    }
  }
  __device__ __forceinline__ void store(const SortParams& p, const SortShared& s) const {
#pragma unroll
    for (u32 c = 0; c < kMostCandidates; ++c)
      if (c < in.decide.candidates && threadIdx.x == c)
        store_num_tiles(in.decide.plan[c].num_tiles, shared.notes[c]);
    if (in.decide.trace != nullptr)
      write_record(in.decide, s, p.experts, shared.notes[kMostCandidates], shared.notes[kMostCandidates + 1]);
  }
  __device__ __forceinline__ void store_tile(const SortParams&, const SortShared& s, u32 e, u32 row) const {
    const u32 word = s.tile[e];
    const CandidatePlan& plan = in.decide.plan[word >> kCandidateShift];
    const u32 tile_m = plan.tile_m;
    const u32 in_expert = row - s.first[e];
    const u32 tile = in_expert / tile_m;
    if (tile * tile_m == in_expert) {
      const u32 left = s.first[e + 1] - row;
      store_words(plan.tiles + 4 * (i64)((word & ((1u << kCandidateShift) - 1u)) + tile), e, row,
                  left < tile_m ? left : tile_m, 0);
    }
  }
};
