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

// Columns [128 k + 4 lane, + 4) of x[token], as they lie.
struct RawX {
  uint4 v;
  float scale;  // e4m3 x
};
__device__ __forceinline__ RawX load_x(const FewParams& p, u32 token, u32 k) {
  const i64 at = (i64)token * p.x_stride + (i64)(128 * k + threadIdx.x % 32 * 4);
  RawX r{make_uint4(0, 0, 0, 0), 0.0f};
  if (p.x_dtype == kF32) {
    r.v = load_16(static_cast<const float*>(p.x) + at);
  } else if (p.x_dtype == kE4m3) {
    r.v.x = load_u32(static_cast<const u8*>(p.x) + at);
    r.scale = __uint_as_float(load_u32(p.x_scale + (i64)token * p.x_scale_stride + k));
  } else {
    const u64 four = load_u64(static_cast<const u16*>(p.x) + at);
    r.v.x = (u32)four;
    r.v.y = (u32)(four >> 32);
  }
  return r;
}
__device__ __forceinline__ u32 encode_x(const FewParams& p, const RawX& raw, float& scale) {
  if (p.x_dtype == kE4m3) {
    scale = raw.scale;
    return raw.v.x;
  }
  float v[4];
  if (p.x_dtype == kF32) {
    v[0] = __uint_as_float(raw.v.x);
    v[1] = __uint_as_float(raw.v.y);
    v[2] = __uint_as_float(raw.v.z);
    v[3] = __uint_as_float(raw.v.w);
  } else {
#pragma unroll
    for (u32 i = 0; i < 4; ++i) {
      const u16 bits = (u16)((i < 2 ? raw.v.x : raw.v.y) >> 16 * (i % 2));
      v[i] = p.x_dtype == kBf16 ? bf16_to_f32(bits) : f16_value(bits);
    }
  }
  return encode4(v, scale);
}
__device__ __forceinline__ void convert_x(const FewParams& p, u32 token, u32 k) {
  float scale;
  const u32 codes = encode_x(p, load_x(p, token, k), scale);
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
// Columns [128 k + 4 lane, + 4) of act(gate) * up of a row as codes, from GEMM 1's sums; `parts` per item.
__device__ __forceinline__ u32 encode_h(const FewParams& p, u32 row, u32 k, u32 parts, float& scale) {
  constexpr u32 kFlight = 4;
  const u32 part = p.slots * (2 * p.intermediate);
  u32 from = row * (2 * p.intermediate) + 128 * k + threadIdx.x % 32 * 4;
  float4 g = make_float4(0.0f, 0.0f, 0.0f, 0.0f);
  float4 u = g;
  for (u32 i0 = 0; i0 < parts; i0 += kFlight) {
    float4 a[kFlight], b[kFlight];
#pragma unroll
    for (u32 i = 0; i < kFlight; ++i, from += part) {
      if (i0 + i >= parts) continue;
      a[i] = load_floats(p.out1 + from);
      b[i] = load_floats(p.out1 + from + p.intermediate);
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
  return encode4(h, scale);
}
__device__ __forceinline__ void convert_h(const FewParams& p, const FewPlan& plan, u32 row, u32 k,
                                          u32 parts) {
  float scale;
  const u32 codes = encode_h(p, row, k, parts, scale);
  store_group(p.in2, (u64)plan.row_tile[row] * p.w2.steps + k, plan.row_token[row], codes, scale);
}

// ---------------------------------------------------------------- y

constexpr u32 kColumns = 2;  // of y per thread
constexpr u32 kNowhere = 0xffffffffu;

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
// `wait` is called once what is older than GEMM 2's sums has been read. SLOTS and FLIGHT: slots, and parts of
// each, whose loads are under way together.
template <u32 SLOTS, u32 FLIGHT, typename Wait>
__device__ __forceinline__ void combine(const FewParams& p, const FewPlan& plan, u32 token, u32 column,
                                        u32 parts, const Wait& wait) {
  const u32 part = p.slots * p.hidden;
  float2 sum = make_float2(0.0f, 0.0f);
  bool some = false;
#pragma unroll 1
  for (u32 j0 = 0; j0 < p.top_k; j0 += SLOTS) {
    u32 from[SLOTS];
    float weight[SLOTS];
    float2 v[SLOTS];
#pragma unroll
    for (u32 j = 0; j < SLOTS; ++j) {
      const bool inside = j0 + j < p.top_k;
      const u32 row = inside ? plan.row[token * p.top_k + j0 + j] : kFewNoTile;
      from[j] = row == kFewNoTile ? kNowhere : row * p.hidden + column;
      v[j] = make_float2(0.0f, 0.0f);
      weight[j] = inside ? __uint_as_float(load_u32(p.weights + (i64)token * p.weights_token +
                                                    (i64)(j0 + j) * p.weights_slot))
                         : 0.0f;
    }
    if (j0 == 0) wait();
    for (u32 i0 = 0; i0 < parts; i0 += FLIGHT) {
      float2 a[SLOTS][FLIGHT];
#pragma unroll
      for (u32 j = 0; j < SLOTS; ++j) {
#pragma unroll
        for (u32 i = 0; i < FLIGHT; ++i)
          if (from[j] != kNowhere && i0 + i < parts) a[j][i] = load_two(p.out2 + (from[j] + (i0 + i) * part));
      }
#pragma unroll
      for (u32 j = 0; j < SLOTS; ++j) {
#pragma unroll
        for (u32 i = 0; i < FLIGHT; ++i)
          if (from[j] != kNowhere && i0 + i < parts) v[j] = add(v[j], a[j][i]);
      }
    }
#pragma unroll
    for (u32 j = 0; j < SLOTS; ++j) {
      if (from[j] == kNowhere) continue;
      const float2 weighted = make_float2(v[j].x * weight[j], v[j].y * weight[j]);
      sum = some ? add(sum, weighted) : weighted;
      some = true;
    }
  }
  if (p.addend != nullptr)
    sum = add(sum, load_values(p.addend, (i64)token * p.addend_token + column, p.addend_dtype));
  store_values(p.y, (i64)token * p.y_token + column, p.y_dtype, sum);
}

// ---------------------------------------------------------------- inputs

// x, ids and router weights on their way to L2 while the kernel in front ends; each block a part of x.
__device__ __forceinline__ void prefetch_inputs(const FewParams& p, u32 threads) {
  if (threadIdx.x < p.slots && blockIdx.x == 0) {
    prefetch_l2(id_place(p, threadIdx.x));
    const u32 t = threadIdx.x / p.top_k;
    prefetch_l2(p.weights + (i64)t * p.weights_token + (i64)(threadIdx.x - t * p.top_k) * p.weights_slot);
  }
  const u32 width = p.x_dtype == kF32 ? 4 : p.x_dtype == kE4m3 ? 1 : 2;
  const u32 lines = p.hidden / 128 * width;  // of a row
  for (u32 i = threadIdx.x * gridDim.x + blockIdx.x; i < p.tokens * lines; i += gridDim.x * threads) {
    const u32 t = i / lines;
    prefetch_l2(static_cast<const u8*>(p.x) + (i64)t * p.x_stride * width + (i64)(i - t * lines) * 128);
  }
}
