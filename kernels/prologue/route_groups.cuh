// One token's routing by one block, a warp per two groups of 32 experts: every warp scores its groups, the
// first one keeps the best groups and chooses among their experts. For routers with sigmoids (DeepSeek-V3),
// whose scores are most of the work. (A warp per group is as quick for few tokens, but leaves no room for the
// next launch's blocks beside it for many.)
#pragma once

#include "prologue/route_token.cuh"

// What the block's warps leave for the first one.
struct GroupShared {
  u32* keys;      // [experts] by which to choose
  float* logits;  // [experts]
  u32* scores;    // [groups]
};
__device__ __forceinline__ GroupShared carve_groups(u32* shared, u32 experts) {
  return GroupShared{shared, reinterpret_cast<float*>(shared + experts), shared + 2 * experts};
}

// Among the experts of the groups in `kept`, C at most: vector c of a lane is its expert of the c-th group.
template <int C>
__device__ __forceinline__ Picked choose_kept(const GroupShared& s, u32 kept, u32 top_k, bool ties_likely) {
  const u32 lane = threadIdx.x % 32;
  u32 key[C];
  u32 groups = 0;  // 4 bits each
#pragma unroll
  for (int c = 0; c < C; ++c) {
    const u32 group = kept != 0 ? __ffs(kept) - 1 : 0;
    key[c] = kept != 0 ? s.keys[32 * group + lane] : kNothing;
    groups |= group << (4 * c);
    kept &= kept - 1;  // 0 stays 0
  }
  Picked picked = choose<C>(key, top_k, ties_likely);
  picked.id = 32 * (groups >> (4 * (picked.id / 32)) & 15u) + picked.id % 32;
  return picked;
}

// N groups at most; the block has half as many warps as there are groups.
template <int N>
__device__ __forceinline__ void route_block(const RouteParams& p, u32* shared) {
  const GroupShared s = carve_groups(shared, p.experts);
  const u32 lane = threadIdx.x % 32;
  const u32 warp = __shfl_sync(kWarpAll, threadIdx.x / 32, 0);
  const u32 token = blockIdx.x;
  const i64 at = (i64)token * p.logits_stride;
  const bool biased = p.bias != nullptr;
  if (lane < 2 && 64 * warp + 32 * lane < p.experts) {
    const u32 e = 64 * warp + 32 * lane;
    prefetch_line(static_cast<const u8*>(p.logits) + (at + (i64)e) * (p.logits_dtype == 1 ? 4 : 2));
    if (biased) prefetch_line(p.bias + e);
  }
  dependency_wait();
  launch_dependents();

  const u32 low = free_bits(p, biased);
  float x[2], bias[2];
#pragma unroll
  for (u32 v = 0; v < 2; ++v) {
    const u32 e = 64 * warp + 32 * v + lane;
    const bool there = e < p.experts;  // the same for the whole warp
    x[v] = there ? load_logit(p, at + (i64)e) : 0.0f;
    bias[v] = there && biased ? p.bias[e] : 0.0f;
  }
  u32 number[2], first[2];
#pragma unroll
  for (u32 v = 0; v < 2; ++v) {
    const u32 e = 64 * warp + 32 * v + lane;
    const u32 of_logit = key_bits(x[v]);
    const u32 scored = key_bits(__fadd_rn(plain_sigmoid(x[v]), bias[v]));
    const u32 of_score = x[v] == x[v] ? scored : kNanKey;
    const u32 key = biased || p.group_score != 0 ? of_score : of_logit;
    if (e < p.experts) {
      // Without a bias experts are chosen by their logits, whatever scores the groups.
      s.keys[e] = key_with_expert(biased ? key : of_logit, low, e);
      s.logits[e] = x[v];
    }
    number[v] = key != kNanKey ? key : kNothing;
    first[v] = __reduce_max_sync(kWarpAll, number[v]);
  }
#pragma unroll
  for (u32 v = 0; v < 2; ++v) {
    Best2 b{first[v], 0};
    const u32 holders = __ballot_sync(kWarpAll, number[v] == first[v]);
    const u32 below = __reduce_max_sync(kWarpAll, number[v] == first[v] ? kNothing : number[v]);
    b.second = (holders & (holders - 1)) != 0 ? first[v] : below;
    const u32 group = 2 * warp + v;
    const u32 score = group_key(b, p.group_score != 0);
    if (lane == 0 && group < p.num_groups) s.scores[group] = score;
  }
  __syncthreads();
  if (warp != 0) return;

  // A group stays if fewer than topk_groups come before it; ties go to the lower group.
  const u32 mine = lane < p.num_groups ? s.scores[lane] : kNothing;
  u32 better = 0;
#pragma unroll
  for (int o = 0; o < N; ++o) {
    const u32 score = __shfl_sync(kWarpAll, mine, o);
    better += score > mine || (score == mine && (u32)o < lane) ? 1u : 0u;
  }
  const u32 kept = __ballot_sync(kWarpAll, lane < p.num_groups && better < p.topk_groups);
  const bool ties = ties_likely(p, biased);
  constexpr int kHalf = N > 4 ? N / 2 : N;
  const Picked picked = p.topk_groups <= kHalf ? choose_kept<kHalf>(s, kept, p.top_k, ties)
                                               : choose_kept<N>(s, kept, p.top_k, ties);
  float chosen = logit_of_key(picked.key, low);
  float best = warp_first_number(chosen);
  if (biased) {
    chosen = s.logits[picked.id];
    best = warp_max_by_key(lane < p.top_k ? chosen : -infinity());
  }
  store_slots(p, token, Chosen{picked.id, weight_of<1, kRouteGrouped>(p, chosen, best, 0.0f, 0.0f)});
}
