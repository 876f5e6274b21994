// The plain expert block's GEMMs: CUDA cores, one accumulator per output summed in order of depth, every
// format. The yardstick for shapes that no host reference can follow, so it is written to be read and to be
// right; its speed is that of 4x4 register tiles out of shared memory (no tensor cores, no pipeline). A
// result depends on its own row alone: bitwise repeatable and batch-invariant whatever the routing.
//
//   FORMAT  ramp_format of weights and input (1 fp8_block, 2 bf16, 3 fp16, 4 f32, 5 fp8_tensor, 6
//   fp8_channel) ACC     float or double: type of dequantised values, products and sums
//
// Grid: x = tile of the plan (blocks past the plan's end return), y = 64 columns. Tiles run fastest:
// neighbours share weights.
#include "common/types.cuh"
#include "params/block.hpp"

using namespace ramp::core::cuda;

constexpr int kRows = 64;     // of a tile at most (plan's tile_m)
constexpr int kColumns = 64;  // of W per block and half
constexpr int kDepth = 32;    // per step; H and I are multiples of it
constexpr int kThreads = 256;

#define IS_FP8 (FORMAT == 1 || FORMAT == 5 || FORMAT == 6)
#if IS_FP8
typedef u8 Element;
__device__ __forceinline__ float decode(Element v) {
  return e4m3_to_f32(v);
}
#elif FORMAT == 2
typedef u16 Element;
__device__ __forceinline__ float decode(Element v) {
  return bf16_to_f32(v);
}
#elif FORMAT == 3
typedef u16 Element;
__device__ __forceinline__ float decode(Element v) {
  return f16_to_f32(v);
}
#else
typedef float Element;
__device__ __forceinline__ float decode(Element v) {
  return v;
}
#endif

struct alignas(8 * sizeof(Element) < 16 ? 8 * sizeof(Element) : 16) Eight {
  Element v[8];
};

// Eight neighbouring values as fp32 (exact).
__device__ __forceinline__ void load8(const Element* p, int aligned, float (&v)[8]) {
  if (aligned) {
    const Eight e = *reinterpret_cast<const Eight*>(p);
#pragma unroll
    for (int i = 0; i < 8; ++i) v[i] = decode(e.v[i]);
  } else {
#pragma unroll
    for (int i = 0; i < 8; ++i) v[i] = decode(p[i]);
  }
}

__device__ __forceinline__ void load4(const float* p, float (&v)[4]) {
  const float4 q = *reinterpret_cast<const float4*>(p);
  v[0] = q.x, v[1] = q.y, v[2] = q.z, v[3] = q.w;
}
__device__ __forceinline__ void load4(const double* p, double (&v)[4]) {
  const double2 a = *reinterpret_cast<const double2*>(p);
  const double2 b = *reinterpret_cast<const double2*>(p + 2);
  v[0] = a.x, v[1] = a.y, v[2] = b.x, v[3] = b.y;
}

// The activations of src/weights/activation.hpp, in the same forms.
template <typename F>
__device__ __forceinline__ F activate(int kind, F g, F u) {
  switch (kind) {
    case 0:
      return g / (F(1) + exp(-g)) * u;
    case 1:
      return (sizeof(F) == 8 ? F(0.5) * g * erfc(-g * F(0.70710678118654752))
                             : F(0.5) * g * (F(1) + erf(g * F(0.70710678118654752)))) *
             u;
    case 2: {
      const F z = F(0.7978845608028654) * (g + F(0.044715) * g * g * g);
      return (sizeof(F) == 8 ? g / (F(1) + exp(F(-2) * z)) : F(0.5) * g * (F(1) + tanh(z))) * u;
    }
    default:
      return g <= F(0) ? F(0) : g * g;
  }
}

__device__ __forceinline__ i64 row_of(int source, int sorted, int slot, int top_k) {
  return source == kRowSorted ? sorted : source == kRowSlot ? slot : slot / top_k;
}

enum Output { kActivated, kRowsOut, kAccumulated };

template <bool GATED, Output OUT>
__device__ __forceinline__ void gemm(const PlainGemmParams& p) {
  if ((int)blockIdx.x >= *p.num_tiles) return;
  const TileParams tile = p.tiles[blockIdx.x];
  __shared__ __align__(16) ACC as[kDepth][kRows];
  __shared__ __align__(16) ACC ws[GATED ? 2 : 1][kDepth][kColumns];
  const int tid = threadIdx.x;
  const int n0 = blockIdx.y * kColumns;

  // Loading: thread = (row of the operand, eighth of the depth step). A warp reads 32 rows, its shared stores
  // are conflict-free; lines come through L1.
  const int lr = tid % kRows;
  const int lk = tid / kRows * 8;
  const bool a_valid = lr < tile.rows;
  const int sorted = tile.first + (a_valid ? lr : 0);
  const int slot = p.slots[sorted];
  const Element* a = (const Element*)p.a + row_of(p.a_source, sorted, slot, p.top_k) * p.a_stride + lk;
  const float* a_scale = p.a_scale == nullptr
                             ? nullptr
                             : p.a_scale + row_of(p.a_scale_source, sorted, slot, p.top_k) * p.a_scale_stride;
  const int n = n0 + lr;
  const bool w_valid = n < p.n;
  const int nw = w_valid ? n : 0;
  const Element* w[2];
  const float* w_scale[2];
#pragma unroll
  for (int half = 0; half < (GATED ? 2 : 1); ++half) {
    w[half] =
        (const Element*)p.w + (i64)tile.expert * p.w_expert + (i64)(nw + half * p.up_row) * p.w_row + lk;
#if FORMAT == 1
    const int scale_row = half * p.up_scale_row + nw / 128;
#elif FORMAT == 5
    const int scale_row = half;  // stride 0 where gate and up share one
#else
    const int scale_row = nw + half * p.up_row;
#endif
    w_scale[half] = p.w_scale == nullptr
                        ? nullptr
                        : p.w_scale + (i64)tile.expert * p.ws_expert + (i64)scale_row * p.ws_row;
  }

  const int ty = tid / 16;  // rows 4*ty ..
  const int tx = tid % 16;  // columns 4*tx ..
  ACC sum[GATED ? 2 : 1][4][4];
#pragma unroll
  for (int half = 0; half < (GATED ? 2 : 1); ++half)
#pragma unroll
    for (int i = 0; i < 4; ++i)
#pragma unroll
      for (int j = 0; j < 4; ++j) sum[half][i][j] = 0;

  for (int k0 = 0; k0 < p.depth; k0 += kDepth) {
    float v[8];
    {
      ACC scale = 1;
#if IS_FP8
      scale = a_scale == nullptr ? p.a_static : a_scale[p.a_groups == 1 ? 0 : k0 / 128];
#endif
      if (a_valid) load8(a + k0, p.a_aligned, v);
#pragma unroll
      for (int i = 0; i < 8; ++i) as[lk + i][lr] = a_valid ? (ACC)v[i] * scale : (ACC)0;
    }
#pragma unroll
    for (int half = 0; half < (GATED ? 2 : 1); ++half) {
      ACC scale = 1;
#if FORMAT == 1
      scale = w_scale[half][(i64)(k0 / 128) * p.ws_column];
#elif IS_FP8
      scale = w_scale[half][0];
#endif
      if (w_valid) load8(w[half] + k0, p.w_aligned, v);
#pragma unroll
      for (int i = 0; i < 8; ++i) ws[half][lk + i][lr] = w_valid ? (ACC)v[i] * scale : (ACC)0;
    }
    __syncthreads();
#pragma unroll 8
    for (int k = 0; k < kDepth; ++k) {
      ACC x[4];
      load4(&as[k][4 * ty], x);
#pragma unroll
      for (int half = 0; half < (GATED ? 2 : 1); ++half) {
        ACC y[4];
        load4(&ws[half][k][4 * tx], y);
#pragma unroll
        for (int i = 0; i < 4; ++i)
#pragma unroll
          for (int j = 0; j < 4; ++j) sum[half][i][j] += x[i] * y[j];
      }
    }
    __syncthreads();
  }

#pragma unroll
  for (int i = 0; i < 4; ++i) {
    const int r = 4 * ty + i;
    if (r >= tile.rows) continue;
    const int row = tile.first + r;
    float scale = 1.0f;
    i64 out_row = row;
    if (OUT != kActivated) {
      const int s = p.slots[row];
      const int t = s / p.top_k;
      if (p.slot_weight != nullptr)
        scale = p.slot_weight[t * p.slot_weight_token + (s - t * p.top_k) * p.slot_weight_slot];
      if (OUT == kAccumulated) out_row = t;
    }
    float* const out = p.out + out_row * p.out_stride + n0 + 4 * tx;
#pragma unroll
    for (int j = 0; j < 4; ++j) {
      if (n0 + 4 * tx + j >= p.n) continue;
      if (OUT == kActivated) {
        out[j] = (float)activate<ACC>(p.activation, sum[0][i][j], sum[GATED ? 1 : 0][i][j]);
      } else {
        const float z = (float)sum[0][i][j];
        const float value = p.slot_weight != nullptr ? z * scale : z;
        if (OUT == kAccumulated)
          atomicAdd(out + j, value);
        else
          out[j] = value;
      }
    }
  }
}

extern "C" __global__ void __launch_bounds__(kThreads)
    gemm1_gated(const __grid_constant__ PlainGemmParams p) {
  gemm<true, kActivated>(p);
}
extern "C" __global__ void __launch_bounds__(kThreads)
    gemm1_plain(const __grid_constant__ PlainGemmParams p) {
  gemm<false, kActivated>(p);
}
extern "C" __global__ void __launch_bounds__(kThreads) gemm2(const __grid_constant__ PlainGemmParams p) {
  gemm<false, kRowsOut>(p);
}
extern "C" __global__ void __launch_bounds__(kThreads)
    gemm2_accumulate(const __grid_constant__ PlainGemmParams p) {
  gemm<false, kAccumulated>(p);
}
