// The parts of the sort that have no rows to convert beside them: the first two of three launches, which
// count slots per chunk and expert and scan the counts over the chunks, and capacity, which is the same sort
// with another ending (kernels/prologue/sort.cuh).
#include "prologue/sort.cuh"

extern __shared__ __align__(16) u32 g_shared[];

// Block c counts the slots of chunk c. Sums alone come out of atomics, so their order does not matter.
extern "C" __global__ void __launch_bounds__(kPrologueThreads, 2)
    count_chunks(const __grid_constant__ SortParams p) {
  u32* const invalid = g_shared;
  u32* const counts = g_shared + 2;
  for (u32 i = threadIdx.x; i < p.experts + 2; i += kPrologueThreads) g_shared[i] = 0;
  __syncthreads();
  dependency_wait();
  launch_dependents();
  u32 begin, end;
  block_slots(p, blockIdx.x, begin, end);
  for (u32 slot = begin + threadIdx.x; slot < end; slot += kPrologueThreads) {
    const i32 e = local_expert(load_id(slot, p), p);
    if (e >= 0) {
      atomicAdd(&counts[e], 1u);
    } else {
      atomicAdd(&invalid[e == kMasked ? 0 : 1], 1u);
    }
  }
  __syncthreads();
  for (u32 e = threadIdx.x; e < p.experts; e += kPrologueThreads)
    p.counts[(i64)blockIdx.x * p.experts + e] = (i32)counts[e];
  if (threadIdx.x == 0) add_counters(p, invalid[0], invalid[1]);
}

// A block for 32 experts (a lane each): every warp sums its range of chunks, then writes the exclusive
// prefixes over the chunks in place. Row `chunks` receives the totals.
extern "C" __global__ void __launch_bounds__(kPrologueThreads, 2)
    scan_chunks(const __grid_constant__ SortParams p) {
  __shared__ u32 sums[kPrologueWarps][32];
  const u32 lane = threadIdx.x % 32;
  const u32 warp = threadIdx.x / 32;
  const u32 e = blockIdx.x * 32 + lane;
  const u32 each = (p.chunks + kPrologueWarps - 1) / kPrologueWarps;
  const u32 from = warp * each < p.chunks ? warp * each : p.chunks;
  const u32 to = p.chunks - from < each ? p.chunks : from + each;
  const bool inside = e < p.experts;
  i32* const column = p.counts + e;
  dependency_wait();
  launch_dependents();
  u32 sum = 0;
#pragma unroll 8
  for (u32 c = from; c < to; ++c) sum += inside ? (u32)column[(i64)c * p.experts] : 0;
  sums[warp][lane] = sum;
  __syncthreads();
  u32 before = 0;
  u32 all = 0;
#pragma unroll
  for (u32 w = 0; w < kPrologueWarps; ++w) {
    before += w < warp ? sums[w][lane] : 0;
    all += sums[w][lane];
  }
  if (!inside) return;
  for (u32 c = from; c < to; ++c) {
    const u32 count = (u32)column[(i64)c * p.experts];
    column[(i64)c * p.experts] = (i32)before;
    before += count;
  }
  if (warp == 0) column[(i64)p.chunks * p.experts] = (i32)all;
}

// Capacity in one launch (mode kSortHere) or as the third of three (kSortCounted).
extern "C" __global__ void __launch_bounds__(kPrologueThreads, 2)
    drop(const __grid_constant__ PrologueParams p) {
  const SortShared s = carve_sort(g_shared, p.sort.experts);
  clear_sort(s);
  dependency_wait();
  launch_dependents();
  sort_block<true>(p.sort, s, OnePlan{}, p.mode == kSortCounted);
}
