// The portable GEMMs: a warp's products of one step, from shared memory into its sums.
#pragma once

#include "portable/scales.cuh"

// A warp's fragments of 32 bytes of depth: f16 or bf16 pairs for one mma each, or twice as many decoded
// codes.
#if IS_FP8 && !NATIVE_E4M3
constexpr int kParts = 2;
__device__ __forceinline__ void weight_fragment(const u32 (&raw)[4], int part, u32 (&a)[4]) {
  decode4(raw[2 * part], a[0], a[2]);
  decode4(raw[2 * part + 1], a[1], a[3]);
}
__device__ __forceinline__ void token_fragment(const u32 (&raw)[4], int tile, int part, u32 (&b)[2]) {
  decode4(raw[2 * tile + part], b[0], b[1]);
}
#else
constexpr int kParts = 1;
__device__ __forceinline__ void weight_fragment(const u32 (&raw)[4], int /*part*/, u32 (&a)[4]) {
#pragma unroll
  for (int i = 0; i < 4; ++i) a[i] = raw[i];
}
__device__ __forceinline__ void token_fragment(const u32 (&raw)[4], int tile, int /*part*/, u32 (&b)[2]) {
  b[0] = raw[2 * tile];
  b[1] = raw[2 * tile + 1];
}
#endif
__device__ __forceinline__ void multiply(float (&d)[4], const u32 (&a)[4], const u32 (&b)[2]) {
#if IS_FP8 && NATIVE_E4M3
  mma32(d, a, b[0], b[1]);
#else
  mma16<FORMAT == 2 ? 2 : 3>(d, a, b[0], b[1]);
#endif
}

// What a warp loads of 32 bytes of depth; ACTIVE pairs of n8 tiles have tokens.
template <int ACTIVE>
struct Raw {
  u32 a[kMt][4];
  u32 b[ACTIVE][4];
  // a, b: this lane's addresses of the first 32 bytes; `at`: bytes of depth, which the swizzle xors.
  __device__ __forceinline__ void load(u32 a_row, u32 b_row, u32 at) {
    if constexpr (kNt == 1) {
      u32 two[2];
      load_matrix2(two, b_row ^ at);
      b[0][0] = two[0];
      b[0][1] = two[1];
    } else {
#pragma unroll
      for (int j = 0; j < ACTIVE; ++j) load_matrix4(b[j], (b_row ^ at) + (u32)(j * WT * 16 * kRowBytes));
    }
#pragma unroll
    for (int i = 0; i < kMt; ++i) load_matrix4(a[i], (a_row ^ at) + (u32)(i * 16 * kRowBytes));
  }
};

template <int ACTIVE>
__device__ __forceinline__ void multiply_raw(float (&sum)[kMt][kNt][4], const Raw<ACTIVE>& now) {
#pragma unroll
  for (int part = 0; part < kParts; ++part) {
    constexpr int kTiles = kNt == 1 ? 1 : 2 * ACTIVE;
    u32 b[kTiles][2];
#pragma unroll
    for (int j = 0; j < kTiles; ++j) token_fragment(now.b[j / 2], j % 2, part, b[j]);
#pragma unroll
    for (int i = 0; i < kMt; ++i) {
      u32 a[4];
      weight_fragment(now.a[i], part, a);
#pragma unroll
      for (int j = 0; j < kTiles; ++j) multiply(sum[i][j], a, b[j]);
    }
  }
}

// Adds the products of this warp's 128 bytes of one step. Fragments are loaded 32 bytes ahead; `between` (the
// copies of a step to come) runs behind the first loads.
template <int ACTIVE, typename Between>
__device__ __forceinline__ void multiply_step(float (&sum)[kMt][kNt][4], u32 weights, u32 tokens, u32 lane,
                                              const Between& between) {
  const u32 a = weights + lane % 16 * kRowBytes + (lane / 16 ^ lane % 8) * 16;
  const u32 b =
      tokens + (kNt > 1 ? lane / 16 * 8 + lane % 8 : lane % 8) * kRowBytes + (lane / 8 % 2 ^ lane % 8) * 16;
  Raw<ACTIVE> even, odd;
  even.load(a, b, 0);
  between();
#pragma unroll
  for (u32 at = 0; at < kRowBytes; at += 64) {
    odd.load(a, b, at + 32);
    multiply_raw(sum, even);
    if (at + 64 < kRowBytes) even.load(a, b, at + 64);
    multiply_raw(sum, odd);
  }
}

#if CHAINED
// A column's first token within the warp's: j-th n8 tile.
__device__ __forceinline__ u32 token_of_tile(int j) {
  return (u32)(j / 2 * WT * 16 + j % 2 * 8);
}

// The sums in units of this step's scales.
__device__ __forceinline__ void change_units(float (&sum)[kMt][kNt][4], u32 token_ratios, u32 weight_ratios,
                                             u32 lane) {
  const float low = load_shared(weight_ratios);
  const float high = GATED ? load_shared(weight_ratios + 4) : low;
#pragma unroll
  for (int j = 0; j < kNt; ++j) {
    const float2 t = load_shared2(token_ratios + 4 * (token_of_tile(j) + 2 * (lane % 4)));
    const float s0 = low * t.x, s1 = low * t.y;
    const float s2 = GATED ? high * t.x : s0;
    const float s3 = GATED ? high * t.y : s1;
#pragma unroll
    for (int i = 0; i < kMt; ++i) {
      sum[i][j][0] *= s0;
      sum[i][j][1] *= s1;
      sum[i][j][2] *= s2;
      sum[i][j][3] *= s3;
    }
  }
}

// The same products where a scale is none to count in (scales.cuh), one n8 tile after the other; columns
// with ordinary scales go the usual way. Tiles change places, so that one piece of code serves them all.
__device__ __forceinline__ void multiply_apart(float (&sum)[kMt][kNt][4], u32 weights, u32 tokens,
                                               u32 token_scales, u32 weight_scales, u32 lane) {
  const u32 token_factors = token_scales + kScaleBytes;
  const u32 weight_factors = weight_scales + kScaleBytes;
  const u32 a_row = weights + lane % 16 * kRowBytes + (lane / 16 ^ lane % 8) * 16;
  const u32 b_row = tokens + lane % 8 * kRowBytes + (lane / 8 % 2 ^ lane % 8) * 16;
  const float low = load_shared(weight_factors);
  const float high = load_shared(weight_factors + 4);
#pragma unroll 1
  for (int j = 0; j < kNt; ++j) {
    const float2 t = load_shared2(token_factors + 4 * (token_of_tile(j) + 2 * (lane % 4)));
    const float f[4] = {low * t.x, low * t.y, high * t.x, high * t.y};
    float part[kMt][4];
#pragma unroll
    for (int i = 0; i < kMt; ++i)
#pragma unroll
      for (int v = 0; v < 4; ++v) part[i][v] = f[v] == 1.0f ? sum[i][0][v] : 0.0f;
#pragma unroll 1
    for (u32 at = 0; at < kRowBytes; at += 32) {
      u32 raw[4] = {0, 0, 0, 0}, two[2];
      load_matrix2(two, (b_row ^ at) + token_of_tile(j) * kRowBytes);
      raw[0] = two[0];
      raw[1] = two[1];
      u32 a_raw[kMt][4];
#pragma unroll
      for (int i = 0; i < kMt; ++i) load_matrix4(a_raw[i], (a_row ^ at) + (u32)(i * 16 * kRowBytes));
#pragma unroll
      for (int part_of = 0; part_of < kParts; ++part_of) {
        u32 b[2];
        token_fragment(raw, 0, part_of, b);
#pragma unroll
        for (int i = 0; i < kMt; ++i) {
          u32 a[4];
          weight_fragment(a_raw[i], part_of, a);
          multiply(part[i], a, b);
        }
      }
    }
#pragma unroll
    for (int i = 0; i < kMt; ++i)
#pragma unroll
      for (int v = 0; v < 4; ++v) {
        const float done = f[v] == 1.0f ? part[i][v] : fmaf(part[i][v], f[v], sum[i][0][v]);
#pragma unroll
        for (int n = 0; n + 1 < kNt; ++n) sum[i][n][v] = sum[i][n + 1][v];
        sum[i][kNt - 1][v] = done;
      }
  }
}

#endif

// One step of a warp, promoted where the format asks for it. scales: the token scales of the warp's 128-deep
// group.
template <int ACTIVE, typename Between>
__device__ __forceinline__ void run_step(float (&sum)[kMt][kNt][4], u32 weights, u32 tokens, u32 token_scales,
                                         u32 weight_scales, u32 lane, const Between& between) {
#if PROMOTED
  float part[kMt][kNt][4];
#pragma unroll
  for (int i = 0; i < kMt; ++i)
#pragma unroll
    for (int j = 0; j < kNt; ++j)
#pragma unroll
      for (int v = 0; v < 4; ++v) part[i][j][v] = 0.0f;
  multiply_step<ACTIVE>(part, weights, tokens, lane, between);
#if FORMAT == 1
  const float low = load_shared(weight_scales);
  const float high = GATED ? load_shared(weight_scales + 4) : low;
#endif
#pragma unroll
  for (int j = 0; j < (kNt == 1 ? 1 : 2 * ACTIVE); ++j) {
#if FORMAT == 1
    const u32 token = (u32)(j / 2 * WT * 16 + j % 2 * 8) + 2 * (lane % 4);
    const float t0 = load_shared(token_scales + 4 * token);
    const float t1 = load_shared(token_scales + 4 * token + 4);
    const float s0 = low * t0, s1 = low * t1;
    const float s2 = GATED ? high * t0 : s0;
    const float s3 = GATED ? high * t1 : s1;
#else
    constexpr float s0 = 1.0f, s1 = 1.0f, s2 = 1.0f, s3 = 1.0f;
#endif
#pragma unroll
    for (int i = 0; i < kMt; ++i) {
      sum[i][j][0] = fmaf(part[i][j][0], s0, sum[i][j][0]);
      sum[i][j][1] = fmaf(part[i][j][1], s1, sum[i][j][1]);
      sum[i][j][2] = fmaf(part[i][j][2], s2, sum[i][j][2]);
      sum[i][j][3] = fmaf(part[i][j][3], s3, sum[i][j][3]);
    }
  }
#else
  multiply_step<ACTIVE>(sum, weights, tokens, lane, between);
#endif
}
