// From the expert rows of GEMM2 (already times the router weight) to y: per token the sum of its slots' rows
// in slot order, in fp32, plus the addend; or the rows themselves, one per slot. Memory-bound: a thread owns
// 8 columns of a token and has up to 8 rows' loads in flight; sums run in slot order, so the result is
// repeatable and depends on the token alone. Small batches are latency-bound: launch, row index, rows.
//
//   Y  dtype of y (ramp_dtype): 1 f32, 2 f16, 3 bf16
// Entries ..._k2 take rows two at a time: fewer registers, hence more threads, which is what keeps loads in
// flight where a token has few rows.
#include "common/dependent.cuh"
#include "common/types.cuh"
#include "params/block.hpp"

using namespace ramp::core::cuda;

constexpr int kVector = 8;  // columns per thread; H is a multiple of 32
constexpr int kThreads = 128;

enum Dtype { kF32 = 1, kF16 = 2, kBf16 = 3 };  // as ramp_dtype

struct alignas(16) Halves {
  u16 v[8];
};

// Eight values of a row as loaded, decoded later: keeps the loads of several rows in flight.
template <int DTYPE>
struct Raw {
  Halves h;
  __device__ __forceinline__ void load(const void* rows, i64 at) {
    // Read once: not kept in L1.
    uint4 v;
    asm volatile("ld.global.L1::no_allocate.v4.u32 {%0,%1,%2,%3}, [%4];"
                 : "=r"(v.x), "=r"(v.y), "=r"(v.z), "=r"(v.w)
                 : "l"((const u16*)rows + at));
    h = *(const Halves*)&v;
  }
  __device__ __forceinline__ void load_any(const void* rows, i64 at) {
#pragma unroll
    for (int i = 0; i < 8; ++i) h.v[i] = ((const u16*)rows)[at + i];
  }
  __device__ __forceinline__ float get(int i) const {
    return DTYPE == kBf16 ? bf16_to_f32(h.v[i]) : f16_to_f32(h.v[i]);
  }
};
template <>
struct Raw<kF32> {
  float4 a, b;
  __device__ __forceinline__ void load(const void* rows, i64 at) {
    a = ((const float4*)((const float*)rows + at))[0];
    b = ((const float4*)((const float*)rows + at))[1];
  }
  __device__ __forceinline__ void load_any(const void* rows, i64 at) {
    const float* const p = (const float*)rows + at;
    a = make_float4(p[0], p[1], p[2], p[3]);
    b = make_float4(p[4], p[5], p[6], p[7]);
  }
  __device__ __forceinline__ float get(int i) const {
    return i == 0   ? a.x
           : i == 1 ? a.y
           : i == 2 ? a.z
           : i == 3 ? a.w
           : i == 4 ? b.x
           : i == 5 ? b.y
           : i == 6 ? b.z
                    : b.w;
  }
};

template <int DTYPE>
__device__ __forceinline__ void store8(void* y, i64 at, const float (&v)[8], int aligned) {
  if constexpr (DTYPE == kF32) {
    float* const p = (float*)y + at;
    if (aligned) {
      ((float4*)p)[0] = make_float4(v[0], v[1], v[2], v[3]);
      ((float4*)p)[1] = make_float4(v[4], v[5], v[6], v[7]);
    } else {
#pragma unroll
      for (int i = 0; i < 8; ++i) p[i] = v[i];
    }
  } else {
    Halves h;
#pragma unroll
    for (int i = 0; i < 8; ++i) h.v[i] = DTYPE == kBf16 ? f32_to_bf16(v[i]) : f32_to_f16(v[i]);
    u16* const p = (u16*)y + at;
    if (aligned) {
      // Streaming: y does not push expert rows out of L2. Both hints together: 3.8 -> 4.2 TB/s at T = 8192.
      const uint4 v = *(const uint4*)&h;
      asm volatile("st.global.cs.v4.u32 [%0], {%1,%2,%3,%4};" ::"l"(p), "r"(v.x), "r"(v.y), "r"(v.z), "r"(v.w)
                   : "memory");
    } else {
#pragma unroll
      for (int i = 0; i < 8; ++i) p[i] = h.v[i];
    }
  }
}

template <int DTYPE>
__device__ __forceinline__ void add_addend(const CombineParams& p, i64 at, float (&v)[8]) {
  Raw<DTYPE> r;
  if (p.addend_aligned)
    r.load(p.addend, at);
  else
    r.load_any(p.addend, at);
#pragma unroll
  for (int i = 0; i < 8; ++i) v[i] += r.get(i);
}

// index / divisor; the 64-bit division only where it is needed (the branch is uniform).
__device__ __forceinline__ u64 quotient(u64 index, u32 divisor) {
  return index >> 32 == 0 ? (u32)index / divisor : index / divisor;
}

template <int ROWS, int kFlight>
__device__ __forceinline__ void combine(const CombineParams& p) {
  // The kernel behind this one may take its place on the SMs while GEMM 2 ends. It waits for this kernel's
  // end, which comes after that of all before it.
  launch_dependents();
  const u32 vectors = (u32)p.hidden / kVector;
  const u64 index = (u64)blockIdx.x * blockDim.x + threadIdx.x;
  const u64 token = quotient(index, vectors);
  if (token >= (u64)p.tokens) {
    dependency_wait();
    return;
  }
  const i64 column = (i64)(index - token * vectors) * kVector;
  float sum[8];
#pragma unroll
  for (int i = 0; i < 8; ++i) sum[i] = 0.0f;
  if (p.positions == nullptr) {
    dependency_wait();
    Raw<ROWS> r;
    r.load(p.rows, (i64)token * p.hidden + column);
#pragma unroll
    for (int i = 0; i < 8; ++i) sum[i] = r.get(i);
  } else {
    const int* const positions = p.positions + (i64)token * p.top_k;
    bool first = true;
    for (int j0 = 0; j0 < p.top_k; j0 += kFlight) {
      int at[kFlight];
      Raw<ROWS> r[kFlight];
#pragma unroll
      for (int j = 0; j < kFlight; ++j) at[j] = j0 + j < p.top_k ? positions[j0 + j] : -1;
      // The row index is older than the rows: a dependent launch reads it while GEMM 2 ends.
      if (j0 == 0) dependency_wait();
#pragma unroll
      for (int j = 0; j < kFlight; ++j)
        if (at[j] >= 0) r[j].load(p.rows, (i64)at[j] * p.hidden + column);
#pragma unroll
      for (int j = 0; j < kFlight; ++j) {
        if (at[j] < 0) continue;
#pragma unroll
        for (int i = 0; i < 8; ++i) sum[i] = first ? r[j].get(i) : sum[i] + r[j].get(i);
        first = false;
      }
    }
  }
  if (p.addend != nullptr) {
    const i64 at = (i64)token * p.addend_token + column;
    if (p.addend_dtype == kBf16)
      add_addend<kBf16>(p, at, sum);
    else if (p.addend_dtype == kF16)
      add_addend<kF16>(p, at, sum);
    else
      add_addend<kF32>(p, at, sum);
  }
  store8<Y>(p.y, (i64)token * p.y_token + column, sum, p.y_aligned);
}

template <int ROWS>
__device__ __forceinline__ void per_slot(const CombineParams& p) {
  launch_dependents();
  dependency_wait();
  const u32 vectors = (u32)p.hidden / kVector;
  const u64 index = (u64)blockIdx.x * blockDim.x + threadIdx.x;
  const u64 slot = quotient(index, vectors);
  if (slot >= (u64)p.tokens * (u32)p.top_k) return;
  const i64 column = (i64)(index - slot * vectors) * kVector;
  const int at = p.positions[slot];
  if (at < 0 && p.keep_masked) return;
  float v[8];
  Raw<ROWS> r;
  if (at >= 0) r.load(p.rows, (i64)at * p.hidden + column);
#pragma unroll
  for (int i = 0; i < 8; ++i) v[i] = at >= 0 ? r.get(i) : 0.0f;
  const u64 token = quotient(slot, (u32)p.top_k);
  const i64 out = (i64)token * p.y_token + (i64)(slot - token * (u32)p.top_k) * p.y_slot + column;
  store8<Y>(p.y, out, v, p.y_aligned);
}

#define RAMP_COMBINE(rows, R, BLOCKS8, BLOCKS2)                      \
  extern "C" __global__ void __launch_bounds__(kThreads, BLOCKS8)    \
      combine_##rows(const __grid_constant__ CombineParams p) {      \
    combine<R, 8>(p);                                                \
  }                                                                  \
  extern "C" __global__ void __launch_bounds__(kThreads, BLOCKS2)    \
      combine_##rows##_k2(const __grid_constant__ CombineParams p) { \
    combine<R, 2>(p);                                                \
  }                                                                  \
  extern "C" __global__ void __launch_bounds__(kThreads)             \
      per_slot_##rows(const __grid_constant__ CombineParams p) {     \
    per_slot<R>(p);                                                  \
  }
RAMP_COMBINE(f32, kF32, 4, 8)
RAMP_COMBINE(bf16, kBf16, 6, 12)
