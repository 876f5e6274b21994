// The stream probe's math warps: one item's depth on a compile-time token width, serial or with promotion
// overlapped, and what happens to the sums afterwards (output, stand-in epilogue). Weights are wgmma's M side
// (one warpgroup per 64 rows), tokens its N side; a thread holds rows lane/4 and lane/4 + 8 of its warp's 16.
#pragma once
#include "device.cuh"

struct Ring {
  u32 stages, scales, full, empty;  // shared-memory addresses
};

// Where a role stands in the ring. A fresh barrier counts as past the phase of parity 1.
struct Cursor {
  u32 slot = 0, phase = 0;
  __device__ __forceinline__ void advance() {
    if (++slot == STAGES) {
      slot = 0;
      phase ^= 1;
    }
  }
};

__device__ __forceinline__ u32 weight_descriptor(const Ring& ring, u32 slot, u32 group) {
  return descriptor_low(ring.stages + slot * kStage + group * 8192);
}
__device__ __forceinline__ u32 token_descriptor(const Ring& ring, u32 slot) {
  return descriptor_low(ring.stages + slot * kStage + kTile);
}

// One arrival per math warp; with CAST at both blocks' rings, since each fills both.
__device__ __forceinline__ void release(const Ring& ring, u32 slot) {
  __syncwarp();
  const u32 lane = threadIdx.x % 32;
#if CAST
  if (lane < 2) arrive_remote(remote_address(ring.empty + 8 * slot, lane));
#else
  if (lane == 0) barrier_arrive(ring.empty + 8 * slot);
#endif
}

// The four wgmmas of one depth step (4 x 32 bytes), from zero if `from_zero`.
template <int N>
__device__ __forceinline__ void issue(float (&part)[N / 2], u32 weights, u32 tokens, bool from_zero) {
  wgmma_fence();
#pragma unroll
  for (int j = 0; j < 4; ++j)
    wgmma<N>(part, descriptor_of(weights + 2 * j), descriptor_of(tokens + 2 * j), !from_zero || j != 0);
  wgmma_commit();
}

// Scales of N token columns from column AT on, and of this thread's two weight rows (gate, up).
template <int N, int AT>
struct Scales {
  float row[2], token[N / 4];
  __device__ __forceinline__ Scales(const Ring& ring, u32 slot, u32 odd) {
    const u32 at = ring.scales + slot * kScaleBytes;
    load_shared(row, at + WIDTH * 4 + odd * 8);
#pragma unroll
    for (int j = 0; j < N / 8; ++j) {
      float v[2];
      load_shared(v, at + 4 * (AT + 8 * j + 2 * (threadIdx.x % 4)));
      token[2 * j] = v[0];
      token[2 * j + 1] = v[1];
    }
  }
  __device__ __forceinline__ void promote(float* sum, const float (&part)[N / 2]) const {
#pragma unroll
    for (int j = 0; j < N / 8; ++j) {
#pragma unroll
      for (int q = 0; q < 4; ++q) {
        float& s = sum[AT / 2 + 4 * j + q];
        s = fmaf(part[4 * j + q], row[q / 2] * token[2 * j + q % 2], s);
      }
    }
  }
};

#if !MATH
template <int N>
__device__ __forceinline__ void run_item(float (&sum)[N / 2], const Ring& ring, Cursor& at, u32 steps, u32,
                                         u32 group) {
  sum[0] = 0.0f;
  for (u32 k = 0; k < steps; ++k, at.advance()) {
    watched_wait(ring.full + 8 * at.slot, at.phase);
    const u32 address = ring.stages + at.slot * kStage + group * 8192 + 4 * (threadIdx.x % 32);
    sum[0] += __uint_as_float(load_shared(address));
    release(ring, at.slot);
  }
}
#elif !FP8
// bf16 accumulates in place. OVERLAP: a slot is released one step late, so that wgmmas never drain.
template <int N>
__device__ __forceinline__ void run_item(float (&sum)[N / 2], const Ring& ring, Cursor& at, u32 steps, u32,
                                         u32 group) {
#pragma unroll
  for (int i = 0; i < N / 2; ++i) sum[i] = 0.0f;
  u32 last = at.slot;
  for (u32 k = 0; k < steps; ++k, at.advance()) {
    watched_wait(ring.full + 8 * at.slot, at.phase);
    issue<N>(sum, weight_descriptor(ring, at.slot, group), token_descriptor(ring, at.slot), false);
#if OVERLAP
    wgmma_wait<1>();
    if (k > 0) release(ring, last);
    last = at.slot;
#else
    wgmma_wait<0>(sum);
    release(ring, at.slot);
#endif
  }
#if OVERLAP
  wgmma_wait<0>(sum);
  release(ring, last);
#endif
}
#else
// The same with each pair of token scales loaded as it is used: N / 4 fewer registers, but the slot is
// released after the promotion only.
template <int N, int AT>
__device__ __forceinline__ void promote_slot(float* sum, const float (&part)[N / 2], const Ring& ring,
                                             u32 slot, u32 odd) {
  const u32 at = ring.scales + slot * kScaleBytes;
  float row[2];
  load_shared(row, at + WIDTH * 4 + odd * 8);
#pragma unroll
  for (int j = 0; j < N / 8; ++j) {
    float token[2];
    load_shared(token, at + 4 * (AT + 8 * j + 2 * (threadIdx.x % 4)));
#pragma unroll
    for (int q = 0; q < 4; ++q) {
      float& s = sum[AT / 2 + 4 * j + q];
      s = fmaf(part[4 * j + q], row[q / 2] * token[q % 2], s);
    }
  }
}

template <int N>
__device__ __forceinline__ void run_serial(float (&sum)[N / 2], const Ring& ring, Cursor& at, u32 steps,
                                           u32 odd, u32 group) {
  for (u32 k = 0; k < steps; ++k, at.advance(), odd ^= 1) {
    float part[N / 2];
    watched_wait(ring.full + 8 * at.slot, at.phase);
    issue<N>(part, weight_descriptor(ring, at.slot, group), token_descriptor(ring, at.slot), true);
    if constexpr (N <= 64) {
      const Scales<N, 0> scales(ring, at.slot, odd);
      wgmma_wait<0>(part);
      release(ring, at.slot);
      scales.promote(sum, part);
    } else {
      wgmma_wait<0>(part);
      promote_slot<N, 0>(sum, part, ring, at.slot, odd);
      release(ring, at.slot);
    }
  }
}

// Two halves of the token columns, one in the tensor cores while the other is promoted; no more accumulators
// than run_serial holds.
template <int N>
__device__ __forceinline__ void run_halves(float (&sum)[N / 2], const Ring& ring, Cursor& at, u32 steps,
                                           u32 odd, u32 group) {
  constexpr int kLow = (N / 8 + 1) / 2 * 8;
  constexpr int kHigh = N - kLow;
  constexpr int kSkip = kLow * kRowBytes / 16;  // descriptor units from the first half's rows to the second's
  float low[kLow / 2];
  float high[kHigh / 2];
  watched_wait(ring.full + 8 * at.slot, at.phase);
  issue<kLow>(low, weight_descriptor(ring, at.slot, group), token_descriptor(ring, at.slot), true);
  for (u32 k = 1; k < steps; ++k, odd ^= 1) {
    const u32 slot = at.slot;
    issue<kHigh>(high, weight_descriptor(ring, slot, group), token_descriptor(ring, slot) + kSkip, true);
    wgmma_wait<1>(low);
    promote_slot<kLow, 0>(sum, low, ring, slot, odd);
    at.advance();
    watched_wait(ring.full + 8 * at.slot, at.phase);
    issue<kLow>(low, weight_descriptor(ring, at.slot, group), token_descriptor(ring, at.slot), true);
    wgmma_wait<1>(high);
    promote_slot<kHigh, kLow>(sum, high, ring, slot, odd);
    release(ring, slot);
  }
  issue<kHigh>(high, weight_descriptor(ring, at.slot, group), token_descriptor(ring, at.slot) + kSkip, true);
  wgmma_wait<1>(low);
  promote_slot<kLow, 0>(sum, low, ring, at.slot, odd);
  wgmma_wait<0>(high);
  promote_slot<kHigh, kLow>(sum, high, ring, at.slot, odd);
  release(ring, at.slot);
  at.advance();
}

// Eight columns can not be halved: two accumulators take the steps in turn.
struct Turns {
  const Ring& ring;
  Cursor& at;    // the older step in flight
  Cursor ahead;  // the next to begin
  u32 odd, group;
  __device__ __forceinline__ void begin(float (&part)[4]) {
    watched_wait(ring.full + 8 * ahead.slot, ahead.phase);
    issue<8>(part, weight_descriptor(ring, ahead.slot, group), token_descriptor(ring, ahead.slot), true);
    ahead.advance();
  }
  // Ends the older step, which `part` holds; PENDING younger ones stay in flight.
  template <int PENDING>
  __device__ __forceinline__ void end(float (&sum)[4], float (&part)[4]) {
    const Scales<8, 0> scales(ring, at.slot, odd);
    wgmma_wait<PENDING>(part);
    release(ring, at.slot);
    at.advance();
    odd ^= 1;
    scales.promote(sum, part);
  }
};
__device__ __forceinline__ void run_turns(float (&sum)[4], const Ring& ring, Cursor& at, u32 steps, u32 odd,
                                          u32 group) {
  float first[4];
  float second[4];
  Turns turns{ring, at, at, odd, group};
  turns.begin(first);
  for (u32 k = 2; k < steps; k += 2) {
    turns.begin(second);
    turns.end<1>(sum, first);
    turns.begin(first);
    turns.end<1>(sum, second);
  }
  // One or two steps are left, the first of them in flight.
  if (steps % 2 == 0) {
    turns.begin(second);
    turns.end<1>(sum, first);
    turns.end<0>(sum, second);
  } else {
    turns.end<0>(sum, first);
  }
}

template <int N>
__device__ __forceinline__ void run_item(float (&sum)[N / 2], const Ring& ring, Cursor& at, u32 steps,
                                         u32 odd, u32 group) {
#pragma unroll
  for (int i = 0; i < N / 2; ++i) sum[i] = 0.0f;
#if OVERLAP
  if constexpr (N >= 16)
    run_halves<N>(sum, ring, at, steps, odd, group);
  else
    run_turns(sum, ring, at, steps, odd, group);
#else
  run_serial<N>(sum, ring, at, steps, odd, group);
#endif
}
#endif

// No real epilogue: fp32 sums, so that the host can check them.
template <int N>
__device__ __forceinline__ void store_sums(const float (&sum)[N / 2], float* out, u32 stride, u32 row0,
                                           u32 rows, u32 out_col) {
  const u32 row = threadIdx.x / 32 * 16 + threadIdx.x % 32 / 4;
#pragma unroll
  for (int j = 0; j < N / 8; ++j) {
#pragma unroll
    for (int q = 0; q < 4; ++q) {
      const u32 column = 8 * j + 2 * (threadIdx.x % 4) + (q & 1);
      if (column < rows)
        out[(u64)(row0 + column) * stride + out_col + row + (q >= 2 ? 8 : 0)] = sum[4 * j + q];
    }
  }
}

// Stands for activation and requantisation: (gate + up) / 16, rounded, where GEMM2 finds it as packed tokens.
template <int N>
__device__ __forceinline__ void store_mid(const float (&sum)[N / 2], u8* mid, u32 mid_at, u32 rows,
                                          u32 out_col) {
  const u32 value =
      out_col / 2 + threadIdx.x / 32 * 8 + threadIdx.x % 32 / 4;  // index in the intermediate row
  const u32 position = value * (FP8 ? 1 : 2);
  const u32 width = (rows + 7) / 8;
  u8* block = mid + ((u64)mid_at + position / kRowBytes * width) * 1024;
  const u32 byte = position % kRowBytes;
#pragma unroll
  for (int j = 0; j < N / 8; ++j) {
#pragma unroll
    for (int q = 0; q < 2; ++q) {
      const u32 row = 2 * (threadIdx.x % 4) + q;
      if (8 * j + row >= rows) continue;
      u8* at = block + j * 1024 + row * kRowBytes + ((byte / 16) ^ row) * 16 + byte % 16;
      const float v = (sum[4 * j + q] + sum[4 * j + 2 + q]) * 0.0625f;
#if FP8
      *at = (u8)to_e4m3(v);
#else
      *reinterpret_cast<u16*>(at) = (u16)to_bf16(v);
#endif
    }
  }
}
