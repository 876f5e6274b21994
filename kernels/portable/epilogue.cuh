// The portable GEMMs: from a tile's sums in shared memory to what leaves the kernel. A thread takes eight
// neighbouring columns of a token.
#pragma once

#include "portable/tile.cuh"

// The activations of src/weights/activation.hpp, in the same forms: the gated ones, times up.
__device__ __forceinline__ float silu(float g) {
  const float v = divide(g, fminf(1.0f + expf(-g), 0x1p126f));
  return g > 32.0f ? g : v;  // the same, and right for infinity
}
__device__ __forceinline__ float activate(int kind, float g, float u) {
  if (kind == 1) return 0.5f * g * (1.0f + erff(g * 0.70710678f)) * u;
  const float z = 0.79788456f * (g + 0.044715f * g * g * g);
  return 0.5f * g * (1.0f + tanhf(z)) * u;
}
__device__ __forceinline__ float relu2(float g) {
  return g <= 0.0f ? 0.0f : g * g;
}

struct Eight {
  float v[8];
};
// Eight neighbouring rows of a token's sums, over the KW warps in order.
__device__ __forceinline__ Eight staged(const float* sums, int token, int row) {
  Eight e;
#pragma unroll
  for (int k = 0; k < KW; ++k) {
    const float* const from = sums + (k * TOKENS + token) * kPitch + row;
    const float4 a = *(const float4*)from;
    const float4 b = *(const float4*)(from + 4);
    const float v[8] = {a.x, a.y, a.z, a.w, b.x, b.y, b.z, b.w};
#pragma unroll
    for (int i = 0; i < 8; ++i) e.v[i] = k == 0 ? v[i] : e.v[i] + v[i];
  }
  return e;
}

__device__ __forceinline__ u32 pack16(float a, float b) {
  return FORMAT == 3 ? f16_pair(a, b) : bf16_pair(a, b);
}

// h in the type that it leaves in.
__device__ __forceinline__ void store_h(const PortableParams& p, i64 at, const Eight& h) {
#if FORMAT == 2 || FORMAT == 3
  *(uint4*)((u16*)p.out + at) = make_uint4(pack16(h.v[0], h.v[1]), pack16(h.v[2], h.v[3]),
                                           pack16(h.v[4], h.v[5]), pack16(h.v[6], h.v[7]));
#elif FORMAT == 5
  u32 w[2] = {0, 0};
#pragma unroll
  for (int i = 0; i < 8; ++i) w[i / 4] |= (u32)f32_to_e4m3(__fdiv_rn(h.v[i], p.out_scale)) << (i % 4 * 8);
  *(uint2*)((u8*)p.out + at) = make_uint2(w[0], w[1]);
#else
  float* const to = (float*)p.out + at;
  *(float4*)to = make_float4(h.v[0], h.v[1], h.v[2], h.v[3]);
  *(float4*)(to + 4) = make_float4(h.v[4], h.v[5], h.v[6], h.v[7]);
#endif
}

// What a block keeps of its unit in shared memory: where its rows of tokens begin, and what the epilogue
// multiplies their results by, the scale of the input (fp8_tensor, fp8_channel) and the router's weight.
struct Kept {
  u32 rows[TOKENS];  // in units of 16 bytes
  float scales[TOKENS], weights[TOKENS];
  Unit unit;
  u32 number, next, reserved[2];  // of units: this one (FUSED), the one behind it
#if FUSED
  float amax[TOKENS];  // of h in the passes so far
#endif
};
constexpr int kKeptBytes = sizeof(Kept);

// What the copies need. In place of rows that are not there the tile's first one. Between barriers.
__device__ __forceinline__ void keep_rows(const PortableParams& p, const Unit& unit, Kept& kept) {
  if (TOKENS < kThreads && threadIdx.x >= TOKENS) return;
  if (threadIdx.x == 0) kept.unit = unit;
  const int row = unit.first + ((int)threadIdx.x < unit.rows ? (int)threadIdx.x : 0);
  kept.rows[threadIdx.x] = (u32)(source_row(p.x_source, p, row) * p.x_stride / 16);
}
// What the epilogue needs; behind the first copies, whose way hides this one's.
__device__ __forceinline__ void keep_factors(const PortableParams& p, const Unit& unit, Kept& kept) {
  if ((int)threadIdx.x >= unit.rows) return;
#if FORMAT == 5 || FORMAT == 6
  kept.scales[threadIdx.x] =
      p.x_scale == nullptr
          ? p.x_static
          : p.x_scale[source_row(p.x_scale_source, p, unit.first + (int)threadIdx.x) * p.x_scale_stride];
#endif
  if (GATED || !p.second) return;
  float weight = 1.0f;
  if (p.slot_weight != nullptr) {
    const int slot = p.slots[unit.first + (int)threadIdx.x];
    const int t = slot / p.top_k;
    weight = p.slot_weight[t * p.slot_weight_token + (slot - t * p.top_k) * p.slot_weight_slot];
  }
  kept.weights[threadIdx.x] = weight;
}

constexpr int kEights = kColumns / 8;
static_assert(kThreads % kEights == 0, "a thread keeps its columns");

// silu(v) * up and its like.
__device__ __forceinline__ void activate_eight(const PortableParams& p, Eight& v, Eight& up) {
  if (p.activation == 0) {
#pragma unroll
    for (int i = 0; i < 8; ++i) v.v[i] = silu(v.v[i]) * up.v[i];
    return;
  }
#pragma unroll 1
  for (int i = 0; i < 8; ++i) {  // in turn: one copy of the code
    const float h = activate(p.activation, v.v[0], up.v[0]);
#pragma unroll
    for (int j = 0; j < 7; ++j) {
      v.v[j] = v.v[j + 1];
      up.v[j] = up.v[j + 1];
    }
    v.v[7] = h;
  }
}

__device__ __forceinline__ void finish(const PortableParams& p, const float* sums, const Kept& kept) {
  const Unit unit = kept.unit;
  const int column = (int)threadIdx.x % kEights * 8;
  const int n = unit.n0 + column;
  if (n >= p.n) return;
#if FORMAT == 5 || FORMAT == 6
  const float* const w = p.w_scale + (i64)unit.expert * p.ws_expert;
  float scales[1 + GATED][8];
#pragma unroll
  for (int half = 0; half <= GATED; ++half)
#pragma unroll
    for (int i = 0; i < 8; ++i)
      scales[half][i] = w[(i64)(FORMAT == 5 ? half : half * p.up_row + n + i) * p.ws_row];
#endif
  for (int token = (int)threadIdx.x / kEights; token < unit.rows; token += kThreads / kEights) {
    Eight v = staged(sums, token, GATED ? 2 * column : column);
    Eight up = v;
    if (GATED) up = staged(sums, token, 2 * column + 8);
#if FORMAT == 5 || FORMAT == 6
    const float x = kept.scales[token];
#pragma unroll
    for (int i = 0; i < 8; ++i) {
      v.v[i] *= x * scales[0][i];
      up.v[i] *= x * scales[GATED][i];
    }
#endif
    const i64 at = (i64)(unit.first + token) * p.out_stride + n;
    if (!GATED && p.second) {
      const float weight = kept.weights[token];
#pragma unroll
      for (int i = 0; i < 8; ++i) v.v[i] *= weight;
#if FORMAT == 3
      float* const to = (float*)p.out + at;
      *(float4*)to = make_float4(v.v[0], v.v[1], v.v[2], v.v[3]);
      *(float4*)(to + 4) = make_float4(v.v[4], v.v[5], v.v[6], v.v[7]);
#else
      *(uint4*)((u16*)p.out + at) = make_uint4(bf16_pair(v.v[0], v.v[1]), bf16_pair(v.v[2], v.v[3]),
                                               bf16_pair(v.v[4], v.v[5]), bf16_pair(v.v[6], v.v[7]));
#endif
      continue;
    }
    if (!GATED) {
#pragma unroll
      for (int i = 0; i < 8; ++i) v.v[i] = relu2(v.v[i]);
    } else {
      activate_eight(p, v, up);
    }
    store_h(p, at, v);
  }
}

#if FUSED
#include "portable/requantize.cuh"
#endif
