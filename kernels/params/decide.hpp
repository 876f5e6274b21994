// The decision of a step: which of a captured set of kernels (candidates) gets which experts, from the number
// of rows that each expert has. Integers alone, so that host and device, which share every line of the
// arithmetic, always agree; ties go to the first option.
//
// A candidate's time, in ns, for the experts that it is given:
//
//   T = base + sum + weights - overlap/256 * min(sum, weights) + sum over its GEMMs of wave_ns * waves
//   sum = over its experts of ns(rows), weights = active_ns * experts that have rows
//   waves = ceil(tiles * units per tile / places)
//
// 0 where it is given none. The time of an option is the sum over its candidates. ns() is a curve through
// points: by steps of 8 rows up to 256 rows, from there on four points per octave and straight lines between.
// Sums saturate at 2^32 - 1 ns, so that a cost far above real ones never looks cheap.
#pragma once

#if defined(__CUDACC__)
#define RAMP_DECIDE_FN __host__ __device__ inline
#else
#define RAMP_DECIDE_FN inline
#endif

namespace ramp::core::cuda {

constexpr unsigned kMostCandidates = 3;
constexpr unsigned kMostOptions = 8;
constexpr unsigned kNeverAbove = 0xffffffffU;  // of DecideOption: no expert has more rows
// Points of a curve: 0, 8, 16, ... 256 rows, then four per octave up to 2^17 rows.
constexpr unsigned kFinePoints = 33;
constexpr unsigned kFineRows = 256;
constexpr unsigned kLastOctave = 16;
constexpr unsigned kCostPoints = kFinePoints + 4 * (kLastOctave - 8 + 1);

// The most that a point of a curve may be (the host sees to it): 64 experts, a warp's, stay below 2^32.
constexpr unsigned kMostCurveNs = (1U << 26) - 1;

struct CandidateCost {
  unsigned base_ns;
  unsigned active_ns;
  unsigned overlap;              // 0 .. 256
  unsigned wave_ns[2];           // of either GEMM
  unsigned units[2], places[2];  // units per tile; units that run at once
  unsigned ns[kCostPoints];      // never falls; ns[0] is 0: the device adds it for lanes without rows
};

// Experts are given to candidates by rows: more than above[0] rows go to candidate 1 or 2, more than above[1]
// to candidate 2. above[0] <= above[1]. None may go to a candidate that is not there.
struct DecideOption {
  unsigned above[kMostCandidates - 1];
};

// The plan of a candidate: its tiles, in the order of experts and rows.
struct CandidatePlan {
  int* tiles;      // {expert, first, rows, 0} each
  int* num_tiles;  // as SortParams::num_tiles
  unsigned tile_m;
};

struct DecideParams {
  unsigned candidates, options;
  CandidatePlan plan[kMostCandidates];
  DecideOption option[kMostOptions];
  CandidateCost cost[kMostCandidates];
  unsigned long long* trace;  // nullptr, or where records go (kernels/prologue/decide.cuh)
  unsigned trace_words;       // of a record
  unsigned trace_records;     // that fit
  unsigned trace_call;        // number of the call, as the host counts
  unsigned trace_tag;         // of this launch alone, where the host times it; else 0
};
// Words in front of a record's counts: number + 1 (0: never written), call, option, predicted ns, tag.
constexpr unsigned kTraceHeader = 5;

// Rows at which point i lies.
RAMP_DECIDE_FN unsigned point_rows(unsigned i) {
  if (i < kFinePoints) return 8 * i;
  const unsigned j = i - kFinePoints + 1;  // 1: a quarter octave beyond 256
  return (4 + j % 4) << (6 + j / 4);
}
RAMP_DECIDE_FN unsigned highest_bit(unsigned n) {
#if defined(__CUDA_ARCH__)
  return 31U - static_cast<unsigned>(__clz(static_cast<int>(n)));
#else
  return 31U - static_cast<unsigned>(__builtin_clz(n));
#endif
}
// Where `rows` lie on every curve: `into` of 2^shift steps behind a point.
struct CurvePlace {
  unsigned point, into, shift;
};
RAMP_DECIDE_FN CurvePlace curve_place(unsigned rows) {
  if (rows <= kFineRows) return {(rows + 7) / 8, 0, 0};
  const unsigned octave = highest_bit(rows);
  if (octave > kLastOctave) return {kCostPoints - 1, 0, 0};
  const unsigned quarter = rows >> (octave - 2) & 3U;
  return {kFinePoints - 1 + 4 * (octave - 8) + quarter, rows & ((1U << (octave - 2)) - 1U), octave - 2};
}
// How far a curve rises from the point to a place behind it (into != 0).
RAMP_DECIDE_FN unsigned curve_rise(const unsigned* ns, const CurvePlace& at) {
  const unsigned long long rise = ns[at.point + 1] - ns[at.point];
  return static_cast<unsigned>(rise * at.into >> at.shift);
}
RAMP_DECIDE_FN unsigned curve_ns(const unsigned* ns, unsigned rows) {
  const CurvePlace at = curve_place(rows);
  return ns[at.point] + (at.into != 0 ? curve_rise(ns, at) : 0);
}
RAMP_DECIDE_FN unsigned candidate_of(const DecideOption& option, unsigned rows) {
  return (rows > option.above[0] ? 1U : 0U) + (rows > option.above[1] ? 1U : 0U);
}
RAMP_DECIDE_FN unsigned tiles_of(unsigned rows, unsigned tile_m) {
  return (rows + tile_m - 1) / tile_m;
}
// a + b, at most 2^32 - 1: whatever the order of a sum, the same.
RAMP_DECIDE_FN unsigned saturating_sum(unsigned a, unsigned b) {
  const unsigned sum = a + b;
  return sum < a ? 0xffffffffU : sum;
}
// n / d for any n, by the number that inverse_of() gives for d > 0: floor((2^32 - 1) / d), which is at least
// 2^32 / d - 1. So the product's upper half is n / d rounded down, or one less.
RAMP_DECIDE_FN unsigned inverse_of(unsigned d) {
  return d == 0 ? 0 : 0xffffffffU / d;
}
RAMP_DECIDE_FN unsigned divided(unsigned n, unsigned d, unsigned inverse) {
#if defined(__CUDA_ARCH__)
  const unsigned q = __umulhi(n, inverse);
#else
  const unsigned q = static_cast<unsigned>(static_cast<unsigned long long>(n) * inverse >> 32);
#endif
  return q + (n - q * d >= d ? 1U : 0U);
}
// What of a candidate's cost there is beside the curve.
struct CandidateTerms {
  unsigned base_ns, active_ns, overlap;
  unsigned wave_ns[2], units[2], places[2], inverse[2];  // inverse: of places
};
// No places: no cost is known (a fit of a model that the GPU cannot evaluate), and no wave takes any time.
RAMP_DECIDE_FN CandidateTerms terms_of(const CandidateCost& c) {
  CandidateTerms t{c.base_ns, c.active_ns, c.overlap, {}, {}, {}, {}};
  for (unsigned gemm = 0; gemm < 2; ++gemm) {
    const bool known = c.places[gemm] != 0;
    t.wave_ns[gemm] = known ? c.wave_ns[gemm] : 0;
    t.units[gemm] = c.units[gemm];
    t.places[gemm] = known ? c.places[gemm] : 1;
    t.inverse[gemm] = inverse_of(t.places[gemm]);
  }
  return t;
}
// What the waves of one GEMM take.
RAMP_DECIDE_FN unsigned long long waves_ns(unsigned tiles, unsigned units, unsigned places, unsigned inverse,
                                           unsigned wave_ns) {
  using Wide = unsigned long long;
  const Wide all = static_cast<Wide>(tiles) * units;
  const unsigned most = 0U - places;  // rounds up within 32 bits
  const unsigned rounded = (all < most ? static_cast<unsigned>(all) : most) + places - 1;
  return static_cast<Wide>(divided(rounded, places, inverse)) * wave_ns;
}
// Without branches: on the device every lane is at another candidate.
RAMP_DECIDE_FN unsigned candidate_ns(const CandidateTerms& c, unsigned sum, unsigned active, unsigned tiles) {
  using Wide = unsigned long long;
  const Wide weights = static_cast<Wide>(active) * c.active_ns;
  const unsigned hidden = sum < weights ? sum : static_cast<unsigned>(weights);
  const Wide ns = c.base_ns + (sum + weights) - static_cast<Wide>(hidden / 256 * c.overlap) +
                  waves_ns(tiles, c.units[0], c.places[0], c.inverse[0], c.wave_ns[0]) +
                  waves_ns(tiles, c.units[1], c.places[1], c.inverse[1], c.wave_ns[1]);
  const unsigned saturated = ns < 0xffffffffU ? static_cast<unsigned>(ns) : 0xffffffffU;
  return tiles != 0 ? saturated : 0;
}
RAMP_DECIDE_FN unsigned candidate_ns(const CandidateCost& c, unsigned sum, unsigned active, unsigned tiles) {
  return candidate_ns(terms_of(c), sum, active, tiles);
}
// The candidate that an option gives every expert; kMostCandidates: it divides them.
RAMP_DECIDE_FN unsigned only_candidate(const DecideOption& o) {
  const bool all =
      (o.above[0] == 0 || o.above[0] == kNeverAbove) && (o.above[1] == 0 || o.above[1] == kNeverAbove);
  return all ? candidate_of(o, 1) : kMostCandidates;
}

// ---------------------------------------------------------------- as the device reads it

// A candidate: plan and terms, 16 bytes at a time, and its curve behind them.
struct alignas(16) CandidateHead {
  int* tiles;
  unsigned tile_m, tile_inverse;
  int* num_tiles;
  unsigned option;  // the first that gives it everything
  CandidateTerms terms;
};
struct alignas(16) TableCandidate {
  CandidateHead head;
  unsigned ns[kCostPoints];
};
// Where every option gives all experts to one candidate, these are `choices`: candidates are in the order of
// the first options that name them, so that of equal costs the first one's counts, and those that no option
// names come last. Else (0 choices) they are in their own order. Of candidates that are not there tile_m
// is 1.
struct alignas(16) DecideTable {
  TableCandidate candidate[kMostCandidates];
  DecideOption option[kMostOptions];
  unsigned candidates, options;
  unsigned long long* trace;
  unsigned trace_words, trace_records, trace_call, trace_tag;
};
// What a deciding block has in shared memory, in front of the sort's.
struct alignas(16) DecideShared {
  DecideTable table;  // a copy
  // Over the experts, of every candidate, or of every option's candidates: nanoseconds (the sum of the lower
  // halves of the warps' sums, that of the upper ones), tiles, experts that have rows.
  unsigned totals[kMostOptions * kMostCandidates][4];
  unsigned scan[16][4];  // the warps' sums
  CandidateHead chosen;  // where one plan has all tiles: the first 16 bytes of its head
  unsigned option, time_ns;
};

constexpr unsigned kDecideWords = sizeof(DecideShared) / 4;

#if !defined(__CUDACC__)
inline DecideTable table_of(const DecideParams& d, unsigned& choices) {
  DecideTable t{};
  unsigned order[kMostCandidates] = {0, 1, 2};
  static_assert(kMostCandidates == 3, "one after the other");
  unsigned named_by[kMostCandidates] = {kMostOptions, kMostOptions, kMostOptions};
  choices = 0;
  bool whole = true;
  for (unsigned o = 0; o < d.options; ++o) {
    const unsigned c = only_candidate(d.option[o]);
    whole = whole && c < d.candidates;
    if (!whole || named_by[c] != kMostOptions) continue;
    named_by[c] = o;
    order[choices++] = c;
  }
  unsigned last = choices;
  for (unsigned c = 0; c < d.candidates; ++c) {
    if (!whole) order[c] = c;
    if (whole && named_by[c] == kMostOptions) order[last++] = c;
  }
  if (!whole) choices = 0;
  for (unsigned i = 0; i < kMostCandidates; ++i) {
    CandidateHead& head = t.candidate[i].head;
    head.tile_m = 1;
    if (i < d.candidates) {
      const CandidateCost& cost = d.cost[order[i]];
      const CandidatePlan& plan = d.plan[order[i]];
      head = {plan.tiles, plan.tile_m, 0, plan.num_tiles, named_by[order[i]], terms_of(cost)};
      for (unsigned point = 0; point < kCostPoints; ++point) t.candidate[i].ns[point] = cost.ns[point];
    }
    head.tile_inverse = inverse_of(head.tile_m);
  }
  for (unsigned o = 0; o < kMostOptions; ++o) t.option[o] = d.option[o];
  t.candidates = d.candidates;
  t.options = d.options;
  t.trace = d.trace;
  t.trace_words = d.trace_words;
  t.trace_records = d.trace_records;
  t.trace_call = d.trace_call;
  t.trace_tag = d.trace_tag;
  return t;
}

// The decision as the device makes it (kernels/prologue/decide.cuh): the first of the cheapest options.
// time_ns: what it costs.
inline unsigned decide_on_host(const DecideParams& d, const int* histogram, unsigned long experts,
                               unsigned& time_ns) {
  unsigned best = 0;
  time_ns = 0xffffffffU;
  for (unsigned o = 0; o < d.options; ++o) {
    unsigned sum[kMostCandidates] = {}, active[kMostCandidates] = {}, tiles[kMostCandidates] = {};
    for (unsigned long e = 0; e < experts; ++e) {
      if (histogram[e] <= 0) continue;
      const auto rows = static_cast<unsigned>(histogram[e]);
      const unsigned c = candidate_of(d.option[o], rows);
      if (c >= d.candidates) continue;  // costs nothing, and has no tiles
      sum[c] = saturating_sum(sum[c], curve_ns(d.cost[c].ns, rows));
      active[c] += 1;
      tiles[c] += tiles_of(rows, d.plan[c].tile_m);
    }
    unsigned total = 0;
    for (unsigned c = 0; c < d.candidates; ++c)
      total = saturating_sum(total, candidate_ns(d.cost[c], sum[c], active[c], tiles[c]));
    if (o != 0 && total >= time_ns) continue;
    time_ns = total;
    best = o;
  }
  return best;
}
#endif

}  // namespace ramp::core::cuda
