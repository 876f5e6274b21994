// GEMM 1's input packed (stream_packed.cuh), for batches in which experts have many rows: gathering by index
// would bring every row once per slice through the path of small loads, where it waits longer than the
// weights do. A warp copies one row, 512 bytes at a time.
//   STEP  as in stream.cu
#include "params/block.hpp"
#include "params/stream.hpp"
#include "sm90/ptx.cuh"
#include "sm90/stream_packed.cuh"

using namespace ramp::core::cuda;

__device__ __forceinline__ u64 source_row(int source, const StreamRowsParams& p, int sorted) {
  const int slot = p.slots[sorted];
  return (u64)(source == kRowSlot ? slot : slot / p.top_k);
}

extern "C" __global__ void __launch_bounds__(256) stream_rows(const __grid_constant__ StreamRowsParams p) {
  dependency_wait();
  // GEMM 1 starts on its weights now: what it needs of the plan is there.
  launch_dependents();
  const u32 lane = threadIdx.x % 32;
  const u32 units = (u32)*p.num_tiles * (u32)p.width;
  const u32 steps = (u32)p.steps;
  for (u32 unit = blockIdx.x * 8 + threadIdx.x / 32; unit < units; unit += gridDim.x * 8) {
    const u32 number = unit / (u32)p.width;
    const u32 row = unit - number * (u32)p.width;
    const StreamTile tile = p.tiles[number];
    const u32 width = ((u32)tile.rows + STEP - 1) / STEP * STEP;
    if (row >= width) continue;
    const int sorted = tile.first + (row < (u32)tile.rows ? (int)row : 0);  // what is multiplied in vain
    const u8* from = p.x + source_row(p.x_source, p, sorted) * (u64)p.x_stride;
    const float* scales = p.x_scale + source_row(p.x_scale_source, p, sorted) * (u64)p.x_scale_stride;
    const u64 first = packed_row((u32)tile.first, number) * steps;
    u8* to = p.codes + first * kPackedBytes;
#pragma unroll 4
    for (u32 c = lane; c < 8 * steps; c += 32)
      *(uint4*)(to + (u64)(c / 8) * (width * kPackedBytes) + packed_chunk(row, c % 8)) =
          *(const uint4*)(from + (u64)c * 16);
    for (u32 k = lane; k < steps; k += 32) p.scales[first + (u64)k * width + row] = scales[k];
  }
}
