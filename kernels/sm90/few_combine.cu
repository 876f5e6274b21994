// y of the few-token kernels: per token the sum of its slots' rows, each itself the sum of what GEMM 2's
// blocks left of it, times the router weight, in slot order, plus the addend. Latency is all there is to it:
// the plan and the weights are there before GEMM 2 has ended, and the first two parts of up to eight slots
// are in flight at once.
//
//   WIDTH  as GEMM 2's
#include "sm90/few_plan.cuh"

enum Dtype { kF32 = 1, kF16 = 2, kBf16 = 3 };  // as ramp_dtype

constexpr u32 kSlotsInFlight = 8;
constexpr u32 kNowhere = 0xffffffffu;
static_assert(kFewColumns == 2, "loads and stores below are of two values");

__device__ __forceinline__ float2 add(float2 a, float2 b) {
  return make_float2(a.x + b.x, a.y + b.y);
}
__device__ __forceinline__ float2 load_values(const void* p, i64 at, int dtype) {
  if (dtype == kF32) return load_two(static_cast<const float*>(p) + at);
  const u32 two = load_u32(static_cast<const u16*>(p) + at);
  if (dtype == kBf16) return make_float2(bf16_to_f32((u16)two), bf16_to_f32((u16)(two >> 16)));
  return make_float2(f16_to_f32((u16)two), f16_to_f32((u16)(two >> 16)));
}
__device__ __forceinline__ void store_values(void* p, i64 at, int dtype, float2 v) {
  if (dtype == kF32) {
    *(float2*)(static_cast<float*>(p) + at) = v;
  } else {
    const u32 low = dtype == kBf16 ? f32_to_bf16(v.x) : f32_to_f16(v.x);
    const u32 high = dtype == kBf16 ? f32_to_bf16(v.y) : f32_to_f16(v.y);
    *(u32*)(static_cast<u16*>(p) + at) = low | high << 16;
  }
}

extern "C" __global__ void __launch_bounds__(kFewCombineThreads, 7)
    few_combine(const __grid_constant__ FewCombineParams p) {
  __shared__ __align__(16) FewPlan plan;
  launch_dependents();
  // This begins after every block of GEMM 1 has waited for what is in front of it: ids and weights are there.
  const u32 tiles = make_plan(p.ids, plan, nullptr);
  const u32 share = few_share(tiles, p.slices, p.steps, p.blocks);
  const u32 vectors = p.hidden / kFewColumns;
  const u32 index = blockIdx.x * kFewCombineThreads + threadIdx.x;
  const u32 token = index / vectors;
  const bool inside = token < p.tokens;
  const u32 column = (index - token * vectors) * kFewColumns;
  float2 sum = make_float2(0.0f, 0.0f);
  bool some = false;
#pragma unroll 1
  for (u32 j0 = 0; j0 < p.ids.top_k; j0 += kSlotsInFlight) {
    u32 first[kSlotsInFlight], rest[kSlotsInFlight], more[kSlotsInFlight];  // places; parts beyond the first
    float weight[kSlotsInFlight];
#pragma unroll
    for (u32 j = 0; j < kSlotsInFlight; ++j) {
      first[j] = kNowhere;
      if (!inside || j0 + j >= p.ids.top_k) continue;
      const u32 slot = token * p.ids.top_k + j0 + j;
      if (plan.expert[slot] < 0) continue;
      const u32 row = plan.row[slot];
      const u32 tile = plan.tile_of[slot];
      const FewParts parts = parts_of(tile * p.slices + column / 128, p.steps, share);
      first[j] = row * p.hidden + column;
      rest[j] = part_place(parts.first + 1, row - plan.tiles[tile].first, column % 128);
      more[j] = parts.last - parts.first;
      weight[j] = p.weights == nullptr ? 1.0f
                                       : __uint_as_float(load_u32(p.weights + (i64)token * p.weights_token +
                                                                  (i64)(j0 + j) * p.weights_slot));
    }
    if (j0 == 0) dependency_wait();
    float2 a[kSlotsInFlight], b[kSlotsInFlight];
#pragma unroll
    for (u32 j = 0; j < kSlotsInFlight; ++j) {
      if (first[j] == kNowhere) continue;
      a[j] = load_two(p.in.first + first[j]);
      if (more[j] != 0) b[j] = load_two(p.in.rest + rest[j]);
    }
#pragma unroll
    for (u32 j = 0; j < kSlotsInFlight; ++j) {
      if (first[j] == kNowhere) continue;
      float2 v = a[j];
      if (more[j] != 0) v = add(v, b[j]);
      for (u32 i = 1; i < more[j]; ++i) v = add(v, load_two(p.in.rest + rest[j] + i * (WIDTH * 128)));
      if (p.weights != nullptr) v = make_float2(v.x * weight[j], v.y * weight[j]);
      sum = some ? add(sum, v) : v;
      some = true;
    }
  }
  if (!inside) return;
  if (p.addend != nullptr)
    sum = add(sum, load_values(p.addend, (i64)token * p.addend_token + column, p.addend_dtype));
  store_values(p.y, (i64)token * p.y_token + column, p.y_dtype, sum);
}
