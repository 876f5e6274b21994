// GEMM 1's token rows made on the spot from bf16 x: the few-slot way, without a prologue in front. A warp
// converts 128 columns of a row at a time, four a lane, with the bits of kernels/prologue/quantize.cuh.
#pragma once

#include "sm90/stream_copy.cuh"

// Two codes of h / scale, given the inverse of the scale: the division's Newton step, exact where it matters
// (prologue/quantize.cuh: quotient()). Both are 0 for an infinite scale: 0, and NaN where h is not finite.
__device__ __forceinline__ float quotient(float h, float scale, float inverse) {
  const float q = __fmul_rn(h, inverse);
  return __fmaf_rn(__fmaf_rn(-scale, q, h), inverse, q);
}

__device__ __forceinline__ uint2 load_fresh(const uint2* p) {
  uint2 v;
  asm volatile("ld.global.cg.v2.u32 {%0,%1}, [%2];" : "=r"(v.x), "=r"(v.y) : "l"(p));
  return v;
}

// The rows of x on their way to L2, a part by every block.
__device__ __forceinline__ void prefetch_rows(const StreamParams& p) {
  constexpr u32 kLine = 64;  // elements
  const u32 lines = (u32)p.steps * kRowBytes / kLine;
  const u32 all = (u32)p.own.slots / (u32)p.top_k * lines;
  for (u32 i = threadIdx.x * gridDim.x + blockIdx.x; i < all; i += gridDim.x * blockDim.x)
    prefetch_l2(p.own.x + (i64)(i / lines) * p.own.x_stride + (i64)(i % lines * kLine));
}

// Row r of a step: four bf16 of every lane become codes at `to` (swizzled) and the scale at `scales`.
__device__ __forceinline__ void convert_row(const uint2& raw, u32 r, u32 to, u32 scales) {
  const u32 lane = threadIdx.x % 32;
  const float v[4] = {__uint_as_float(raw.x << 16), __uint_as_float(raw.x & 0xffff0000u),
                      __uint_as_float(raw.y << 16), __uint_as_float(raw.y & 0xffff0000u)};
  float amax = 0.0f;
#pragma unroll
  for (int i = 0; i < 4; ++i) amax = fmaxf(amax, fabsf(v[i]));  // a NaN does not count
  // Not negative, so their bits are in their order.
  const float scale = amax_scale(__uint_as_float(__reduce_max_sync(0xffffffffu, __float_as_uint(amax))));
  const bool finite = scale < __uint_as_float(0x7f800000u);
  const float s = finite ? scale : 0.0f;
  const float inverse = finite ? __frcp_rn(scale) : 0.0f;
  const u32 low = e4m3_pair(quotient(v[0], s, inverse), quotient(v[1], s, inverse));
  const u32 high = e4m3_pair(quotient(v[2], s, inverse), quotient(v[3], s, inverse));
  store_word(to + r * kRowBytes + ((lane / 4) ^ (r % 8)) * 16 + lane % 4 * 4, low | high << 16);
  if (lane == 0) store_word(scales + 4 * r, __float_as_uint(scale));
}

// One warp. Rows past an item's last one are left as they are: nobody reads what becomes of them.
__device__ __forceinline__ void convert_tokens(const StreamParams& p, const Ring& s, const Work& work,
                                               Item item) {
  constexpr u32 kFlight = 8;  // loads under way
  const u32 lane = threadIdx.x % 32;
  u32 at = 0;
  for (u32 unit = first_unit(); unit < work.units;) {
    // Pairs (step, row), rows first. Lane r knows row r's place in x.
    const u32 rows = (u32)item.rows;
    const u32 token = source_row(kRowToken, p, work, item.first + (int)(lane < rows ? lane : 0));
    const u32 pairs = rows * (u32)p.steps;
    uint2 next[kFlight];
    u32 row = 0, step = 0;  // of the pair that is loaded next
    const auto load = [&](uint2& to) {
      const u32 t = __shfl_sync(0xffffffffu, token, (int)row);
      if (step < (u32)p.steps)
        to = load_fresh((const uint2*)(p.own.x + (i64)t * p.own.x_stride + (i64)(128 * step)) + lane);
      if (++row == rows) {
        row = 0;
        ++step;
      }
    };
#pragma unroll
    for (u32 i = 0; i < kFlight; ++i) load(next[i]);
    u32 r = 0;
    for (u32 pair = 0; pair < pairs; pair += kFlight) {
#pragma unroll
      for (u32 i = 0; i < kFlight; ++i) {
        if (pair + i >= pairs) break;  // the same for the whole warp
        const u32 slot = at % STAGES;
        if (r == 0 && at >= STAGES) barrier_wait(s.empty + 8 * slot, (at / STAGES - 1) & 1);
        convert_row(next[i], r, s.tiles + slot * kStage + SLICES * kPart, s.scales + slot * kScaleBytes);
        load(next[i]);
        if (++r == rows) {
          r = 0;
          ++at;
          barrier_arrive(s.full + 8 * slot);
        }
      }
    }
    unit += unit_stride();
    if (unit < work.units) item = find_item(p, work, unit);
  }
}
