// The prologue's main kernel: the sorted row index and the tile plan by the first blocks of the grid, GEMM1's
// input by the others (PrologueMode says how), in one launch for few slots and as the last of three for many.
// The last EarlyWeights::blocks blocks, where there are any, ask L2 for weights instead.
//
//   X_TYPE  0: x is read in place, there is nothing to convert; else as in quantize.cuh, with FORMAT
#if X_TYPE != 0
#include "prologue/quantize.cuh"
#endif
#include "prologue/decide_few.cuh"

extern __shared__ __align__(16) u32 g_shared[];

// The batched entry: counts instead of ids. Every block scans the counts; slots are dealt out.
template <typename Plan>
__device__ __forceinline__ void batched_index(const PrologueParams& p, const SortShared& s, Plan plan) {
  u32 count[2] = {0, 0};
#pragma unroll
  for (u32 i = 0; i < 2; ++i) {
    const u32 e = 2 * threadIdx.x + i;
    if (e >= p.sort.experts) continue;
    const i64 n = p.batch.counts_wide != 0 ? static_cast<const i64*>(p.batch.counts)[e]
                                           : (i64) static_cast<const i32*>(p.batch.counts)[e];
    count[i] = n < 0 ? 0 : n > (i64)p.batch.max_tokens ? p.batch.max_tokens : (u32)n;
  }
  plan.prepare_alone();
  plan.scan(p.sort, s, count[0], count[1], 0, 0);
  __syncthreads();
  if (blockIdx.x == 0) {
    store_offsets(p.sort, s);
    plan.store(p.sort, s);
  }
  const u32 step = gridDim.x * kPrologueThreads;
  for (u64 at = (u64)blockIdx.x * kPrologueThreads + threadIdx.x; at < p.sort.slots; at += step) {
    const u32 slot = (u32)at;
    const u32 e = slot / p.batch.max_tokens;
    const u32 row = s.first[e] + (slot - e * p.batch.max_tokens);
    if (row < s.first[e + 1]) {
      store_row(p.sort, s, plan, e, row, slot);
    } else {
      p.sort.positions[slot] = -1;
    }
  }
}

__device__ __forceinline__ void sort_part(const PrologueParams& p, const SortShared& s) {
  const bool counted = p.mode == kSortCounted;
  const bool alone = !counted && p.sort.chunks == 1;
  const bool tiny = alone && p.sort.slots <= kTinySlots;
  const bool few = alone && p.sort.slots <= kFewSlots && p.sort.experts <= kFewExperts;
  const TileDivider tile(p.sort.tile_m);
  if (!tiny) clear_sort(s);
  if (!counted) prefetch_ids(p.sort, blockIdx.x);
  dependency_wait();
  if (p.trigger != 0) launch_dependents();
  if (tiny) {
    if (p.sort.slots <= 32) {
      sort_tiny<1>(p.sort, tile);
    } else {
      sort_tiny<2>(p.sort, tile);
    }
  } else if (few) {
    sort_few(p.sort, s, tile);
  } else {
    // Carved again rather than kept in registers across the other two.
    sort_block<false>(p.sort, carve_sort(g_shared, p.sort.experts), OnePlan{}, counted);
  }
}
// With several candidates.
__device__ __forceinline__ void sort_decided(const DecidedPrologueParams& both, const DecideTable& data,
                                             const SortShared& s, DecideShared& shared) {
  const PrologueParams& p = both.prologue;
  const bool counted = p.mode == kSortCounted;
  const bool alone = !counted && p.sort.chunks == 1 && p.choices != 0;
  const bool tiny = alone && p.sort.slots <= kTinySlots;
  const bool few = alone && p.sort.slots <= kFewSlots && p.sort.experts <= kFewExperts;
  if (tiny) {
    const TinyCopy copy(data, p.sort.slots);
    prefetch_ids(p.sort, blockIdx.x);
    dependency_wait();
    if (p.trigger != 0) launch_dependents();
    if (p.sort.slots <= 32) {
      decide_tiny<1>(p.sort, s, both.table, copy, shared, p.choices, p.traced != 0);
    } else {
      decide_tiny<2>(p.sort, s, both.table, copy, shared, p.choices, p.traced != 0);
    }
  } else {
    const TableCopy copy(data);
    clear_totals(shared);
    clear_sort(s);
    if (!counted) prefetch_ids(p.sort, blockIdx.x);
    dependency_wait();
    if (p.trigger != 0) launch_dependents();
    const DecideInput in{kCopiesTable ? shared.table : both.table, shared, p.choices};
    if (few) {
      decide_few(p.sort, s, in, copy);
    } else {
      // Carved again, as in sort_part().
      sort_block<false>(p.sort, carve_sort(g_shared + kDecideWords, p.sort.experts), DecidedPlans{in, copy},
                        counted);
    }
  }
  if (p.traced == 0 || blockIdx.x != 0) return;
  __syncthreads();
  write_record(data, shared, s, p.sort.experts, few && !tiny ? 0xffffu : 0xffffffffu);
}

// The rows of x, by block `part` of `parts`.
__device__ __forceinline__ void rows_part(const PrologueParams& p, const SortShared& s, u32 part, u32 parts) {
  const bool batched = p.mode == kBatched;
  // Rows need not wait where a launch of this library's own is in front that has waited for whatever wrote x
  // before this one could begin (`early`); but this launch must not end before that one.
#if X_TYPE != 0
  const bool early = p.early != 0;
  if (!batched && !early) {
    prefetch_rows(p.rows, part, parts);
    dependency_wait();
    if (p.trigger != 0) launch_dependents();
  }
  const u32 rows = batched ? s.first[p.sort.experts] : p.rows.rows;
  convert(p.rows, BatchRows{s.first, p.sort.experts, p.batch.max_tokens}, rows, part, parts,
          reinterpret_cast<float*>(g_shared));
  if (early) dependency_wait();
#else
  if (!batched) dependency_wait();
#endif
}

// Memory has little to do from here until GEMM 1's blocks know their items. Weights depend on nothing that
// kernels in front of this one write.
__device__ __forceinline__ void ask_for_all(const EarlyWeights& w) {
#if __CUDA_ARCH__ >= 900
  if (threadIdx.x == kPrologueThreads - 1)
    for (u32 i = blockIdx.x; i < w.count; i += gridDim.x) prefetch_bytes(w.first + i * w.stride, w.bytes);
#endif
}
// Block `block` of EarlyWeights::blocks: a set of experts as bits, their numbers in order, and this block's
// share of their pieces.
__device__ __forceinline__ void ask_for_active(const PrologueParams& p, u32 block) {
#if __CUDA_ARCH__ >= 900
  const EarlyWeights& w = p.weights;
  u32* const set = g_shared;
  u32* const expert = g_shared + kEarlySetWords;
  if (threadIdx.x < kEarlySetWords) set[threadIdx.x] = 0;
  prefetch_ids(p.sort, 0);
  __syncthreads();
  dependency_wait();
  if (p.trigger != 0) launch_dependents();
  const i32 mine = expert_of_slot(p.sort, threadIdx.x);
  if (mine >= 0) atomicOr(set + mine / 32, 1u << mine % 32);
  __syncthreads();
  u32 active = 0, lower[2] = {0, 0};
#pragma unroll 8
  for (u32 i = 0; i < (p.sort.experts + 31) / 32; ++i) {
    const u32 bits = __popc(set[i]);
    active += bits;
    lower[0] += i < threadIdx.x / 32 ? bits : 0;
    lower[1] += i < (threadIdx.x + kPrologueThreads) / 32 ? bits : 0;
  }
#pragma unroll
  for (u32 i = 0; i < 2; ++i) {
    const u32 e = threadIdx.x + i * kPrologueThreads;
    if (e >= p.sort.experts) continue;
    const u32 bits = set[e / 32];
    if (bits >> e % 32 & 1) expert[lower[i] + __popc(bits & ((1u << e % 32) - 1u))] = e;
  }
  __syncthreads();
  const u32 pieces = active * w.pieces < w.count ? active * w.pieces : w.count;
  const u32 i = block + threadIdx.x * w.blocks;
  if (i >= pieces) return;
  const u64 bytes = (u64)(w.count / pieces) * w.bytes;
  const u32 number = expert[i / w.pieces] * w.pieces + i % w.pieces;
  prefetch_bytes(w.first + number * w.stride, (u32)(bytes < w.stride ? bytes : w.stride));
#endif
}

extern "C" __global__ void __launch_bounds__(kPrologueThreads, 2)
    prologue(const __grid_constant__ PrologueParams p) {
  const bool foreseen = p.weights.blocks == 0;
  if (foreseen) ask_for_all(p.weights);
  const SortShared s = carve_sort(g_shared, p.sort.experts);
  if (p.mode == kBatched) {
    dependency_wait();
    if (p.trigger != 0) launch_dependents();
    batched_index(p, s, OnePlan{});
    rows_part(p, s, blockIdx.x, gridDim.x);
  } else if (blockIdx.x < p.sort.chunks) {
    sort_part(p, s);
  } else if (foreseen || blockIdx.x < gridDim.x - p.weights.blocks) {
    rows_part(p, s, blockIdx.x - p.sort.chunks, gridDim.x - p.sort.chunks - p.weights.blocks);
  } else {
    ask_for_active(p, blockIdx.x - (gridDim.x - p.weights.blocks));
  }
}

#if FORMAT == 1
// The same with a decision among several candidates (params/decide.hpp): tiles go to their plans.
extern "C" __global__ void __launch_bounds__(kPrologueThreads, 2)
    prologue_decide(const __grid_constant__ DecidedPrologueParams both) {
  const PrologueParams& p = both.prologue;
  const DecideTable& data = as_data(both.table);
  DecideShared& shared = *reinterpret_cast<DecideShared*>(g_shared);
  const SortShared s = carve_sort(g_shared + kDecideWords, p.sort.experts);
  if (p.mode == kBatched) {
    const TableCopy copy(data);
    clear_totals(shared);
    dependency_wait();
    if (p.trigger != 0) launch_dependents();
    const DecideInput in{kCopiesTable ? shared.table : both.table, shared, p.choices};
    batched_index(p, s, DecidedPlans{in, copy});
    if (p.traced != 0 && blockIdx.x == 0) {
      __syncthreads();
      write_record(data, shared, s, p.sort.experts, 0xffffffffu);
    }
  } else if (blockIdx.x < p.sort.chunks) {
    sort_decided(both, data, s, shared);
    return;
  }
  const u32 sorting = p.mode == kBatched ? 0 : p.sort.chunks;
  rows_part(p, s, blockIdx.x - sorting, gridDim.x - sorting);
}
#endif
