// GEMM 1's rows for the prefill kernel (prefill.cu), in the order and the layout in which it reads them: what
// the row index names, tile by tile, as h is packed (params/prefill.hpp). T*k rows are written and read once
// more than with a gather, but a tile is then one bulk copy: 16-byte copies take shared memory four times as
// long, which is what limits the math.
//
// A unit is a row tile x kGroups groups of 128 columns; eight threads move a row of a group. Rows that only
// fill up a tile's last eight are zero.
#include "common/types.cuh"
#include "params/block.hpp"
#include "params/prefill.hpp"
#include "sm90/prefill_ptx.cuh"
#include "sm90/ptx.cuh"

using namespace ramp::core::cuda;

constexpr int kGroups = 4;
constexpr int kThreads = 256;

extern "C" __global__ void __launch_bounds__(256, 4)
    prefill_pack(const __grid_constant__ PrefillPackParams p) {
  dependency_wait();
  launch_dependents();
  const int parts = (p.steps + kGroups - 1) / kGroups;
  const u32 units = (u32)*p.num_tiles * (u32)parts;
  const int chunk = (int)threadIdx.x % 8;
  for (u32 unit = blockIdx.x; unit < units; unit += gridDim.x) {
    const u32 number = unit / (u32)parts;
    const StreamTile tile = p.tiles[number];
    const int group = (int)(unit % (u32)parts) * kGroups;
    const int groups = p.steps - group < kGroups ? p.steps - group : kGroups;
    const int rows = (tile.rows + 7) / 8 * 8;
    const u64 first = ((u32)tile.first + 7 * number) / 8 * 8 * (u64)(u32)p.steps + (u64)(u32)(group * rows);
    for (int row = (int)threadIdx.x / 8; row < rows; row += kThreads / 8) {
      uint4 v[kGroups];
      if (row < tile.rows) {
        const int slot = p.slots[tile.first + row];
        const u8* const from = p.x + (i64)(p.x_source == kRowSlot ? slot : slot / p.top_k) * p.x_stride +
                               group * 128 + chunk * 16;
#pragma unroll
        for (int g = 0; g < kGroups; ++g)
          v[g] = g < groups ? load_global(from + g * 128) : make_uint4(0, 0, 0, 0);
      } else {
#pragma unroll
        for (int g = 0; g < kGroups; ++g) v[g] = make_uint4(0, 0, 0, 0);
      }
#pragma unroll
      for (int g = 0; g < kGroups; ++g)
        if (g < groups)
          store_global(p.packed + (first + (u64)(u32)(g * rows + row)) * 128 + (chunk ^ row % 8) * 16, v[g]);
    }
    const int row = (int)threadIdx.x;
    if (row < rows) {
      float v[kGroups] = {0.0f, 0.0f, 0.0f, 0.0f};
      if (row < tile.rows) {
        const int slot = p.slots[tile.first + row];
        const float* const from =
            p.x_scale + (i64)(p.x_scale_source == kRowSlot ? slot : slot / p.top_k) * p.x_scale_stride +
            group;
#pragma unroll
        for (int g = 0; g < kGroups; ++g)
          if (g < groups) v[g] = from[g];
      }
#pragma unroll
      for (int g = 0; g < kGroups; ++g)
        if (g < groups) p.packed_scale[first + (u64)(u32)(g * rows + row)] = v[g];
    }
  }
}
