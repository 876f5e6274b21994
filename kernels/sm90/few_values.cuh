// What the few-token kernel computes between its GEMMs, a warp at a time: groups of x and of act(gate) * up
// as e4m3 codes, and y from the parts of GEMM 2's sums.
#pragma once

#include "prologue/values.cuh"
#include "sm90/few_plan.cuh"

constexpr u32 kAllLanes = 0xffffffffu;
enum Dtype { kF32 = 1, kF16 = 2, kBf16 = 3, kE4m3 = 4 };  // as ramp_dtype

__device__ __forceinline__ float warp_max(float v) {
#pragma unroll
  for (u32 d = 16; d > 0; d /= 2) v = fmaxf(v, __shfl_xor_sync(kAllLanes, v, d));
  return v;
}
// Four values of a row's group of 128, spread over the warp, as codes; their scale.
__device__ __forceinline__ u32 encode4(const float (&v)[4], float& scale) {
  float amax = 0.0f;  // fmaxf passes over NaN
#pragma unroll
  for (u32 i = 0; i < 4; ++i) amax = fmaxf(amax, fabsf(v[i]));
  scale = amax_scale(warp_max(amax));
  u32 codes = 0;
#pragma unroll
  for (u32 i = 0; i < 4; ++i) codes |= plain_code(v[i], scale) << 8 * i;
  return codes;
}
// A group's codes and scale into the block of WIDTH rows that a GEMM step reads, with the 128-byte swizzle.
__device__ __forceinline__ void store_group(const FewCodes& out, u64 block, u32 row, u32 codes, float scale) {
  const u32 lane = threadIdx.x % 32;
  *(u32*)(out.codes + block * (WIDTH * 128) + row * 128 + ((lane / 4) ^ (row % 8)) * 16 + lane % 4 * 4) =
      codes;
  if (lane == 0) out.scales[block * WIDTH + row] = scale;
}

// Columns [128 k, 128 k + 128) of x[token].
__device__ __forceinline__ void convert_x(const FewParams& p, u32 token, u32 k) {
  const u32 lane = threadIdx.x % 32;
  const i64 at = (i64)token * p.x_stride + (i64)(128 * k + 4 * lane);
  float v[4], scale;
  u32 codes;
  if (p.x_dtype == kE4m3) {
    codes = load_u32(static_cast<const u8*>(p.x) + at);
    scale = __uint_as_float(load_u32(p.x_scale + (i64)token * p.x_scale_stride + k));
  } else {
    if (p.x_dtype == kF32) {
      const float4 four = load_floats(static_cast<const float*>(p.x) + at);
      v[0] = four.x;
      v[1] = four.y;
      v[2] = four.z;
      v[3] = four.w;
    } else {
      const u64 four = load_u64(static_cast<const u16*>(p.x) + at);
#pragma unroll
      for (u32 i = 0; i < 4; ++i) {
        const u16 bits = (u16)(four >> 16 * i);
        v[i] = p.x_dtype == kBf16 ? bf16_to_f32(bits) : f16_value(bits);
      }
    }
    codes = encode4(v, scale);
  }
  store_group(p.in1, k, token, codes, scale);
}

__device__ __forceinline__ float activate(int activation, float g, float u) {
  if (activation == 0) return g / (1.0f + expf(-g)) * u;
  if (activation == 1) return 0.5f * g * (1.0f + erff(g * 0.70710678f)) * u;
  const float z = 0.79788456f * (g + 0.044715f * g * g * g);
  return 0.5f * g * (1.0f + tanhf(z)) * u;
}
__device__ __forceinline__ float4 add(float4 a, float4 b) {
  return make_float4(a.x + b.x, a.y + b.y, a.z + b.z, a.w + b.w);
}
// Columns [128 k, 128 k + 128) of act(gate) * up of a row, from GEMM 1's sums; `parts` per item.
__device__ __forceinline__ void convert_h(const FewParams& p, const FewPlan& plan, u32 row, u32 k,
                                          u32 parts) {
  constexpr u32 kFlight = 4;
  const u32 lane = threadIdx.x % 32;
  const u32 number = plan.row_tile[row];
  const u32 token = plan.row_token[row];
  const u64 part = (u64)p.slots * (2 * p.intermediate);
  const float* from = p.out1 + (u64)row * (2 * p.intermediate) + 128 * k + 4 * lane;
  float4 g = make_float4(0.0f, 0.0f, 0.0f, 0.0f);
  float4 u = g;
  for (u32 i0 = 0; i0 < parts; i0 += kFlight) {
    float4 a[kFlight], b[kFlight];
#pragma unroll
    for (u32 i = 0; i < kFlight; ++i, from += part) {
      if (i0 + i >= parts) continue;
      a[i] = load_floats(from);
      b[i] = load_floats(from + p.intermediate);
    }
#pragma unroll
    for (u32 i = 0; i < kFlight; ++i) {
      if (i0 + i >= parts) continue;
      g = add(g, a[i]);
      u = add(u, b[i]);
    }
  }
  const float h[4] = {activate(p.activation, g.x, u.x), activate(p.activation, g.y, u.y),
                      activate(p.activation, g.z, u.z), activate(p.activation, g.w, u.w)};
  float scale;
  const u32 codes = encode4(h, scale);
  store_group(p.in2, (u64)number * p.w2.steps + k, token, codes, scale);
}

// ---------------------------------------------------------------- y

constexpr u32 kSlotsInFlight = 8;
constexpr u32 kColumns = 2;  // of y per thread

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

// y[token][column, column + 1]: per slot the sum of its row's parts, times the router weight, in slot order.
// `wait` is called once what is older than GEMM 2's sums has been read.
template <typename Wait>
__device__ __forceinline__ void combine(const FewParams& p, const FewPlan& plan, u32 token, u32 column,
                                        u32 parts, const Wait& wait) {
  constexpr u32 kFlight = 4;
  const u64 part = (u64)p.slots * p.hidden;
  float2 sum = make_float2(0.0f, 0.0f);
  bool some = false;
#pragma unroll 1
  for (u32 j0 = 0; j0 < p.top_k; j0 += kSlotsInFlight) {
    const float* from[kSlotsInFlight];
    float weight[kSlotsInFlight];
    float2 v[kSlotsInFlight];
#pragma unroll
    for (u32 j = 0; j < kSlotsInFlight; ++j) {
      from[j] = nullptr;
      v[j] = make_float2(0.0f, 0.0f);
      const u32 slot = token * p.top_k + j0 + j;
      if (j0 + j >= p.top_k || plan.expert[slot] < 0) continue;
      from[j] = p.out2 + (u64)row_of(plan.tiles[plan.tile_of[slot]], token) * p.hidden + column;
      weight[j] = __uint_as_float(
          load_u32(p.weights + (i64)token * p.weights_token + (i64)(j0 + j) * p.weights_slot));
    }
    if (j0 == 0) wait();
    for (u32 i0 = 0; i0 < parts; i0 += kFlight) {
      float2 a[kSlotsInFlight][kFlight];
#pragma unroll
      for (u32 j = 0; j < kSlotsInFlight; ++j) {
#pragma unroll
        for (u32 i = 0; i < kFlight; ++i)
          if (from[j] != nullptr && i0 + i < parts) a[j][i] = load_two(from[j] + (i0 + i) * part);
      }
#pragma unroll
      for (u32 j = 0; j < kSlotsInFlight; ++j) {
#pragma unroll
        for (u32 i = 0; i < kFlight; ++i)
          if (from[j] != nullptr && i0 + i < parts) v[j] = add(v[j], a[j][i]);
      }
    }
#pragma unroll
    for (u32 j = 0; j < kSlotsInFlight; ++j) {
      if (from[j] == nullptr) continue;
      const float2 weighted = make_float2(v[j].x * weight[j], v[j].y * weight[j]);
      sum = some ? add(sum, weighted) : weighted;
      some = true;
    }
  }
  if (p.addend != nullptr)
    sum = add(sum, load_values(p.addend, (i64)token * p.addend_token + column, p.addend_dtype));
  store_values(p.y, (i64)token * p.y_token + column, p.y_dtype, sum);
}
