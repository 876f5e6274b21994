// What all rungs share: constants of the weights' layout, where the scales of a slice lie, the activation.
#pragma once

#include "common/types.cuh"
#include "ladder/params.hpp"

using ladder::Params;
using ladder::Tile;

constexpr u32 kDepth = 128;        // columns per step, and per scale; also bytes, in e4m3
constexpr u32 kSliceRows = 128;    // weight rows worked on together: 64 of gate and the 64 of up beside them
constexpr u32 kTileBytes = 16384;  // kSliceRows x kDepth
constexpr u32 kColumns = kSliceRows / 2;  // columns of h that a slice gives

// Row r of a slice is row q*8 + r%8 of the slice's 64 gate rows where r%16 < 8, else of its up rows (q =
// r/16): gate and up of one column then meet in one thread, whichever operand of wgmma the weights are.
__device__ __forceinline__ u32 weight_row(u32 slice, u32 r, u32 intermediate) {
  return slice * kColumns + r / 16 * 8 + r % 8 + (r % 16 < 8 ? 0 : intermediate);
}

// Scales of a slice's gate rows, one per step of depth; those of its up rows lie `up` further on.
struct WeightScales {
  const float* gate;
  u32 up;
};
__device__ __forceinline__ WeightScales weight_scales(const Params& p, int expert, u32 slice) {
  const u32 steps = p.hidden / kDepth;
  const u32 blocks = p.intermediate / 128;
  const float* const gate = p.weight_scale + ((u64)expert * 2 * blocks + slice / 2) * steps;
  return {gate, blocks * steps};
}

__device__ __forceinline__ float silu_times(float gate, float up) {
  return gate / (1.0f + expf(-gate)) * up;
}
