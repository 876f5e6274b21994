// What the few-token kernel computes between its GEMMs, a warp at a time: groups of x and of act(gate) * up
// as e4m3 codes, and y from the parts of GEMM 2's sums.
#pragma once

#include "prologue/values.cuh"
#include "sm90/few_plan.cuh"
#include "sm90/silu.cuh"

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
// A group's codes and scale into the block that a GEMM step reads, with the 128-byte swizzle. It has `rows`
// rows; its scales are filled up to a multiple of 16 bytes, which is what is copied.
__device__ __forceinline__ void store_group(const FewCodes& out, u64 block, u32 row, u32 rows, u32 codes,
                                            float scale) {
  const u32 lane = threadIdx.x % 32;
  *(u32*)(out.codes + block * (WIDTH * 128) + row * 128 + ((lane / 4) ^ (row % 8)) * 16 + lane % 4 * 4) =
      codes;
  const u32 last = row + 1 == rows ? row | 3 : row;
  if (row + lane <= last) out.scales[block * WIDTH + row + lane] = scale;
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
  store_group(p.in1, k, token, p.tokens, codes, scale);
}

__device__ __forceinline__ float activate(int activation, float g, float u) {
  if (activation == 0) return __fmul_rn(silu(g), u);
  if (activation == 1) return 0.5f * g * (1.0f + erff(g * 0.70710678f)) * u;
  const float z = 0.79788456f * (g + 0.044715f * g * g * g);
  return 0.5f * g * (1.0f + tanhf(z)) * u;
}
__device__ __forceinline__ float4 add(float4 a, float4 b) {
  return make_float4(a.x + b.x, a.y + b.y, a.z + b.z, a.w + b.w);
}
// Columns [128 k + 4 lane, + 4) of act(gate) * up of a row as codes, from GEMM 1's sums; `parts` per item.
// `there` false: nobody has written those yet; the same code with weights in their place, for no result.
__device__ __forceinline__ u32 encode_h(const FewParams& p, u32 row, u32 k, u32 parts, bool there,
                                        float& scale) {
  constexpr u32 kFlight = 2;
  const float* const sums = there ? p.out1 : reinterpret_cast<const float*>(p.w13.tiles);
  const u32 part = there ? p.slots * (2 * p.intermediate) : 0;
  const u32 up = there ? p.intermediate : 0;
  u32 from = (there ? row * (2 * p.intermediate) + 128 * k : 0) + threadIdx.x % 32 * 4;
  float4 g = make_float4(0.0f, 0.0f, 0.0f, 0.0f);
  float4 u = g;
#pragma unroll 1
  for (u32 i0 = 0; i0 < parts; i0 += kFlight) {
    float4 a[kFlight], b[kFlight];
#pragma unroll
    for (u32 i = 0; i < kFlight; ++i, from += part) {
      if (i0 + i >= parts) continue;
      a[i] = load_floats(sums + from);
      b[i] = load_floats(sums + from + up);
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
// `store` false: all but the result, before there are sums, which brings the code in.
__device__ __forceinline__ void convert_h(const FewParams& p, const FewPlan& plan, u32 row, u32 k, u32 parts,
                                          bool store) {
  const u32 number = plan.row_tile[row];
  if (number == kFewNoTile) return;  // no sums either
  float scale;
  const u32 codes = encode_h(p, row, k, parts, store, scale);
  if (!store) return;
  const FewTile tile = plan.tiles[number];
  store_group(p.in2, (u64)number * p.w2.steps + k, row - tile.first, rows_of(tile), codes, scale);
}

// ---------------------------------------------------------------- y

// A warp makes kStrip columns of a token's y at a time: 8 lanes, for as many slots, share 4 columns.
constexpr u32 kStrip = 16, kSlotLanes = 8;

__device__ __forceinline__ float4 load_values(const void* p, i64 at, int dtype) {
  if (dtype == kF32) return load_floats(static_cast<const float*>(p) + at);
  const u64 four = load_u64(static_cast<const u16*>(p) + at);
  float v[4];
#pragma unroll
  for (u32 i = 0; i < 4; ++i) {
    const u16 bits = (u16)(four >> 16 * i);
    v[i] = dtype == kBf16 ? bf16_to_f32(bits) : f16_to_f32(bits);
  }
  return make_float4(v[0], v[1], v[2], v[3]);
}
__device__ __forceinline__ void store_values(void* p, i64 at, int dtype, float4 v) {
  if (dtype == kF32) {
    *(float4*)(static_cast<float*>(p) + at) = v;
    return;
  }
  const float values[4] = {v.x, v.y, v.z, v.w};
  u32 w[2] = {0, 0};
#pragma unroll
  for (u32 i = 0; i < 4; ++i)
    w[i / 2] |= (u32)(dtype == kBf16 ? f32_to_bf16(values[i]) : f32_to_f16(values[i])) << 16 * (i % 2);
  *(uint2*)(static_cast<u16*>(p) + at) = make_uint2(w[0], w[1]);
}

// y of a strip: per slot the sum of its row's parts in order of depth, times the router weight; slots 8 apart
// in order by a lane, then the eight lanes as a tree, the same for every token. `store` as in convert_h.
__device__ __forceinline__ void combine(const FewParams& p, const FewPlan& plan, u32 token, u32 strip,
                                        u32 parts, bool store) {
  const u32 lane = threadIdx.x % 32;
  const u32 column = strip * kStrip + lane / kSlotLanes * 4;
  const u32 part = store ? p.slots * p.hidden : 0;
  float4 sum = make_float4(0.0f, 0.0f, 0.0f, 0.0f);
  bool some = false;
#pragma unroll 1
  for (u32 j = lane % kSlotLanes; j < p.top_k; j += kSlotLanes) {
    const u32 row = plan.row[token * p.top_k + j];
    if (row == kFewNoTile) continue;
    const float weight =
        __uint_as_float(load_u32(p.weights + (i64)token * p.weights_token + (i64)j * p.weights_slot));
    const float* const from =
        store ? p.out2 + (row * p.hidden + column) : reinterpret_cast<const float*>(p.w2.tiles) + lane * 4;
    float4 a[kFewParts];
#pragma unroll
    for (u32 i = 0; i < kFewParts; ++i)
      if (i < parts) a[i] = load_floats(from + i * part);
    float4 v = a[0];
#pragma unroll
    for (u32 i = 1; i < kFewParts; ++i)
      if (i < parts) v = add(v, a[i]);
    v = make_float4(v.x * weight, v.y * weight, v.z * weight, v.w * weight);
    sum = some ? add(sum, v) : v;
    some = true;
  }
  __syncwarp();
  // Lanes without a slot add nothing, not even zero to a negative one.
#pragma unroll
  for (u32 d = 1; d < kSlotLanes; d *= 2) {
    const float4 other =
        make_float4(__shfl_xor_sync(kAllLanes, sum.x, d), __shfl_xor_sync(kAllLanes, sum.y, d),
                    __shfl_xor_sync(kAllLanes, sum.z, d), __shfl_xor_sync(kAllLanes, sum.w, d));
    const bool there = __shfl_xor_sync(kAllLanes, (int)some, d) != 0;
    sum = !there ? sum : some ? add(sum, other) : other;
    some = some || there;
  }
  if (!store || lane % kSlotLanes != 0) return;
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
