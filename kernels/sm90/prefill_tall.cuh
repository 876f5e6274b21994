// Tall items of the prefill kernel (prefill.cu, TALL 1): 192 token rows x 128 weight rows, a math warpgroup
// for each 64 rows. The blocks of a cluster have the two slices of a pair and the same rows, of which each
// brings half for both (multicast); weights are each block's own. For experts with some 65 to 192 rows, which
// wait for weights: items of 128 rows bring the weights of an expert with 130 rows twice, here all rows meet
// them at once. A group of 128 columns of h lies in both blocks: its amax crosses over through the partner's
// shared memory.
//
// A row tile of at most 64 rows would leave two warpgroups without work: there each block has a pair of its
// own, a slice for each of two warpgroups, as in items of 128 rows; the second slice lies in the stage where
// rows beyond 64 would. The rows are the same in both blocks all the same.
#pragma once

#include "sm90/prefill_items.cuh"

// Pairs of slices; a unit of work for a cluster is a row tile and a pair.
__device__ __forceinline__ u32 tall_pairs_of(const PrefillParams& p) {
  return (u32)(p.slices + 1) / 2;
}
__device__ __forceinline__ u32 tall_units_of(const PrefillParams& p) {
  return (u32)*p.num_tiles * tall_pairs_of(p);
}
constexpr int kNarrowRows = 64;
// Units of an expert: its row tiles in groups, group by group, in a group by pair of slices. rows 0: an empty
// unit, of every second pair of a narrow tile, whose unit in front of it has two. A pair that does not exist
// (of an odd number): nothing but the partner's rows to bring.
__device__ __forceinline__ Item find_tall_item(const Owner& owner, u32 pairs, u32 rank) {
  constexpr u32 kGroup = 2 * kCouples;
  const u32 tiles = (u32)(owner.count + kRows - 1) / kRows;
  const u32 local = owner.local;
  const u32 before = local / (kGroup * pairs) * kGroup;  // row tiles in front of the group
  const u32 width = tiles - before < kGroup ? tiles - before : kGroup;
  const u32 inside = local - before * pairs;
  const u32 mine = before + inside % width;
  Item item;
  item.expert = owner.expert;
  item.shared = false;
  item.pair = (int)(inside / width);
  item.tile = (int)(owner.first_tile + mine);
  item.first = owner.begin + (int)mine * kRows;
  const int left = owner.begin + owner.count - item.first;
  item.rows = left < kRows ? left : kRows;
  if (item.rows <= kNarrowRows) {
    if (item.pair % 2 != 0) item.rows = 0;
    item.pair += (int)rank;
  }
  return item;
}
// Math warps of the cluster that store some of a group of h's columns for a row tile: those of a warpgroup
// per 64 rows in both blocks, or of two warpgroups in one.
__device__ __forceinline__ int tall_tellers(int rows) {
  return (rows + 63) / 64 * 8;
}

// This block's first slice of an item, and how many it has: fewer at the end of an odd number of slices.
__device__ __forceinline__ int tall_slice(const Item& item, u32 rank) {
  return 2 * item.pair + (item.rows <= kNarrowRows ? 0 : (int)rank);
}
__device__ __forceinline__ u32 tall_slices(const PrefillParams& p, const Item& item, u32 rank) {
  const int left = p.slices - tall_slice(item, rank);
  const int most = item.rows <= kNarrowRows ? 2 : 1;
  return (u32)(left < 0 ? 0 : left < most ? left : most);
}
__device__ __forceinline__ const u8* tall_weight_tiles(const PrefillParams& p, const Item& item, u32 rank) {
  return p.weights + ((u64)item.expert * (u32)p.slices + (u32)tall_slice(item, rank)) * (u32)p.steps * kTile;
}
// which: GEMM 1: 0 gate, 1 up rows; GEMM 2: the first or the second slice, where there are two.
__device__ __forceinline__ const float* tall_weight_scales(const PrefillParams& p, const Item& item, u32 rank,
                                                           u32 which) {
  const int last = GEMM == 1 ? (p.slices - 1) / 2 : p.slices - 1;
  int row = GEMM == 1 ? item.pair : tall_slice(item, rank) + (item.rows <= kNarrowRows ? (int)which : 0);
  row = row < last ? row : last;
  if (GEMM == 1 && which != 0) row += p.up_scale_row;
  return p.weight_scale + (i64)item.expert * p.ws_expert + row * p.ws_row;
}
// rows: as h_rows() has them, of 128 bytes, from `from` on.
__device__ __forceinline__ void bring_tall(const PrefillParams& p, const Item& item, u32 rank, u32 stage,
                                           u32 full, const u8* tile, const u8* from, u32 rows) {
  const u32 slices = tall_slices(p, item, rank);
  if (slices > 0) bulk_copy(stage + kTokens, tile, kTile, full);
  if (slices > 1) bulk_copy(stage + kSecondSlice, tile + (u64)(u32)p.steps * kTile, kTile, full);
  const u32 half = (rows + 8) / 16 * 8;
  const u32 first = rank == 0 ? 0 : half;
  const u32 mine = rank == 0 ? half : rows - half;
  if (mine != 0) bulk_copy_both(stage + first * 128, from + first * 128, mine * 128, full);
}

// In shared memory: the amax of 64 rows from the partner, per warpgroup and by turns; their barriers.
constexpr u32 kTallExchange = 1024;  // behind what the warpgroups exchange
constexpr u32 kTallExchangeBytes = 2 * 4 * kRows + 8 * 2 * kRows / 64;
__device__ __forceinline__ void init_tall_exchange(u32 at) {
  for (u32 i = 0; i < 2 * kRows / 64; ++i) barrier_init(at + 8 * kRows + 8 * i, 1);
}
// The other half of the group is the partner's warpgroup's of the same number. n: what this warpgroup has
// exchanged so far; the partner counts alike. Its value of exchange n + 2 cannot arrive before this warpgroup
// has read that of n: it is sent behind the reception of this one's n + 1.
struct ExchangeBetweenBlocks {
  u32 at, rank, n;
  __device__ __forceinline__ void operator()(float (&amax)[2], u32 group) const {
    const u32 lane = threadIdx.x % 32;
    const u32 turn = n % 2 * (kRows / 64) + group;
    const u32 mine = at + 256 * turn + 4 * (threadIdx.x % 128 / 32 * 16 + lane / 4);
    const u32 bar = at + 8 * kRows + 8 * turn;
    if (threadIdx.x % 128 == 0) barrier_expect(bar, 256);
    if (lane % 4 == 0) {
      store_remote(remote_address(mine, rank ^ 1), amax[0], remote_address(bar, rank ^ 1));
      store_remote(remote_address(mine + 32, rank ^ 1), amax[1], remote_address(bar, rank ^ 1));
    }
    barrier_wait(bar, n / 2 % 2);
    amax[0] = fmaxf(amax[0], load_float(mine));
    amax[1] = fmaxf(amax[1], load_float(mine + 32));
  }
};
