// One token's routing by one warp: from logits to expert ids and weights. Device twin of
// src/routing/router.cpp, bit for bit (what is computed is told in src/routing/router.hpp). Lane l holds the
// logits l, l+32, l+64, ...; slot j of the result ends up in lane j.
#pragma once

#include "params/prologue.hpp"
#include "prologue/ptx.cuh"
#include "routing/score_math.hpp"

using namespace ramp::core::cuda;

constexpr u32 kWarpAll = 0xffffffffu;
// Keys as integers: order-preserving bits (src/routing/select.hpp), where NaN becomes 1, below -inf's
// 0x007fffff, and 0 says that there is nothing to choose.
constexpr u32 kNothing = 0;
constexpr u32 kNanKey = 1;
// Of a key of bf16 or f16, which have at most 19 significant bits as f32.
constexpr u32 kFreeBits = 0x1fffu;
constexpr float kSigmoidIsExp = -64.0f;  // as in router.cpp

__device__ __forceinline__ u32 key_bits(float x) {
  const u32 bits = __float_as_uint(x + 0.0f);  // -0 becomes +0: they tie
  const u32 key = bits ^ ((u32)((i32)bits >> 31) | 0x80000000u);
  return x == x ? key : kNanKey;
}
__device__ __forceinline__ float infinity() {
  return __uint_as_float(0x7f800000u);
}
// The butterfly of warp_order_sum.
__device__ __forceinline__ float warp_sum(float v) {
#pragma unroll
  for (u32 d = 16; d > 0; d /= 2) v = __fadd_rn(v, __shfl_xor_sync(kWarpAll, v, d));
  return v;
}
// The same where lanes from `slots` on hold +0 and none a NaN or less than +0: adding +0 changes nothing, so
// that for few slots the first distances are left out. Of use to the lanes below `slots` alone.
__device__ __forceinline__ float slot_sum(float v, u32 slots) {
  if (slots > 8) return warp_sum(v);
#pragma unroll
  for (u32 d = 4; d > 0; d /= 2) v = __fadd_rn(v, __shfl_xor_sync(kWarpAll, v, d));
  return v;
}
// a / b rounded to nearest for b in [1, 2] and a in [0, b]: what the compiler makes of a division, without
// the check for quotients that need another way. None does: from b = 1 on a quotient is subnormal only where
// b is 1, and exact.
__device__ __forceinline__ float quotient(float a, float b) {
  float r;
  asm("rcp.approx.ftz.f32 %0, %1;" : "=f"(r) : "f"(b));
  r = __fmaf_rn(r, __fmaf_rn(-b, r, 1.0f), r);
  const float q = __fmul_rn(a, r);
  return __fmaf_rn(r, __fmaf_rn(-b, q, a), q);
}
// sigmoid_f32, and 0 for NaN.
__device__ __forceinline__ float plain_sigmoid(float x) {
  const float e = ramp::core::exp_f32(x > 0.0f ? -x : x);
  const float s = quotient(x > 0.0f ? 1.0f : e, 1.0f + e);
  return s >= 0.0f ? s : 0.0f;  // false for NaN
}

// Scores; with many logits per lane as calls, which compile in a fraction of the time.
__device__ __noinline__ float sigmoid_call(float x) {
  return plain_sigmoid(x);
}
template <int N>
__device__ __forceinline__ float sigmoid_score(float x) {
  return N > 8 ? sigmoid_call(x) : plain_sigmoid(x);
}
__device__ __noinline__ float term_call(float x, float m) {
  return ramp::core::softmax_term(x, m);
}
template <int N>
__device__ __forceinline__ float term(float x, float m) {
  return N > 8 ? term_call(x, m) : ramp::core::softmax_term(x, m);
}

// Of expert lane + 32 i; NaN past the last one. The loads of all are in flight together.
template <int N>
__device__ __forceinline__ void load_logits(const RouteParams& p, i64 at, float (&x)[N]) {
  const u32 lane = threadIdx.x % 32;
  if (p.logits_dtype == 1) {
    const float* const from = static_cast<const float*>(p.logits) + at;
#pragma unroll
    for (int i = 0; i < N; ++i)
      x[i] = lane + 32 * i < p.experts ? from[lane + 32 * i] : __uint_as_float(0x7fc00000u);
    return;
  }
  const u16* const from = static_cast<const u16*>(p.logits) + at;
  u16 bits[N];
#pragma unroll
  for (int i = 0; i < N; ++i)
    bits[i] = lane + 32 * i < p.experts ? from[lane + 32 * i] : (u16)0x7fffu;  // NaN in both
#pragma unroll
  for (int i = 0; i < N; ++i) x[i] = p.logits_dtype == 3 ? bf16_to_f32(bits[i]) : f16_to_f32(bits[i]);
}

// Brings the logits of a token to L2, and the bias.
__device__ __forceinline__ void prefetch_logits(const RouteParams& p, u32 token) {
  const u32 e = threadIdx.x % 32 * 32;  // at most 1024 experts, and 128 bytes to a line
  const u32 bytes = p.logits_dtype == 1 ? 4 : 2;
  if (e < p.experts && p.bias != nullptr) prefetch_line(p.bias + e);
  if (e < p.experts)
    prefetch_line(static_cast<const u8*>(p.logits) + ((i64)token * p.logits_stride + (i64)e) * bytes);
}

// The two largest keys of a group that are numbers, of any lane or warp; kNothing where there is none.
struct Best2 {
  u32 first, second;
};
__device__ __forceinline__ void offer(Best2& b, u32 key) {
  if (key > b.first) {
    b.second = b.first;
    b.first = key;
  } else if (key > b.second) {
    b.second = key;
  }
}
__device__ __forceinline__ float key_value(u32 key) {
  return __uint_as_float((key & 0x80000000u) != 0 ? key ^ 0x80000000u : ~key);
}
// The largest that is a number, or -inf. Zeros lose their sign.
__device__ __forceinline__ float warp_max_by_key(float v) {
  const u32 lowest = key_bits(-infinity());  // NaN does not count
  const u32 key = key_bits(v);
  return key_value(__reduce_max_sync(kWarpAll, key > lowest ? key : lowest));
}
// A group's score as a key. NaN keys never come in, so kNothing stands for the host's NaN.
__device__ __forceinline__ u32 group_key(const Best2& b, bool top2) {
  const float best = key_value(b.first);
  const u32 sum = key_bits(__fadd_rn(best, key_value(b.second)));
  const u32 key = top2 && b.second != kNothing && best != infinity() ? sum : b.first;
  return b.first != kNothing ? key : kNanKey;
}

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

struct Picked {
  u32 id;   // of slot `lane`; 0 in lanes from top_k on
  u32 key;  // its key, likewise
};

// Sorts each lane's keys: v[i] is a key above 31 - i, the order of (key, lower id). Batcher's odd-even merge
// sort, largest first.
template <int N, typename T>
__device__ __forceinline__ void sort_lane(T (&v)[N]) {
#pragma unroll
  for (int run = 1; run < N; run *= 2) {
#pragma unroll
    for (int k = run; k > 0; k /= 2) {
#pragma unroll
      for (int at = 0; at + k < N; ++at) {
        // Pairs of one merge: at, at + k in the same double run, at in the lower half of its stride.
        const bool pair =
            at >= k % run && (at - k % run) / k % 2 == 0 && at / (2 * run) == (at + k) / (2 * run);
        if (!pair) continue;
        const bool swap = v[at] < v[at + k];
        const T larger = swap ? v[at + k] : v[at];
        v[at + k] = swap ? v[at] : v[at + k];
        v[at] = larger;
      }
    }
  }
}

// The same where every group is a vector of 32, by lanes alone.
template <int N>
__device__ __forceinline__ u32 kept_vectors(const RouteParams& p, const u32 (&key)[N]) {
  const u32 lane = threadIdx.x % 32;
  u32 k[N], first[N];
#pragma unroll
  for (int i = 0; i < N; ++i) {
    k[i] = key[i] != kNanKey ? key[i] : kNothing;
    first[i] = __reduce_max_sync(kWarpAll, k[i]);
  }
  Best2 b{kNothing, kNothing};  // of group `lane`
#pragma unroll
  for (int i = 0; i < N; ++i) {
    const u32 holders = __ballot_sync(kWarpAll, k[i] == first[i]);
    const u32 below = __reduce_max_sync(kWarpAll, k[i] == first[i] ? kNothing : k[i]);
    const u32 second = (holders & (holders - 1)) != 0 ? first[i] : below;
    if (lane == (u32)i) b = Best2{first[i], second};
  }
  const u32 mine = group_key(b, p.group_score != 0);
  u32 better = 0;
#pragma unroll
  for (int o = 0; o < N; ++o) {
    const u32 score = __shfl_sync(kWarpAll, mine, o);
    better += score > mine || (score == mine && (u32)o < lane) ? 1u : 0u;
  }
  return __ballot_sync(kWarpAll, lane < p.num_groups && better < p.topk_groups);
}

// Up to 8 keys per lane. Every lane sorts its own; then a round takes the largest head of the warp off its
// lane: one maximum and one comparison from round to round. False where two lanes tie; `picked` is then
// nothing.
template <int N>
__device__ __forceinline__ bool choose_of_sorted(const u32 (&key)[N], u32 top_k, Picked& picked) {
  const u32 lane = threadIdx.x % 32;
  u32 head[N];
  u32 order = 0;  // the experts that the heads are, 4 bits of vector each
  u64 v[N];       // the key above 31 - i: the order of (key, lower id)
#pragma unroll
  for (int i = 0; i < N; ++i) v[i] = (u64)key[i] << 32 | (u64)(31 - i);
  sort_lane(v);
#pragma unroll
  for (int i = 0; i < N; ++i) {
    head[i] = (u32)(v[i] >> 32);
    order |= (31 - (u32)v[i]) << (4 * i);
  }
  picked = Picked{0, 0};
  u32 ties = 0;
  u32 largest = __reduce_max_sync(kWarpAll, head[0]);
#pragma unroll 1
  for (u32 j = 0; j < top_k; ++j) {
    const bool taken = head[0] == largest;
    const u32 mine = taken ? lane + 32 * (order & 15u) : 0;
#pragma unroll
    for (int i = 0; i + 1 < N; ++i) head[i] = taken ? head[i + 1] : head[i];
    head[N - 1] = taken ? kNothing : head[N - 1];
    order = taken ? order >> 4 : order;
    const u32 next = __reduce_max_sync(kWarpAll, head[0]);
    const u32 holders = __ballot_sync(kWarpAll, taken);
    const u32 id = __reduce_max_sync(kWarpAll, mine);
    ties |= holders & (holders - 1);
    if (lane == j) picked = Picked{id, largest};
    largest = next;
  }
  return ties == 0;
}
template <int N>
__device__ __forceinline__ Picked choose_of_many(u32 (&key)[N], u32 top_k) {
  const u32 lane = threadIdx.x % 32;
  Picked picked{0, 0};
#pragma unroll 1
  for (u32 j = 0; j < top_k; ++j) {
    u32 best = key[0];
    u32 where = 0;
#pragma unroll
    for (int i = 1; i < N; ++i) {
      if (key[i] > best) {
        best = key[i];
        where = i;
      }
    }
    const u32 largest = __reduce_max_sync(kWarpAll, best);
    const u32 winner = __reduce_min_sync(kWarpAll, best == largest ? lane + 32 * where : 0xffffffffu);
#pragma unroll
    for (int i = 0; i < N; ++i) {
      if (winner == lane + 32 * i) key[i] = kNothing;
    }
    if (lane == j) picked = Picked{winner, largest};
  }
  return picked;
}
// The top_k largest keys of the warp (expert lane + 32 i), ties to the lower id, best first: slot j to lane
// j. There are at least top_k keys above kNothing.
template <int N>
__device__ __forceinline__ Picked choose(u32 (&key)[N], u32 top_k) {
  if constexpr (N <= 8) {
    Picked picked;
    if (choose_of_sorted<N>(key, top_k, picked)) return picked;
  }
  return choose_of_many<N>(key, top_k);
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
  constexpr bool kMayBias = kKind == kRouteSigmoid || kKind == kRouteGrouped || kKind == kRouteAny;
  if (kMayBias && p.bias != nullptr) {
#pragma unroll
    for (int i = 0; i < N; ++i) bias[i] = lane + 32 * i < p.experts ? p.bias[lane + 32 * i] : 0.0f;
  }
  constexpr bool kAny = kKind == kRouteAny;
  constexpr bool kSigmoid = kKind == kRouteSigmoid || kKind == kRouteGrouped;
  const bool sigmoid = kSigmoid || (kAny && p.scoring == 2);
  const bool groups = kKind == kRouteGrouped || (kAny && p.num_groups > 1);
  const bool biased = (kSigmoid || kAny) && p.bias != nullptr;
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
    u32 kept;
    if constexpr (kKind == kRouteGrouped) {
      kept = kept_vectors<N>(p, key);
    } else {
      kept = kept_by_groups<N>(p, key, shared);
    }
#pragma unroll
    for (int i = 0; i < N; ++i) {
      // Without a bias experts are chosen by their logits, whatever scored the groups.
      if (p.bias == nullptr && lane + 32 * i < p.experts) key[i] = key_bits(x[i]);
      if ((kept >> i & 1u) == 0) key[i] = kNothing;
    }
  }

  // Logits of 16 bits tie often, but leave the low bits of their keys free: for the expert, lower ids above,
  // which saves choose() what ties cost.
  const u32 low = biased || p.logits_dtype == 1 ? 0 : kFreeBits;
#pragma unroll
  for (int i = 0; i < N; ++i) {
    const u32 k = key[i] == kNanKey ? kNanKey + low : key[i];
    if (k != kNothing) key[i] = (k & ~low) | (low & (kFreeBits - (lane + 32 * i)));
  }
  const Picked picked = choose<N>(key, p.top_k);
  const u32 id = picked.id;

  // Their logits, then weights. Without a bias the keys are the logits', best first (a zero's sign does not
  // matter, nor which NaN).
  const u32 logit = (picked.key & 0x80000000u) != 0 ? picked.key & ~low : picked.key | low;
  float chosen = key_value(logit);
  float best = key_value(__shfl_sync(kWarpAll, max(logit, key_bits(-infinity())), 0));
  const bool mine = lane < p.top_k;
  float weight = 0.0f;
  float divisor = 1.0f;
  bool divide = true;
  if (biased) {
#pragma unroll
    for (int i = 0; i < N; ++i) {
      const float v = __shfl_sync(kWarpAll, x[i], id % 32);
      if (id / 32 == (u32)i) chosen = v;
    }
    best = warp_max_by_key(mine ? chosen : -infinity());
  }
  const bool over_all = kKind == kRouteSoftmax || (kAny && p.scoring == 0 && p.renormalize == 0);
  if (sigmoid && !(p.renormalize != 0 && best < kSigmoidIsExp)) {
    if (mine) weight = sigmoid_score<N>(chosen);
    divide = p.renormalize != 0;
    if (divide) divisor = slot_sum(weight, p.top_k);
  } else if (over_all) {
    if (mine) weight = ramp::core::softmax_term(chosen, m);
    divisor = sum;
  } else {
    const float term = ramp::core::softmax_term(chosen, best);
    weight = mine ? term : 0.0f;
    divisor = slot_sum(weight, p.top_k);
  }
  if (divide) weight = divisor > 0.0f ? __fdiv_rn(weight, divisor) : 0.0f;
  return Chosen{id, __fmul_rn(weight, p.scaling)};
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
