// The stream probe's kernel: persistent blocks walk their queue of items (weight slices) with three roles.
// One warp issues weight copies as far ahead as the ring allows, one brings token rows, the others do math.
// The same kernel runs one GEMM of three launches or (SINGLE) both in one launch. device.cuh lists the
// macros.
//
// What keeps it from hanging: every item's steps are brought and consumed in queue order by all three roles,
// so a slot's barrier is never more than one phase ahead of any waiter. SINGLE: the grid is co-resident (the
// host asks the occupancy), GEMM1 items wait for nothing and precede GEMM2 items in every queue, only the
// token warp waits for ready counters. Clusters: all blocks of one walk the same queue and leave together.
#include "math.cuh"

// The part of an item that this block works on: with CAST, half of its 8-row groups, the first block's share
// the larger. A block without rows still consumes the tiles, on eight rows whose sums are not stored.
struct View {
  u32 skip, width, rows;  // 8-row groups before and in it; valid rows
  __device__ __forceinline__ View(const Item& item, u32 rank) {
    const u32 groups = (item.rows + 7) / 8;
    skip = 0;
    width = groups;
    rows = item.rows;
#if CAST
    const u32 half = (groups + 1) / 2;
    skip = rank * half;
    width = rank == 0 ? half : groups - half;
    rows = rank == 0 ? min(item.rows, half * 8) : item.rows - min(item.rows, half * 8);
    if (width == 0) {
      skip = 0;
      width = 1;
    }
#endif
  }
};

// Shared memory behind the ring.
struct Shared {
  u32 exchange;  // SPLIT: partial sums of the other ranks
  u32 arrived;   // SPLIT: barrier, partial sums are here (leader)
  u32 drained;   // SPLIT: barrier, the leader has read them (others)
  u32 flag;      // SINGLE: this block combines the slice
};

// A copy role's queue, one item loaded ahead.
struct Queue {
  const Item* items;
  u32 count, i, stride;
  Item now;
  __device__ __forceinline__ Queue(const Args& args)
      : items(args.items), count(args.count), i(blockIdx.x / kCluster), stride(gridDim.x / kCluster) {
    load();
  }
  __device__ __forceinline__ void load() {
    now.steps = 0;
    if (i < count) now = items[i];
    i += stride;
  }
  __device__ __forceinline__ bool take(Item& item) {
    item = now;
    if (item.steps != 0) load();
    return item.steps != 0;
  }
};

__device__ __forceinline__ void bring_weights(const Args& args, const Ring& ring, u32 rank) {
  Cursor at;
  Item item;
#if HINT
  const u64 policy = evict_first();
#endif
#if TENSOR
  prefetch_map(&args.maps[0]);
  if (SINGLE) prefetch_map(&args.maps[1]);
#endif
  for (Queue queue(args); queue.take(item);) {
    const u32 steps = item.steps / SPLIT;
    const u32 depth = SPLIT > 1 ? rank * steps : 0;
    const u64 tile = item.tile + depth;
    const u8* src = args.weights + tile * kPackedTile + item.half;
    for (u32 k = 0; k < steps; ++k, at.advance(), src += kPackedTile) {
      const u32 full = ring.full + 8 * at.slot;
      const u32 dst = ring.stages + at.slot * kStage;
      watched_wait(ring.empty + 8 * at.slot, at.phase ^ 1);
      barrier_expect(full, kTile + (FP8 && MATH ? 16 : 0));
#if TENSOR
      tensor_copy(dst, &args.maps[item.gemm], (depth + k) * kRowBytes, item.weight_row, full);
#elif CAST
      bulk_copy_cast(dst + rank * (kTile / 2), src + rank * (kTile / 2), kTile / 2, full, 3);
#elif HINT
      bulk_copy_hint(dst, src, kTile, full, policy);
#else
      bulk_copy(dst, src, kTile, full);
#endif
#if FP8 && MATH
      // A step's scales are 8 bytes, a bulk copy 16: the pair that holds them.
      bulk_copy(ring.scales + at.slot * kScaleBytes + WIDTH * 4,
                args.weight_scales + 2 * ((tile + k) & ~1ull), 16, full);
#endif
    }
  }
}

#if MATH && PACKED
// One thread: a token block and its scales are one bulk copy each.
__device__ __forceinline__ void bring_packed_tokens(const Args& args, const Ring& ring, u32 rank) {
  Cursor at;
  Item item;
  for (Queue queue(args); queue.take(item);) {
    const u32 steps = item.steps / SPLIT;
    const u32 groups = (item.rows + 7) / 8;
    const View view(item, rank);
    const u8* x = args.gemm[item.gemm].x;
    const float* x_scales = args.gemm[item.gemm].x_scales;
    u64 block = item.x_at + (SPLIT > 1 ? (u64)rank * steps * groups : 0) + view.skip;
#if SINGLE
    // GEMM1's blocks wrote these rows with generic stores, fenced, and released the counter.
    u32* ready = args.counters + 2 * item.counter;
    if (item.need != 0) {
      const Watchdog dog;
      while (load_acquire(ready) < item.need) dog.check();
      proxy_fence_all();
    }
#endif
    for (u32 k = 0; k < steps; ++k, at.advance(), block += groups) {
      const u32 full = ring.full + 8 * at.slot;
      watched_wait(ring.empty + 8 * at.slot, at.phase ^ 1);
      barrier_expect(full, view.width * (FP8 ? 1024 + 32 : 1024));
      bulk_copy(ring.stages + at.slot * kStage + kTile, x + block * 1024, view.width * 1024, full);
      if (FP8) bulk_copy(ring.scales + at.slot * kScaleBytes, x_scales + block * 8, view.width * 32, full);
    }
#if SINGLE
    // The last wait on a counter resets it for the next launch.
    if (item.need != 0 && add_acq_rel(ready + 1) == item.consumers - 1) {
      ready[0] = 0;
      ready[1] = 0;
    }
#endif
  }
}
#elif MATH
// Token rows by index, 16 bytes a copy, swizzled by hand; rows past the last valid one repeat the item's
// first.
__device__ __forceinline__ void gather_tokens(const Args& args, const Ring& ring, u32 rank) {
  const u32 lane = threadIdx.x % 32;
  const Gemm& gemm = args.gemm[0];
  Cursor at;
  Cursor signalled;  // rows up to here have been signalled, `late` steps behind
  u32 late = 0;
  Item item;
  for (Queue queue(args); queue.take(item);) {
    const u32 steps = item.steps / SPLIT;
    const View view(item, rank);
    const u32* index = gemm.row_index + item.row0 + view.skip * 8;
    u32 rows[WIDTH / 4];                // of this lane's 16-byte parts: lane / 8 + 4 i
    u32 scale_rows[(WIDTH + 31) / 32];  // of this lane's token scales: lane + 32 i
#pragma unroll
    for (u32 i = 0; i < WIDTH / 4; ++i) {
      const u32 r = lane / 8 + 4 * i;
      rows[i] = index[r < view.rows ? r : 0];
    }
#pragma unroll
    for (u32 i = 0; i < (WIDTH + 31) / 32; ++i)
      scale_rows[i] = index[lane + 32 * i < view.rows ? lane + 32 * i : 0];
    for (u32 k = 0; k < steps; ++k, at.advance()) {
      const u32 depth = (SPLIT > 1 ? rank * steps : 0) + k;
      const u32 dst = ring.stages + at.slot * kStage + kTile;
      const u8* src = gemm.x + depth * kRowBytes + lane % 8 * 16;
      watched_wait(ring.empty + 8 * at.slot, at.phase ^ 1);
#pragma unroll
      for (u32 i = 0; i < WIDTH / 4; ++i) {
        const u32 r = lane / 8 + 4 * i;
        if (r < view.width * 8)
          copy16(dst + r * kRowBytes + ((lane % 8) ^ (r % 8)) * 16, src + (u64)rows[i] * gemm.row_stride);
      }
#if FP8
#pragma unroll
      for (u32 i = 0; i < (WIDTH + 31) / 32; ++i) {
        if (lane + 32 * i < view.width * 8)
          copy4(ring.scales + at.slot * kScaleBytes + 4 * (lane + 32 * i),
                gemm.x_scales + (u64)scale_rows[i] * gemm.scale_stride + depth);
      }
#endif
      copy_commit();
      if (late == kLag) {
        copy_wait<kLag>();
        proxy_fence();
        barrier_arrive(ring.full + 8 * signalled.slot);
        signalled.advance();
      } else {
        ++late;
      }
    }
  }
  copy_wait<0>();
  proxy_fence();
  for (; late > 0; --late, signalled.advance()) barrier_arrive(ring.full + 8 * signalled.slot);
}
#endif

#if SPLIT > 1
// Adds the other ranks' partial sums to the leader's in rank order; false on the other ranks.
template <int N>
__device__ __forceinline__ bool reduce_split(float (&sum)[N / 2], const Shared& shared, u32 rank, u32 round) {
  constexpr u32 kGroup = kMathThreads * 16;  // bytes of one rank's 8-column group
  if (rank != 0) {
    if (round > 0) watched_wait(shared.drained, (round - 1) & 1);
    const u32 there = remote_address(shared.exchange, 0) + (rank - 1) * WIDTH * ROWS * 4 + threadIdx.x * 16;
    const u32 bar = remote_address(shared.arrived, 0);
#pragma unroll
    for (int j = 0; j < N / 8; ++j)
      store_remote(there + j * kGroup, sum[4 * j], sum[4 * j + 1], sum[4 * j + 2], sum[4 * j + 3], bar);
    return false;
  }
  if (threadIdx.x == 0) barrier_expect(shared.arrived, (SPLIT - 1) * (N / 8) * kGroup);
  watched_wait<true>(shared.arrived, round & 1);
#pragma unroll
  for (int r = 1; r < SPLIT; ++r) {
#pragma unroll
    for (int j = 0; j < N / 8; ++j) {
      float v[4];
      load_shared(v, shared.exchange + (r - 1) * WIDTH * ROWS * 4 + j * kGroup + threadIdx.x * 16);
#pragma unroll
      for (int q = 0; q < 4; ++q) sum[4 * j + q] += v[q];
    }
  }
  math_sync();
  if (threadIdx.x > 0 && threadIdx.x < SPLIT) arrive_remote(remote_address(shared.drained, threadIdx.x));
  return true;
}
#endif

// An item from its first tile to its stored sums, on N token columns. The sums live and die in here: merged
// after the switch over N they would go through local memory.
template <int N>
__device__ __forceinline__ void work(const Args& args, const Item& item, const Ring& ring,
                                     const Shared& shared, Cursor& at, u32 rank, u32 round) {
  const u32 steps = item.steps / SPLIT;
  const u32 odd = (item.tile + (SPLIT > 1 ? rank * steps : 0)) & 1;
  float sum[N / 2];
  run_item<N>(sum, ring, at, steps, odd, threadIdx.x / 128);
#if SPLIT > 1
  if (!reduce_split<N>(sum, shared, rank, round)) return;
#endif
  const Gemm& gemm = args.gemm[item.gemm];
  const View view(item, rank);
  store_sums<N>(sum, gemm.out, gemm.out_stride, item.row0 + view.skip * 8, view.rows, item.out_col);
#if SINGLE && MATH
  if (item.gemm == 0) store_mid<N>(sum, args.mid, item.mid_at, item.rows, item.out_col);
#endif
}

#if SINGLE && MATH
// Whoever finishes a GEMM2 slice last adds the k rows of every token in fixed order; nobody waits.
__device__ __forceinline__ void combine_slice(const Args& args, const Item& item, u32 flag) {
  math_sync();
  if (threadIdx.x == 0) {
    u32* ticket = args.tickets + item.out_col / ROWS;
    __threadfence();
    const bool last = add_acq_rel(ticket) == args.fold_need - 1;
    if (last) *ticket = 0;
    __threadfence();
    store_shared(flag, last);
  }
  math_sync();
  if (load_shared(flag) == 0) return;
  const u32 stride = args.gemm[1].out_stride;
  for (u32 i = threadIdx.x; i < args.tokens * (ROWS / 4); i += kMathThreads) {
    const u32 t = i / (ROWS / 4);
    const u32 column = item.out_col + i % (ROWS / 4) * 4;
    const float* rows = args.gemm[1].out + (u64)t * args.top_k * stride + column;
    float4 s = make_float4(0, 0, 0, 0);
#pragma unroll 8
    for (u32 j = 0; j < args.top_k; ++j) {
      const float4 v = __ldcg(reinterpret_cast<const float4*>(rows + (u64)j * stride));
      s.x += v.x, s.y += v.y, s.z += v.z, s.w += v.w;
    }
    *reinterpret_cast<uint2*>(args.y + (u64)t * stride + column) =
        make_uint2(to_bf16(s.x) | to_bf16(s.y) << 16, to_bf16(s.z) | to_bf16(s.w) << 16);
  }
}
#endif

extern "C" __global__ void __launch_bounds__(kThreads, BLOCKS) stream(const __grid_constant__ Args args) {
  extern __shared__ __align__(1024) u8 memory[];
  Ring ring;
  Shared shared;
  ring.stages = shared_address(memory);
  ring.scales = ring.stages + STAGES * kStage;
  shared.exchange = ring.scales + STAGES * kScaleBytes;
  ring.full = shared.exchange + (SPLIT - 1) * WIDTH * ROWS * 4;  // [STAGES]
  ring.empty = ring.full + 8 * STAGES;                           // [STAGES]
  shared.arrived = ring.empty + 8 * STAGES;
  shared.drained = shared.arrived + 8;
  shared.flag = shared.drained + 8;
  const u32 warp = threadIdx.x / 32;
  const u32 rank = kCluster > 1 ? cluster_rank() : 0;
  if (threadIdx.x == 0) {
    for (u32 s = 0; s < STAGES; ++s) {
      barrier_init(ring.full + 8 * s, !MATH ? 1 : (PACKED ? 2 : 33));
      barrier_init(ring.empty + 8 * s, kMathWarps * (CAST ? 2 : 1));
    }
    barrier_init(shared.arrived, 1);
    barrier_init(shared.drained, 1);
    barrier_init_fence();
  }
  if (kCluster > 1)
    cluster_sync();
  else
    __syncthreads();
#if PDL
  launch_dependents();
#endif
  if (warp == kMathWarps) {
    if (threadIdx.x % 32 == 0) bring_weights(args, ring, rank);
  } else {
#if PDL
    dependency_wait();
#endif
    if (warp > kMathWarps) {
#if MATH && PACKED
      if (threadIdx.x % 32 == 0) bring_packed_tokens(args, ring, rank);
#elif MATH
      gather_tokens(args, ring, rank);
#endif
    } else {
      Cursor at;
      u32 round = 0;
      for (u32 i = blockIdx.x / kCluster; i < args.count; i += gridDim.x / kCluster, ++round) {
        // Read through the reference, not copied: what the end of the item needs would cost registers all
        // along, and the copy warps have brought it into L1.
        const Item& item = args.items[i];
        if (item.steps == 0) break;
        switch (View(item, rank).width) {
#define RAMP_WIDTH(n)                                       \
  case n:                                                   \
    work<8 * n>(args, item, ring, shared, at, rank, round); \
    break;
          RAMP_WIDTHS
#undef RAMP_WIDTH
        }
#if SINGLE && MATH
        if (SPLIT > 1 && rank != 0) continue;
        if (item.gemm == 0) {
          // Generic stores, to be read by other blocks' bulk copies: fence, then release at device scope.
          proxy_fence_all();
          math_sync();
          if (threadIdx.x == 0) {
            __threadfence();
            add_release(args.counters + 2 * item.counter);
          }
        } else if (args.fold_need != 0) {
          combine_slice(args, item, shared.flag);
        }
#endif
      }
    }
  }
  // Nobody leaves while another block of the cluster may still write here.
  if (kCluster > 1) {
    __syncwarp();
    cluster_sync();
  }
}
