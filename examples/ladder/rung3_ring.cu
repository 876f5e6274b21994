// Rung 3, an asynchronous ring: the multiplication of rung 2, but two more warps bring the operands ahead of
// it (ring.cuh): weights as packed tiles, one bulk copy each, and gathered token rows. The math waits for
// data that is already on its way, and memory works on as long as the ring has a free slot.
//
// Grid: persistent, BLOCKS per SM. Warps 0-3 math, 4 weights, 5 tokens.
#include "ladder/common.cuh"
constexpr u32 kMathThreads = 128;
#include "ladder/ring.cuh"
#include "ladder/standard.cuh"
static_assert(WIDTH == kTokens, "slots hold wgmma's 64 rows");

__device__ __forceinline__ void math(const Params& p, const Ring& ring) {
  const Units units = units_of(p);
  const u32 row = threadIdx.x / 32 * 16 + threadIdx.x % 32 / 4;
  u32 at = 0;
  for (u32 n = units.first; n < units.count; n += units.stride) {
    const Unit unit = unit_of(p, n, 0);
    const WeightScales scale = weight_scales(p, unit.tile.expert, unit.slice);
    float sum[64] = {};
    for (u32 k = 0; k < unit.end; ++k, ++at) {
      const float gate = __ldg(scale.gate + k);
      const float up = __ldg(scale.gate + k + scale.up);
      ring.wait_full(at);
      float part[64];
      multiply_step(part, ring.tokens(at), ring.weights(at));
      const float low = load_shared(ring.token_scales(at) + 4 * row);
      const float high = load_shared(ring.token_scales(at) + 4 * (row + 8));
      wgmma_wait<0>();
      ring.release(at, __float_as_uint(low) ^ __float_as_uint(high));
      promote(sum, part, low, high, gate, up);
    }
    store_rows(p, unit.tile, unit.slice, sum);
  }
}

extern "C" __global__ void __launch_bounds__(192, BLOCKS) rung(const __grid_constant__ Params p) {
  extern __shared__ __align__(1024) u8 memory[];
  const Ring ring = make_ring(memory);
  __syncthreads();
  const u32 warp = threadIdx.x / 32;
  if (warp < 4) {
    math(p, ring);
  } else if (warp == 4) {
    if (threadIdx.x % 32 == 0) bring_weights(p, ring);
  } else {
    bring_tokens<true>(p, ring);
  }
}
