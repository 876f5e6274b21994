// The portable GEMMs: a warp's way through the depth where fragments are carried over from step to step. The
// barrier in front of a step comes before the last 32 bytes of the one before are multiplied, and the new
// step's first fragments are loaded between the two, so that a warp has products to issue while it waits for
// the others, for ldmatrix and for its copies' addresses. The same products in the same order: the same bits
// as the loop of gemm.cu.
//
// Not for sums that are promoted every step: they read the step's scales behind the barrier that frees their
// place in the ring.
#pragma once

#include "portable/products.cuh"

#if PROMOTED
#error "CARRY: promoted sums read their scales too late"
#endif

// Fragments of one k16 of products: 32 bytes of depth, of codes 16.
constexpr int kPart = IS_FP8 ? 16 : 32;
constexpr int kPartsOfStep = kRowBytes / kPart;
static_assert(kPartsOfStep % 2 == 0, "two sets of fragments in turn");

template <int ACTIVE>
struct Part {
  // Codes: rows 0 to 7 and 8 to 15 of an m16 tile; one register per n8 tile.
  static constexpr int kPerRow = IS_FP8 ? 2 : 4;
  u32 a[kMt][kPerRow];
  u32 b[kNt == 1 ? 1 : 2 * ACTIVE][kPerRow / 2];
  // a_row, b_row: this lane's addresses at depth 0; `at`: bytes of depth, which the swizzle xors.
  __device__ __forceinline__ void load(u32 a_row, u32 b_row, u32 at) {
#if IS_FP8
    u32 four[4], two[2];
    if constexpr (kNt == 1) {
      load_matrix2(two, b_row ^ at);  // (the second one's lanes repeat the first one's addresses)
      b[0][0] = two[0];
    } else {
#pragma unroll
      for (int j = 0; j + 1 < ACTIVE; j += 2) {
        load_matrix4(four, (b_row ^ at) + (u32)(j * WT * 16 * kRowBytes));
#pragma unroll
        for (int v = 0; v < 4; ++v) b[2 * j + v][0] = four[v];
      }
      if constexpr (ACTIVE % 2 != 0) {
        load_matrix2(two, (b_row ^ at) + (u32)((ACTIVE - 1) * WT * 16 * kRowBytes));
        b[2 * ACTIVE - 2][0] = two[0];
        b[2 * ACTIVE - 1][0] = two[1];
      }
    }
    static_assert(kMt % 2 == 0, "two m16 tiles at a time");
#pragma unroll
    for (int i = 0; i < kMt; i += 2) {
      load_matrix4(four, (a_row ^ at) + (u32)(i * 16 * kRowBytes));
#pragma unroll
      for (int v = 0; v < 4; ++v) a[i + v / 2][v % 2] = four[v];
    }
#else
    static_assert(kNt > 1, "pairs of n8 tiles");
#pragma unroll
    for (int j = 0; j < ACTIVE; ++j) {
      u32 four[4];
      load_matrix4(four, (b_row ^ at) + (u32)(j * WT * 16 * kRowBytes));
#pragma unroll
      for (int v = 0; v < 4; ++v) b[2 * j + v / 2][v % 2] = four[v];
    }
#pragma unroll
    for (int i = 0; i < kMt; ++i) load_matrix4(a[i], (a_row ^ at) + (u32)(i * 16 * kRowBytes));
#endif
  }
  __device__ __forceinline__ void multiply_into(float (&sum)[kMt][kNt][4]) const {
    constexpr int kTiles = kNt == 1 ? 1 : 2 * ACTIVE;
    u32 tokens[kTiles][2];
#pragma unroll
    for (int j = 0; j < kTiles; ++j) {
#if IS_FP8
      decode4(b[j][0], tokens[j][0], tokens[j][1]);
#else
      tokens[j][0] = b[j][0];
      tokens[j][1] = b[j][1];
#endif
    }
#pragma unroll
    for (int i = 0; i < kMt; ++i) {
      u32 weights[4];
#if IS_FP8
      decode4(a[i][0], weights[0], weights[2]);
      decode4(a[i][1], weights[1], weights[3]);
#else
#pragma unroll
      for (int v = 0; v < 4; ++v) weights[v] = a[i][v];
#endif
#pragma unroll
      for (int j = 0; j < kTiles; ++j) multiply(sum[i][j], weights, tokens[j]);
    }
  }
};

#if FORMAT != 1
struct ScaleCopies {};
#endif
// Where a warp is and what its block copies.
struct Depth {
  const Copies& copies;
  ScaleCopies scale_copies;
  u32 ring, scales;
  int steps;
  u32 wk, wr, wt, lane;
};

// ACTIVE pairs of n8 tiles have tokens; warps with none copy and keep step with the others. The first STAGES
// - 1 steps are under way.
template <int ACTIVE>
__device__ __forceinline__ void run_depth(const PortableParams& p, const Depth& d,
                                          float (&sum)[kMt][kNt][4]) {
  const Copies& copies = d.copies;
  const u32 ring = d.ring, wk = d.wk, wr = d.wr, wt = d.wt, lane = d.lane;
  const int steps = d.steps;
  constexpr int kLoaded = ACTIVE > 0 ? ACTIVE : 1;
#if IS_FP8
  // 32 rows of weights and two pairs of n8 tiles, 16 bytes each.
  const u32 a_row = lane * kRowBytes + lane % 8 * 16;
  const u32 b_row = kNt == 1 ? lane % 8 * kRowBytes + lane % 8 * 16
                             : (lane / 16 * (WT * 16) + lane % 16) * kRowBytes + lane % 8 * 16;
#else
  const u32 a_row = lane % 16 * kRowBytes + (lane / 16 ^ lane % 8) * 16;
  const u32 b_row = (lane / 16 * 8 + lane % 8) * kRowBytes + (lane / 8 % 2 ^ lane % 8) * 16;
#endif
  const u32 a_lane = wk * (ROWS * kRowBytes) + wr * (kMt * 16 * kRowBytes) + a_row;
  const u32 b_lane = kWeightBytes + wk * (TOKENS * kRowBytes) + wt * ((kNt > 1 ? 16 : 8) * kRowBytes) + b_row;
  Part<kLoaded> parts[2];
  u32 slot = 0;
  copy_wait<STAGES - 2>();
#if CHAINED
  put_ratios(p, d.scales, d.scales, 0);
#endif
  __syncthreads();
  if (ACTIVE > 0) parts[0].load(ring + slot * kStage + a_lane, ring + slot * kStage + b_lane, 0);
#pragma unroll 1
  for (int k = 0; k < steps; ++k) {
    const u32 a = ring + slot * kStage + a_lane, b = ring + slot * kStage + b_lane;
    const u32 next = slot + 1 == STAGES ? 0 : slot + 1;
    const auto copy_ahead = [&] {
      const u32 to = slot == 0 ? STAGES - 1 : slot - 1;
      copy_weights(p, copies, ring + to * kStage, k + STAGES - 1);
      copy_tokens(p, copies, ring + to * kStage, k + STAGES - 1);
#if CHAINED
      copy_scales(p, d.scale_copies, d.scales + slot * kScaleBytes, k + STAGES - 1 + kScalesAhead);
      put_ratios(p, d.scales, d.scales + next * kScaleBytes, k + 1);
#endif
      copy_commit();
    };
    const auto go_on = [&] {  // the barrier in front of the next step, and its first fragments
      slot = next;
      if (k + 1 == steps) return;
      copy_wait<STAGES - 2>();
      __syncthreads();
      if (ACTIVE > 0) parts[0].load(ring + slot * kStage + a_lane, ring + slot * kStage + b_lane, 0);
    };
#if CHAINED
    const u32 stage_scales = ratios_of(d.scales, k);
    const u32 token_scales = stage_scales + 4 * (wk * TOKENS + wt * (kNt > 1 ? 16 : 8));
    const u32 weight_scales = stage_scales + 4 * (KW * TOKENS + 2 * wk);
    change_units(sum, token_scales, weight_scales, lane);
    if (ACTIVE > 0 && sums_apart(d.scales, k)) {
      copy_ahead();
      const u32 weights = ring + slot * kStage + wk * (ROWS * kRowBytes) + wr * (kMt * 16 * kRowBytes);
      const u32 tokens = ring + slot * kStage + kWeightBytes + wk * (TOKENS * kRowBytes) +
                         wt * ((kNt > 1 ? 16 : 8) * kRowBytes);
      multiply_apart(sum, weights, tokens, token_scales, weight_scales, lane);
      go_on();
      continue;
    }
#endif
    if (ACTIVE == 0) {
      copy_ahead();
      go_on();
      continue;
    }
    copy_ahead();  // here, where one set of fragments is all that is loaded
#pragma unroll
    for (int i = 0; i < kPartsOfStep; ++i) {
      if (i + 1 < kPartsOfStep)
        parts[(i + 1) % 2].load(a, b, (u32)((i + 1) * kPart));
      else
        go_on();
      parts[i % 2].multiply_into(sum);
    }
  }
}

// `active` pairs have tokens: full tiles, halves, quarters. (Three quarters as well would cost registers.)
__device__ __forceinline__ void run_through(const PortableParams& p, const Depth& d, int active,
                                            float (&sum)[kMt][kNt][4]) {
  constexpr int kQuarter = (kPairs + 3) / 4;
  if (active > 2 * kQuarter || (active > 0 && kPairs == 1))
    run_depth<kPairs>(p, d, sum);
  else if (active > kQuarter)
    run_depth<min_of(2 * kQuarter, kPairs)>(p, d, sum);
  else if (active > 0)
    run_depth<kQuarter>(p, d, sum);
  else
    run_depth<0>(p, d, sum);
}
