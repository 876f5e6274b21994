// Routing on its own: a warp per token.
//   NV  logits per lane: experts <= 32 * NV
#include "prologue/route_token.cuh"

extern __shared__ u32 g_shared[];

extern "C" __global__ void __launch_bounds__(256) route(const __grid_constant__ RouteParams p) {
  const u32 warp = threadIdx.x / 32;
  const u32 warps = blockDim.x / 32;
  u32* const shared = g_shared + warp * route_shared_words(p.experts, p.num_groups);
  prefetch_logits(p, blockIdx.x * warps + warp, gridDim.x * warps);
  dependency_wait();
  launch_dependents();
  for (u64 t = (u64)blockIdx.x * warps + warp; t < p.tokens; t += (u64)gridDim.x * warps)
    store_slots(p, (u32)t, route_token<NV>(p, (u32)t, shared), nullptr);
}
