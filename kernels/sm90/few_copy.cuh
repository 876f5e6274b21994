// The copying warps of the few-token kernel (few.cu): whoever takes pieces and brings their weights, and
// whoever makes or brings the tokens that go with them.
#pragma once

#include "sm90/few_math.cuh"
#include "sm90/few_values.cuh"

// One lane: takes pieces, announces their steps, brings their weights. Those of GEMM 2 do not wait for
// GEMM 1.
__device__ __forceinline__ void bring_weights(u32 gemm, const FewWeights& w, const FewPieces& pieces,
                                              u32 tiles, u32* ticket, const Ring& s, Announced& said,
                                              const FewPlan& plan, u32& at) {
  const u32 total = tiles * w.slices * pieces.parts;
  u32 number = blockIdx.x;
  for (;;) {
    Piece piece{};
    piece.gemm = gemm;
    const u8* from = nullptr;
    u32 next = 0;
    if (number < total) {
      next = atomicAdd(ticket, 1u);  // comes back while the copies below are started
      const u32 item = number / pieces.parts;
      piece.first = (number - item * pieces.parts) * pieces.length;
      piece.steps = w.steps - piece.first < pieces.length ? w.steps - piece.first : pieces.length;
      piece.tile = item / w.slices;
      piece.slice = item - piece.tile * w.slices;
      from = w.tiles +
             (((u64)plan.tiles[piece.tile].expert * w.slices + piece.slice) * w.steps + piece.first) * kTile;
    }
    const u32 steps = piece.steps == 0 ? 1 : piece.steps;
    for (u32 k = 0; k < steps; ++k, ++at, from += kTile) {
      const u32 slot = at % STAGES;
      if (at >= STAGES) barrier_wait(s.empty + 8 * slot, parity(at) ^ 1);
      piece.k = piece.first + k;
      said.piece[slot] = piece;
      barrier_arrive(s.announced + 8 * slot);
      if (piece.steps == 0) {
        barrier_arrive(s.weights + 8 * slot);
        continue;
      }
      if (at >= WINDOW) barrier_wait(s.weights + 8 * ((at - WINDOW) % STAGES), parity(at - WINDOW));
      barrier_expect(s.weights + 8 * slot, kTile);
      bulk_copy(s.tiles + slot * kStage, from, kTile, s.weights + 8 * slot);
    }
    if (piece.steps == 0) return;
    number = gridDim.x + next;
  }
}
#if DIRECT
// Tells the owners of all slots that there is nothing more.
__device__ __forceinline__ void stop_owners(const Ring& s, Announced& said, u32 at) {
  for (u32 i = 0; i < STAGES; ++i, ++at) {
    const u32 slot = at % STAGES;
    if (at >= STAGES) barrier_wait(s.empty + 8 * slot, parity(at) ^ 1);
    said.piece[slot] = Piece{};
    barrier_arrive(s.announced + 8 * slot);
  }
}
// One warp per slot: the codes and scales of the tokens, made on the spot from x or from GEMM 1's sums, and
// the scales of the weights.
__device__ __forceinline__ void make_tokens(const FewParams& p, const FewPieces& pieces1, const Ring& s,
                                            Announced& said, const FewPlan& plan, u32 slot) {
  const u32 lane = threadIdx.x % 32;
  const u32 to = s.tiles + slot * kStage + kTile;
  bool there = false;  // GEMM 1's sums
  for (u32 at = slot;; at += STAGES) {
    barrier_wait(s.announced + 8 * slot, parity(at));
    const Piece piece = said.piece[slot];
    if (piece.gemm == 0) return;
    if (piece.steps != 0) {
      const bool second = piece.gemm == 2;
      const FewWeights& w = second ? p.w2 : p.w13;
      const FewTile tile = plan.tiles[piece.tile];
      const float* const scales = w.scale + (i64)tile.expert * w.scale_expert +
                                  (i64)(second ? piece.slice : piece.slice / 2) * w.scale_row + piece.k;
      float2 factor;
      factor.x = __ldg(scales);
      factor.y = second ? factor.x : __ldg(scales + (i64)p.up_scale_row * w.scale_row);
#pragma unroll 1
      for (u32 pass = second && !there ? 0 : 1; pass < 2; ++pass) {
        if (second && !there && pass != 0) {
          barrier_wait(s.go, 0);
          there = true;
        }
#pragma unroll 1
        for (u32 left = tile.tokens, number = 0; left != 0; left &= left - 1, ++number) {
          const u32 token = __ffs(left) - 1;
          const u32 row = second ? number : token;  // of the step's
          float scale;
          const u32 codes = second ? encode_h(p, tile.first + number, piece.k, pieces1.parts, there, scale)
                                   : encode_x(p, load_x(p, token, piece.k), scale);
          store_shared(to + row * 128 + ((lane / 4) ^ (row % 8)) * 16 + lane % 4 * 4, codes);
          if (lane == 0) store_shared(s.scales + slot * kScaleBytes + 4 * row, __float_as_uint(scale));
        }
      }
      if (lane == 0) said.factor[slot] = factor;
      proxy_fence();
    }
    barrier_arrive(s.tokens + 8 * slot);
  }
}
#else
// One warp: the codes and scales of the tokens and the scales of the weights, a lane per step of a piece.
// Blocks of `in` per expert: 0 (x is the same for all), or the steps.
template <int GEMM>
__device__ __forceinline__ void bring_tokens(const FewParams& p, const FewWeights& w, const FewCodes& in,
                                             u32 per_tile, const Ring& s, Announced& said,
                                             const FewPlan& plan, u32& at) {
  const u32 lane = threadIdx.x % 32;
  bool there = false;
  for (;;) {
    barrier_wait(s.announced + 8 * (at % STAGES), parity(at));
    const Piece piece = said.piece[at % STAGES];
    __syncwarp();  // all have read it before any lets the ring go on
    if (piece.steps == 0) {
      // A block without a piece of GEMM 1 must not take this phase of `go` for the next.
      if (!there) barrier_wait(s.go, GEMM - 1);
      if (lane == 0) barrier_arrive(s.tokens + 8 * (at % STAGES));
      ++at;
      return;
    }
    float2 factor = make_float2(0.0f, 0.0f);
    if (lane < piece.steps) {
      const float* const scale = w.scale + (i64)plan.tiles[piece.tile].expert * w.scale_expert +
                                 (i64)(GEMM == 1 ? piece.slice / 2 : piece.slice) * w.scale_row +
                                 piece.first + lane;
      factor.x = __ldg(scale);
      factor.y = GEMM == 1 ? __ldg(scale + (i64)p.up_scale_row * w.scale_row) : factor.x;
    }
    if (!there) {
      barrier_wait(s.go, GEMM - 1);
      proxy_fence_global();
      there = true;
    }
    // Whoever's step has been announced goes ahead. A lane looks at its barrier only when those of the round
    // before have passed it, else it might take that round's phase for its own.
    const u32 rows = GEMM == 1 ? p.tokens : rows_of(plan.tiles[piece.tile]);
    u32 waiting = piece.steps == 32 ? 0xffffffffu : (1u << piece.steps) - 1u;
    while (waiting != 0) {
      const u32 mine = at + lane;
      const bool go = (waiting >> lane & 1) != 0 && lane < __ffs(waiting) - 1 + STAGES &&
                      barrier_test(s.announced + 8 * (mine % STAGES), parity(mine));
      if (go) {
        const u32 slot = mine % STAGES;
        const u64 block = (u64)piece.tile * per_tile + piece.first + lane;
        said.factor[slot] = factor;
        const u32 scale_bytes = (rows + 3) / 4 * 16;
        barrier_expect(s.tokens + 8 * slot, rows * 128 + scale_bytes);
        bulk_copy(s.tiles + slot * kStage + kTile, in.codes + block * kTokenBytes, rows * 128,
                  s.tokens + 8 * slot);
        bulk_copy(s.scales + slot * kScaleBytes, in.scales + block * WIDTH, scale_bytes, s.tokens + 8 * slot);
      }
      waiting &= ~__ballot_sync(0xffffffffu, go);
    }
    at += piece.steps;
  }
}
#endif
