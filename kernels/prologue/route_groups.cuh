// One token's routing by one block, a warp per V groups of 32 experts: every warp scores its groups, the
// first one keeps the best groups and chooses among their experts. For routers with sigmoids (DeepSeek-V3),
// whose scores are most of the work. (A warp per group is as quick for few tokens, but leaves no room for the
// next launch's blocks beside it for many.)
//
// The second best of a kept group is chosen, or what is chosen in its place is better: with as many
// experts in the kept groups' best two as there are to choose, or more, no expert below the least of the
// second bests is chosen. What is not below it, about ten experts of 128, fits a warp, a lane each, which
// count who comes before them. Where it does not fit (or does not suffice), rounds as for other routers.
#pragma once

#include "prologue/route_token.cuh"

// What the block's warps leave for the first one, and the first one's notes. Offsets in 4-byte words of
// shared memory aligned to 16 bytes; N groups at most.
template <int N>
struct GroupShared {
  u32* words;
  __device__ __forceinline__ u32* keys() const { return words; }  // [32 N] by which to choose
  // [32 N] score and logit
  __device__ __forceinline__ float2* values() const { return reinterpret_cast<float2*>(words + 32 * N); }
  __device__ __forceinline__ u32* scores() const { return words + 96 * N; }        // [N] of groups, as keys
  __device__ __forceinline__ u32* seconds() const { return words + 97 * N; }       // [N] second best keys
  __device__ __forceinline__ u32* list() const { return words + 98 * N; }          // [32] keys of candidates
  __device__ __forceinline__ u32* experts() const { return words + 98 * N + 32; }  // [32] of candidates
  // [32] slots: expert, score
  __device__ __forceinline__ uint2* slots() const { return reinterpret_cast<uint2*>(words + 98 * N + 64); }
};

// Expert and score of slot `lane`; 0 in lanes from top_k on. plain: a chosen logit is a number that is not
// below kSigmoidIsExp.
struct GroupChoice {
  u32 id;
  float score;
  bool plain;
};

// Candidates, at most 32 and as many as there are to choose, stand in the list in the order of their experts,
// zeros behind them.
template <int N>
__device__ __forceinline__ GroupChoice choose_listed(const GroupShared<N>& s, u32 count, u32 top_k) {
  constexpr u32 kStep = 8;
  const u32 lane = threadIdx.x % 32;
  const u32 mine = s.list()[lane];
  const u32 id = s.experts()[lane];
  const bool there = lane < count;
  const float2 value = there ? s.values()[id] : make_float2(0.0f, 0.0f);
  u32 rank = 0;
#pragma unroll 1
  for (u32 i = 0; i < count; i += kStep) {
    const uint4 low = *reinterpret_cast<const uint4*>(s.list() + i);
    const uint4 high = *reinterpret_cast<const uint4*>(s.list() + i + 4);
    const u32 other[kStep] = {low.x, low.y, low.z, low.w, high.x, high.y, high.z, high.w};
    // An equal key in front comes first. (mine is not 0.)
#pragma unroll
    for (u32 j = 0; j < kStep; ++j) rank += other[j] > mine - (i + j < lane ? 1u : 0u) ? 1u : 0u;
  }
  const bool chosen = there && rank < top_k;
  if (chosen) s.slots()[rank] = make_uint2(id, __float_as_uint(value.x));
  GroupChoice c;
  c.plain = __any_sync(kWarpAll, chosen && value.y >= kSigmoidIsExp);  // false for NaN
  __syncwarp();
  const uint2 slot = lane < top_k ? s.slots()[lane] : make_uint2(0, 0);
  c.id = slot.x;
  c.score = __uint_as_float(slot.y);
  return c;
}
// Any number of candidates: the best of the kept groups by rounds.
template <int N>
__device__ __forceinline__ GroupChoice choose_kept(const RouteParams& p, const GroupShared<N>& s, u32 kept,
                                                   bool biased) {
  const u32 lane = threadIdx.x % 32;
  const u32 low = free_bits(p, biased);
  u32 key[N];
#pragma unroll
  for (int g = 0; g < N; ++g)
    key[g] = (kept >> g & 1u) != 0 ? key_with_expert(s.keys()[32 * g + lane], low, 32 * g + lane) : kNothing;
  GroupChoice c;
  c.id = choose<N>(key, p.top_k, ties_likely(p, biased)).id;
  const float2 value = s.values()[c.id];
  c.plain = __any_sync(kWarpAll, lane < p.top_k && value.y >= kSigmoidIsExp);
  c.score = lane < p.top_k ? value.x : 0.0f;
  return c;
}

// As weight_of(), by the scores.
template <int N>
__device__ __forceinline__ float group_weight(const RouteParams& p, const GroupShared<N>& s,
                                              const GroupChoice& c) {
  const bool mine = threadIdx.x % 32 < p.top_k;
  float weight = c.score;
  if (p.renormalize != 0) {
    if (!c.plain) {  // the sigmoids are exponentials, and may be too small for a sum
      const float logit = mine ? s.values()[c.id].y : -infinity();
      const float term = ramp::core::softmax_term(logit, warp_max_by_key(logit));
      weight = mine ? term : 0.0f;
    }
    const float divisor = slot_sum(weight, p.top_k);
    weight = divisor > 0.0f ? __fdiv_rn(weight, divisor) : 0.0f;
  }
  return __fmul_rn(weight, p.scaling);
}

// N groups at most; the block has N / V warps.
template <int N, int V>
__device__ __forceinline__ void route_block(const RouteParams& p, u32* shared) {
  const GroupShared<N> s{shared};
  const u32 lane = threadIdx.x % 32;
  const u32 warp = N == V ? 0 : __shfl_sync(kWarpAll, threadIdx.x / 32, 0);
  const u32 token = blockIdx.x;
  const i64 at = (i64)token * p.logits_stride;
  const bool biased = p.bias != nullptr;
  if (lane < V && 32 * (V * warp + lane) < p.experts) {
    const u32 e = 32 * (V * warp + lane);
    prefetch_line(static_cast<const u8*>(p.logits) + (at + (i64)e) * (p.logits_dtype == 1 ? 4 : 2));
    if (biased) prefetch_line(p.bias + e);
  }
  if (warp == 0) s.list()[lane] = kNothing;
  dependency_wait();
  launch_dependents();

  float x[V], bias[V];
#pragma unroll
  for (u32 v = 0; v < V; ++v) {
    const u32 e = 32 * (V * warp + v) + lane;
    const bool there = e < p.experts;  // the same for the whole warp
    x[v] = there ? load_logit(p, at + (i64)e) : 0.0f;
    bias[v] = there && biased ? p.bias[e] : 0.0f;
  }
  u32 key[V], number[V], first[V];
#pragma unroll
  for (u32 v = 0; v < V; ++v) {
    const u32 e = 32 * (V * warp + v) + lane;
    const float score = plain_sigmoid(x[v]);
    // Without a bias experts are chosen by their logits, whatever scores the groups.
    const u32 of_value = key_bits(biased ? __fadd_rn(score, bias[v]) : x[v]);
    key[v] = x[v] == x[v] ? of_value : kNanKey;
    u32 scored = key[v];
    if (!biased && p.group_score != 0) scored = x[v] == x[v] ? key_bits(score) : kNanKey;
    if (N != V) s.keys()[e] = key[v];
    s.values()[e] = make_float2(score, x[v]);
    number[v] = scored != kNanKey ? scored : kNothing;
    first[v] = __reduce_max_sync(kWarpAll, number[v]);
  }
#pragma unroll
  for (u32 v = 0; v < V; ++v) {
    Best2 b{first[v], 0};
    const u32 holders = __ballot_sync(kWarpAll, number[v] == first[v]);
    const u32 below = __reduce_max_sync(kWarpAll, number[v] == first[v] ? kNothing : number[v]);
    b.second = (holders & (holders - 1)) != 0 ? first[v] : below;
    const u32 group = V * warp + v;
    const u32 score = group < p.num_groups ? group_key(b, p.group_score != 0) : kNothing;
    if (lane == 0) {
      s.scores()[group] = score;
      s.seconds()[group] = b.second;
    }
  }
  if (N == V) {
    __syncwarp();
  } else {
    __syncthreads();
  }
  if (warp != 0) return;

  u32 all[N];
#pragma unroll
  for (int g = 0; g < N; ++g) all[g] = N == V ? key[g % V] : s.keys()[32 * g + lane];
  // A group stays if fewer than topk_groups come before it; ties go to the lower group.
  const u32 group = lane % N;
  const u32 mine = s.scores()[group];
  const u32 second = s.seconds()[group];
  u32 better = 0;
#pragma unroll
  for (u32 o = 0; o < N; ++o) {
    const u32 score = s.scores()[o];
    better += score > mine || (score == mine && o < group) ? 1u : 0u;
  }
  const bool keep = lane < p.num_groups && better < p.topk_groups;
  const u32 kept = __ballot_sync(kWarpAll, keep);
  const u32 lowest = __reduce_min_sync(kWarpAll, keep ? second : 0xffffffffu);
  const u32 least = lowest > kNothing ? lowest : kNanKey;
  u32 count = 0;
#pragma unroll
  for (int g = 0; g < N; ++g) {
    const bool candidate = (kept >> g & 1u) != 0 && all[g] >= least;
    const u32 candidates = __ballot_sync(kWarpAll, candidate);
    const u32 place = count + __popc(candidates & ((1u << lane) - 1u));
    if (candidate && place < 32) {
      s.list()[place] = all[g];
      s.experts()[place] = 32 * g + lane;
    }
    count += __popc(candidates);
  }
  __syncwarp();
  // What scores the groups must be what experts are chosen by.
  const bool comparable = biased || p.group_score == 0;
  GroupChoice c;
  if (comparable && count <= 32 && count >= p.top_k) {
    c = choose_listed(s, count, p.top_k);
  } else {
    if (N == V) {
#pragma unroll
      for (int g = 0; g < N; ++g) s.keys()[32 * g + lane] = all[g];
      __syncwarp();
    }
    c = choose_kept(p, s, kept, biased);
  }
  store_slots(p, token, Chosen{c.id, group_weight(p, s, c)});
}
