// Rung 6, for few tokens: with one token there may be fewer units of work than places for blocks, and each
// unit is a long chain of steps. The blocks of a cluster share a unit's depth; each computes its part of the
// steps for all tokens, then partial sums go through distributed shared memory, before the activation, which
// needs them whole. SPLIT = 1 compiles the same kernel without the split, as the control of the experiment.
//
// Grid: persistent, BLOCKS per SM, in clusters of SPLIT. Tiles of up to 8 tokens. Warps as in rung 4.
#include "ladder/swap_ab.cuh"
static_assert(WIDTH == 8, "one wgmma of 8 tokens");
static_assert(SPLIT == 1 || SPLIT == 2 || SPLIT == 4, "one or two exchanges");

constexpr u32 kFloats = kMathThreads * 4;  // bytes of one float a thread

// Two exchanges, each with two buffers and two barriers that take turns: the partner can be one unit ahead,
// but no more, since it needs our sums of that unit.
struct Exchange {
  u32 barriers, buffers;
};

// Sends two sums to the same thread of a partner, and adds the two that come from there. The order of two
// terms does not matter, so partners that keep the same sum have the same bits.
__device__ __forceinline__ void exchange(const Exchange& e, u32 which, u32 round, u32 partner,
                                         float send_gate, float send_up, float& gate, float& up) {
  const u32 at = 2 * which + round % 2;
  const u32 barrier = e.barriers + 8 * at;
  const u32 mine = e.buffers + 2 * kFloats * at + 4 * threadIdx.x;
  const u32 there = remote_address(mine, partner);
  const u32 signal = remote_address(barrier, partner);
  if (threadIdx.x == 0) barrier_expect(barrier, 2 * kFloats);
  store_remote(there, send_gate, signal);
  store_remote(there + kFloats, send_up, signal);
  barrier_wait_cluster(barrier, round / 2 & 1);
  gate += load_shared(mine);
  up += load_shared(mine + kFloats);
}

// Of a thread's two tokens, blocks 0 and 2 of the cluster keep the first, 1 and 3 the second.
__device__ __forceinline__ void finish(const Params& p, const Unit& unit, const Exchange& e, u32 round,
                                       u32 rank, const float (&sum)[4]) {
  const bool odd = rank % 2 != 0;
  float gate = odd ? sum[1] : sum[0];
  float up = odd ? sum[3] : sum[2];
  exchange(e, 0, round, rank ^ 1, odd ? sum[0] : sum[1], odd ? sum[2] : sum[3], gate, up);
  if (SPLIT == 4) exchange(e, 1, round, rank ^ 2, gate, up, gate, up);
  if (rank < 2) store_one(p, unit, 2 * (threadIdx.x % 4) + rank, gate, up);
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
  const Exchange exchange = {ring.end, ring.end + 32};
  if (threadIdx.x == 0) {
    for (u32 i = 0; i < 4; ++i) barrier_init(exchange.barriers + 8 * i, 1);
    barrier_init_fence();
  }
  cluster_sync();  // every block's barriers exist before any is written to
  const u32 warp = threadIdx.x / 32;
  if (warp < 8) {
    math(p, ring, exchange);
  } else if (warp == 8) {
    if (threadIdx.x % 32 == 0) bring_weights(p, ring);
  } else {
    bring_tokens<false>(p, ring);
  }
  cluster_sync();  // no block leaves while a partner may still write to it
}
