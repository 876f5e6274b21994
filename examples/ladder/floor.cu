// The floor under all rungs: brings the active experts' packed weights into shared memory and does nothing
// with them. What a rung takes beyond this is its own.
//
//   STAGES   16 KB slots of the ring
// Grid: persistent, one warp a block. Tiles: one per active expert, whatever its rows.
#include "ladder/common.cuh"
#include "sm90/ptx.cuh"

extern "C" __global__ void __launch_bounds__(32) rung(const __grid_constant__ Params p) {
  extern __shared__ __align__(128) u8 memory[];
  __shared__ u64 full[STAGES];
  if (threadIdx.x != 0) return;
  for (u32 i = 0; i < STAGES; ++i) barrier_init(shared_address(full + i), 1);
  barrier_init_fence();
  const u32 per_expert = p.intermediate / kColumns * (p.hidden / kDepth);
  const u64 count = (u64)p.num_tiles * per_expert;
  u32 at = 0;
  for (u64 n = blockIdx.x; n < count; n += gridDim.x, ++at) {
    const u32 barrier = shared_address(full + at % STAGES);
    if (at >= STAGES) barrier_wait(barrier, (at / STAGES - 1) & 1);
    const u64 tile = (u64)p.tiles[n / per_expert].expert * per_expert + n % per_expert;
    barrier_expect(barrier, kTileBytes);
    bulk_copy(shared_address(memory) + at % STAGES * kTileBytes, p.packed + tile * kTileBytes, kTileBytes,
              barrier);
  }
  for (u32 i = at > STAGES ? at - STAGES : 0; i < at; ++i)
    barrier_wait(shared_address(full + i % STAGES), i / STAGES & 1);
}
