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
// Warpgroup 2 fills the ring: packed weight tiles (and GEMM 2's packed h) by bulk copies; GEMM 1's token rows
// by index with 16-byte copies, swizzled by hand; scales beside them. The grid is persistent: blocks stride
// over (row tile, pair of slices) items, ordered by expert, group of row tiles, pair, row tile, so that
// blocks that run at the same time share weights and token rows in L2.
#define WGMMA_E4M3
#include "common/types.cuh"
#include "params/block.hpp"
#include "params/prefill.hpp"
#include "sm90/prefill.cuh"
#include "sm90/ptx.cuh"
#include "sm90/wgmma.cuh"

using namespace ramp::core::cuda;

constexpr u32 kTile = 16384;               // bytes of a packed tile: 128 rows x 128 bytes
constexpr u32 kStage = 3 * kTile;          // tokens, two weight tiles
constexpr u32 kScales = 4 * kPrefillRows;  // bytes of a stage's token scales
constexpr u32 kWeightScales = 8;           // ... of its weight scales
constexpr u32 kMathThreads = 256;
constexpr u32 kStaging = 2048;  // bytes per math warp: 16 rows x 128
constexpr u32 kRowGroup = 16;   // row tiles that pass a pair of slices before the next pair

struct Item {
  int tile, first, rows, pair, expert;
};

// Item number `unit` of num_tiles * pairs.
__device__ __forceinline__ Item find_item(const PrefillParams& p, u32 unit, u32 pairs) {
  const StreamTile base = p.tiles[unit / pairs];
  const int begin = p.offsets[base.expert];
  const int count = p.offsets[base.expert + 1] - begin;
  const u32 tiles = (u32)(count + kPrefillRows - 1) / kPrefillRows;
  const u32 first_tile = unit / pairs - (u32)(base.first - begin) / kPrefillRows;
  const u32 local = unit - first_tile * pairs;
  const u32 group = local / (kRowGroup * pairs) * kRowGroup;
  const u32 inside = local - group * pairs;
  const u32 width = tiles - group < kRowGroup ? tiles - group : kRowGroup;
  const u32 tile = group + inside % width;
  const int first = begin + (int)tile * kPrefillRows;
  const int left = begin + count - first;
  return {(int)(first_tile + tile), first, left < kPrefillRows ? left : kPrefillRows, (int)(inside / width),
          base.expert};
}

__device__ __forceinline__ u32 source_row(int source, const PrefillParams& p, int sorted) {
  const int slot = p.slots[sorted];
  return (u32)(source == kRowSlot ? slot : slot / p.top_k);
}

struct Shared {
  u32 ring, scales, weight_scales, items, staging, amax, full, empty;
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
    float token0, token1, scale[2];
    float part[64];
    multiply(part, a, b);
    token0 = load_float(s.scales + at.slot * kScales + 4 * row);
    token1 = load_float(s.scales + at.slot * kScales + 4 * row + 32);
    load_pair(scale[0], scale[1], s.weight_scales + at.slot * kWeightScales);
    if (GEMM == 2 && k == 0 && p.slot_weight != nullptr) {
#pragma unroll
      for (int i = 0; i < 2; ++i) {
        const int t = slot[i] / p.top_k;
        weight[i] = p.slot_weight[t * p.slot_weight_token + (slot[i] - t * p.top_k) * p.slot_weight_slot];
      }
    }
#pragma unroll
    for (int i = 0; i < SLICES; ++i) {
      if (i > 0) multiply(part, a, b + kTile / 16);
      // Columns of even n8 blocks are gate rows, of odd ones up rows (GEMM 1); a slice has one scale (GEMM
      // 2).
      const float even = GEMM == 1 ? scale[0] : SLICES == 2 ? scale[i] : group != 0 ? scale[1] : scale[0];
      const float odd = GEMM == 1 ? scale[1] : even;
      const float even0 = even * token0, even1 = even * token1;
      const float odd0 = odd * token0, odd1 = odd * token1;
      wgmma_wait<0>();
      if (i == SLICES - 1) {
        barrier_arrive(s.empty + 8 * at.slot);
      }
#pragma unroll
      for (int j = 0; j < 16; ++j) {
        sum[i][4 * j + 0] = fmaf(part[4 * j + 0], j % 2 == 0 ? even0 : odd0, sum[i][4 * j + 0]);
        sum[i][4 * j + 1] = fmaf(part[4 * j + 1], j % 2 == 0 ? even0 : odd0, sum[i][4 * j + 1]);
        sum[i][4 * j + 2] = fmaf(part[4 * j + 2], j % 2 == 0 ? even1 : odd1, sum[i][4 * j + 2]);
        sum[i][4 * j + 3] = fmaf(part[4 * j + 3], j % 2 == 0 ? even1 : odd1, sum[i][4 * j + 3]);
      }
    }
    at.next();
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
  __syncwarp();
  u8* const to = p.h + tile * kTile + base * 128;
#pragma unroll
  for (u32 i = 0; i < 2 * SLICES; ++i) {
    const u32 c = lane + 32 * i;  // 16 bytes; of 8 or, of the warpgroup's half, 4 in a row
    const u32 row = SLICES == 2 ? c / 8 : c / 4;
    const u32 place = SLICES == 2 ? c % 8 : (4 * group + c % 4) ^ (row % 8);
    if (base + row / 8 * 8 < (u32)item.rows)
      *(uint4*)(to + row * 128 + place * 16) = load_words(staging + row * 128 + place * 16);
  }
  __syncwarp();
}

// Times the router weight, bf16, one row per row of the sorted index.
template <int SLICES>
__device__ __forceinline__ void store_rows(const PrefillParams& p, const Shared& s, const Item& item,
                                           u32 group, float (&sum)[SLICES][64], const float (&weight)[2]) {
  const u32 lane = threadIdx.x % 32;
  const u32 base = (SLICES == 2 ? group * 64 : 0) + threadIdx.x % 128 / 32 * 16;
  const u32 staging = s.staging + threadIdx.x / 32 * kStaging;
#pragma unroll
  for (int i = 0; i < SLICES; ++i) {
    const u32 slice = 2 * (u32)item.pair + (SLICES == 2 ? i : group);
    if (slice >= (u32)p.slices) break;
#pragma unroll
    for (int half = 0; half < 2; ++half) {
#pragma unroll
      for (int j = 0; j < 8; ++j)
#pragma unroll
        for (int r = 0; r < 2; ++r) {
          const u32 row = lane / 4 + 8 * r;
          const int at = 32 * half + 4 * j + 2 * r;
          store_u32(staging + row * 128 + (j ^ (row % 8)) * 16 + lane % 4 * 4,
                    bf16_pair(sum[i][at] * weight[r], sum[i][at + 1] * weight[r]));
        }
      __syncwarp();
#pragma unroll
      for (u32 c = lane; c < 128; c += 32) {
        const u32 row = c / 8;
        if (base + row < (u32)item.rows)
          *(uint4*)(p.rows + (i64)(item.first + (int)(base + row)) * p.out_stride + slice * 128 + half * 64 +
                    c % 8 * 8) = load_words(staging + row * 128 + ((c % 8) ^ (row % 8)) * 16);
      }
      __syncwarp();
    }
  }
}

template <int SLICES>
__device__ __forceinline__ void run_item(const PrefillParams& p, const Shared& s, const Item& item, Place& at,
                                         u32 exchange) {
  const u32 group = __shfl_sync(0xffffffffu, threadIdx.x / 128, 0);
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

__device__ __forceinline__ void compute(const PrefillParams& p, const Shared& s, u32 units) {
  Place at;
  u32 exchange = s.amax;  // two buffers take turns: one barrier per item is enough
  for (u32 unit = blockIdx.x; unit < units; unit += gridDim.x) {
    barrier_wait(s.full + 8 * at.slot, at.round);
    const uint4 v = load_words(s.items + 16 * at.slot);
    const Item item{(int)v.x, (int)v.y, (int)v.z, (int)v.w, 0};
    if (item.rows > 64) {
      run_item<2>(p, s, item, at, exchange);
    } else {
      run_item<1>(p, s, item, at, exchange);
      exchange ^= 512;
    }
  }
}

// ---------------------------------------------------------------- copies

// Both weight tiles of a step. An odd number of slices: the last one's tile twice, once for nothing.
__device__ __forceinline__ const u8* weight_slice(const PrefillParams& p, const Item& item, u32 slice) {
  if (slice >= (u32)p.slices) slice = (u32)p.slices - 1;
  return p.weights + ((u64)item.expert * (u32)p.slices + slice) * (u32)p.steps * kTile;
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

// GEMM 1, 128 threads: thread t brings 16 bytes of rows t/8, t/8 + 16, ... Slices come in pairs here.
__device__ __forceinline__ void gather(const PrefillParams& p, const Shared& s, u32 units, u32 pairs) {
  const u32 t = threadIdx.x - kMathThreads;
  const u32 place = t / 8 * 128 + ((t % 8) ^ (t / 8 % 8)) * 16;
  Place at;
  u32 before = ~0u;  // the full barrier of the step whose copies have not been signalled yet
  for (u32 unit = blockIdx.x; unit < units; unit += gridDim.x) {
    const Item item = find_item(p, unit, pairs);
    const u32 rows = (u32)item.rows;
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
    const u8* tile = weight_slice(p, item, 2 * (u32)item.pair);
    const u8* x = p.x + t % 8 * 16;
    barrier_wait(s.empty + 8 * at.slot, at.round ^ 1);
    if (t == 0) announce_item(s, at, item);
    for (int k = p.steps; k > 0; --k) {
      const u32 stage = s.ring + at.slot * kStage;
      const u32 full = s.full + 8 * at.slot;
      barrier_wait(s.empty + 8 * at.slot, at.round ^ 1);
      if (t == 0) {
        barrier_expect(full, 2 * kTile);
        bulk_copy(stage + kTile, tile, kTile, full);
        bulk_copy(stage + 2 * kTile, tile + (u64)(u32)p.steps * kTile, kTile, full);
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
      if (before != ~0u) {
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
  if (before != ~0u) barrier_arrive(before);
}

// GEMM 2, one warp: everything by bulk copies but the weight scales.
__device__ __forceinline__ void bring(const PrefillParams& p, const Shared& s, u32 units, u32 pairs) {
  const u32 lane = threadIdx.x % 32;
  Place at;
  Item next{};
  if (blockIdx.x < units) next = find_item(p, blockIdx.x, pairs);
  for (u32 unit = blockIdx.x; unit < units; unit += gridDim.x) {
    const Item item = next;
    if (unit + gridDim.x < units) next = find_item(p, unit + gridDim.x, pairs);
    const float* weight_scale = weight_scales(p, item, lane % 2);
    const u8* tile0 = weight_slice(p, item, 2 * (u32)item.pair);
    const u8* tile1 = weight_slice(p, item, 2 * (u32)item.pair + 1);
    const u64 h = (u64)(u32)item.tile * (u32)p.steps;
    const u32 atoms = (u32)(item.rows + 7) / 8;
    for (u32 k = 0; k < (u32)p.steps; ++k) {
      const u32 full = s.full + 8 * at.slot;
      const u32 stage = s.ring + at.slot * kStage;
      barrier_wait(s.empty + 8 * at.slot, at.round ^ 1);
      if (lane < 2) {
        copy4(s.weight_scales + at.slot * kWeightScales + 4 * lane, weight_scale + k);
        barrier_arrive_copies(full);
      }
      if (lane == 0) {
        if (k == 0) announce_item(s, at, item);
        barrier_expect(full, 2 * kTile + atoms * (1024 + 32));
        bulk_copy(stage + kTile, tile0 + (u64)k * kTile, kTile, full);
        bulk_copy(stage + 2 * kTile, tile1 + (u64)k * kTile, kTile, full);
        bulk_copy(stage, p.h + (h + k) * kTile, atoms * 1024, full);
        bulk_copy(s.scales + at.slot * kScales, p.h_scale + (h + k) * kPrefillRows, atoms * 32, full);
      }
      __syncwarp();
      at.next();
    }
  }
}

extern "C" __global__ void __launch_bounds__(384, 1) prefill(const __grid_constant__ PrefillParams p) {
  extern __shared__ __align__(1024) u8 memory[];
  Shared s;
  s.ring = shared_address(memory);
  s.staging = s.ring + STAGES * kStage;
  s.scales = s.staging + 8 * kStaging;
  s.amax = s.scales + STAGES * kScales;  // aligned to 1024 with an even number of stages: see `exchange`
  s.items = s.amax + 1024;
  s.weight_scales = s.items + 16 * STAGES;
  s.full = s.weight_scales + kWeightScales * STAGES;
  s.empty = s.full + 8 * STAGES;
  if (threadIdx.x == 0) {
    for (u32 i = 0; i < STAGES; ++i) {
      // GEMM 1: the gathering threads and the announcement of bytes; GEMM 2: that and two weight scales.
      barrier_init(s.full + 8 * i, GEMM == 1 ? 129 : 3);
      barrier_init(s.empty + 8 * i, kMathThreads);
    }
    barrier_init_fence();
  }
  __syncthreads();
  dependency_wait();
  if (p.early) launch_dependents();
  const u32 pairs = (u32)(p.slices + 1) / 2;
  const u32 units = (u32)*p.num_tiles * pairs;
  if (threadIdx.x >= kMathThreads) {
    registers_release<GEMM == 1 ? 56 : 40>();
    if (GEMM == 1)
      gather(p, s, units, pairs);
    else if (threadIdx.x < kMathThreads + 32)
      bring(p, s, units, pairs);
  } else {
    registers_take<GEMM == 1 ? 224 : 232>();
    compute(p, s, units);
  }
}
