// What the stream kernels of every format share below the arithmetic: the ring in shared memory and the two
// warps that fill it. A slot is one packed 16 KB weight tile (128 rows x 128 bytes of depth), the token rows
// that it meets (up to WIDTH x 128 bytes) and, with SCALES, a scale per token. Wants GEMM, WIDTH, STEP,
// STAGES (stream.cu) and
//   SCALES  1: fp8_block's scale per token and step; 0: none (bf16, fp16)
//   ROWS    weight rows of an item: 128 (without a definition); 64: half of each packed tile; 256: those of
//   two
//           slices
#pragma once

#include "sm90/ptx.cuh"
#include "sm90/stream_items.cuh"

#if !defined(ROWS)
#define ROWS 128
#endif

constexpr u32 kPacked = 16384;  // bytes of a packed weight tile
constexpr u32 kRowBytes = 128;  // depth per step
constexpr u32 kTile = ROWS * kRowBytes;
constexpr u32 kMathThreads = 2 * ROWS;  // a warpgroup per 64 weight rows
constexpr u32 kTokenBytes = WIDTH * kRowBytes;
constexpr u32 kStage = kTile + kTokenBytes;
constexpr u32 kScaleBytes = SCALES ? (WIDTH * 4 + 127) / 128 * 128 : 0;
// Steps by which the arrival of gathered rows is signalled late, so that their latency is hidden: less than
// the ring.
constexpr u32 kLag = STAGES > 2 ? 2 : STAGES - 1;
constexpr int kRowsPerLane = WIDTH / 4;  // token rows whose chunks a copying lane brings

// The ring: full is completed by the copying lanes and the announcement of the tile's bytes, empty by the
// math threads.
struct Ring {
  u32 tiles, scales, full, empty;
};
constexpr u32 kRingBytes = STAGES * (kStage + kScaleBytes);

// Ring slots from `memory` (1024-byte aligned) on, 16 * STAGES bytes of barriers from `barriers` on.
__device__ __forceinline__ Ring make_ring(u32 memory, u32 barriers) {
  return {memory, memory + STAGES * kStage, barriers, barriers + 8 * STAGES};
}
// By one thread; barrier_init_fence() and a barrier of the block follow.
__device__ __forceinline__ void init_ring(const Ring& ring) {
  for (u32 i = 0; i < STAGES; ++i) {
    barrier_init(ring.full + 8 * i, 33);
    barrier_init(ring.empty + 8 * i, kMathThreads);
  }
}

// Every math thread arrives. One lane per warp after __syncwarp() is as correct and no faster (within 0.5% at
// T = 1 to 512), but racecheck does not follow that order and reports the reads of token scales.
__device__ __forceinline__ void release(const Ring& s, u32 slot) {
  barrier_arrive(s.empty + 8 * slot);
}

// Warp 8, one lane: weights. GEMM 2's run ahead of the end of GEMM 1: its plan is older than that (a block of
// GEMM 2 starts after every block of GEMM 1 has waited for the prologue). GEMM 1's cannot: its plan is what
// it waits for.
__device__ __forceinline__ void bring_weights(const StreamParams& p, const Ring& s, u32 first, u32 stride,
                                              u32 units, u32 slices, u32 rank) {
  u32 at = 0;
  for (u32 unit = first; unit < units; unit += stride) {
    Item item = find_item(p, unit, slices);
    if (GEMM == 1 && SCALES) item.slice = 2 * item.slice + (int)rank;  // an item is a cluster's
    const u64 slice = ((u64)item.expert * (u32)p.slices + (u32)item.slice) * ROWS / 128;
    const u8* tile = p.weights + slice * (u32)p.steps * kPacked;
    if (ROWS == 64) tile += (u32)item.slice % 2 * kTile;
    for (u32 k = 0; k < (u32)p.steps; ++k, ++at, tile += kPacked) {
      const u32 slot = at % STAGES;
      if (at >= STAGES) barrier_wait(s.empty + 8 * slot, (at / STAGES - 1) & 1);
      barrier_expect(s.full + 8 * slot, kTile);
      const u32 to = s.tiles + slot * kStage;
      bulk_copy(to, tile, ROWS == 64 ? kTile : kPacked, s.full + 8 * slot);
      if (ROWS == 256)
        bulk_copy(to + kPacked, tile + (u64)(u32)p.steps * kPacked, kPacked, s.full + 8 * slot);
    }
  }
}

// Warp 9: token rows by index, 16 bytes a copy, swizzled by hand, and (SCALES) their scales.
__device__ __forceinline__ void gather_tokens(const StreamParams& p, const Ring& s, u32 first, u32 stride,
                                              u32 units, u32 slices) {
  const u32 lane = threadIdx.x % 32;
  u32 at = 0;
  u32 signalled = 0;  // steps whose gathered rows have been signalled
  for (u32 unit = first; unit < units; unit += stride) {
    const Item item = find_item(p, unit, slices);
    const u32 width = (u32)(item.rows + STEP - 1) / STEP * STEP;
    // Lane l brings chunk l%8 of rows l/8, l/8 + 4, ...; rows past the last valid one repeat row 0 of the
    // tile.
    u32 row[kRowsPerLane];
#pragma unroll
    for (int i = 0; i < kRowsPerLane; ++i) {
      const u32 r = lane / 8 + 4 * i;
      row[i] = source_row(p.x_source, p, item.first + (r < (u32)item.rows ? (int)r : 0));
    }
#if SCALES
    u32 scale_row[(WIDTH + 31) / 32];
#pragma unroll
    for (int i = 0; i < (WIDTH + 31) / 32; ++i) {
      const u32 r = lane + 32 * i;
      scale_row[i] = source_row(p.x_scale_source, p, item.first + (r < (u32)item.rows ? (int)r : 0));
    }
#endif
    const u8* x = p.x + lane % 8 * 16;
    for (u32 k = 0; k < (u32)p.steps; ++k, ++at, x += kRowBytes) {
      const u32 slot = at % STAGES;
      if (at >= STAGES) barrier_wait(s.empty + 8 * slot, (at / STAGES - 1) & 1);
      const u32 to = s.tiles + slot * kStage + kTile;
#pragma unroll
      for (int i = 0; i < kRowsPerLane; ++i) {
        const u32 r = lane / 8 + 4 * i;
        if (r < width)
          copy16(to + r * kRowBytes + ((lane % 8) ^ (r % 8)) * 16, x + (u64)row[i] * (u64)p.x_stride);
      }
#if SCALES
#pragma unroll
      for (int i = 0; i < (WIDTH + 31) / 32; ++i) {
        const u32 r = lane + 32 * i;
        if (r < width)
          copy4(s.scales + slot * kScaleBytes + 4 * r,
                p.x_scale + (u64)scale_row[i] * (u64)p.x_scale_stride + k);
      }
#endif
      copy_commit();
      if (at - signalled >= kLag) {
        copy_wait<kLag>();
        proxy_fence();
        barrier_arrive(s.full + 8 * (signalled % STAGES));
        ++signalled;
      }
    }
  }
  copy_wait<0>();
  proxy_fence();
  for (; signalled < at; ++signalled) barrier_arrive(s.full + 8 * (signalled % STAGES));
}
