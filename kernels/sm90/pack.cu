// Packing of one expert's weights into the tiles of the stream kernels (params/stream.hpp), and back. A thread moves 16
// bytes. Source and destination are different memory.
#include "common/types.cuh"
#include "params/stream.hpp"

using namespace ramp::core::cuda;

extern "C" __global__ void __launch_bounds__(256) pack_tiles(const __grid_constant__ PackParams p) {
  const u32 chunks_per_row = (u32)p.row_bytes / 16;
  const u64 chunk = (u64)blockIdx.x * 256 + threadIdx.x;
  if (chunk >= (u64)(u32)p.rows * chunks_per_row) return;
  // In the order of the packed tiles, so that those are read or written in full lines.
  const u32 tile = (u32)(chunk / 1024);  // 128 rows x 8 chunks
  const u32 r = (u32)(chunk / 8) % 128;
  const u32 c = (u32)chunk % 8;
  const u32 steps = (u32)p.row_bytes / 128;
  const u32 slice = tile / steps;
  const u32 k = tile % steps;
  u32 row = slice * 128 + r;
  if (p.gated) row = slice * 64 + r / 16 * 8 + r % 8 + (r % 16 < 8 ? 0 : (u32)p.rows / 2);
  const u64 packed = (u64)tile * 16384 + r * 128 + ((c ^ (r % 8)) * 16);
  const u64 plain = (u64)row * (u64)p.from_stride + k * 128 + c * 16;
  if (p.unpack)
    *(uint4*)(p.to + plain) = *(const uint4*)(p.from + packed);
  else
    *(uint4*)(p.to + packed) = *(const uint4*)(p.from + plain);
}
