// One token's routing by one warp: from logits to expert ids and weights.
#pragma once

#include "prologue/route_choose.cuh"

// Which of this lane's experts are in one of the topk_groups best groups (bit i: expert lane + 32 i), by the
// keys that score the groups. shared: route_shared_words of this warp.
template <int N>
__device__ __forceinline__ u32 kept_by_groups(const RouteParams& p, const u32 (&key)[N], u32* shared) {
  const u32 lane = threadIdx.x % 32;
  const u32 size = p.experts / p.num_groups;
  const bool top2 = p.group_score != 0;
  u32* const keys = shared;
  u32* const scores = shared + p.experts;
  u32* const keep = scores + p.num_groups;
  __syncwarp();  // the last token's readers are done
  if (size % 32 == 0) {
    // A group is a run of whole vectors: every lane its two best of the run, then the warp's.
    Best2 b{kNothing, kNothing};
    u32 left = size / 32;
    u32 g = 0;
#pragma unroll
    for (int i = 0; i < N; ++i) {
      if (32 * i >= (int)p.experts) break;
      if (key[i] != kNanKey) offer(b, key[i]);
      if (--left != 0) continue;
      Best2 w;
      w.first = __reduce_max_sync(kWarpAll, b.first);
      const u32 owner = __ffs(__ballot_sync(kWarpAll, b.first == w.first)) - 1;
      w.second = __reduce_max_sync(kWarpAll, lane == owner ? b.second : b.first);
      if (lane == 0) scores[g] = group_key(w, top2);
      ++g;
      left = size / 32;
      b = Best2{kNothing, kNothing};
    }
  } else {
#pragma unroll
    for (int i = 0; i < N; ++i) {
      if (lane + 32 * i < p.experts) keys[lane + 32 * i] = key[i];
    }
    __syncwarp();
#pragma unroll 1
    for (u32 g = lane; g < p.num_groups; g += 32) {
      Best2 b{kNothing, kNothing};
#pragma unroll 1
      for (u32 e = g * size; e < (g + 1) * size; ++e) {
        if (keys[e] != kNanKey) offer(b, keys[e]);
      }
      scores[g] = group_key(b, top2);
    }
  }
  __syncwarp();
  // A group stays if fewer than topk_groups come before it; ties go to the lower group.
#pragma unroll 1
  for (u32 g = lane; g < p.num_groups; g += 32) {
    const u32 score = scores[g];
    u32 better = 0;
#pragma unroll 1
    for (u32 o = 0; o < p.num_groups; ++o)
      better += scores[o] > score || (scores[o] == score && o < g) ? 1u : 0u;
    keep[g] = better < p.topk_groups ? 1u : 0u;
  }
  __syncwarp();
  u32 kept = 0;
#pragma unroll
  for (int i = 0; i < N; ++i) {
    const u32 e = lane + 32 * i;
    if (e < p.experts && keep[e / size] != 0) kept |= 1u << i;
  }
  return kept;
}

struct Chosen {
  u32 id;        // of slot `lane`; 0 in lanes from top_k on
  float weight;  // likewise
};

template <int N, RouteKind kKind>
__device__ __forceinline__ Chosen route_token(const RouteParams& p, u32 token, u32* shared) {
  const u32 lane = threadIdx.x % 32;
  const i64 at = (i64)token * p.logits_stride;
  float x[N];
  u32 key[N];
  load_logits<N>(p, at, x);
  float bias[N] = {};
  constexpr bool kAny = kKind == kRouteAny;
  constexpr bool kSigmoid = kKind == kRouteSigmoid;
  const bool biased = (kSigmoid || kAny) && p.bias != nullptr;
  if (biased) {
#pragma unroll
    for (int i = 0; i < N; ++i) bias[i] = lane + 32 * i < p.experts ? p.bias[lane + 32 * i] : 0.0f;
  }
  const bool sigmoid = kSigmoid || (kAny && p.scoring == 2);
  const bool groups = kAny && p.num_groups > 1;
  const bool biased_keys = biased || (groups && p.group_score != 0);
  // The largest logit and the sum over all: where the softmax over all of them is needed.
  float m = 0.0f;
  float sum = 0.0f;
  if (kKind == kRouteSoftmax || (kAny && p.scoring == 0 && (biased_keys || p.renormalize == 0))) {
    m = -infinity();
#pragma unroll
    for (int i = 0; i < N; ++i) m = fmaxf(m, x[i]);
    m = warp_max_by_key(m);
#pragma unroll
    for (int i = 0; i < N; ++i) {
      const float one = term<N>(x[i], m);  // of the NaN past the last expert: +0, which changes no sum
      sum = __fadd_rn(sum, one);
    }
    sum = warp_sum(sum);
  }
#pragma unroll
  for (int i = 0; i < N; ++i) {
    const u32 bits = key_bits(x[i]);
    key[i] = lane + 32 * i < p.experts ? bits : kNothing;
  }
  if (biased_keys) {
    const float divisor = sum > 0.0f ? sum : 1.0f;
#pragma unroll
    for (int i = 0; i < N; ++i) {
      float score = x[i];
      if (sigmoid) {
        score = sigmoid_score<N>(x[i]);
      } else if (p.scoring == 0) {
        score = __fdiv_rn(term<N>(x[i], m), divisor);
      }
      const u32 bits = key_bits(__fadd_rn(score, bias[i]));  // + 0 without a bias: the same key
      const u32 one = x[i] == x[i] ? bits : kNanKey;
      key[i] = lane + 32 * i < p.experts ? one : kNothing;
    }
  }
  if (groups) {
    const u32 kept = kept_by_groups<N>(p, key, shared);
#pragma unroll
    for (int i = 0; i < N; ++i) {
      // Without a bias experts are chosen by their logits, whatever scored the groups.
      if (p.bias == nullptr && lane + 32 * i < p.experts) key[i] = key_bits(x[i]);
      if ((kept >> i & 1u) == 0) key[i] = kNothing;
    }
  }

  const u32 low = free_bits(p, biased);
#pragma unroll
  for (int i = 0; i < N; ++i) key[i] = key_with_expert(key[i], low, lane + 32 * i);
  const Picked picked = choose<N>(key, p.top_k, ties_likely(p, biased));
  const u32 id = picked.id;

  // Their logits. Without a bias the keys are the logits', best first.
  float chosen = logit_of_key(picked.key, low);
  float best = warp_first_number(chosen);
  if (biased) {
#pragma unroll
    for (int i = 0; i < N; ++i) {
      const float v = __shfl_sync(kWarpAll, x[i], id % 32);
      if (id / 32 == (u32)i) chosen = v;
    }
    best = warp_max_by_key(lane < p.top_k ? chosen : -infinity());
  }
  return Chosen{id, weight_of<N, kKind>(p, chosen, best, m, sum)};
}

__device__ __forceinline__ void store_id(const RouteParams& p, i64 at, u32 id) {
  if (p.ids_wide != 0) {
    static_cast<i64*>(p.ids)[at] = (i64)id;
  } else {
    static_cast<i32*>(p.ids)[at] = (i32)id;
  }
}
// Slots of a token: the chosen, then the shared experts with weight 1.
__device__ __forceinline__ void store_slots(const RouteParams& p, u32 token, const Chosen& c) {
  const u32 lane = threadIdx.x % 32;
#pragma unroll 1
  for (u32 j = lane; j < p.top_k + p.shared_experts; j += 32) {
    const u32 id = j < p.top_k ? c.id : p.experts + (j - p.top_k);
    store_id(p, (i64)token * p.ids_stride + (i64)j, id);
    p.weights[(i64)token * p.weights_stride + (i64)j] = j < p.top_k ? c.weight : 1.0f;
  }
}
