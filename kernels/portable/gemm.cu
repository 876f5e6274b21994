// The portable GEMMs of the expert block: mma.sync out of a ring that cp.async fills, for every NVIDIA GPU
// from sm_80 on, H and I multiples of 32, weights in the checkpoint layout. Weight rows are mma's 16-row
// side, tokens its 8-column side, so that a tile of few tokens pads at most 7. FP8 weights and inputs stay
// FP8 in memory and in shared memory; they are decoded to f16 (exactly) in registers, or multiplied as they
// are where the tensor cores can (ptx.cuh).
//
//   GATED    1: GEMM 1 with gate and up; 0: GEMM 1 without, or GEMM 2, as the parameters tell
//   FORMAT   ramp_format: 1 fp8_block, 2 bf16, 3 fp16, 5 fp8_tensor, 6 fp8_channel
//   ROWS     weight rows per tile; gated: half of them gate rows, half up rows, by eights in turn
//   TOKENS   token rows per tile at most (the plan's tile_m)
//   KW       warps that share the depth: each takes 128 bytes of every KW * 128; sums are added in warp order
//   WR, WT   warps that share the weight rows and the tokens of a tile
//   STAGES   ring depth
//   BLOCKS   blocks per SM (register budget)
//
// fp8_block has its block scales in the sums (scales.cuh). The other FP8 formats scale once, in the
// epilogue. Blocks stride over (tile, slice) units in the order that `group` chooses, or take the next one
// when they are done with one (`tickets`). The epilogue passes through shared memory: sums of the KW warps,
// activation, router weight, 16-byte stores.
#ifndef PADDED
#define PADDED 0  // 1: rows that are not there are multiplied like others (docs/ablations.md)
#endif
#ifndef ABSENT
// 1: in place of tokens that are not there the tile's first one is copied, again and again. (Tiles of 128
// have no registers left for the difference.)
#define ABSENT (PADDED || TOKENS == 128)
#endif
#ifndef CARRY
#define CARRY 0  // 1: a step's first fragments are loaded during the last products of the step before
#endif
#ifndef FUSED
#define FUSED 0  // 1: GEMM 1 of fp8_block leaves codes and scales (requantize.cuh)
#endif
#include "portable/epilogue.cuh"
#include "portable/products.cuh"
#if CARRY
#include "portable/depth.cuh"
#endif

__device__ __forceinline__ void run_gemm(const PortableParams& p) {
  extern __shared__ __align__(128) u8 memory[];
  const u32 ring = shared_address(memory);
  const u32 scales = ring + STAGES * kStage;
  Kept& kept = *(Kept*)(memory + STAGES * kStage + kScaleArea);
  const u32 lane = threadIdx.x % 32;
  const u32 warp = threadIdx.x / 32;
  const u32 wk = warp % KW;
  const u32 wr = warp / KW % WR;
  const u32 wt = warp / (KW * WR);
  // GEMM 2's plan is older than the kernel in front of it, so it asks for weights before it waits.
  bool waited = GATED || !p.second;
  if (waited) {
    dependency_wait();
    if (p.early) launch_dependents();
  }
  const u32 slices = (u32)(p.n + kUnitColumns - 1) / kUnitColumns;
  const u32 units = (u32)*p.num_tiles * slices;
  const int steps = (p.depth + kStep - 1) / kStep;
#if CHAINED
  reset_marks(scales);
#endif
  for (u32 number = blockIdx.x; number < units;) {
    Unit unit = find_unit(p, number, slices);
#if FUSED
    if (threadIdx.x == 0) kept.number = number;
#else
    u32 ticket = 0;
#endif
#pragma unroll 1
    for (int pass = 0; pass == 0 || (pass < kPasses && unit.n0 < p.n); ++pass, unit.n0 += kColumns) {
      Copies copies = plan_copies(p, unit);
#pragma unroll
      for (int s = 0; s < STAGES - 1; ++s) copy_weights(p, copies, ring + s * kStage, s);
      if (!waited) {
        dependency_wait();
        if (p.early) launch_dependents();
        waited = true;
      }
      keep_rows(p, unit, kept);
      __syncthreads();
#pragma unroll
      for (int i = 0; i < kTokenCopies; ++i)
        copies.x[i] = kept.rows[(int)threadIdx.x / kChunks + i * kRowsApart];
      copies.x_rows = unit.rows - (int)threadIdx.x / kChunks;
#if FORMAT == 1
      const ScaleCopies scale_copies = plan_scales(p, unit);
#endif
#if CHAINED
      copy_scales(p, scale_copies, scales, 0);
      reset_units(scales);
#endif
#pragma unroll
      for (int s = 0; s < STAGES - 1; ++s) {
        copy_tokens(p, copies, ring + s * kStage, s);
#if FORMAT == 1
        copy_scales(p, scale_copies, scales + (s + kScalesAhead) % STAGES * kScaleBytes, s + kScalesAhead);
#endif
        copy_commit();
      }
      keep_factors(p, unit, kept);

      float sum[kMt][kNt][4];
#pragma unroll
      for (int i = 0; i < kMt; ++i)
#pragma unroll
        for (int j = 0; j < kNt; ++j)
#pragma unroll
          for (int v = 0; v < 4; ++v) sum[i][j][v] = 0.0f;
      // Pairs of n8 tiles are dealt out to the WT warps in turn.
      const int pairs = PADDED ? TOKENS / 16 : (unit.rows + 15) / 16;
      const int active =
          kNt == 1 ? (PADDED || unit.rows > 8 * (int)wt ? 1 : 0) : (pairs - (int)wt + WT - 1) / WT;
#if CARRY
#if FORMAT != 1
      constexpr ScaleCopies scale_copies{};
#endif
      run_through(p, {copies, scale_copies, ring, scales, steps, wk, wr, wt, lane}, active, sum);
#else
      u32 slot = 0;
      for (int k = 0; k < steps; ++k) {
        copy_wait<STAGES - 2>();
#if CHAINED
        if (k == 0) put_ratios(p, scales, scales, 0);
#endif
        __syncthreads();
        const auto copy_ahead = [&] {
          const u32 to = slot == 0 ? STAGES - 1 : slot - 1;
          copy_weights(p, copies, ring + to * kStage, k + STAGES - 1);
          copy_tokens(p, copies, ring + to * kStage, k + STAGES - 1);
#if FORMAT == 1
          copy_scales(p, scale_copies, scales + (kScalesAhead != 0 ? slot : to) * kScaleBytes,
                      k + STAGES - 1 + kScalesAhead);
#endif
#if CHAINED
          put_ratios(p, scales, scales + (slot + 1 == STAGES ? 0 : slot + 1) * kScaleBytes, k + 1);
#endif
          copy_commit();
        };
        const u32 stage = ring + slot * kStage;
        const u32 weights = stage + wk * (ROWS * kRowBytes) + wr * (kMt * 16 * kRowBytes);
        const u32 tokens =
            stage + kWeightBytes + wk * (TOKENS * kRowBytes) + wt * ((kNt > 1 ? 16 : 8) * kRowBytes);
#if CHAINED
        const u32 stage_scales = ratios_of(scales, k);
#else
        const u32 stage_scales = scales + slot * kScaleBytes;
#endif
        const u32 token_scales = stage_scales + 4 * (wk * TOKENS + wt * (kNt > 1 ? 16 : 8));
        const u32 weight_scales = stage_scales + 4 * (KW * TOKENS + 2 * wk);
        // The pairs that have tokens, in quarters of a warp's.
        constexpr int kQuarter = (kPairs + 3) / 4;
#if CHAINED
        change_units(sum, token_scales, weight_scales, lane);
        if (active > 0 && sums_apart(scales, k)) {
          copy_ahead();
          multiply_apart(sum, weights, tokens, token_scales, weight_scales, lane);
        } else
#endif
            if (active > 3 * kQuarter || (active > 0 && kPairs == 1))
          run_step<kPairs>(sum, weights, tokens, token_scales, weight_scales, lane, copy_ahead);
        else if (active > 2 * kQuarter)
          run_step<min_of(3 * kQuarter, kPairs)>(sum, weights, tokens, token_scales, weight_scales, lane,
                                                 copy_ahead);
        else if (active > kQuarter)
          run_step<min_of(2 * kQuarter, kPairs)>(sum, weights, tokens, token_scales, weight_scales, lane,
                                                 copy_ahead);
        else if (active > 0)
          run_step<kQuarter>(sum, weights, tokens, token_scales, weight_scales, lane, copy_ahead);
        else
          copy_ahead();
        slot = slot + 1 == STAGES ? 0 : slot + 1;
      }
#endif

      copy_wait<0>();
      __syncthreads();  // the ring is free: sums take its place
      // The next unit: asked for here, so that the answer is there behind the epilogue.
      if (threadIdx.x == 0 && (pass + 1 == kPasses || kept.unit.n0 + kColumns >= p.n)) {
#if FUSED
        kept.next = p.tickets != nullptr ? gridDim.x + atomicAdd(p.tickets, 1u) : kept.number + gridDim.x;
#else
        if (p.tickets != nullptr) ticket = atomicAdd(p.tickets, 1u);
#endif
      }
      float* const sums = (float*)memory;
      if (active > 0) {
        const u32 row = wr * (kMt * 16) + lane / 4;
#pragma unroll
        for (int j = 0; j < kNt; ++j) {
          const u32 token =
              (kNt > 1 ? (u32)(j / 2 * WT * 16 + j % 2 * 8) + wt * 16 : wt * 8) + 2 * (lane % 4);
          float* const to = sums + (wk * TOKENS + token) * kPitch + row;
#if CHAINED
          const float2 t = load_shared2(scales + kUnits + 4 * (wk * TOKENS + token));
          const float2 w = load_shared2(scales + kUnits + 4 * (KW * TOKENS + 2 * wk));
#pragma unroll
          for (int i = 0; i < kMt; ++i) {
            sum[i][j][0] *= w.x * t.x;
            sum[i][j][1] *= w.x * t.y;
            sum[i][j][2] *= w.y * t.x;
            sum[i][j][3] *= w.y * t.y;
          }
#endif
#pragma unroll
          for (int i = 0; i < kMt; ++i) {
            to[16 * i] = sum[i][j][0];
            to[16 * i + kPitch] = sum[i][j][1];
            to[16 * i + 8] = sum[i][j][2];
            to[16 * i + 8 + kPitch] = sum[i][j][3];
          }
        }
      }
      __syncthreads();
#if CHAINED
      reset_marks(scales);
#endif
#if FUSED
      finish_codes(p, sums, kept, pass);
      unit = kept.unit;  // kept there while the registers are full
#else
      finish(p, sums, kept);
      if (threadIdx.x == 0) kept.next = gridDim.x + (p.tickets != nullptr ? ticket : number);
#endif
      __syncthreads();  // ... and the ring's again
    }
    number = kept.next;
  }
  if (!waited) dependency_wait();
}

// Decoding codes by bit operations takes registers, and below sm_89 no SM has shared memory for a third
// block.
#if __CUDA_ARCH__ < 890
constexpr int kBlocks = BLOCKS < 2 ? BLOCKS : 2;
#else
constexpr int kBlocks = BLOCKS;
#endif

extern "C" __global__ void __launch_bounds__(kThreads, kBlocks)
    gemm(const __grid_constant__ PortableParams p) {
  run_gemm(p);
}
