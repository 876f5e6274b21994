// What the roles of the prefill kernel (prefill.cu) agree on: sizes, items of work and their order, the
// layout of shared memory, the way round the ring.
#pragma once

#include "common/types.cuh"
#include "params/block.hpp"
#include "params/prefill.hpp"
#include "sm90/prefill_ptx.cuh"
#include "sm90/ptx.cuh"

using namespace ramp::core::cuda;

#ifndef TALL
#define TALL 0
#endif
constexpr bool kTall = TALL != 0;  // prefill_tall.cuh
constexpr int kRows = kTall ? kPrefillTallRows : kPrefillRows;
constexpr u32 kTile = 16384;                               // bytes of a packed tile: 128 rows x 128 bytes
constexpr u32 kTokens = 128 * kRows;                       // bytes of a stage's token rows
constexpr u32 kStage = kTokens + (kTall ? 1 : 2) * kTile;  // tokens, weight tiles
constexpr u32 kSecondSlice = 64 * 128;                     // where rows beyond 64 would lie: weights_offset()
constexpr u32 kScales = 4 * kRows;                         // bytes of a stage's token scales
constexpr u32 kWeightScales = 8;                           // ... of its weight scales
constexpr u32 kMathThreads = 2 * kRows;                    // a warpgroup per 64 rows
#ifndef COUPLES
#define COUPLES 8
#endif
constexpr u32 kCouples = COUPLES;  // couples of row tiles that pass a pair of slices before the next pair
// Free a slot: 8 lanes of each math warp, and a lane of each of the partner's.
constexpr u32 kArrivals = 9 * kMathThreads / 32;
constexpr u32 kStaging = GEMM == 1 ? 2048 : 4096;  // per math warp: 16 rows of h's 128 or a slice's 256 bytes

struct Item {
  int tile, first, rows, pair, expert;
  bool shared;  // the partner has the same slices
};

// Pairs of slices, of an even number of them; units of work for a cluster.
__device__ __forceinline__ u32 pairs_of(const PrefillParams& p) {
  return (u32)(p.slices + 3) / 4 * 2;
}
__device__ __forceinline__ u32 units_of(const PrefillParams& p) {
  return (u32)*p.num_tiles * (pairs_of(p) / 2);
}
// The units of this cluster: one of each round of as many as there are clusters, the next one in each round,
// because large and small units may take turns in step with the number of clusters.
struct Walk {
  u32 base, at;
  __device__ __forceinline__ Walk() : base(0), at(blockIdx.x / 2) {}
  __device__ __forceinline__ u32 unit() const { return base + at; }
  __device__ __forceinline__ void next() {
    base += gridDim.x / 2;
    at = at + 1 == gridDim.x / 2 ? 0 : at + 1;
  }
};

// Whose a unit is: its expert, that one's rows and first row tile, and the unit's number among its own.
struct Owner {
  int expert, begin, count;
  u32 first_tile, local;
};
// Units in the order of the plan's tiles, so of experts. per_tile: units for each row tile.
__device__ __forceinline__ Owner owner_of(const PrefillParams& p, u32 unit, u32 tile_number, u32 per_tile) {
  const StreamTile tile = p.tiles[tile_number];
  const int begin = p.offsets[tile.expert];
  const int count = p.offsets[tile.expert + 1] - begin;
  const u32 first_tile = tile_number - (u32)(tile.first - begin) / kRows;
  return Owner{tile.expert, begin, count, first_tile, unit - first_tile * per_tile};
}

// What block `rank` of the cluster does in a unit. rows 0: nothing, but as many steps of it as the partner
// has.
//
// Units of an expert: its couples of row tiles in groups, group by group, in a group by pair of slices; the
// row tiles that are left over along with the last group, two pairs at a time, so that they find the weights
// in L2.
__device__ __forceinline__ Item find_item(const Owner& owner, const PrefillParams& p, u32 pairs, u32 rank) {
  const int begin = owner.begin;
  const int count = owner.count;
  const u32 tiles = (u32)(count + kRows - 1) / kRows;
  const u32 first_tile = owner.first_tile;
  // A short last row tile is left over where others have brought the weights into L2; of two it is the
  // other's partner, since alone both would wait for the same bytes of memory.
  const bool last_too = tiles == 2 || count - (int)(tiles - 1) * kPrefillRows > 64;
  const u32 couples = (tiles - (last_too ? 0 : 1)) / 2;
  const u32 grouped =
      couples == 0 ? 0 : (couples - 1) / kCouples * kCouples;  // couples before the last group
  u32 local = owner.local;
  Item item;
  item.expert = owner.expert;
  item.shared = true;
  u32 mine;
  if (local < grouped * pairs) {
    const u32 inside = local % (kCouples * pairs);
    mine = 2 * (local / (kCouples * pairs) * kCouples + inside % kCouples) + rank;
    item.pair = (int)(inside / kCouples);
  } else {
    local -= grouped * pairs;
    const u32 width = couples - grouped;
    const u32 round = 2 * width + tiles - 2 * couples;  // units of two pairs
    const u32 inside = local % round;
    item.pair = (int)(local / round * 2);
    item.shared = inside < 2 * width;
    if (item.shared) {
      mine = 2 * (grouped + inside % width) + rank;
      item.pair += (int)(inside / width);
    } else {
      mine = 2 * couples + inside - 2 * width;
      item.pair += (int)rank;
    }
  }
  item.tile = (int)(first_tile + mine);
  item.first = begin + (int)mine * kPrefillRows;
  const int left = begin + count - item.first;
  item.rows = left < kPrefillRows ? left : kPrefillRows;
  if (2 * item.pair >= p.slices) item.rows = 0;
  return item;
}

__device__ __forceinline__ Item find_item(const PrefillParams& p, u32 unit, u32 pairs, u32 rank) {
  return find_item(owner_of(p, unit, 2 * unit / pairs, pairs / 2), p, pairs, rank);
}

// Where h of an item begins, and its rows there: params/prefill.hpp.
__device__ __forceinline__ u64 h_row(const Item& item) {
  return ((u32)item.first + 7 * (u32)item.tile) / 8 * 8;
}
__device__ __forceinline__ u32 h_rows(const Item& item) {
  return (u32)(item.rows + 7) / 8 * 8;
}

__device__ __forceinline__ u32 slot_row(int source, const PrefillParams& p, int slot) {
  return (u32)(source == kRowSlot ? slot : slot / p.top_k);
}
__device__ __forceinline__ u32 source_row(int source, const PrefillParams& p, int sorted) {
  return slot_row(source, p, p.slots[sorted]);
}

struct Shared {
  u32 ring, amax, scales, staging, items, weight_scales, full, empty, queue;
  u32 rank;  // in the cluster
};

// What a math warpgroup has of an item: 64 rows of both slices of its pair; all of at most 64 rows of one
// slice, the other warpgroup of the other; in tall items 64 rows of this block's slice.
enum Part { kRowsOfPair, kSlice, kRowsOfSlice };
template <Part PART>
constexpr int kSlices = PART == kRowsOfPair ? 2 : 1;
template <Part PART>
__device__ __forceinline__ u32 first_row_of(u32 group) {
  return PART == kSlice ? 0 : group * 64;
}
template <Part PART>
__device__ __forceinline__ u32 slice_of(const Shared& s, u32 group, int i) {
  return PART == kRowsOfPair ? (u32)i : PART == kSlice ? group : s.rank;
}
// Where the first weight tile of a step lies in a stage that this warpgroup multiplies by. (Tall, at most 64
// rows: the second slice lies where the rows beyond would be.)
template <Part PART>
__device__ __forceinline__ u32 weights_offset(u32 group) {
  if (PART != kSlice) return kTokens;
  return kTall ? (group == 0 ? kTokens : kSecondSlice) : kTokens + group * kTile;
}

// Where a role stands in the ring.
struct Place {
  u32 slot = 0, round = 0;
  __device__ __forceinline__ void next() {
    if (++slot == STAGES) {
      slot = 0;
      round ^= 1;
    }
  }
};
