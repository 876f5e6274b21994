// The portable GEMMs: what a tile is, which unit of work is which, and the copies that bring it to shared
// memory. The macros are those of gemm.cu.
#pragma once

#include "common/types.cuh"
#include "params/block.hpp"
#include "params/portable.hpp"
#include "portable/ptx.cuh"

using namespace ramp::core::cuda;

#define IS_FP8 (FORMAT == 1 || FORMAT == 5 || FORMAT == 6)
// Where block scales go (scales.cuh): into the units of the sums where a second set of them has no registers.
#define CHAINED (FORMAT == 1 && !NATIVE_E4M3 && TOKENS > 64)
#define PROMOTED ((FORMAT == 1 && !CHAINED) || (IS_FP8 && NATIVE_E4M3))
constexpr int kThreads = 32 * KW * WR * WT;
constexpr int kRowBytes = 128;         // of depth per warp and step
constexpr int kStep = KW * kRowBytes;  // of depth per step
constexpr int kMt = ROWS / WR / 16;    // m16 tiles of a warp
constexpr int kNt = TOKENS / WT / 8;   // n8 tiles of a warp
constexpr int kPairs = kNt > 1 ? kNt / 2 : 1;
constexpr int kWeightBytes = ROWS * kStep;
constexpr int kTokenBytes = TOKENS * kStep;
constexpr int kScales = KW * (TOKENS + 2);  // of a step: KW * TOKENS of tokens, then KW pairs of the weights
constexpr int kScaleBytes = FORMAT == 1 ? kScales * 4 : 0;
constexpr int kStage = kWeightBytes + kTokenBytes;
constexpr int kChunks = kStep / 16;             // 16-byte chunks of a row and step
constexpr int kRowsApart = kThreads / kChunks;  // rows that the block copies at a time
constexpr int kWeightCopies = ROWS / kRowsApart;
constexpr int kTokenCopies = TOKENS / kRowsApart;
constexpr int kColumns = GATED ? ROWS / 2 : ROWS;     // of C
constexpr int kUnitColumns = FUSED ? 128 : kColumns;  // of a unit of work: passes of kColumns
constexpr int kPasses = kUnitColumns / kColumns;
constexpr int kPitch = ROWS + 4;  // floats per token row of the staged sums: no bank conflicts
static_assert(kNt == 1 || kNt % 2 == 0, "tokens of a warp: 8, or a multiple of 16");
static_assert(KW * TOKENS <= kThreads || FORMAT != 1, "a token scale per thread");
static_assert(KW * TOKENS * kPitch * 4 <= STAGES * kStage, "the sums fit into the ring's place");
static_assert(FORMAT != 1 || kColumns <= 128, "one scale for a tile's weight rows, or one per half");
static_assert(kThreads % kChunks == 0 && ROWS % kRowsApart == 0 && TOKENS % kRowsApart == 0,
              "every thread copies whole rows' parts");
static_assert(kUnitColumns % kColumns == 0 && (!FUSED || (FORMAT == 1 && GATED)), "whole groups of scales");

__device__ __forceinline__ constexpr int min_of(int a, int b) {
  return a < b ? a : b;
}

struct Unit {
  int expert, first, rows, n0;
};

// Unit number `unit` of tiles * slices. Units of an expert: groups of `group` tiles, each group slice by
// slice. With `rotate` a slice's tiles change places from wave to wave where a block would otherwise meet the
// same one of them for ever, because the number of blocks is a multiple of their number: an expert's last
// tile, say, which may have few tokens.
__device__ __forceinline__ Unit find_unit(const PortableParams& p, u32 unit, u32 slices) {
  const PortableTile base = p.tiles[unit / slices];
  const int begin = p.offsets[base.expert];
  const int count = p.offsets[base.expert + 1] - begin;
  const u32 tiles = (u32)(count + TOKENS - 1) / TOKENS;
  const u32 first_tile = unit / slices - (u32)(base.first - begin) / TOKENS;
  const u32 local = unit - first_tile * slices;
  const u32 group = (u32)p.group < tiles ? (u32)p.group : tiles;
  const u32 done = local / (group * slices);
  const u32 rest = local - done * group * slices;
  const u32 left = tiles - done * group;
  const u32 width = left < group ? left : group;
  const u32 slice = rest / width;
  u32 tile = rest - slice * width;
  if (p.rotate != 0 && gridDim.x % width == 0) tile = (tile + (unit - tile) / gridDim.x) % width;
  const int first = begin + (int)(done * group + tile) * TOKENS;
  const int rows = begin + count - first;
  return {base.expert, first, rows < TOKENS ? rows : TOKENS, (int)slice * kUnitColumns};
}

__device__ __forceinline__ i64 source_row(int source, const PortableParams& p, int sorted) {
  if (source == kRowSorted) return sorted;
  const int slot = p.slots[sorted];
  return source == kRowSlot ? slot : slot / p.top_k;
}

// Row r of the tile is column column_of_row(r) of C, counted from n0; gated: eights of gate and up rows in
// turn.
__device__ __forceinline__ constexpr int column_of_row(int r) {
  return GATED ? r / 16 * 8 + r % 8 : r;
}
__device__ __forceinline__ constexpr bool is_up(int r) {
  return GATED && r / 8 % 2 != 0;
}
// A thread copies rows `row` + i * kRowsApart; with kRowsApart 4, 8 or a multiple of 16 column and half of
// row `row` + i * kRowsApart are those of `row` plus (or in the other half, as tells) those of i *
// kRowsApart.
static_assert(kRowsApart <= 8 || kRowsApart % 16 == 0, "gate and up rows of a thread");

// What a thread copies of a unit: 16 bytes of each of its rows and steps. Of rows that are not there nothing
// is kept: tokens are left as they are in shared memory, in place of weight rows one that is there comes
// again.
struct Copies {
  const u8* w;          // this thread's half of the expert
  u32 x[kTokenCopies];  // where the tokens begin, in units of 16 bytes
  int x_rows;           // tokens from this thread's first one on
  u32 to;               // within 128 bytes of depth of a stage
  int chunk;            // of a row's step
  u32 last;             // the last weight row that is there, counted from this thread's first one
};

__device__ __forceinline__ Copies plan_copies(const PortableParams& p, const Unit& unit) {
  Copies c;
  c.chunk = (int)threadIdx.x % kChunks;
  const int row = (int)threadIdx.x / kChunks;
  c.to = (u32)(row * kRowBytes + ((c.chunk % 8) ^ (row % 8)) * 16);
  const int column = unit.n0 + column_of_row(row) < p.n ? unit.n0 + column_of_row(row) : p.n - 1;
  c.last = (u32)(p.n - 1 - column);
  c.w = p.w + (i64)unit.expert * p.w_expert + (i64)(column + (is_up(row) ? p.up_row : 0)) * p.w_row +
        c.chunk * 16;
  return c;
}
// Where in a stage row `row` + i * kRowsApart goes: its chunk number is xored with the row's number modulo 8.
__device__ __forceinline__ u32 place_of_copy(const Copies& c, int i) {
  return (kRowsApart % 8 != 0 && i % 2 != 0 ? c.to ^ 64u : c.to) + (u32)(i * kRowsApart * kRowBytes);
}

// The depth behind its end is zeros. (The address of a copy of no bytes is not read.)
__device__ __forceinline__ void copy_weights(const PortableParams& p, const Copies& c, u32 stage, int step) {
  const bool inside = step * kStep + c.chunk * 16 < p.depth;
  const u32 to = stage + (u32)(c.chunk / 8 * ROWS * kRowBytes);
  const i64 up = (i64)p.up_row * p.w_row;
  const u8* const from = c.w + step * kStep;
#pragma unroll
  for (int i = 0; i < kWeightCopies; ++i) {
    const u32 row = (u32)column_of_row(i * kRowsApart) < c.last ? (u32)column_of_row(i * kRowsApart) : c.last;
    copy16(to + place_of_copy(c, i), from + (u64)row * (u32)p.w_row + (is_up(i * kRowsApart) ? up : 0),
           inside);
  }
}
__device__ __forceinline__ void copy_tokens(const PortableParams& p, const Copies& c, u32 stage, int step) {
  const bool inside = step * kStep + c.chunk * 16 < p.depth;
  const u32 to = stage + kWeightBytes + (u32)(c.chunk / 8 * TOKENS * kRowBytes);
  const u8* const from = p.x + step * kStep + c.chunk * 16;
#pragma unroll
  for (int i = 0; i < kTokenCopies; ++i)
    copy16_if(ABSENT || i * kRowsApart < c.x_rows, to + place_of_copy(c, i), from + (u64)c.x[i] * 16, inside);
}
