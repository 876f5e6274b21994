// What routing computes with: keys that order floats as integers, scores, and weights. Device twin of
// src/routing/router.cpp, bit for bit (what is computed is told in src/routing/router.hpp). Lane l of a warp
// holds the logits l, l+32, l+64, ...; slot j of the result ends up in lane j.
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

__device__ __forceinline__ float load_logit(const RouteParams& p, i64 at) {
  if (p.logits_dtype == 1) return static_cast<const float*>(p.logits)[at];
  const u16 bits = static_cast<const u16*>(p.logits)[at];
  return p.logits_dtype == 3 ? bf16_to_f32(bits) : f16_to_f32(bits);
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
// Slot 0's, which is the largest if it is a number, else -inf.
__device__ __forceinline__ float warp_first_number(float v) {
  const u32 lowest = key_bits(-infinity());
  const u32 key = key_bits(v);
  return key_value(__shfl_sync(kWarpAll, key > lowest ? key : lowest, 0));
}
// A group's score as a key. NaN keys never come in, so kNothing stands for the host's NaN.
__device__ __forceinline__ u32 group_key(const Best2& b, bool top2) {
  const float best = key_value(b.first);
  const u32 sum = key_bits(__fadd_rn(best, key_value(b.second)));
  const u32 key = top2 && b.second != kNothing && best != infinity() ? sum : b.first;
  return b.first != kNothing ? key : kNanKey;
}

// Keys of bf16 or f16 logits tie often, but leave their low bits free: for the expert, lower ids above, which
// saves choose() what ties cost.
__device__ __forceinline__ u32 free_bits(const RouteParams& p, bool biased) {
  return biased || p.logits_dtype == 1 ? 0 : kFreeBits;
}
// A score's key has no free bits, and ties where the logits do.
__device__ __forceinline__ bool ties_likely(const RouteParams& p, bool biased) {
  return biased && p.logits_dtype != 1;
}
__device__ __forceinline__ u32 key_with_expert(u32 key, u32 low, u32 expert) {
  const u32 k = key == kNanKey ? kNanKey + low : key;
  const u32 with = (k & ~low) | (low & (kFreeBits - expert));
  return k != kNothing ? with : kNothing;
}
// The logit that is chosen, but for a zero's sign and a NaN's bits, which do not matter.
__device__ __forceinline__ float logit_of_key(u32 key, u32 low) {
  return key_value((key & 0x80000000u) != 0 ? key & ~low : key | low);
}

// The weight of slot `lane`, by the chosen logits. best: the largest of them that is a number, or -inf; m and
// sum: of all experts, where kind and router ask for them.
template <int N, RouteKind kKind>
__device__ __forceinline__ float weight_of(const RouteParams& p, float chosen, float best, float m,
                                           float sum) {
  constexpr bool kAny = kKind == kRouteAny;
  const bool sigmoid = kKind == kRouteSigmoid || (kAny && p.scoring == 2);
  const bool over_all = kKind == kRouteSoftmax || (kAny && p.scoring == 0 && p.renormalize == 0);
  const bool mine = threadIdx.x % 32 < p.top_k;
  float weight = 0.0f;
  float divisor = 1.0f;
  bool divide = true;
  if (sigmoid && !(p.renormalize != 0 && best < kSigmoidIsExp)) {
    const float score = sigmoid_score<N>(chosen);
    weight = mine ? score : 0.0f;
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
  return __fmul_rn(weight, p.scaling);
}
