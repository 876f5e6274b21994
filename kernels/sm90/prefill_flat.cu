// The prefill kernel for weights without scales along the depth (bf16, fp16, fp8_tensor, fp8_channel;
// sm_90a): one GEMM of the expert block at the speed of the tensor cores, for experts with many rows. As
// prefill.cu: items of 128 token rows x 256 weight rows, two math warpgroups of 64 rows each (or of a slice
// each, where an item has at most 64 rows), clusters of two that share weights by multicast, a persistent
// grid. A step of 16-bit types is 64 deep, and their sums stay in the accumulators over the whole depth: one
// m64n256 chain per warpgroup, which reads 80 KB of shared memory a step instead of 96. e4m3 sums start anew
// every 128. Scales are factors of rows: the epilogue applies them. The sums' order, and so the bits, are
// stream_flat.cu's.
//
//   FORMAT      ramp_format: 2 bf16, 3 fp16, 5 fp8_tensor, 6 fp8_channel
//   GEMM        1: w13, activation; h in the type of the weights, packed (fp8_channel: fp32 rows, requantised
//               behind). 2: w2, router weight; rows as bf16 (fp16: fp32)
//   ACTIVATION  GEMM 1: ramp_activation (0 silu, 1 gelu, 2 gelu_tanh, times up)
//   STAGES      ring depth: 48 KB each
//   FAST        GEMM 2: 1: rows are added to their tokens' sums (prefill_fast.cuh)
#define FP8 (FORMAT >= 5)
#define GATHERED (GEMM == 1 || FORMAT == 6)
#if FORMAT == 2
#define WGMMA_BF16
#elif FORMAT == 3
#define WGMMA_F16
#else
#define WGMMA_E4M3
#endif
#include "common/types.cuh"
#include "params/block.hpp"
#include "params/prefill.hpp"
#include "sm90/prefill_fast.cuh"
#include "sm90/prefill_flat_copy.cuh"
#include "sm90/prefill_flat_math.cuh"
#include "sm90/prefill_flat_store.cuh"
#include "sm90/prefill_items.cuh"
#include "sm90/prefill_ptx.cuh"
#include "sm90/ptx.cuh"

template <int SLICES>
__device__ __forceinline__ void run_item(const PrefillParams& p, const Shared& s, const Item& item,
                                         Place& at) {
  const u32 group = __shfl_sync(0xffffffffu, threadIdx.x / 128, 0);  // in a uniform register
  float sum[64 * SLICES];
  RowValues values;
  accumulate<SLICES>(p, s, item, at, group, sum, values);
#if FP8
  apply_scales<SLICES>(p, item, group, sum, values);
#endif
#if GEMM == 1
  store_h<SLICES>(p, s, item, group, sum);
#elif FAST
  add_rows<SLICES>(p, item, group, warp_row<SLICES>(group), values.slot, values.weight,
                   [&](int i) -> const float* { return sum + 64 * i; });
#else
  store_rows<SLICES>(p, s, item, group, sum, values.weight);
#endif
}

__device__ __forceinline__ void compute(const PrefillParams& p, const Shared& s) {
  const u32 units = units_of(p);
  Place at;
  for (Walk walk; walk.unit() < units; walk.next()) {
    barrier_wait(s.full + 8 * at.slot, at.round);
    const Item item = announced_flat(s, at);
    if (item.rows > 64) {
      run_item<2>(p, s, item, at);
    } else if (item.rows > 0) {
      run_item<1>(p, s, item, at);
    } else {
      for (int k = 0; k < p.steps; ++k, at.next()) {
        barrier_wait(s.full + 8 * at.slot, at.round);
        __syncwarp();  // every lane has read the item
        release_flat(s, at.slot);
      }
    }
  }
  if (GEMM == 1) bulk_wait();
}

extern "C" __global__ void __cluster_dims__(2, 1, 1) __launch_bounds__(384, 1)
    prefill_flat(const __grid_constant__ PrefillParams p) {
  extern __shared__ __align__(1024) u8 memory[];
  Shared s{};
  s.ring = shared_address(memory);
  s.staging = s.ring + STAGES * kStage;
  s.items = s.staging + 8 * kFlatStaging;
  s.full = s.items + 16 * STAGES;
  s.empty = s.full + 8 * STAGES;
  s.rank = cluster_rank();
  if (threadIdx.x == 0) {
    for (u32 i = 0; i < STAGES; ++i) {
      // The announcement of bytes, and the gathering threads; a lane of either block's eight math warps.
      barrier_init(s.full + 8 * i, GATHERED ? 129 : 1);
      barrier_init(s.empty + 8 * i, 16);
    }
    barrier_init_fence();
  }
  cluster_sync();
  dependency_wait();
  if (p.early) launch_dependents();
  if (threadIdx.x >= kMathThreads) {
    registers_release<GATHERED ? 56 : 40>();
#if GATHERED
    gather_flat(p, s);
#else
    if (threadIdx.x == kMathThreads) bring_flat(p, s);
#endif
  } else {
    registers_take<GATHERED ? 224 : 232>();
    compute(p, s);
  }
  cluster_sync();  // no block leaves while its partner may still write to it
}
