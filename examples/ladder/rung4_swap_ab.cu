// Rung 4, swap-AB: weights become wgmma's M side, of which there are always enough, and tokens its N side,
// which may be as narrow as 8. Here every tile is WIDTH tokens wide, however many rows it has.
//
// Grid: persistent, BLOCKS per SM. Warps 0-7 math, 8 weights, 9 tokens.
#include "ladder/swap_ab.cuh"

__device__ __forceinline__ void math(const Params& p, const Ring& ring) {
  const Units units = units_of(p);
  u32 at = 0;
  for (u32 n = units.first; n < units.count; n += units.stride) {
    const Unit unit = unit_of(p, n, 0);
    float sum[WIDTH / 2];
    multiply<WIDTH>(p, ring, unit, at, sum);
    store<WIDTH>(p, unit, sum);
  }
}

extern "C" __global__ void __launch_bounds__(kThreads, BLOCKS) rung(const __grid_constant__ Params p) {
  extern __shared__ __align__(1024) u8 memory[];
  const Ring ring = make_ring(memory);
  __syncthreads();
  const u32 warp = threadIdx.x / 32;
  if (warp < 8) {
    math(p, ring);
  } else if (warp == 8) {
    if (threadIdx.x % 32 == 0) bring_weights(p, ring);
  } else {
    bring_tokens<true>(p, ring);
  }
}
