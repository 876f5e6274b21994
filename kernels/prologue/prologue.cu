// The prologue's main kernel: the sorted row index and the tile plan by the first blocks of the grid, GEMM1's
// input by the others (PrologueMode says how), in one launch for few slots and as the last of three for many.
//
//   X_TYPE  0: x is read in place, there is nothing to convert; else as in quantize.cuh, with FORMAT
//   ROUTED  1: ids and weights do not exist yet; the sorting blocks route their tokens first
#if X_TYPE != 0
#include "prologue/quantize.cuh"
#endif
#include "prologue/sort_few.cuh"
#if ROUTED
#include "prologue/route_token.cuh"
#endif

extern __shared__ __align__(16) u32 g_shared[];

// The batched entry: counts instead of ids. Every block scans the counts; slots are dealt out.
__device__ __forceinline__ void batched_index(const PrologueParams& p, const SortShared& s) {
  u32 count[2] = {0, 0};
#pragma unroll
  for (u32 i = 0; i < 2; ++i) {
    const u32 e = 2 * threadIdx.x + i;
    if (e >= p.sort.experts) continue;
    const i64 n = p.batch.counts_wide != 0 ? static_cast<const i64*>(p.batch.counts)[e]
                                           : (i64) static_cast<const i32*>(p.batch.counts)[e];
    count[i] = n < 0 ? 0 : n > (i64)p.batch.max_tokens ? p.batch.max_tokens : (u32)n;
  }
  const u32 tiles = scan_experts(s, p.sort.experts, p.sort.tile_m, count[0], count[1], 0, 0);
  __syncthreads();
  if (blockIdx.x == 0) store_offsets(p.sort, s, tiles);
  const u32 step = gridDim.x * kPrologueThreads;
  for (u64 at = (u64)blockIdx.x * kPrologueThreads + threadIdx.x; at < p.sort.slots; at += step) {
    const u32 slot = (u32)at;
    const u32 e = slot / p.batch.max_tokens;
    const u32 row = s.first[e] + (slot - e * p.batch.max_tokens);
    if (row < s.first[e + 1]) {
      store_row(p.sort, s, e, row, slot);
    } else {
      p.sort.positions[slot] = -1;
    }
  }
}

#if ROUTED
// The tokens of this block's slots, a warp each; ids also go to the entries, where the sort reads them. The
// warps' scratch lies behind the entries. At most 256 experts: 8 logits per lane. Not inlined:
// its registers and the sort's do not fit together.
__device__ __noinline__ void route_block(const RouteParams& r, const SortParams& p, u32* entry) {
  const u32 warp = threadIdx.x / 32;
  u32 begin, end;
  block_slots(p, 0, begin, end);
  u32* const scratch = entry + p.chunk + warp * route_shared_words(r.experts, r.num_groups);
  const u32 first = begin / p.top_k;
  for (u32 t = first + warp; t < end / p.top_k; t += kPrologueWarps)
    store_slots(r, t, route_token<8>(r, t, scratch), entry + (t - first) * p.top_k);
}
#endif

__device__ __forceinline__ void sort_part(const PrologueParams& p, const SortShared& s) {
  const bool counted = !ROUTED && p.mode == kSortCounted;
  const bool alone = !counted && p.sort.chunks == 1;
  const bool tiny = alone && p.sort.slots <= kTinySlots;
  const bool few = alone && p.sort.slots <= kFewSlots && p.sort.experts <= kFewExperts;
  const TileDivider tile(p.sort.tile_m);
  if (!tiny) clear_sort(s);
#if ROUTED
  prefetch_logits(p.route, threadIdx.x / 32, kPrologueWarps);
#else
  if (!counted) prefetch_ids(p.sort, blockIdx.x);
#endif
  dependency_wait();
  if (p.trigger != 0) launch_dependents();
#if ROUTED
  route_block(p.route, p.sort, s.entry);
  __syncthreads();
#endif
  // Routed calls are few slots always (Prologue::fuses).
  if (tiny) {
    if (p.sort.slots <= 32) {
      sort_tiny<1, ROUTED != 0>(p.sort, s.entry, tile);
    } else {
      sort_tiny<2, ROUTED != 0>(p.sort, s.entry, tile);
    }
  } else if (few || ROUTED) {
    sort_few<ROUTED != 0>(p.sort, s, tile);
  } else {
    // Carved again rather than kept in registers across the other two.
    sort_block<false>(p.sort, carve_sort(g_shared, p.sort.experts), counted);
  }
}

extern "C" __global__ void __launch_bounds__(kPrologueThreads, 2)
    prologue(const __grid_constant__ PrologueParams p) {
  const SortShared s = carve_sort(g_shared, p.sort.experts);
  u32 part = blockIdx.x;
  u32 parts = gridDim.x;
  // Routing happens in one launch only (kSortHere).
  const bool batched = !ROUTED && p.mode == kBatched;
  if (batched) {
    dependency_wait();
    if (p.trigger != 0) launch_dependents();
    batched_index(p, s);
  } else {
    if (blockIdx.x < p.sort.chunks) {
      sort_part(p, s);
      return;
    }
    part -= p.sort.chunks;
    parts -= p.sort.chunks;
  }
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
