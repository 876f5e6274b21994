// The prefill kernel: one GEMM of the expert block at the speed of the tensor cores, for experts with many
// rows (fp8_block, sm_90a). An item is 128 token rows x 256 weight rows (two packed slices): tokens are
// wgmma's M side, each of two math warpgroups has 64 rows of both slices, so that in GEMM 1 a quad of lanes
// holds a token's whole group of 128 h columns. An item of at most 64 rows gives each warpgroup one slice
// instead. Every 128-deep step starts its sums from zero and is promoted into fp32 with the block scales
// while the other warpgroup's wgmmas run.
//
//   GEMM        1: w13, SwiGLU and requantisation in the epilogue, h as packed tiles.
//               2: w2, router weight, bf16 rows.
//   ACTIVATION  GEMM 1: ramp_activation (0 silu, 1 gelu, 2 gelu_tanh, times up)
//   GATHER      GEMM 1: 1: token rows by index from x; 0: from a copy that is put in order first
//   (prefill_pack.cu).
//               GEMM 2: 0
//   STAGES      ring depth: 48 KB each (TALL: 40)
//   TALL        1: items of 192 x 128 (prefill_tall.cuh); without a gather
//   MIXED       1: units of experts with many rows and with few by turns (prefill_mixed.cuh)
//   FAST        GEMM 2: 1: rows are added to their tokens' sums (prefill_fast.cuh)
//
// Blocks run in clusters of two. Where an expert has two row tiles of more than 64 rows, the blocks of a
// cluster take one each, and each brings one of the two weight tiles of a step for both (multicast). What is
// left of an expert, a row tile or two, is divided between them by pairs of slices.
//
// Warpgroup 2 fills the ring: one warp brings packed weight and row tiles by bulk copies, and scales; with a
// gather two more bring token rows by index with 16-byte copies, swizzled by hand. Its last warp looks for
// the next unit of work (prefill_queue.cuh). The grid is persistent: clusters take units as they get free,
// ordered by expert, group of row tiles, pair of slices, row tile, so that what runs at the same time shares
// weights and tokens in L2.
#define WGMMA_E4M3
#include "common/types.cuh"
#include "params/block.hpp"
#include "params/prefill.hpp"
#include "sm90/prefill_bring.cuh"
#include "sm90/prefill_fast.cuh"
#include "sm90/prefill_items.cuh"
#include "sm90/prefill_math.cuh"
#include "sm90/prefill_ptx.cuh"
#include "sm90/ptx.cuh"

static_assert(!kTall || (GATHER == 0 && FAST == 0), "neither gathered nor added up");

template <Part PART, typename Exchange>
__device__ __forceinline__ void run_item(const PrefillParams& p, const Shared& s, const Item& item, Place& at,
                                         int done, const Exchange& exchange) {
  const u32 group = __shfl_sync(0xffffffffu, threadIdx.x / 128, 0);  // in a uniform register
  float weight[2] = {1.0f, 1.0f};
  int slot[2] = {0, 0};
  if (GEMM == 2 && (FAST || p.slot_weight != nullptr)) {
    const u32 row = first_row_of<PART>(group) + threadIdx.x % 128 / 32 * 16 + threadIdx.x % 32 / 4;
#pragma unroll
    for (u32 i = 0; i < 2; ++i)
      slot[i] = p.slots[item.first + (int)(row + 8 * i < (u32)item.rows ? row + 8 * i : 0)];
  }
  float sum[kSlices<PART>][64];
  accumulate<PART>(p, s, at, group, sum, weight, slot);
  if (GEMM == 1)
    store_h<PART>(p, s, item, group, sum, done, exchange);
  else if (FAST)
    add_rows<kSlices<PART>>(p, item, group, first_row_of<PART>(group) + threadIdx.x % 128 / 32 * 16, slot,
                            weight, [&](int i) -> const float* { return sum[i]; });
  else
    store_rows<PART>(p, s, item, group, sum, weight);
}

__device__ __forceinline__ Item announced_item(const Shared& s, const Place& at) {
  barrier_wait(s.full + 8 * at.slot, at.round);
  const uint4 v = load_words_where(s.items + 16 * at.slot, threadIdx.x % 32 == 0);  // who frees the slot
  return Item{uniform(v.x), uniform(v.y), uniform(v.z), uniform(v.w), 0, false};
}
// An item in which this warpgroup has no rows.
__device__ __forceinline__ void pass_item(const PrefillParams& p, const Shared& s, Place& at) {
  for (int k = 0; k < p.steps; ++k, at.next()) {
    barrier_wait(s.full + 8 * at.slot, at.round);
    // Or lanes ahead would let the slot be filled again before those behind have seen that it was full.
    __syncwarp();
    release(s, at.slot);
  }
}
__device__ __forceinline__ void compute(const PrefillParams& p, const Shared& s) {
  Place at;
  int done = -1;          // GEMM 1: the row tile of the last item
  u32 exchange = s.amax;  // two buffers take turns: one barrier per item is enough
  for (Item item = announced_item(s, at); item.rows >= 0; item = announced_item(s, at)) {
    if (item.rows > 64) {
      run_item<kRowsOfPair>(p, s, item, at, done, ExchangeBetweenWarpgroups{exchange});
      done = item.tile;
    } else if (item.rows > 0) {
      run_item<kSlice>(p, s, item, at, done, ExchangeBetweenWarpgroups{exchange});
      done = item.tile;
      exchange ^= 512;
    } else {
      pass_item(p, s, at);
    }
  }
  if (GEMM == 1) tell_rows(p, done);
}
__device__ __forceinline__ void compute_tall(const PrefillParams& p, const Shared& s) {
  Place at;
  int done = -1;
  u32 exchange = s.amax;  // between warpgroups
  u32 exchanged = 0;      // between blocks
  for (Item item = announced_item(s, at); item.rows >= 0; item = announced_item(s, at)) {
    const u32 group = __shfl_sync(0xffffffffu, threadIdx.x / 128, 0);
    const bool narrow = item.rows <= kNarrowRows;
    if (!narrow && item.rows > (int)(64 * group)) {
      run_item<kRowsOfSlice>(p, s, item, at, done,
                             ExchangeBetweenBlocks{s.amax + kTallExchange, s.rank, exchanged});
      done = item.tile;
      ++exchanged;
    } else if (narrow && group < 2 && 2 * item.pair < p.slices) {
      run_item<kSlice>(p, s, item, at, done, ExchangeBetweenWarpgroups{exchange});
      done = item.tile;
      exchange ^= 512;
    } else {
      // Nobody is to wait for rows that are done until this warpgroup has some again.
      if (GEMM == 1) tell_rows(p, done);
      done = -1;
      pass_item(p, s, at);
    }
  }
  if (GEMM == 1) tell_rows(p, done);
}

extern "C" __global__ void __cluster_dims__(2, 1, 1) __launch_bounds__(kMathThreads + 128, 1)
    prefill(const __grid_constant__ PrefillParams p) {
  extern __shared__ __align__(1024) u8 memory[];
  Shared s;
  s.ring = shared_address(memory);
  s.amax = s.ring + STAGES * kStage;  // aligned to 1024: see `exchange`
  s.scales = s.amax + (GEMM != 1 ? 0 : kTall ? kTallExchange + kTallExchangeBytes : 1024);
  s.staging = s.scales + STAGES * kScales;
  s.items = s.staging + kMathWarps * kStaging;
  s.weight_scales = s.items + 16 * STAGES;
  s.full = s.weight_scales + kWeightScales * STAGES;
  s.empty = s.full + 8 * STAGES;
  s.queue = (s.empty + 8 * STAGES + 15) / 16 * 16;  // items are stored by 16 bytes
  s.rank = cluster_rank();
  if (threadIdx.x == 0) {
    for (u32 i = 0; i < STAGES; ++i) {
      barrier_init(s.full + 8 * i, kFullArrivals);
      barrier_init(s.empty + 8 * i, kArrivals);
    }
    init_queue(s, kCopying);
    if (kTall && GEMM == 1) init_tall_exchange(s.amax + kTallExchange);
    barrier_init_fence();
  }
  cluster_sync();
  if (GEMM == 1 && p.beside == 0) dependency_wait();
  if (p.early) launch_dependents();
  if (threadIdx.x >= kMathThreads) {
    registers_release<56>();
    const u32 warp = (threadIdx.x - kMathThreads) / 32;
    if (warp == 3) {
      if (GEMM == 1 && blockIdx.x == 0 && threadIdx.x % 32 == 0) store_release(p.tickets + 2, 1);
      schedule(p, s);
    } else if (warp == 0) {
      bring(p, s);
    } else if (kGather) {
      gather(p, s);
    }
  } else {
    registers_take<kTall ? 152 : 224>();
    if (kTall)
      compute_tall(p, s);
    else
      compute(p, s);
  }
  // Whoever waits for this kernel has waited for those in front of it.
  if (GEMM == 2 || p.beside != 0) dependency_wait();
  cluster_sync();  // no block leaves while its partner may still write to it
}
