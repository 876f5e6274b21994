// The stable sort of flat slots by local expert, the tile plan along with it, for a block of 512 threads that
// works alone, with the other blocks of its cluster, or with the other blocks of a grid that has counted
// before. Device twin of src/routing/sorted_rows.cpp: order comes from scans and ranks within a warp, atomics
// only add up numbers.
//
// Slots are divided in slot order among blocks, and inside a block among warps. A warp walks its range 32
// slots at a time: lanes with the same expert find each other (match_any), so a slot's rank in the warp is
// the warp's count so far plus the peers in lower lanes. Column prefixes over the warps' counts, then over
// the blocks', then the scan over the experts make ranks into rows. A row that is the first of its tile
// writes the tile.
#pragma once

#include "params/prologue.hpp"
#include "prologue/ptx.cuh"

using namespace ramp::core::cuda;

constexpr u32 kAllLanes = 0xffffffffu;
constexpr i32 kMasked = -1;      // id -1, or mapped to -1
constexpr i32 kOutOfRange = -2;  // any other id that leads nowhere
constexpr i32 kNoSlot = -3;      // past the end of the range
constexpr u32 kNoEntry = 0xffffffffu;
#if __CUDA_ARCH__ >= 900
constexpr u32 kMaxCluster = 8;  // what every GPU with clusters can do
#else
constexpr u32 kMaxCluster = 1;
#endif

struct SortShared {
  u64* sums;     // [warps] of the scan
  u32* invalid;  // [2]: masked, out of range
  u32* total;    // [experts]: rows of this block
  u32* base;     // [experts]: where this block's rows begin
  u32* first;    // [experts + 1]: where the expert's rows begin
  u32* tile;     // [experts]: the expert's first tile
  u16* ranks;    // [warps][pitch]: counts, then exclusive prefixes over the warps
  u32* entry;    // [slots of the block]: expert | rank in the warp << 10, or kNoEntry
  u32 pitch;
};

__device__ __forceinline__ SortShared carve_sort(u32* shared, u32 experts) {
  SortShared s;
  s.pitch = sort_padded(experts);
  s.sums = reinterpret_cast<u64*>(shared);
  s.invalid = shared + 2 * kPrologueWarps;
  s.total = shared + kSortScratchWords;
  s.base = s.total + s.pitch;
  s.first = s.base + s.pitch;
  s.tile = s.first + s.pitch;
  s.ranks = reinterpret_cast<u16*>(s.tile + s.pitch);
  s.entry = s.tile + s.pitch + kPrologueWarps * s.pitch / 2;
  return s;
}

__device__ __forceinline__ i32 local_expert(i64 id, const SortParams& p) {
  if (p.map == nullptr) {
    if ((u64)id < (u64)p.experts) return (i32)id;
    return id == -1 ? kMasked : kOutOfRange;
  }
  if ((u64)id >= p.map_size) return id == -1 ? kMasked : kOutOfRange;
  const i32 local = p.map[id];
  if ((u32)local < p.experts) return local;
  return local == -1 ? kMasked : kOutOfRange;
}
__device__ __forceinline__ i64 slot_at(u32 slot, u32 top_k, i64 stride) {
  if (stride == (i64)top_k) return (i64)slot;
  const u32 t = slot / top_k;
  return (i64)t * stride + (i64)(slot - t * top_k);
}
__device__ __forceinline__ i64 load_id(u32 slot, const SortParams& p) {
  const i64 at = slot_at(slot, p.top_k, p.ids_stride);
  return p.ids_wide != 0 ? static_cast<const i64*>(p.ids)[at] : (i64) static_cast<const i32*>(p.ids)[at];
}

__device__ __forceinline__ void block_slots(const SortParams& p, u32 block, u32& begin, u32& end) {
  const u64 from = (u64)block * p.chunk;
  begin = from < p.slots ? (u32)from : p.slots;
  end = p.slots - begin < p.chunk ? p.slots : begin + p.chunk;
}
// Brings the ids of this block's slots to L2.
__device__ __forceinline__ void prefetch_ids(const SortParams& p, u32 block) {
  u32 begin, end;
  block_slots(p, block, begin, end);
  for (u32 slot = begin + threadIdx.x; slot < end; slot += kPrologueThreads) {
    const i64 at = slot_at(slot, p.top_k, p.ids_stride);
    prefetch_line(static_cast<const u8*>(p.ids) + at * (p.ids_wide != 0 ? 8 : 4));
  }
}

// The range of this warp in a block's [begin, end): whole rounds of 32 slots.
__device__ __forceinline__ void warp_range(u32 begin, u32 end, u32& from, u32& to) {
  const u32 warp = threadIdx.x / 32;
  const u32 rounds = (end - begin + 32 * kPrologueWarps - 1) / (32 * kPrologueWarps);
  from = begin + warp * rounds * 32;
  if (from > end) from = end;
  to = end - from < rounds * 32 ? end : from + rounds * 32;
}

__device__ __forceinline__ void clear_ranks(const SortShared& s) {
  u32* const words = reinterpret_cast<u32*>(s.ranks);
  for (u32 i = threadIdx.x; i < kPrologueWarps * s.pitch / 2; i += kPrologueThreads) words[i] = 0;
}

// What a sorting block needs before dependency_wait(): clear counters and ranks, and a barrier behind that.
__device__ __forceinline__ void clear_sort(const SortShared& s) {
  if (threadIdx.x < 2) s.invalid[threadIdx.x] = 0;
  clear_ranks(s);
  __syncthreads();
}

// Ranks the slots [begin, end) of this block within their warps: fills s.ranks with the warps' counts,
// s.entry, and adds to s.invalid. s.ranks is clear before; the caller synchronises on both sides.
__device__ __forceinline__ void rank_slots(const SortParams& p, const SortShared& s, u32 begin, u32 end) {
  constexpr u32 kBatch = 4;  // rounds whose ids are in flight together
  const u32 lane = threadIdx.x % 32;
  u16* const counts = s.ranks + threadIdx.x / 32 * s.pitch;
  u32 from, to;
  warp_range(begin, end, from, to);
  u32 masked = 0, out_of_range = 0;
  for (u32 round = from; round < to; round += 32 * kBatch) {
    i32 expert[kBatch];
#pragma unroll
    for (u32 b = 0; b < kBatch; ++b) {
      const u32 slot = round + 32 * b + lane;
      expert[b] = kNoSlot;
      if (slot < to) {
        expert[b] = local_expert(load_id(slot, p), p);
      }
    }
#pragma unroll
    for (u32 b = 0; b < kBatch; ++b) {
      if (round + 32 * b >= to) break;  // the same for the whole warp
      const u32 slot = round + 32 * b + lane;
      const i32 e = expert[b];
      const u32 peers = __match_any_sync(kAllLanes, e);
      const u32 lower = __popc(peers & ((1u << lane) - 1u));
      u32 before = 0;
      if (e >= 0) before = counts[e];
      __syncwarp();  // all peers have read before the first of them writes
      if (e >= 0 && lower == 0) counts[e] = (u16)(before + __popc(peers));
      __syncwarp();
      if (slot < to) s.entry[slot - begin] = e >= 0 ? (u32)e | (before + lower) << 10 : kNoEntry;
      masked += e == kMasked ? 1u : 0u;
      out_of_range += e == kOutOfRange ? 1u : 0u;
    }
  }
  masked = __reduce_add_sync(kAllLanes, masked);
  out_of_range = __reduce_add_sync(kAllLanes, out_of_range);
  if (lane == 0 && masked != 0) atomicAdd(&s.invalid[0], masked);
  if (lane == 0 && out_of_range != 0) atomicAdd(&s.invalid[1], out_of_range);
}

// Expert e's counts of the warps -> exclusive prefixes over them. Returns their sum, the block's total.
__device__ __forceinline__ u32 prefix_counts(const SortShared& s, u32 e) {
  u32 count[kPrologueWarps];
#pragma unroll
  for (u32 w = 0; w < kPrologueWarps; ++w) count[w] = s.ranks[w * s.pitch + e];
  u32 sum = 0;
#pragma unroll
  for (u32 w = 0; w < kPrologueWarps; ++w) {
    s.ranks[w * s.pitch + e] = (u16)sum;
    sum += count[w];
  }
  return sum;
}
__device__ __forceinline__ void prefix_warps(const SortShared& s, u32 experts) {
  for (u32 e = threadIdx.x; e < experts; e += kPrologueThreads) s.total[e] = prefix_counts(s, e);
}

// Inclusive prefix of v in its warp.
template <typename T>
__device__ __forceinline__ T scan_warp(T v, u32 lane) {
#pragma unroll
  for (u32 d = 1; d < 32; d *= 2) {
    const T left = __shfl_up_sync(kAllLanes, v, d);
    if (lane >= d) v += left;
  }
  return v;
}
// What a scan leaves of experts e and e + 1: rows, the first `count0` of which are e's, from `row` on, and
// tiles.
__device__ __forceinline__ void store_experts(const SortShared& s, u32 experts, u32 e, u32 row, u32 count0,
                                              u32 tile0, u32 tile1, u32 before0, u32 before1) {
  if (e < experts) {
    s.first[e] = row;
    s.tile[e] = tile0;
    s.base[e] = row + before0;
  }
  if (e + 1 < experts) {
    s.first[e + 1] = row + count0;
    s.tile[e + 1] = tile1;
    s.base[e + 1] = row + count0 + before1;
  }
}
// The scan over the experts: thread i brings the row counts of experts 2i and 2i+1 (0 past the last one) and
// how many of those rows lie before this block's. Fills first (the grand total behind the last expert), tile
// and base. Returns the number of tiles. Contains one barrier; another must follow before others read.
__device__ __forceinline__ u32 scan_experts(const SortShared& s, u32 experts, u32 tile_m, u32 count0,
                                            u32 count1, u32 before0, u32 before1) {
  // sort_block()'s loop comes here in its first round alone.
  const u32 thread = not_before(threadIdx.x);
  const u32 lane = thread % 32;
  const u32 warp = thread / 32;
  const u32 tiles0 = (count0 + tile_m - 1) / tile_m;
  const u32 tiles1 = (count1 + tile_m - 1) / tile_m;
  // Rows in the low half, tiles in the high one; both stay below 2^31.
  const u64 mine = ((u64)(tiles0 + tiles1) << 32) + (count0 + count1);
  const u64 sum = scan_warp(mine, lane);
  if (lane == 31) s.sums[warp] = sum;
  __syncthreads();
  u64 warps = lane < kPrologueWarps ? s.sums[lane] : 0;
#pragma unroll
  for (u32 d = 1; d < kPrologueWarps; d *= 2) {
    const u64 left = __shfl_up_sync(kAllLanes, warps, d);
    if (lane >= d) warps += left;
  }
  const u64 all = __shfl_sync(kAllLanes, warps, kPrologueWarps - 1);
  const u64 earlier = __shfl_sync(kAllLanes, warps, warp == 0 ? 0 : warp - 1);
  const u64 start = sum - mine + (warp == 0 ? 0 : earlier);
  const u32 tile = (u32)(start >> 32);
  store_experts(s, experts, 2 * thread, (u32)start, count0, tile, tile + tiles0, before0, before1);
  if (thread == 0) s.first[experts] = (u32)all;
  return (u32)(all >> 32);
}

// A plan's tile `number`: up to tile_m of the `left` rows that expert e has from `row` on.
__device__ __forceinline__ void store_tile(i32* tiles, u32 number, u32 e, u32 row, u32 left, u32 tile_m) {
  store_words(tiles + 4 * (i64)number, e, row, left < tile_m ? left : tile_m, 0);
}
// The number of tiles; GEMMs count in the words behind it (params/prefill.hpp).
__device__ __forceinline__ void store_num_tiles(i32* num_tiles, u32 tiles) {
  num_tiles[0] = (i32)tiles;
#pragma unroll
  for (u32 i = 1; i < kTileCounters; ++i) num_tiles[i] = 0;
}
__device__ __forceinline__ void store_offsets(const SortParams& p, const SortShared& s) {
  for (u32 e = threadIdx.x; e <= p.experts; e += kPrologueThreads) p.offsets[e] = (i32)s.first[e];
}

// Tiles of one height for all experts. (decide.cuh: of several.)
struct OnePlan {
  u32 tiles = 0;
  // In front of a barrier in front of scan(), behind what has to be waited for anyway.
  __device__ __forceinline__ void prepare() const {}
  // The same where there is no such barrier.
  __device__ __forceinline__ void prepare_alone() const {}
  __device__ __forceinline__ void scan(const SortParams& p, const SortShared& s, u32 count0, u32 count1,
                                       u32 before0, u32 before1) {
    tiles = scan_experts(s, p.experts, p.tile_m, count0, count1, before0, before1);
  }
  __device__ __forceinline__ void store(const SortParams& p, const SortShared&) const {
    if (threadIdx.x == 0) store_num_tiles(p.num_tiles, tiles);
  }
  // Row `row` of an expert is there: writes the tile if it begins one.
  __device__ __forceinline__ void store_tile(const SortParams& p, const SortShared& s, u32 e, u32 row) const {
    const u32 in_expert = row - s.first[e];
    const u32 tile = in_expert / p.tile_m;
    if (tile * p.tile_m == in_expert)
      ::store_tile(p.tiles, s.tile[e] + tile, e, row, s.first[e + 1] - row, p.tile_m);
  }
};

template <typename Plan>
__device__ __forceinline__ void store_row(const SortParams& p, const SortShared& s, const Plan& plan, u32 e,
                                          u32 row, u32 slot) {
  p.rows[row] = (i32)slot;
  p.positions[slot] = (i32)row;
  plan.store_tile(p, s, e, row);
}

// The block's slots to their rows. kDrop: ranks beyond the capacity lose their id and weight instead.
template <bool kDrop, typename Plan>
__device__ __forceinline__ void emit_slots(const SortParams& p, const SortShared& s, const Plan& plan,
                                           u32 begin, u32 end) {
  const u32 lane = threadIdx.x % 32;
  const u16* const ranks = s.ranks + threadIdx.x / 32 * s.pitch;
  u32 from, to;
  warp_range(begin, end, from, to);
  for (u32 slot = from + lane; slot < to; slot += 32) {
    const u32 entry = s.entry[slot - begin];
    if (entry == kNoEntry) {
      if (!kDrop) p.positions[slot] = -1;
      continue;
    }
    const u32 e = entry & 1023u;
    const u32 row = s.base[e] + ranks[e] + (entry >> 10);
    if (!kDrop) {
      store_row(p, s, plan, e, row, slot);
    } else if (row - s.first[e] >= p.capacity) {
      const i64 at = slot_at(slot, p.top_k, p.ids_stride);
      if (p.ids_wide != 0) {
        static_cast<i64*>(const_cast<void*>(p.ids))[at] = -1;
      } else {
        static_cast<i32*>(const_cast<void*>(p.ids))[at] = -1;
      }
      p.drop_weights[slot_at(slot, p.top_k, p.drop_stride)] = 0.0f;
    }
  }
}

__device__ __forceinline__ void add_counters(const SortParams& p, u32 masked, u32 out_of_range) {
  if (p.counters == nullptr) return;
  if (masked != 0) atomicAdd(reinterpret_cast<u64*>(p.counters), (u64)masked);
  if (out_of_range != 0) atomicAdd(reinterpret_cast<u64*>(p.counters) + 1, (u64)out_of_range);
}

// Row counts of experts 2i and 2i+1 for thread i, of all blocks and of the blocks before this one: from the
// blocks of the cluster, whose totals are complete, or from the launches before.
struct ExpertCounts {
  u32 all[2], before[2];
};
__device__ __forceinline__ ExpertCounts counts_of_cluster(const SortShared& s, u32 experts, u32 blocks,
                                                          u32 block) {
  u32 peer[2][kMaxCluster];  // all loads in flight together
#pragma unroll
  for (u32 i = 0; i < 2; ++i) {
    const u32 e = 2 * threadIdx.x + i;
#pragma unroll
    for (u32 b = 0; b < kMaxCluster; ++b) {
      peer[i][b] = 0;
      if (b < blocks && e < experts) peer[i][b] = peer_word(s.total + e, b);
    }
  }
  ExpertCounts c{{0, 0}, {0, 0}};
#pragma unroll
  for (u32 i = 0; i < 2; ++i) {
#pragma unroll
    for (u32 b = 0; b < kMaxCluster; ++b) {
      c.before[i] += b < block ? peer[i][b] : 0;
      c.all[i] += peer[i][b];
    }
  }
  return c;
}
__device__ __forceinline__ ExpertCounts counts_of_grid(const SortParams& p, u32 block) {
  ExpertCounts c{{0, 0}, {0, 0}};
#pragma unroll
  for (u32 i = 0; i < 2; ++i) {
    const u32 e = 2 * threadIdx.x + i;
    if (e >= p.experts) continue;
    c.all[i] = (u32)p.counts[(i64)p.chunks * p.experts + e];
    c.before[i] = (u32)p.counts[(i64)block * p.experts + e];
  }
  return c;
}

// The sort by one block. counted = false: alone or with its cluster, which is the first of the grid; the
// block's slots fit its entries. counted = true: the third
// launch, where counts[block][e] says how many of expert e's rows lie in earlier chunks. clear_sort() has
// been called.
template <bool kDrop, typename Plan>
__device__ __forceinline__ void sort_block(const SortParams& p, const SortShared& s, Plan plan,
                                           bool counted) {
  const u32 blocks = counted ? p.chunks : cluster_blocks();
  const u32 block = counted ? blockIdx.x : cluster_rank();
  const bool cluster = !counted && blocks > 1;
  const u32 limit = counted ? kSubChunk : p.chunk;
  u32 begin, end;
  block_slots(p, block, begin, end);
  bool scanned = false;
  do {
    const u32 stop = end - begin < limit ? end : begin + limit;
    rank_slots(p, s, begin, stop);
    if (!scanned) plan.prepare();
    __syncthreads();
    prefix_warps(s, p.experts);
    __syncthreads();
    if (!scanned) {
      scanned = true;
      if (!counted && threadIdx.x == 0) add_counters(p, s.invalid[0], s.invalid[1]);
      if (cluster) {
        cluster_arrive();
        cluster_wait();
      }
      const ExpertCounts c =
          counted ? counts_of_grid(p, block) : counts_of_cluster(s, p.experts, blocks, block);
      // Peers may read this block's totals until all have arrived here; the wait is at the end.
      if (cluster) cluster_arrive();
      plan.scan(p, s, c.all[0], c.all[1], c.before[0], c.before[1]);
      __syncthreads();
      if (!kDrop && block == 0) {
        store_offsets(p, s);
        plan.store(p, s);
      }
    }
    emit_slots<kDrop>(p, s, plan, begin, stop);
    begin = stop;
    if (begin >= end) break;
    __syncthreads();
    for (u32 e = threadIdx.x; e < p.experts; e += kPrologueThreads) s.base[e] += s.total[e];
    clear_ranks(s);
    __syncthreads();
  } while (true);
  if (cluster) cluster_wait();
}
