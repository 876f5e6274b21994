// Rung 5, a width per expert: each tile picks the wgmma that fits its own rows, at run time, out of those up
// to WIDTH that were compiled. A cold expert gathers and promotes 8 columns, a hot one in the same launch 32.
//
// Grid and warps as in rung 4.
#include "ladder/swap_ab.cuh"
static_assert(WIDTH == 32, "the cases of the switch below");

// The sums live and die inside a case: merged behind the switch they would go through local memory. So does
// the unit: what is common to the cases is computed once and kept, and 64 registers have no room to keep it.
template <int N>
__device__ __forceinline__ void run(const Params& p, const Ring& ring, u32 n, u32& at) {
  const Unit unit = unit_of(p, n, 0);
  float sum[N / 2];
  multiply<N>(p, ring, unit, at, sum);
  store<N>(p, unit, sum);
}

__device__ __forceinline__ void math(const Params& p, const Ring& ring) {
  const Units units = units_of(p);
  u32 at = 0;
  for (u32 n = units.first; n < units.count; n += units.stride) {
    switch ((unit_of(p, n, 0).tile.rows + 7) / 8) {
      case 1:
        run<8>(p, ring, n, at);
        break;
      case 2:
        run<16>(p, ring, n, at);
        break;
      case 3:
        run<24>(p, ring, n, at);
        break;
      case 4:
        run<32>(p, ring, n, at);
        break;
    }
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
    bring_tokens<false>(p, ring);
  }
}
