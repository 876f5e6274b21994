// The top_k largest keys of a warp.
#pragma once

#include "prologue/route_keys.cuh"

struct Picked {
  u32 id;   // of slot `lane`; 0 in lanes from top_k on
  u32 key;  // its key, likewise
};

// Sorts each lane's keys: v[i] is a key above 31 - i, the order of (key, lower id). Batcher's odd-even merge
// sort, largest first.
template <int N, typename T>
__device__ __forceinline__ void sort_lane(T (&v)[N]) {
#pragma unroll
  for (int run = 1; run < N; run *= 2) {
#pragma unroll
    for (int k = run; k > 0; k /= 2) {
#pragma unroll
      for (int at = 0; at + k < N; ++at) {
        // Pairs of one merge: at, at + k in the same double run, at in the lower half of its stride.
        const bool pair =
            at >= k % run && (at - k % run) / k % 2 == 0 && at / (2 * run) == (at + k) / (2 * run);
        if (!pair) continue;
        const bool swap = v[at] < v[at + k];
        const T larger = swap ? v[at + k] : v[at];
        v[at + k] = swap ? v[at] : v[at + k];
        v[at] = larger;
      }
    }
  }
}

// A lane's sorted keys, and which vectors they are of, 4 bits each.
template <int N>
struct Heads {
  u32 key[N], order;
  __device__ __forceinline__ u32 expert() const { return threadIdx.x % 32 + 32 * (order & 15u); }
  __device__ __forceinline__ void pop(bool taken) {
#pragma unroll
    for (int i = 0; i + 1 < N; ++i) key[i] = taken ? key[i + 1] : key[i];
    key[N - 1] = taken ? kNothing : key[N - 1];
    order = taken ? order >> 4 : order;
  }
};

// Up to 8 keys per lane. Every lane sorts its own; then a round takes the largest head of the warp off its
// lane: one maximum and one comparison from round to round where no two lanes tie. Where they do, or
// ties_likely, the lowest of their experts is found as well before the next round begins.
template <int N>
__device__ __forceinline__ Picked choose_of_sorted(const u32 (&key)[N], u32 top_k, bool ties_likely) {
  const u32 lane = threadIdx.x % 32;
  u64 v[N];  // the key above 31 - i: the order of (key, lower id)
#pragma unroll
  for (int i = 0; i < N; ++i) v[i] = (u64)key[i] << 32 | (u64)(31 - i);
  sort_lane(v);
  Heads<N> sorted;
  sorted.order = 0;
#pragma unroll
  for (int i = 0; i < N; ++i) {
    sorted.key[i] = (u32)(v[i] >> 32);
    sorted.order |= (31 - (u32)v[i]) << (4 * i);
  }
  Picked picked{0, 0};
  u32 ties = 0;
  if (!ties_likely) {
    Heads<N> h = sorted;
    u32 largest = __reduce_max_sync(kWarpAll, h.key[0]);
#pragma unroll 1
    for (u32 j = 0; j < top_k; ++j) {
      const bool taken = h.key[0] == largest;
      const u32 mine = taken ? h.expert() : 0;
      h.pop(taken);
      const u32 next = __reduce_max_sync(kWarpAll, h.key[0]);
      const u32 holders = __ballot_sync(kWarpAll, taken);
      const u32 id = __reduce_max_sync(kWarpAll, mine);
      ties |= holders & (holders - 1);
      if (lane == j) picked = Picked{id, largest};
      largest = next;
    }
    if (ties == 0) return picked;
  }
#pragma unroll 1
  for (u32 j = 0; j < top_k; ++j) {
    const u32 largest = __reduce_max_sync(kWarpAll, sorted.key[0]);
    const u32 mine = sorted.key[0] == largest ? sorted.expert() : 0xffffffffu;
    const u32 id = __reduce_min_sync(kWarpAll, mine);
    sorted.pop(mine == id);
    if (lane == j) picked = Picked{id, largest};
  }
  return picked;
}
template <int N>
__device__ __forceinline__ Picked choose_of_many(u32 (&key)[N], u32 top_k) {
  const u32 lane = threadIdx.x % 32;
  Picked picked{0, 0};
#pragma unroll 1
  for (u32 j = 0; j < top_k; ++j) {
    u32 best = key[0];
    u32 where = 0;
#pragma unroll
    for (int i = 1; i < N; ++i) {
      if (key[i] > best) {
        best = key[i];
        where = i;
      }
    }
    const u32 largest = __reduce_max_sync(kWarpAll, best);
    const u32 winner = __reduce_min_sync(kWarpAll, best == largest ? lane + 32 * where : 0xffffffffu);
#pragma unroll
    for (int i = 0; i < N; ++i) {
      if (winner == lane + 32 * i) key[i] = kNothing;
    }
    if (lane == j) picked = Picked{winner, largest};
  }
  return picked;
}
// The top_k largest keys of the warp (expert lane + 32 i), ties to the lower id, best first: slot j to lane
// j. There are at least top_k keys above kNothing.
template <int N>
__device__ __forceinline__ Picked choose(u32 (&key)[N], u32 top_k, bool ties_likely) {
  if constexpr (N <= 8) return choose_of_sorted<N>(key, top_k, ties_likely);
  return choose_of_many<N>(key, top_k);
}
