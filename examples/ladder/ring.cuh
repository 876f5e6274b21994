// The asynchronous ring of rungs 3 to 6: one warp brings weights, one brings token rows, both as far ahead as
// STAGES slots allow, while the math warps consume. Slots are handed over by mbarriers: `full` (the bytes are
// there) and `empty` (they have been read). The grid is persistent: a block walks over units of work, and its
// producers cross from one unit to the next without waiting for the math.
//
//   WIDTH    token rows of a slot
//   STAGES   slots of the ring: a packed weight tile, WIDTH token rows and their scales each
//   SPLIT    blocks of a cluster that share a unit's depth (1 where not given)
//   kMathThreads (defined before this file) arrive on `empty`
#pragma once

#include "ladder/common.cuh"
#include "sm90/ptx.cuh"

#ifndef SPLIT
#define SPLIT 1
#endif

constexpr u32 kSlotBytes = kTileBytes + WIDTH * kDepth;
constexpr u32 kScaleBytes = (WIDTH * 4 + 127) / 128 * 128;

__device__ __forceinline__ float load_shared(u32 address) {
  float v;
  asm volatile("ld.shared.f32 %0, [%1];" : "=f"(v) : "r"(address));
  return v;
}

struct Ring {
  u32 slots, scales, full, empty, end;
  __device__ u32 weights(u32 at) const { return slots + at % STAGES * kSlotBytes; }
  __device__ u32 tokens(u32 at) const { return weights(at) + kTileBytes; }
  __device__ u32 token_scales(u32 at) const { return scales + at % STAGES * kScaleBytes; }
  // Step `at` uses its slot for the (at / STAGES)-th time; barriers tell odd from even times.
  __device__ void wait_full(u32 at) const {
    barrier_wait(full + 8 * (at % STAGES), at / STAGES & 1);
    proxy_fence();  // token rows came by small copies: what they wrote, before wgmma reads it
  }
  __device__ void wait_empty(u32 at) const {
    if (at >= STAGES) barrier_wait(empty + 8 * (at % STAGES), (at / STAGES - 1) & 1);
  }
  // Frees a slot once `loaded`, made from the last loads out of it, has a value (ptx.cuh says why).
  __device__ void release(u32 at, u32 loaded) const {
    barrier_arrive_after(empty + 8 * (at % STAGES), loaded);
  }
};

// In dynamic shared memory, aligned to 1024 bytes. Followed by a barrier of the whole block or cluster.
__device__ __forceinline__ Ring make_ring(const u8* memory) {
  Ring ring;
  ring.slots = shared_address(memory);
  ring.scales = ring.slots + STAGES * kSlotBytes;
  ring.full = ring.scales + STAGES * kScaleBytes;
  ring.empty = ring.full + 8 * STAGES;
  ring.end = ring.empty + 8 * STAGES;
  if (threadIdx.x == 0) {
    for (u32 i = 0; i < STAGES; ++i) {
      barrier_init(ring.full + 8 * i, 33);  // the lanes that copy tokens, and the thread that brings weights
      barrier_init(ring.empty + 8 * i, kMathThreads);
    }
    barrier_init_fence();
  }
  return ring;
}

// A tile of token rows against a slice of weight rows, over steps [begin, end) of depth.
struct Unit {
  Tile tile;
  u32 slice, begin, end;
};
struct Units {
  u32 count, first, stride, rank;  // rank: this block's part of the depth
};
__device__ __forceinline__ Units units_of(const Params& p) {
  return {(u32)p.num_tiles * (p.intermediate / kColumns), blockIdx.x / SPLIT, gridDim.x / SPLIT,
          SPLIT == 1 ? 0 : cluster_rank()};
}
__device__ __forceinline__ Unit unit_of(const Params& p, u32 number, u32 rank) {
  const u32 slices = p.intermediate / kColumns;
  const u32 steps = p.hidden / kDepth;
  return {p.tiles[number / slices], number % slices, steps * rank / SPLIT, steps * (rank + 1) / SPLIT};
}

// One thread: a packed tile is contiguous, so it is one bulk copy that needs no other thread's help.
__device__ __forceinline__ void bring_weights(const Params& p, const Ring& ring) {
  const Units units = units_of(p);
  const u32 slices = p.intermediate / kColumns;
  const u32 steps = p.hidden / kDepth;
  u32 at = 0;
  for (u32 n = units.first; n < units.count; n += units.stride) {
    const Unit unit = unit_of(p, n, units.rank);
    const u8* const slice = p.packed + ((u64)unit.tile.expert * slices + unit.slice) * steps * kTileBytes;
    for (u32 k = unit.begin; k < unit.end; ++k, ++at) {
      ring.wait_empty(at);
      const u32 full = ring.full + 8 * (at % STAGES);
      barrier_expect(full, kTileBytes);
      bulk_copy(ring.weights(at), slice + (u64)k * kTileBytes, kTileBytes, full);
    }
  }
}

// One warp: token rows lie anywhere, so they are gathered, 16 bytes a copy, swizzled by hand. FIXED: WIDTH
// rows whatever the tile has; else its rows, rounded up to 8. Rows past the last valid one repeat the first.
template <bool FIXED>
__device__ __forceinline__ void bring_tokens(const Params& p, const Ring& ring) {
  const Units units = units_of(p);
  const u32 lane = threadIdx.x % 32;
  u32 at = 0;
  for (u32 n = units.first; n < units.count; n += units.stride) {
    const Unit unit = unit_of(p, n, units.rank);
    const u32 rows = unit.tile.rows;
    const u32 width = FIXED ? WIDTH : (rows + 7) / 8 * 8;
    // Lane l brings chunk l%8 of rows l/8, l/8 + 4, ... and the scales of rows l, l + 32.
    u32 token[WIDTH / 4];
    u32 scale_token[(WIDTH + 31) / 32];
#pragma unroll
    for (u32 i = 0; i < WIDTH / 4; ++i) {
      const u32 r = lane / 8 + 4 * i;
      token[i] = p.token[unit.tile.first + (r < rows ? r : 0)];
    }
#pragma unroll
    for (u32 i = 0; i < (WIDTH + 31) / 32; ++i) {
      const u32 r = lane + 32 * i;
      scale_token[i] = p.token[unit.tile.first + (r < rows ? r : 0)];
    }
    for (u32 k = unit.begin; k < unit.end; ++k, ++at) {
      ring.wait_empty(at);
#pragma unroll
      for (u32 i = 0; i < WIDTH / 4; ++i) {
        const u32 r = lane / 8 + 4 * i;
        if (r < width)
          copy16(ring.tokens(at) + r * kDepth + (lane % 8 ^ r % 8) * 16,
                 p.x + (u64)token[i] * p.hidden + k * kDepth + lane % 8 * 16);
      }
#pragma unroll
      for (u32 i = 0; i < (WIDTH + 31) / 32; ++i) {
        const u32 r = lane + 32 * i;
        if (r < width)
          copy4(ring.token_scales(at) + 4 * r, p.x_scale + (u64)scale_token[i] * (p.hidden / kDepth) + k);
      }
      copy_arrive(ring.full + 8 * (at % STAGES));  // no waiting: the barrier hears of it
    }
  }
}
