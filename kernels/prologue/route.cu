// Routing on its own: a warp per token. Entries by what of the router's options is known when they are
// compiled (RouteKind): a warp runs through its code once, so that fetching code that is not for this router
// costs time.
//   NV  logits per lane: experts <= 32 * NV
#if NV <= 8
#include "prologue/route_groups.cuh"
#else
#include "prologue/route_token.cuh"
#endif

extern __shared__ __align__(16) u32 g_shared[];

// The grid has a warp for every token at least.
template <RouteKind kKind>
__device__ __forceinline__ void route_tokens(const RouteParams& p) {
  // From lane 0, which tells the compiler that it is the same for the whole warp.
  const u32 warp = __shfl_sync(kWarpAll, threadIdx.x / 32, 0);
  const u32 token = blockIdx.x * (blockDim.x / 32) + warp;
  const bool there = token < p.tokens;
  if (there) prefetch_logits(p, token);
  dependency_wait();
  launch_dependents();
  if (!there) return;
  u32* const shared = g_shared + warp * route_shared_words(p.experts, p.num_groups);
  store_slots(p, token, route_token<NV, kKind>(p, token, shared));
}

extern "C" __global__ void __launch_bounds__(256) route_chosen(const __grid_constant__ RouteParams p) {
  route_tokens<kRouteChosen>(p);
}
extern "C" __global__ void __launch_bounds__(256) route_softmax(const __grid_constant__ RouteParams p) {
  route_tokens<kRouteSoftmax>(p);
}
#if NV <= 8
// A block per token, a warp per two groups.
extern "C" __global__ void __launch_bounds__(128) route_grouped(const __grid_constant__ RouteParams p) {
  route_block<NV, kRouteGroupsPerWarp>(p, g_shared);
}
#endif
extern "C" __global__ void __launch_bounds__(256) route_sigmoid(const __grid_constant__ RouteParams p) {
  route_tokens<kRouteSigmoid>(p);
}
extern "C" __global__ void __launch_bounds__(256) route_any(const __grid_constant__ RouteParams p) {
  route_tokens<kRouteAny>(p);
}
