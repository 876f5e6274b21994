// Stands for GEMM2 in the combine bench: writes expert rows in bf16, each element once, in the order in which
// tiles of 128 columns leave a GEMM, so that the combine behind it finds the L2 cache as it would in a block.
#include "common/types.cuh"

struct RowsParams {
  u16* rows;  // [count, hidden]
  long long count;
  int hidden;
  unsigned seed;
};

extern "C" __global__ void __launch_bounds__(256) write_rows(const __grid_constant__ RowsParams p) {
  const i64 tile_rows = 64;
  const int slices = p.hidden / 128;
  const i64 tiles = (p.count + tile_rows - 1) / tile_rows * slices;
  for (i64 tile = blockIdx.x; tile < tiles; tile += gridDim.x) {
    const i64 row0 = tile / slices * tile_rows;
    const int column0 = (int)(tile % slices) * 128;
    for (int v = threadIdx.x; v < 64 * 16; v += 256) {  // 64 rows x 16 vectors of 8 columns
      const i64 row = row0 + v / 16;
      if (row >= p.count) break;
      u32 h = (u32)row * 2654435761u ^ (u32)(column0 + v % 16) * 2246822519u ^ p.seed;
      __align__(16) u16 out[8];
      for (int i = 0; i < 8; ++i) {
        h = h * 1664525u + 1013904223u;
        out[i] = f32_to_bf16((float)(int)h * 4.6566129e-10f);
      }
      *(uint4*)(p.rows + row * p.hidden + column0 + v % 16 * 8) = *(const uint4*)out;
    }
  }
}
