// Packed token rows of the stream kernels: a tile's depth steps one after the other, each its rows (rounded
// up to STEP) of 128 bytes with the 128-byte swizzle; their scales likewise, step by step. A step is then one
// bulk copy, where gathering it takes 16-byte copies.
#pragma once

#include "common/types.cuh"

constexpr u32 kPackedBytes = 128;  // of a row per step

// First row of tile `number`, whose rows begin at `first` of the sorted row index, where every tile's rows,
// rounded up to STEP, follow one another. The tile before ends at or before it, since rounding its rows up
// adds less than STEP.
__device__ __forceinline__ u64 packed_row(u32 first, u32 number) {
  return (u64)((first + STEP - 1) / STEP + number) * STEP;
}
// Byte of 16-byte chunk `chunk` (of eight) of row `row` in a step.
__device__ __forceinline__ u32 packed_chunk(u32 row, u32 chunk) {
  return row * kPackedBytes + (chunk ^ row % 8) * 16;
}
