// The portable GEMMs: the block scales of fp8_block on their way from memory to the sums.
//
// Where codes are multiplied as they are (ptx.cuh), a step's sums start from zero and are promoted with the
// step's scales, which travel in the ring. Elsewhere the sums stay in the accumulators for the whole depth,
// in units of the scale of the step at hand: before a step they are multiplied by (last scale / this scale),
// in the end by the last one. That takes no second set of registers. One thread per token and one per half of
// the weight rows turns scales into ratios, a step ahead. A scale that is no ordinary number (0, an infinity,
// a NaN, or far from what quantisation gives) leaves the units alone; its step's products are summed apart
// and multiplied by (scale / unit), in the columns concerned. So a column's bits depend on its own scales.
#pragma once

#include "portable/tile.cuh"

__device__ __forceinline__ float load_shared(u32 address) {
  float v;
  asm volatile("ld.shared.f32 %0, [%1];" : "=f"(v) : "r"(address) : "memory");
  return v;
}
__device__ __forceinline__ float load_shared_if(bool taken, u32 address) {  // else 1
  float v;
  asm volatile(
      "{\n.reg .pred p;\nsetp.ne.u32 p, %2, 0;\nmov.f32 %0, 0f3f800000;\n@p ld.shared.f32 %0, [%1];\n}"
      : "=f"(v)
      : "r"(address), "r"((u32)taken)
      : "memory");
  return v;
}
__device__ __forceinline__ float2 load_shared2(u32 address) {
  float2 v;
  asm volatile("ld.shared.v2.f32 {%0, %1}, [%2];" : "=f"(v.x), "=f"(v.y) : "r"(address) : "memory");
  return v;
}
__device__ __forceinline__ void store_shared_if(bool taken, u32 address, float v) {
  asm volatile("{\n.reg .pred p;\nsetp.ne.u32 p, %2, 0;\n@p st.shared.f32 [%0], %1;\n}" ::"r"(address),
               "f"(v), "r"((u32)taken)
               : "memory");
}
__device__ __forceinline__ void store_shared(u32 address, float v) {
  asm volatile("st.shared.f32 [%0], %1;" ::"r"(address), "f"(v) : "memory");
}

#if FORMAT == 1
__device__ __forceinline__ bool scales_tokens() {
  return KW * TOKENS == kThreads || threadIdx.x < KW * TOKENS;
}
__device__ __forceinline__ bool scales_weights() {
  return threadIdx.x < 2 * KW;
}
// Which scales a thread brings, in elements: its token's, and those of its half of the weight rows.
struct ScaleCopies {
  u32 x, w;
};
__device__ __forceinline__ ScaleCopies plan_scales(const PortableParams& p, const Unit& unit) {
  const int half = GATED && threadIdx.x % 2 != 0 ? p.up_scale_row : 0;
  const int r = (int)threadIdx.x % TOKENS;
  return {(u32)(source_row(p.x_scale_source, p, unit.first + (r < unit.rows ? r : 0)) * p.x_scale_stride),
          (u32)(unit.expert * p.ws_expert + (unit.n0 / 128 + half) * p.ws_row)};
}
// Those of `step`; behind the last group: 0.
__device__ __forceinline__ void copy_scales(const PortableParams& p, const ScaleCopies& c, u32 to, int step) {
  const int gx = step * KW + (int)threadIdx.x / TOKENS;
  const int gw = step * KW + (int)threadIdx.x / 2;
  copy4_if(scales_tokens(), to + 4 * threadIdx.x, p.x_scale + c.x + gx, gx < p.groups);
  copy4_if(scales_weights(), to + 4 * (KW * TOKENS + threadIdx.x), p.w_scale + c.w + gw * p.ws_column,
           gw < p.groups);
}
#endif

#if CHAINED
// The ring of scales, one step ahead of the ring of codes; two buffers of ratios and, behind each, of
// factors; units; marks.
constexpr int kScalesAhead = 1;
constexpr u32 kRatios = STAGES * kScaleBytes;
constexpr u32 kUnits = kRatios + 4 * kScaleBytes;
constexpr u32 kMarks = kUnits + kScaleBytes;
constexpr int kScaleArea = (int)kMarks + 8;
__device__ __forceinline__ u32 ratios_of(u32 scales, int step) {
  return scales + kRatios + (u32)(step % 2) * (2 * kScaleBytes);
}

// One scale of a step becomes its ratio, without branches. Ratios of a token's scale and a weight's together
// stay below 2^90 in this range: with 2^25 for a sum's products of codes and 2^7 steps no sum overflows.
__device__ __forceinline__ void put_ratio(bool taken, u32 scales, u32 from, int step, u32 number,
                                          bool present, float low, float high) {
  const u32 unit_at = scales + kUnits + 4 * number;
  const u32 to = ratios_of(scales, step) + 4 * number;
  const float scale = load_shared_if(taken, from + 4 * number);
  const float unit = load_shared_if(taken, unit_at);
  const bool ordinary = scale >= low && scale <= high;
  const float usable = ordinary ? scale : 1.0f;
  store_shared_if(taken, to, present && ordinary ? divide(unit, usable) : 1.0f);
  store_shared_if(taken, to + kScaleBytes, present && !ordinary ? scale * divide(1.0f, unit) : 1.0f);
  store_shared_if(taken && present && ordinary, unit_at, scale);
  // A mark for all: this step has products to be summed apart.
  store_shared_if(taken && present && !ordinary, scales + kMarks + (u32)(step % 2) * 4,
                  __uint_as_float((u32)step + 1));
}
// The ratios of `step`, whose scales are at `from`.
__device__ __forceinline__ void put_ratios(const PortableParams& p, u32 scales, u32 from, int step) {
  const u32 token = threadIdx.x % (KW * TOKENS);
  put_ratio(scales_tokens(), scales, from, step, token, step * KW + (int)token / TOKENS < p.groups, 0x1p-44f,
            0x1p12f);
  const u32 half = threadIdx.x % (2 * KW);
  put_ratio(scales_weights(), scales, from, step, KW * TOKENS + half, step * KW + (int)half / 2 < p.groups,
            0x1p-28f, 0x1p6f);
}
__device__ __forceinline__ bool sums_apart(u32 scales, int step) {
  return __float_as_uint(load_shared(scales + kMarks + (u32)(step % 2) * 4)) == (u32)step + 1;
}
// No step is marked. Between barriers that separate it from the marks of two units.
__device__ __forceinline__ void reset_marks(u32 scales) {
  if (threadIdx.x < 2) store_shared(scales + kMarks + 4 * threadIdx.x, 0.0f);
}
__device__ __forceinline__ void reset_units(u32 scales) {
  if (scales_tokens()) store_shared(scales + kUnits + 4 * threadIdx.x, 1.0f);
  if (scales_weights()) store_shared(scales + kUnits + 4 * (KW * TOKENS + threadIdx.x), 1.0f);
}
#elif FORMAT == 1
constexpr int kScalesAhead = 0;
constexpr int kScaleArea = STAGES * kScaleBytes;
#else
constexpr int kScaleArea = 0;
#endif
