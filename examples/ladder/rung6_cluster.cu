// Rung 6, for few tokens: with one token there are fewer units of work than places for blocks, and each unit
// is a long chain of steps. A cluster of two blocks shares a unit's depth; each computes half of the steps
// for all tokens, then they exchange partial sums through distributed shared memory and finish half of the
// tokens each. SPLIT = 1 compiles the same kernel without the split, as the control of the experiment.
//
// Grid: persistent, BLOCKS per SM, in clusters of SPLIT. Tiles of up to 8 tokens. Warps as in rung 4.
#include "ladder/swap_ab.cuh"
static_assert(WIDTH == 8 && (SPLIT == 1 || SPLIT == 2), "one wgmma of 8 tokens, one partner");

constexpr u32 kExchange = 2 * kMathThreads * 4;  // bytes a partner sends: gate and up of one token a thread

struct Exchange {
  u32 buffers, barriers;  // two each: the partner can be one unit ahead, since it needs our sums of that unit
};

__device__ __forceinline__ float load_shared(u32 address) {
  float v;
  asm volatile("ld.shared.f32 %0, [%1];" : "=f"(v) : "r"(address));
  return v;
}

// Of a thread's two tokens, block 0 of the cluster keeps the first and block 1 the second.
__device__ __forceinline__ void finish(const Params& p, const Unit& unit, const Exchange& e, u32 round,
                                       u32 rank, const float (&sum)[4]) {
  const u32 parity = round & 1;
  const u32 barrier = e.barriers + 8 * parity;
  const u32 mine = e.buffers + kExchange * parity + 4 * threadIdx.x;
  const u32 there = remote_address(mine, rank ^ 1);
  const u32 signal = remote_address(barrier, rank ^ 1);
  if (threadIdx.x == 0) barrier_expect(barrier, kExchange);
  store_remote(there, rank == 0 ? sum[1] : sum[0], signal);
  store_remote(there + 4 * kMathThreads, rank == 0 ? sum[3] : sum[2], signal);
  barrier_wait_cluster(barrier, round >> 1 & 1);
  const float gate = (rank == 0 ? sum[0] : sum[1]) + load_shared(mine);
  const float up = (rank == 0 ? sum[2] : sum[3]) + load_shared(mine + 4 * kMathThreads);
  store_one(p, unit, 2 * (threadIdx.x % 4) + rank, gate, up);
}

__device__ __forceinline__ void math(const Params& p, const Ring& ring, const Exchange& e) {
  const Units units = units_of(p);
  u32 at = 0;
  u32 round = 0;
  for (u32 n = units.first; n < units.count; n += units.stride, ++round) {
    const Unit unit = unit_of(p, n, units.rank);
    float sum[4];
    multiply<8>(p, ring, unit, at, sum);
#if SPLIT == 1
    store<8>(p, unit, sum);
#else
    finish(p, unit, e, round, units.rank, sum);
#endif
  }
}

extern "C" __global__ void __cluster_dims__(SPLIT, 1, 1) __launch_bounds__(kThreads, BLOCKS)
    rung(const __grid_constant__ Params p) {
  extern __shared__ __align__(1024) u8 memory[];
  const Ring ring = make_ring(memory);
  const Exchange exchange = {ring.end + 16, ring.end};
  if (threadIdx.x == 0) {
    barrier_init(exchange.barriers, 1);
    barrier_init(exchange.barriers + 8, 1);
    barrier_init_fence();
  }
  cluster_sync();  // both blocks' barriers exist before either is written to
  const u32 warp = threadIdx.x / 32;
  if (warp < 8) {
    math(p, ring, exchange);
  } else if (warp == 8) {
    if (threadIdx.x % 32 == 0) bring_weights(p, ring);
  } else {
    bring_tokens<false>(p, ring);
  }
  cluster_sync();  // no block leaves while its partner may still write to it
}
