// The prefill kernel: one GEMM of the expert block at the speed of the tensor cores, for experts with many
// rows (fp8_block, sm_90a). An item is 128 token rows x 256 weight rows (two packed slices): tokens are
// wgmma's M side, each of two math warpgroups has 64 rows of both slices, so that in GEMM 1 one thread's quad
// holds a token's whole group of 128 h columns. An item of at most 64 rows gives each warpgroup one slice
// instead. Every 128-deep step starts its sums from zero and is promoted into fp32 with the block scales
// while the other warpgroup's wgmmas run.
//
//   GEMM    1: w13, SwiGLU and requantisation in the epilogue, h as packed tiles. 2: w2, router weight, bf16
//   rows. ACTIVATION  GEMM 1: ramp_activation (0 silu, 1 gelu, 2 gelu_tanh, times up) STAGES      ring depth:
//   48 KB each
//
// Blocks run in clusters of two. Where an expert has two row tiles of more than 64 rows, the blocks of a
// cluster take one each and share the weights: each brings one of the two tiles of a step for both
// (multicast). What is left of an expert, a row tile or two, is divided between them by pairs of slices.
//
// Warpgroup 2 fills the ring: packed weight tiles (and GEMM 2's packed h) by bulk copies; GEMM 1's token rows
// by index with 16-byte copies, swizzled by hand; scales beside them. Results leave by bulk copies, GEMM 2's
// through a slot of the ring that is left empty for them. The grid is persistent: clusters stride over units,
// ordered by expert, group of row tiles, pair of slices, row tile, so that what runs at the same time shares
// weights and tokens in L2.
#define WGMMA_E4M3
#include "common/types.cuh"
#include "params/block.hpp"
#include "params/prefill.hpp"
#include "sm90/prefill.cuh"
#include "sm90/ptx.cuh"
#include "sm90/wgmma.cuh"

using namespace ramp::core::cuda;
#ifndef CLUSTER
#define CLUSTER 2
#endif

constexpr u32 kTile = 16384;               // bytes of a packed tile: 128 rows x 128 bytes
constexpr u32 kStage = 3 * kTile;          // tokens, two weight tiles
constexpr u32 kScales = 4 * kPrefillRows;  // bytes of a stage's token scales
constexpr u32 kWeightScales = 8;           // ... of its weight scales
constexpr u32 kMathThreads = 256;
constexpr u32 kRowGroup =
    16 / CLUSTER;  // row tiles (or couples) that pass a pair of slices before the next pair
// Arrivals that free a slot: 8 lanes of 8 warps, and a lane of each of the partner's warps.
constexpr u32 kArrivals = CLUSTER == 2 ? 72 : 64;
constexpr u32 kStaging = GEMM == 1 ? 2048 : 4096;  // per math warp: 16 rows of h's 128 or a slice's 256 bytes

struct Item {
  int tile, first, rows, pair, expert;
  bool shared;  // the partner has the same slices
};

// Units of this launch: this block's cluster takes every gridDim.x / CLUSTER-th of them.
__device__ __forceinline__ u32 pairs_of(const PrefillParams& p) {
  return (u32)(p.slices + 2 * CLUSTER - 1) / (2 * CLUSTER) * CLUSTER;
}
__device__ __forceinline__ u32 units_of(const PrefillParams& p) {
  return (u32)*p.num_tiles * (pairs_of(p) / CLUSTER);
}

// What block `rank` of the cluster does in unit `unit` of num_tiles * pairs / CLUSTER (a multiple of it).
// rows 0: nothing, but as many steps of it as the partner has.
__device__ __forceinline__ Item find_item(const PrefillParams& p, u32 unit, u32 pairs, u32 rank) {
  const u32 base = CLUSTER * unit / pairs;
  const StreamTile tile = p.tiles[base];
  const int begin = p.offsets[tile.expert];
  const int count = p.offsets[tile.expert + 1] - begin;
  const u32 tiles = (u32)(count + kPrefillRows - 1) / kPrefillRows;
  const u32 first_tile = base - (u32)(tile.first - begin) / kPrefillRows;
  const u32 local = unit - first_tile * (pairs / CLUSTER);
  // Row tiles that are dealt with in couples; without clusters, one by one.
  const u32 large = tiles - (count - (int)(tiles - 1) * kPrefillRows > 64 ? 0 : 1);
  const u32 couples = CLUSTER == 2 ? large / 2 : tiles;
  Item item;
  item.expert = tile.expert;
  item.shared = CLUSTER == 2 && local < couples * pairs;
  u32 mine;
  if (CLUSTER == 1 || item.shared) {
    const u32 group = local / (kRowGroup * pairs) * kRowGroup;
    const u32 inside = local - group * pairs;
    const u32 width = couples - group < kRowGroup ? couples - group : kRowGroup;
    mine = CLUSTER * (group + inside % width) + rank;
    item.pair = (int)(inside / width);
  } else {
    const u32 inside = local - couples * pairs;
    const u32 rest = tiles - 2 * couples;
    mine = 2 * couples + inside % rest;
    item.pair = (int)(2 * (inside / rest) + rank);
  }
  item.tile = (int)(first_tile + mine);
  item.first = begin + (int)mine * kPrefillRows;
  const int left = begin + count - item.first;
  item.rows = left < kPrefillRows ? left : kPrefillRows;
  if (2 * item.pair >= p.slices) item.rows = 0;
  return item;
}

__device__ __forceinline__ u32 source_row(int source, const PrefillParams& p, int sorted) {
  const int slot = p.slots[sorted];
  return (u32)(source == kRowSlot ? slot : slot / p.top_k);
}

struct Shared {
  u32 ring, amax, scales, staging, items, weight_scales, full, empty;
  u32 rank;  // in the cluster
};

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

// ---------------------------------------------------------------- math

// This warp has done with a slot: the lanes that have read scales from it say so here, one of them to the
// partner, whose copies write into this block's slots too.
__device__ __forceinline__ void release(const Shared& s, u32 slot) {
  const u32 bar = s.empty + 8 * slot;
  if (threadIdx.x % 4 == 0) barrier_arrive(bar);
  if (CLUSTER == 2 && threadIdx.x % 32 == 0) barrier_arrive_remote(remote_address(bar, s.rank ^ 1));
}
// One step of one slice: 64 rows x 128 weight rows x 128 deep, from zero.
__device__ __forceinline__ void multiply(float (&part)[64], u64 a, u64 b) {
  wgmma_fence();
#pragma unroll
  for (int j = 0; j < 4; ++j) wgmma<E4m3, 128>(part, a + 2 * j, b + 2 * j, j != 0);
  wgmma_commit();
}

// An item's main loop. SLICES: 2, or 1 where the warpgroups share an item of at most 64 rows.
template <int SLICES>
__device__ __forceinline__ void accumulate(const PrefillParams& p, const Shared& s, Place& at, u32 group,
                                           float (&sum)[SLICES][64], float (&weight)[2],
                                           const int (&slot)[2]) {
  const u32 lane = threadIdx.x % 32;
  const u32 row = (SLICES == 2 ? group * 64 : 0) + threadIdx.x % 128 / 32 * 16 + lane / 4;
#pragma unroll
  for (int i = 0; i < SLICES; ++i)
#pragma unroll
    for (int j = 0; j < 64; ++j) sum[i][j] = 0.0f;
  for (int k = 0; k < p.steps; ++k) {
    const u32 stage = s.ring + at.slot * kStage;
    barrier_wait(s.full + 8 * at.slot, at.round);
    const u64 a = descriptor(stage + (SLICES == 2 ? group * 8192 : 0));
    const u64 b = descriptor(stage + kTile + (SLICES == 2 ? 0 : group * kTile));
    float part[64];
    multiply(part, a, b);
    float token[2], scale[2];
    load_scales(token, scale, s.scales + at.slot * kScales + 4 * row,
                s.weight_scales + at.slot * kWeightScales, lane % 4 == 0);
    token[0] = from_quad(token[0]);
    token[1] = from_quad(token[1]);
    scale[0] = from_quad(scale[0]);
    scale[1] = from_quad(scale[1]);
#pragma unroll
    for (int i = 0; i < SLICES; ++i) {
      if (i > 0) multiply(part, a, b + kTile / 16);
      // Columns of even n8 blocks are gate rows, of odd ones up rows (GEMM 1); a slice has one scale (GEMM
      // 2).
      const float even = GEMM == 1 ? scale[0] : SLICES == 2 ? scale[i] : group != 0 ? scale[1] : scale[0];
      const float odd = GEMM == 1 ? scale[1] : even;
      const float factor[2][2] = {{even * token[0], even * token[1]}, {odd * token[0], odd * token[1]}};
      wgmma_wait<0>();
      if (i == SLICES - 1) release(s, at.slot);
#pragma unroll
      for (int j = 0; j < 64; ++j) sum[i][j] = fmaf(part[j], factor[j / 4 % 2][j / 2 % 2], sum[i][j]);
    }
    at.next();
    if (GEMM == 2 && k == 0 && p.slot_weight != nullptr) {
#pragma unroll
      for (int i = 0; i < 2; ++i) {
        const int t = slot[i] / p.top_k;
        weight[i] = p.slot_weight[t * p.slot_weight_token + (slot[i] - t * p.top_k) * p.slot_weight_slot];
      }
    }
  }
}

// silu(gate) * up, the group's scale, codes; packed as GEMM 2 reads them. `exchange`: 2 x 64 amax values,
// where each warpgroup has half of the group's columns.
template <int SLICES>
__device__ __forceinline__ void store_h(const PrefillParams& p, const Shared& s, const Item& item, u32 group,
                                        float (&sum)[SLICES][64], u32 exchange) {
  const u32 lane = threadIdx.x % 32;
  const u32 warp_row = threadIdx.x % 128 / 32 * 16;
  const u32 base = (SLICES == 2 ? group * 64 : 0) + warp_row;
  const u32 staging = s.staging + threadIdx.x / 32 * kStaging;
  bulk_wait_read();  // the staging is free again
  __syncwarp();
  float h[SLICES][32];
  float amax[2] = {0.0f, 0.0f};
#pragma unroll
  for (int i = 0; i < SLICES; ++i)
#pragma unroll
    for (int q = 0; q < 8; ++q)
#pragma unroll
      for (int c = 0; c < 4; ++c) {
        const float v = activate(sum[i][8 * q + c], sum[i][8 * q + 4 + c]);
        h[i][4 * q + c] = v;
        amax[c / 2] = fmaxf(amax[c / 2], fabsf(v));  // a NaN does not count
      }
#pragma unroll
  for (int r = 0; r < 2; ++r) {
    amax[r] = fmaxf(amax[r], __shfl_xor_sync(0xffffffffu, amax[r], 1));
    amax[r] = fmaxf(amax[r], __shfl_xor_sync(0xffffffffu, amax[r], 2));
  }
  if (SLICES == 1) {
    const u32 mine = exchange + 4 * (64 * group + warp_row + lane / 4);
    if (lane % 4 == 0) {
      store_float(mine, amax[0]);
      store_float(mine + 32, amax[1]);
    }
    named_barrier(1, kMathThreads);
    const u32 other = exchange + 4 * (64 * (group ^ 1) + warp_row + lane / 4);
    amax[0] = fmaxf(amax[0], load_float(other));
    amax[1] = fmaxf(amax[1], load_float(other + 32));
  }
  const u64 tile = (u64)(u32)item.tile * (u32)p.h_steps + (u32)item.pair;
#pragma unroll
  for (int r = 0; r < 2; ++r) {
    const float scale = amax_scale(amax[r]);
    const float inverse = __frcp_rn(scale);
    const u32 row = lane / 4 + 8 * r;
#pragma unroll
    for (int i = 0; i < SLICES; ++i)
#pragma unroll
      for (int q = 0; q < 8; ++q) {
        const u32 chunk = 4 * (SLICES == 2 ? i : group) + q / 2;
        store_u16(staging + row * 128 + (chunk ^ (row % 8)) * 16 + q % 2 * 8 + lane % 4 * 2,
                  e4m3_pair(quotient(h[i][4 * q + 2 * r], scale, inverse),
                            quotient(h[i][4 * q + 2 * r + 1], scale, inverse)));
      }
    if (lane % 4 == 0 && (SLICES == 2 || group == 0) && base + 8 * r < (u32)item.rows)
      p.h_scale[tile * kPrefillRows + base + row] = scale;
  }
  u8* const to = p.h + tile * kTile + base * 128;
  if (SLICES == 2) {
    proxy_fence();
    __syncwarp();
    if (lane == 0 && base < (u32)item.rows) {
      bulk_store(to, staging, base + 8 < (u32)item.rows ? 2048 : 1024);
      bulk_commit();
    }
  } else {
    __syncwarp();
#pragma unroll
    for (u32 i = 0; i < 2; ++i) {
      const u32 row = lane / 4 + 8 * i;
      const u32 place = (4 * group + lane % 4) ^ (row % 8);
      if (base + 8 * i < (u32)item.rows)
        store_global(to + row * 128 + place * 16, load_words(staging + row * 128 + place * 16));
    }
  }
}

// Times the router weight, bf16, one row per row of the sorted index.
template <int SLICES>
__device__ __forceinline__ void store_rows(const PrefillParams& p, const Shared& s, const Item& item,
                                           u32 group, float (&sum)[SLICES][64], const float (&weight)[2]) {
  const u32 lane = threadIdx.x % 32;
  const u32 base = (SLICES == 2 ? group * 64 : 0) + threadIdx.x % 128 / 32 * 16;
  const u32 staging = s.staging + threadIdx.x / 32 * kStaging;
  // Lane l names row l % 16 of the 8 columns of n8 block j (l < 16) or j + 1.
  const u32 to = staging + lane % 16 * 256;
#pragma unroll
  for (int i = 0; i < SLICES; ++i) {
    const u32 slice = 2 * (u32)item.pair + (SLICES == 2 ? i : group);
    if (slice >= (u32)p.slices) break;
#pragma unroll
    for (u32 j = 0; j < 16; j += 2) {
      const float* const v = &sum[i][4 * j];
      store_matrices(to + ((j + lane / 16) ^ (lane % 8)) * 16, bf16_pair(v[0] * weight[0], v[1] * weight[0]),
                     bf16_pair(v[2] * weight[1], v[3] * weight[1]),
                     bf16_pair(v[4] * weight[0], v[5] * weight[0]),
                     bf16_pair(v[6] * weight[1], v[7] * weight[1]));
    }
    __syncwarp();
#pragma unroll
    for (u32 r = 0; r < 16; r += 2) {
      const u32 row = r + lane / 16;
      const uint4 words = load_words(staging + row * 256 + ((lane % 16) ^ (row % 8)) * 16);
      if (base + row < (u32)item.rows)
        store_global(
            p.rows + (i64)(item.first + (int)(base + row)) * p.out_stride + slice * 128 + lane % 16 * 8,
            words);
    }
    __syncwarp();
  }
}

template <int SLICES>
__device__ __forceinline__ void run_item(const PrefillParams& p, const Shared& s, const Item& item, Place& at,
                                         u32 exchange) {
  const u32 group = __shfl_sync(0xffffffffu, threadIdx.x / 128, 0);  // in a uniform register
  float weight[2] = {1.0f, 1.0f};
  int slot[2] = {0, 0};
  if (GEMM == 2 && p.slot_weight != nullptr) {
    const u32 row = (SLICES == 2 ? group * 64 : 0) + threadIdx.x % 128 / 32 * 16 + threadIdx.x % 32 / 4;
#pragma unroll
    for (u32 i = 0; i < 2; ++i)
      slot[i] = p.slots[item.first + (int)(row + 8 * i < (u32)item.rows ? row + 8 * i : 0)];
  }
  float sum[SLICES][64];
  accumulate<SLICES>(p, s, at, group, sum, weight, slot);
  if (GEMM == 1)
    store_h<SLICES>(p, s, item, group, sum, exchange);
  else
    store_rows<SLICES>(p, s, item, group, sum, weight);
}

__device__ __forceinline__ void compute(const PrefillParams& p, const Shared& s) {
  const u32 units = units_of(p);
  Place at;
  u32 exchange = s.amax;  // two buffers take turns: one barrier per item is enough
  for (u32 unit = blockIdx.x / CLUSTER; unit < units; unit += gridDim.x / CLUSTER) {
    barrier_wait(s.full + 8 * at.slot, at.round);
    const uint4 v = load_words(s.items + 16 * at.slot);
    const Item item{(int)v.x, (int)v.y, (int)v.z, (int)v.w, 0, false};
    if (item.rows > 64) {
      run_item<2>(p, s, item, at, exchange);
    } else if (item.rows > 0) {
      run_item<1>(p, s, item, at, exchange);
      exchange ^= 512;
    } else {
      for (int k = 0; k < p.steps; ++k, at.next()) {
        barrier_wait(s.full + 8 * at.slot, at.round);
        release(s, at.slot);
      }
    }
  }
  if (GEMM == 1) bulk_wait();
}

// ---------------------------------------------------------------- copies

// The first weight tile that this block brings of an item: that of its own slice where the partner brings the
// other's.
__device__ __forceinline__ const u8* weight_tiles(const PrefillParams& p, const Item& item, u32 rank) {
  const u32 slice = 2 * (u32)item.pair + (item.shared ? rank : 0);
  return p.weights + ((u64)item.expert * (u32)p.slices + slice) * (u32)p.steps * kTile;
}
// The weight tiles of a step. An odd number of slices: nothing for the last pair's second one, whose results
// are not stored either.
__device__ __forceinline__ void bring_weights(const PrefillParams& p, const Item& item, u32 rank, u32 stage,
                                              u32 full, const u8* tile) {
  if (item.shared) {
    if (2 * item.pair + (int)rank < p.slices) bulk_copy_both(stage + kTile + rank * kTile, tile, kTile, full);
  } else {
    bulk_copy(stage + kTile, tile, kTile, full);
    if (2 * item.pair + 1 < p.slices)
      bulk_copy(stage + 2 * kTile, tile + (u64)(u32)p.steps * kTile, kTile, full);
  }
}
__device__ __forceinline__ u32 weight_bytes(const PrefillParams& p, const Item& item) {
  return 2 * item.pair + 1 < p.slices ? 2 * kTile : kTile;
}
__device__ __forceinline__ const float* weight_scales(const PrefillParams& p, const Item& item, u32 which) {
  i64 row = item.pair + (which != 0 ? p.up_scale_row : 0);
  if (GEMM == 2) {
    row = 2 * item.pair + (int)which;
    if (row >= p.slices) row = p.slices - 1;
  }
  return p.weight_scale + (i64)item.expert * p.ws_expert + row * p.ws_row;
}
__device__ __forceinline__ void announce_item(const Shared& s, const Place& at, const Item& item) {
  store_words(s.items + 16 * at.slot, (u32)item.tile, (u32)item.first, (u32)item.rows, (u32)item.pair);
}

// GEMM 1, 128 threads: thread t brings 16 bytes of rows t/8, t/8 + 16, ...
__device__ __forceinline__ void gather(const PrefillParams& p, const Shared& s) {
  const u32 units = units_of(p);
  const u32 pairs = pairs_of(p);
  const u32 t = threadIdx.x - kMathThreads;
  const u32 place = t / 8 * 128 + ((t % 8) ^ (t / 8 % 8)) * 16;
  Place at;
  u32 before = 0;  // the full barrier of the step whose copies have not been signalled yet
  for (u32 unit = blockIdx.x / CLUSTER; unit < units; unit += gridDim.x / CLUSTER) {
    const Item item = find_item(p, unit, pairs, s.rank);
    const u32 rows = (u32)item.rows;
    barrier_wait(s.empty + 8 * at.slot, at.round ^ 1);
    if (t == 0) announce_item(s, at, item);
    if (rows == 0) {
      if (before != 0) {
        copy_wait<0>();
        proxy_fence();
        barrier_arrive(before);
        before = 0;
      }
      for (int k = p.steps; k > 0; --k, at.next()) {
        barrier_wait(s.empty + 8 * at.slot, at.round ^ 1);
        barrier_arrive(s.full + 8 * at.slot);
        if (t == 0) barrier_arrive(s.full + 8 * at.slot);
      }
      continue;
    }
    u32 row[8];
#pragma unroll
    for (int i = 0; i < 8; ++i) {
      const u32 r = t / 8 + 16 * i;
      row[i] = source_row(p.x_source, p, item.first + (r < rows ? (int)r : 0));
    }
    const float* token_scale =
        p.x_scale +
        (i64)source_row(p.x_scale_source, p, item.first + (t < rows ? (int)t : 0)) * p.x_scale_stride;
    const float* weight_scale = weight_scales(p, item, t % 2);
    const u8* tile = weight_tiles(p, item, s.rank);
    const u8* x = p.x + t % 8 * 16;
    for (int k = p.steps; k > 0; --k) {
      const u32 stage = s.ring + at.slot * kStage;
      const u32 full = s.full + 8 * at.slot;
      barrier_wait(s.empty + 8 * at.slot, at.round ^ 1);
      if (t == 0) {
        barrier_expect(full, weight_bytes(p, item));
        bring_weights(p, item, s.rank, stage, full, tile);
        tile += kTile;
      }
#pragma unroll
      for (int i = 0; i < 8; ++i)
        if (t / 8 + 16 * i < rows) copy16(stage + place + i * 2048, x + (u64)row[i] * (u64)p.x_stride);
      x += 128;
      if (t < rows) copy4(s.scales + at.slot * kScales + 4 * t, token_scale);
      if (t < 2) copy4(s.weight_scales + at.slot * kWeightScales + 4 * t, weight_scale);
      ++token_scale;
      ++weight_scale;
      copy_commit();
      // Signalled one step late, so that the copies' latency is hidden.
      if (before != 0) {
        copy_wait<1>();
        proxy_fence();
        barrier_arrive(before);
      }
      before = full;
      at.next();
    }
  }
  copy_wait<0>();
  proxy_fence();
  if (before != 0) barrier_arrive(before);
}

// GEMM 2, one warp: everything by bulk copies but the weight scales.
__device__ __forceinline__ void bring(const PrefillParams& p, const Shared& s) {
  const u32 units = units_of(p);
  const u32 pairs = pairs_of(p);
  const u32 lane = threadIdx.x % 32;
  Place at;
  for (u32 unit = blockIdx.x / CLUSTER; unit < units; unit += gridDim.x / CLUSTER) {
    const Item item = find_item(p, unit, pairs, s.rank);
    const float* weight_scale = weight_scales(p, item, lane % 2);
    const u8* tile = weight_tiles(p, item, s.rank);
    const u64 h = (u64)(u32)item.tile * (u32)p.steps;
    const u32 atoms = (u32)(item.rows + 7) / 8;
    for (u32 k = 0; k < (u32)p.steps; ++k, at.next()) {
      const u32 full = s.full + 8 * at.slot;
      const u32 stage = s.ring + at.slot * kStage;
      barrier_wait(s.empty + 8 * at.slot, at.round ^ 1);
      if (k == 0 && lane == 0) announce_item(s, at, item);
      if (item.rows == 0) {
        if (lane < 3) barrier_arrive(full);
        continue;
      }
      if (lane < 2) {
        copy4(s.weight_scales + at.slot * kWeightScales + 4 * lane, weight_scale + k);
        barrier_arrive_copies(full);
      }
      if (lane == 0) {
        barrier_expect(full, weight_bytes(p, item) + atoms * (1024 + 32));
        bring_weights(p, item, s.rank, stage, full, tile + (u64)k * kTile);
        bulk_copy(stage, p.h + (h + k) * kTile, atoms * 1024, full);
        bulk_copy(s.scales + at.slot * kScales, p.h_scale + (h + k) * kPrefillRows, atoms * 32, full);
      }
      __syncwarp();
    }
  }
}

extern "C" __global__ void __cluster_dims__(CLUSTER, 1, 1) __launch_bounds__(384, 1)
    prefill(const __grid_constant__ PrefillParams p) {
  extern __shared__ __align__(1024) u8 memory[];
  Shared s;
  s.ring = shared_address(memory);
  s.amax = s.ring + STAGES * kStage;  // aligned to 1024: see `exchange`
  s.scales = s.amax + (GEMM == 1 ? 1024 : 0);
  s.staging = s.scales + STAGES * kScales;
  s.items = s.staging + 8 * kStaging;
  s.weight_scales = s.items + 16 * STAGES;
  s.full = s.weight_scales + kWeightScales * STAGES;
  s.empty = s.full + 8 * STAGES;
  s.rank = CLUSTER == 2 ? cluster_rank() : 0;
  if (threadIdx.x == 0) {
    for (u32 i = 0; i < STAGES; ++i) {
      // GEMM 1: the gathering threads and the announcement of bytes; GEMM 2: that and two weight scales.
      barrier_init(s.full + 8 * i, GEMM == 1 ? 129 : 3);
      barrier_init(s.empty + 8 * i, kArrivals);
    }
    barrier_init_fence();
  }
  if (CLUSTER == 2)
    cluster_sync();
  else
    __syncthreads();
  dependency_wait();
  if (p.early) launch_dependents();
  if (threadIdx.x >= kMathThreads) {
    registers_release<GEMM == 1 ? 56 : 40>();
    if (GEMM == 1)
      gather(p, s);
    else if (threadIdx.x < kMathThreads + 32)
      bring(p, s);
  } else {
    registers_take<GEMM == 1 ? 224 : 232>();
    compute(p, s);
  }
  if (CLUSTER == 2) cluster_sync();  // no block leaves while its partner may still write to it
}
