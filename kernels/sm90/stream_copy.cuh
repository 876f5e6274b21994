// What the stream kernels of every format share below the arithmetic: the ring in shared memory and the two
// warps that fill it. A slot is SLICES packed 16 KB weight tiles (128 rows x 128 bytes of depth each), the
// token rows that they meet (up to WIDTH x 128 bytes) and, with SCALES, a scale per token. Wants GEMM, WIDTH,
// STEP, STAGES (stream.cu) and
//   SCALES  1: fp8_block's scale per token and step; 0: none (bf16, fp16)
//   SLICES  neighbouring slices that a block works on at once; 1 unless defined
//   HALVES  1: a block works on half a slice, 64 rows of each tile; 0 unless defined
//   PAIRED  1: a cluster of two shares an item, two slices; unless defined: GEMM 1 with SLICES 1
//   ROWS    how token rows arrive; kRowsLate unless defined
#pragma once

#include "sm90/ptx.cuh"
#include "sm90/stream_plan.cuh"

#define kRowsLate 0    // gathered; the copying lanes wait for them, fence and signal, kLag steps late
#define kRowsAsync 1   // gathered; signalled as they arrive, whoever multiplies fences
#define kRowsPacked 2  // one bulk copy
#ifndef SLICES
#define SLICES 1
#endif
#ifndef HALVES
#define HALVES 0
#endif
#ifndef PAIRED
#define PAIRED (GEMM == 1 && SLICES == 1)
#endif
#ifndef ROWS
#define ROWS kRowsLate
#endif

constexpr u32 kTile = 16384;                               // bytes of a packed weight tile
constexpr u32 kRowBytes = 128;                             // depth per step
constexpr u32 kMathThreads = HALVES ? 128 : 256 * SLICES;  // a warpgroup per 64 weight rows
constexpr u32 kPart = HALVES ? kTile / 2 : kTile;          // of a tile that a block works on
constexpr u32 kTokenBytes = WIDTH * kRowBytes;
constexpr u32 kStage = SLICES * kPart + kTokenBytes;
constexpr u32 kScaleBytes = SCALES ? (WIDTH * 4 + 127) / 128 * 128 : 0;
// Steps by which the arrival of gathered rows is signalled late, so that their latency is hidden: less than
// the ring.
constexpr u32 kLag = STAGES > 2 ? 2 : STAGES - 1;
constexpr int kRowsPerLane = WIDTH / 4;  // token rows whose chunks a copying lane brings

// The first item of a block and the way to its next one.
__device__ __forceinline__ u32 first_unit() {
  return PAIRED ? blockIdx.x / 2 : blockIdx.x;
}
__device__ __forceinline__ u32 unit_stride() {
  return PAIRED ? gridDim.x / 2 : gridDim.x;
}

// The ring: full is completed by the copying lanes (or the announcement of a bulk copy's bytes) and the
// announcement of the tiles' bytes, empty by the math threads.
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
    barrier_init(ring.full + 8 * i, ROWS == kRowsPacked ? 2 : 33);
    barrier_init(ring.empty + 8 * i, kMathThreads);
  }
}

// Every math thread arrives. One lane per warp after __syncwarp() is as correct and no faster (within 0.5% at
// T = 1 to 512), but racecheck does not follow that order and reports the reads of token scales.
__device__ __forceinline__ void release(const Ring& s, u32 slot) {
  barrier_arrive(s.empty + 8 * slot);
}

#if GEMM == 1
// The copying lane when it has nothing left to copy: the first tiles of what the block of GEMM 2 with this
// number begins with. That one comes when blocks of this GEMM have left, asks for its weights then, and finds
// these on their way or in L2.
__device__ __forceinline__ void ask_for_next(const StreamParams& p, const Work& work) {
  const StreamAhead& a = p.ahead;
  const Work next{work.units / work.slices * (u32)a.slices, (u32)a.slices, work.own};
  if (a.tiles == 0 || blockIdx.x >= next.units) return;
  const Item item = find_item(p, next, blockIdx.x);
  const u32 parts = kTile / (u32)a.part;  // of a slice
  const u8* from =
      a.weights +
      ((u64)item.expert * ((u32)a.slices / parts) + (u32)item.slice / parts) * (u32)a.steps * kTile +
      (u32)item.slice % parts * (u32)a.part;
  const u64 keep = evict_last();
  for (int i = 0; i < a.tiles && i < a.steps; ++i, from += kTile) bulk_prefetch_hint(from, (u32)a.part, keep);
}
#endif

// One lane: weights. GEMM 2's run ahead of the end of GEMM 1: its plan is older than that (a block of GEMM 2
// starts after every block of GEMM 1 has waited for the prologue). GEMM 1's can if it makes the plan itself.
// `item`: the first one; `rank`: this block's slice of an item that a cluster shares.
__device__ __forceinline__ void bring_weights(const StreamParams& p, const Ring& s, const Work& work,
                                              Item item, u32 rank) {
  const u64 once = evict_first();
  u32 at = 0;
  for (u32 unit = first_unit(); unit < work.units;) {
    const u32 slice = PAIRED   ? 2 * (u32)item.slice + rank
                      : HALVES ? (u32)item.slice / 2
                               : SLICES * (u32)item.slice;
    const u8* tile = p.weights + ((u64)item.expert * (u32)p.slices + slice) * (u32)p.steps * kTile;
    if (HALVES) tile += (u32)item.slice % 2 * kPart;
#if SCALES
    // Scales come from memory too, as the math asks for them: into L2 by then.
    const float* scale =
        p.weight_scale + (i64)item.expert * p.ws_expert + (i64)(GEMM == 1 ? slice / 2 : slice) * p.ws_row;
    const float* more = scale + (GEMM == 1 ? p.up_scale : SLICES == 2 ? p.ws_row : 0);
    for (int k = 0; k < p.steps; k += 32) {
      prefetch_l2(scale + k);
      if (GEMM == 1 || SLICES == 2) prefetch_l2(more + k);
    }
#endif
    for (u32 k = 0; k < (u32)p.steps; ++k, ++at, tile += kTile) {
      const u32 slot = at % STAGES;
#if GEMM == 1
      if (at == STAGES)
        for (u32 i = 0; i < (u32)p.ahead.own && k + i < (u32)p.steps; ++i)
          bulk_prefetch(tile + i * kTile, kPart);
#endif
      if (at >= STAGES) barrier_wait(s.empty + 8 * slot, (at / STAGES - 1) & 1);
      barrier_expect(s.full + 8 * slot, SLICES * kPart);
#pragma unroll
      for (u32 i = 0; i < SLICES; ++i) {
        const u8* const from = tile + (u64)i * (u32)p.steps * kTile;
        const u32 to = s.tiles + slot * kStage + i * kTile;
        if (item.alone)
          bulk_copy_hint(to, from, kPart, s.full + 8 * slot, once);
        else
          bulk_copy(to, from, kPart, s.full + 8 * slot);
      }
    }
    unit += unit_stride();
    if (unit < work.units) item = find_item(p, work, unit);
  }
#if GEMM == 1
  ask_for_next(p, work);
#endif
}

#if ROWS == kRowsPacked
// One lane: packed token rows and their scales (GEMM 2's, as GEMM 1 has left them: packed_row()).
__device__ __forceinline__ void bring_tokens(const StreamParams& p, const Ring& s, const Work& work,
                                             Item item) {
  u32 at = 0;
  for (u32 unit = first_unit(); unit < work.units;) {
    const u32 width = (u32)(item.rows + STEP - 1) / STEP * STEP;
    const u64 row = packed_row(item);
    const u8* x = p.x + row * (u32)p.steps * kRowBytes;
#if SCALES
    const float* scales = p.x_scale + row * (u32)p.steps;
#endif
    for (u32 k = 0; k < (u32)p.steps; ++k, ++at, x += width * kRowBytes) {
      const u32 slot = at % STAGES;
      if (at >= STAGES) barrier_wait(s.empty + 8 * slot, (at / STAGES - 1) & 1);
      barrier_expect(s.full + 8 * slot, width * (kRowBytes + (SCALES ? 4 : 0)));
      bulk_copy(s.tiles + slot * kStage + SLICES * kPart, x, width * kRowBytes, s.full + 8 * slot);
#if SCALES
      bulk_copy(s.scales + slot * kScaleBytes, scales, width * 4, s.full + 8 * slot);
      scales += width;
#endif
    }
    unit += unit_stride();
    if (unit < work.units) item = find_item(p, work, unit);
  }
}
#else
// One warp: token rows by index, 16 bytes a copy, swizzled by hand, and (SCALES) their scales.
__device__ __forceinline__ void gather_tokens(const StreamParams& p, const Ring& s, const Work& work,
                                              Item item) {
  const u32 lane = threadIdx.x % 32;
  u32 at = 0;
#if ROWS == kRowsLate
  u32 signalled = 0;  // steps whose gathered rows have been signalled
#endif
  for (u32 unit = first_unit(); unit < work.units;) {
    const u32 width = (u32)(item.rows + STEP - 1) / STEP * STEP;
    // Lane l brings chunk l%8 of rows l/8, l/8 + 4, ...; rows past the last valid one repeat row 0 of the
    // tile.
    u32 row[kRowsPerLane];
#pragma unroll
    for (int i = 0; i < kRowsPerLane; ++i) {
      const u32 r = lane / 8 + 4 * i;
      row[i] = source_row(p.x_source, p, work, item.first + (r < (u32)item.rows ? (int)r : 0));
    }
#if SCALES
    u32 scale_row[(WIDTH + 31) / 32];
#pragma unroll
    for (int i = 0; i < (WIDTH + 31) / 32; ++i) {
      const u32 r = lane + 32 * i;
      scale_row[i] = source_row(p.x_scale_source, p, work, item.first + (r < (u32)item.rows ? (int)r : 0));
    }
#endif
    const u8* x = p.x + lane % 8 * 16;
    for (u32 k = 0; k < (u32)p.steps; ++k, ++at, x += kRowBytes) {
      const u32 slot = at % STAGES;
      if (at >= STAGES) barrier_wait(s.empty + 8 * slot, (at / STAGES - 1) & 1);
      const u32 to = s.tiles + slot * kStage + SLICES * kPart;
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
#if ROWS == kRowsAsync
      copy_arrive(s.full + 8 * slot);
#else
      copy_commit();
      if (at - signalled >= kLag) {
        copy_wait<kLag>();
        proxy_fence();
        barrier_arrive(s.full + 8 * (signalled % STAGES));
        ++signalled;
      }
#endif
    }
    unit += unit_stride();
    if (unit < work.units) item = find_item(p, work, unit);
  }
#if ROWS == kRowsLate
  copy_wait<0>();
  proxy_fence();
  for (; signalled < at; ++signalled) barrier_arrive(s.full + 8 * (signalled % STAGES));
#endif
}
#endif
