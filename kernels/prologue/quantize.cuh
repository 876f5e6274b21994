// Rows of x (or h) in the activation type of a format: e4m3 with a scale per group of 128 columns, per row or
// static, or another float type. Device twin of src/weights/quantize.cpp, bit for bit, NaN and infinity
// included (the host's NaN is the x86 one: an operand's NaN keeps its sign, inf/inf and 0*inf give the
// negative default NaN).
//
//   X_TYPE  ramp_dtype of x: 1 f32, 2 f16, 3 bf16, 4 e4m3 (codes are copied, scales brought along)
//   FORMAT  ramp_format: 1 fp8_block, 2 bf16, 3 f16, 4 f32, 5 fp8_tensor, 6 fp8_channel
//
// A lane takes 16 consecutive columns, a warp a segment of 512. H is a multiple of 32, so a lane's columns
// are all inside the row or all outside.
#pragma once

#include "common/quotient.cuh"
#include "params/prologue.hpp"
#include "prologue/ptx.cuh"
#include "prologue/values.cuh"

using namespace ramp::core::cuda;

constexpr u32 kLaneColumns = 16;
constexpr u32 kXBytes = X_TYPE == 1 ? 4 : X_TYPE == 4 ? 1 : 2;
constexpr u32 kRawWords = kLaneColumns * kXBytes / 4;
constexpr bool kToE4m3 = FORMAT == 1 || FORMAT == 5 || FORMAT == 6;
constexpr u32 kOutBytes = kToE4m3 ? 1 : FORMAT == 4 ? 4 : 2;
constexpr bool kSameType =
    (FORMAT == 2 && X_TYPE == 3) || (FORMAT == 3 && X_TYPE == 2) || (FORMAT == 4 && X_TYPE == 1);

// Where one row lies.
struct RowPlace {
  const u8* x;
  u32 out;       // row of the output
  float weight;  // 1 without router weights on input
  bool weighted;
};
// The rows of the batched entry: first[e] of every local expert, in shared memory.
struct BatchRows {
  const u32* first;
  u32 experts, max_tokens;
};

// The expert that owns sorted row `row`: the last one with first[e] <= row. Two rounds of 32 comparisons; the
// whole warp asks for the same row.
__device__ __forceinline__ u32 expert_of_row(const BatchRows& b, u32 row) {
  const u32 lane = threadIdx.x % 32;
  const u32 coarse = 32 * lane;
  const u32 block = __popc(__ballot_sync(0xffffffffu, coarse < b.experts && b.first[coarse] <= row)) - 1;
  const u32 fine = 32 * block + lane;
  return 32 * block + __popc(__ballot_sync(0xffffffffu, fine < b.experts && b.first[fine] <= row)) - 1;
}

struct RowIndexPlace {
  u32 expert, token, slot;
};
__device__ __forceinline__ RowIndexPlace index_of_row(const RowsParams& p, const BatchRows& b, u32 row) {
  RowIndexPlace r{0, row, row};
  if (p.source == kRowsAreSlots) {
    r.token = row / p.top_k;
  } else if (p.source == kRowsAreBatched) {
    r.expert = expert_of_row(b, row);
    r.token = row - b.first[r.expert];
    r.slot = r.expert * b.max_tokens + r.token;
  }
  return r;
}
__device__ __forceinline__ float weight_of_row(const RowsParams& p, const RowIndexPlace& r) {
  if (p.source == kRowsAreSlots)
    return p.weights[(i64)r.token * p.weights_stride + (i64)(r.slot - r.token * p.top_k)];
  return p.weights[(i64)r.expert * p.weights_stride + (i64)r.token];
}
__device__ __forceinline__ RowPlace place_of_row(const RowsParams& p, const BatchRows& b, u32 row) {
  const RowIndexPlace at = index_of_row(p, b, row);
  RowPlace r;
  r.x = static_cast<const u8*>(p.x) + ((i64)at.expert * p.slab + (i64)at.token * p.stride) * (i64)kXBytes;
  r.out = at.slot;
  r.weighted = p.weights != nullptr;
  r.weight = r.weighted ? weight_of_row(p, at) : 1.0f;
  return r;
}

// ---------------------------------------------------------------- values

struct Raw {
  u32 w[kRawWords];
};
__device__ __forceinline__ Raw load_raw(const RowsParams& p, const RowPlace& row, u32 column) {
  Raw r;
  const u8* const at = row.x + (i64)column * kXBytes;
  if (p.aligned != 0) {
#pragma unroll
    for (u32 i = 0; i < kRawWords; i += 4) {
      const Words4 q = load_words(at + 4 * i);
#pragma unroll
      for (u32 j = 0; j < 4; ++j) r.w[i + j] = q.v[j];
    }
    return r;
  }
#pragma unroll
  for (u32 i = 0; i < kRawWords; ++i) {
    if (kXBytes == 4) {
      r.w[i] = reinterpret_cast<const u32*>(at)[i];
    } else if (kXBytes == 2) {
      const u16* const h = reinterpret_cast<const u16*>(at) + 2 * i;
      r.w[i] = (u32)h[0] | ((u32)h[1] << 16);
    } else {
      const u8* const b = at + 4 * i;
      r.w[i] = (u32)b[0] | ((u32)b[1] << 8) | ((u32)b[2] << 16) | ((u32)b[3] << 24);
    }
  }
  return r;
}

__device__ __forceinline__ void unpack(const Raw& raw, const RowPlace& row, float (&v)[kLaneColumns]) {
#pragma unroll
  for (u32 i = 0; i < kLaneColumns; ++i) {
    if (X_TYPE == 1) {
      v[i] = __uint_as_float(raw.w[i % kRawWords]);
    } else {
      const u32 word = raw.w[i / 2 % kRawWords];
      if (X_TYPE == 3) {
        v[i] = __uint_as_float(i % 2 == 0 ? word << 16 : word & 0xffff0000u);
      } else {
        v[i] = f16_value((u16)(i % 2 == 0 ? word & 0xffffu : word >> 16));
      }
    }
  }
  if (row.weighted) {
#pragma unroll
    for (u32 i = 0; i < kLaneColumns; ++i) v[i] = product(v[i], row.weight);
  }
}
// Largest magnitude; fmaxf passes over NaN, as the host's comparison does.
__device__ __forceinline__ float largest(const float (&v)[kLaneColumns], float amax) {
#pragma unroll
  for (u32 i = 0; i < kLaneColumns; ++i) amax = fmaxf(amax, fabsf(v[i]));
  return amax;
}

// ---------------------------------------------------------------- codes

// Sign bits of four values, each at bit 7 of its byte.
__device__ __forceinline__ u32 signs(const float* v) {
  const u32 low = __byte_perm(__float_as_uint(v[0]), __float_as_uint(v[1]), 0x0073);
  const u32 high = __byte_perm(__float_as_uint(v[2]), __float_as_uint(v[3]), 0x0073);
  return __byte_perm(low, high, 0x5410) & 0x80808080u;
}
// 16 codes. A NaN keeps its sign. `bound`: magnitudes that this may exceed (static scales) are cut there.
__device__ __forceinline__ void encode(const float (&v)[kLaneColumns], float scale, float bound,
                                       u32 (&codes)[4]) {
  const float inverse = __frcp_rn(scale);
#pragma unroll
  for (u32 i = 0; i < 4; ++i) {
    u32 pair[2];
#pragma unroll
    for (u32 h = 0; h < 2; ++h) {
      float a = fabsf(v[4 * i + 2 * h]);
      float b = fabsf(v[4 * i + 2 * h + 1]);
      if (FORMAT == 5) {
        a = a > bound ? bound : a;
        b = b > bound ? bound : b;
      }
      pair[h] = e4m3_pair(quotient(a, scale, inverse), quotient(b, scale, inverse));
    }
    // Magnitudes have no sign, but a NaN's code may have one (below sm_89).
    codes[i] = (((pair[0] & 0xffffu) | (pair[1] << 16)) & 0x7f7f7f7fu) | signs(v + 4 * i);
  }
}
// Dynamic scales lie between 1e-10/448 = 2.2e-13 and 7.6e35, or are infinite.
__device__ __forceinline__ bool plain_scale(float scale) {
  return FORMAT == 5 ? !(scale >= 0x1p-60f && scale <= 0x1p60f) : scale > 0x1p126f;
}
// The same for a lane's columns, one at a time from memory: rare, so short.
__device__ __forceinline__ void store_plain_codes(const RowsParams& p, const RowPlace& row, u32 column,
                                                  float scale) {
  u8* const to = static_cast<u8*>(p.out) + (i64)row.out * p.columns + column;
  const u8* const from = row.x + (i64)column * kXBytes;
#pragma unroll 1
  for (u32 i = 0; i < kLaneColumns; ++i) {
    float v;
    if (X_TYPE == 1) {
      v = reinterpret_cast<const float*>(from)[i];
    } else {
      const u16 bits = reinterpret_cast<const u16*>(from)[i];
      v = X_TYPE == 3 ? bf16_to_f32(bits) : f16_value(bits);
    }
    to[i] = (u8)plain_code(row.weighted ? product(v, row.weight) : v, scale);
  }
}
__device__ __forceinline__ void store_codes(const RowsParams& p, const RowPlace& row, u32 column,
                                            const float (&v)[kLaneColumns], float scale) {
  if (plain_scale(scale)) {
    store_plain_codes(p, row, column, scale);
    return;
  }
  u32 codes[4];
  encode(v, scale, 1024.0f * scale, codes);
  store_words(static_cast<u8*>(p.out) + (i64)row.out * p.columns + column, codes[0], codes[1], codes[2],
              codes[3]);
}
__device__ __forceinline__ void store_floats(const RowsParams& p, const RowPlace& row, u32 column,
                                             const Raw& raw, const float (&v)[kLaneColumns]) {
  u8* const to = static_cast<u8*>(p.out) + ((i64)row.out * p.columns + column) * (i64)kOutBytes;
  constexpr u32 kWords = kLaneColumns * kOutBytes / 4;
  u32 w[kWords];
#pragma unroll
  for (u32 i = 0; i < kWords; ++i) {
    if (kSameType && !row.weighted) {
      w[i] = raw.w[i % kRawWords];
    } else if (FORMAT == 4) {
      w[i] = __float_as_uint(v[i % kLaneColumns]);
    } else if (FORMAT == 2) {
      w[i] =
          (u32)f32_to_bf16(v[2 * i % kLaneColumns]) | ((u32)f32_to_bf16(v[(2 * i + 1) % kLaneColumns]) << 16);
    } else {
      w[i] =
          (u32)f32_to_f16(v[2 * i % kLaneColumns]) | ((u32)f32_to_f16(v[(2 * i + 1) % kLaneColumns]) << 16);
    }
  }
#pragma unroll
  for (u32 i = 0; i < kWords; i += 4) store_words(to + 4 * i, w[i], w[i + 1], w[i + 2], w[i + 3]);
}

// ---------------------------------------------------------------- loops

// Segments of rows, in the order of the rows, dealt out to the warps of the grid: next() without divisions.
struct Segments {
  u32 row, segment;
  u32 per_row, step_rows, step_segments;
  __device__ __forceinline__ Segments(u32 columns, u32 warp, u32 warps) {
    per_row = (columns + kSegment - 1) / kSegment;
    row = warp / per_row;
    segment = warp - row * per_row;
    step_rows = warps / per_row;
    step_segments = warps - step_rows * per_row;
  }
  __device__ __forceinline__ void next() {
    row += step_rows;
    segment += step_segments;
    if (segment >= per_row) {
      segment -= per_row;
      ++row;
    }
  }
};

// Warps are numbered across the blocks, so that few segments spread over all of them.
__device__ __forceinline__ u32 warp_of_grid(u32 part, u32 parts) {
  return threadIdx.x / 32 * parts + part;
}

#if X_TYPE != 4
__device__ __forceinline__ void finish_segment(const RowsParams& p, const RowPlace& row, u32 column,
                                               bool inside, const Raw& raw) {
  float v[kLaneColumns];
  unpack(raw, row, v);
  if (FORMAT == 1) {
    float amax = inside ? largest(v, 0.0f) : 0.0f;
#pragma unroll
    for (u32 d = 1; d < 8; d *= 2) amax = fmaxf(amax, __shfl_xor_sync(0xffffffffu, amax, d));
    const float scale = amax_scale(amax);
    if (!inside) return;
    if (threadIdx.x % 8 == 0) p.scales[(i64)row.out * p.groups + column / 128] = scale;
    store_codes(p, row, column, v, scale);
  } else if (inside) {
    if (FORMAT == 5) {
      store_codes(p, row, column, v, p.static_scale);
    } else {
      store_floats(p, row, column, raw, v);
    }
  }
}

// Everything but fp8_channel: segments on their own. With bf16 x the next one's words are in flight while
// one is worked on; f32 has as many bytes in flight without, and f16 no registers left for it.
__device__ __forceinline__ void convert_segments(const RowsParams& p, const BatchRows& batch, u32 rows,
                                                 u32 part, u32 parts) {
  const u32 lane = threadIdx.x % 32;
  Segments s(p.columns, warp_of_grid(part, parts), parts * kPrologueWarps);
  RowPlace next{};
  Raw raw{};
  u32 column = 0;
  // Whether there is a segment is the same for the whole warp.
  const auto fetch = [&] {
    if (s.row >= rows) return;
    next = place_of_row(p, batch, s.row);
    column = s.segment * kSegment + lane * kLaneColumns;
    if (column < p.columns) raw = load_raw(p, next, column);
  };
#if X_TYPE != 3
  for (; s.row < rows; s.next()) {
    fetch();
    finish_segment(p, next, column, column < p.columns, raw);
  }
#else
  fetch();
  while (s.row < rows) {
    const RowPlace row = next;
    const Raw now = raw;
    const u32 at = column;
    s.next();
    fetch();
    finish_segment(p, row, at, at < p.columns, now);
  }
#endif
}

// fp8_channel: a team of 1, 2, 4, 8 or 16 warps per row, whose scale needs the whole row. Rows of up to 8192
// columns are read once and kept in registers. `shared`: a float per warp and half of the double buffer.
__device__ __forceinline__ void convert_rows(const RowsParams& p, const BatchRows& batch, u32 rows, u32 part,
                                             u32 parts, float* shared) {
  const u32 lane = threadIdx.x % 32;
  const u32 warp = threadIdx.x / 32;
  const u32 segments = (p.columns + kSegment - 1) / kSegment;
  u32 team = 1;
  while (team < segments && team < kPrologueWarps) team *= 2;
  const u32 member = warp % team;
  const u32 per_block = kPrologueWarps / team;
  u32 half = 0;
  for (u32 begin = part * per_block; begin < rows; begin += parts * per_block) {  // the same for the block
    const u32 r = begin + warp / team;
    const bool there = r < rows;
    const RowPlace row = place_of_row(p, batch, there ? r : rows - 1);
    float v[kLaneColumns] = {};
    float amax = 0.0f;
    for (u32 s = member; s < segments; s += team) {
      const u32 column = s * kSegment + lane * kLaneColumns;
      if (!there || column >= p.columns) continue;
      unpack(load_raw(p, row, column), row, v);
      amax = largest(v, amax);
    }
#pragma unroll
    for (u32 d = 1; d < 32; d *= 2) amax = fmaxf(amax, __shfl_xor_sync(0xffffffffu, amax, d));
    float* const all = shared + half * kPrologueWarps;
    half ^= 1;  // the other half may still be read by slower warps; two rounds back nobody does
    if (lane == 0) all[warp] = amax;
    __syncthreads();
    for (u32 i = 0; i < team; ++i) amax = fmaxf(amax, all[warp - member + i]);
    if (!there) continue;
    const float scale = amax_scale(amax);
    if (member == 0 && lane == 0) p.scales[row.out] = scale;
    for (u32 s = member; s < segments; s += team) {
      const u32 column = s * kSegment + lane * kLaneColumns;
      if (column >= p.columns) continue;
      if (segments > team) unpack(load_raw(p, row, column), row, v);
      store_codes(p, row, column, v, scale);
    }
  }
}
#else
// e4m3 x: codes where they have to move, scales where they change or move. Rows may have scales without
// codes.
__device__ __forceinline__ void copy_codes(const RowsParams& p, const BatchRows& batch, u32 rows, u32 part,
                                           u32 parts) {
  const u32 lane = threadIdx.x % 32;
  Segments s(p.out != nullptr ? p.columns : 1, warp_of_grid(part, parts), parts * kPrologueWarps);
  for (; s.row < rows; s.next()) {
    const RowIndexPlace at = index_of_row(p, batch, s.row);
    const RowPlace row = place_of_row(p, batch, s.row);
    const u32 column = s.segment * kSegment + lane * kLaneColumns;
    if (p.out != nullptr && column < p.columns) {
      const Raw raw = load_raw(p, row, column);
      store_words(static_cast<u8*>(p.out) + (i64)row.out * p.columns + column, raw.w[0], raw.w[1], raw.w[2],
                  raw.w[3]);
    }
    if (p.scales == nullptr || s.segment != 0) continue;
    const float* const from = p.x_scale + (i64)at.expert * p.scale_slab +
                              (i64)at.token * p.scale_stride;  // not read without x_scale
    for (u32 g = lane; g < p.groups; g += 32) {
      const float scale = p.x_scale != nullptr ? from[g] : p.static_scale;
      p.scales[(i64)row.out * p.groups + g] = row.weighted ? product(scale, row.weight) : scale;
    }
  }
}
#endif

// Brings this warp's first segments to L2: those whose loads convert_segments issues before it works. (A
// team's rows and codes that are copied are left to their loads.)
__device__ __forceinline__ void prefetch_rows(const RowsParams& p, u32 part, u32 parts) {
  if (X_TYPE == 4 || FORMAT == 6) return;
  Segments s(p.columns, warp_of_grid(part, parts), parts * kPrologueWarps);
#pragma unroll 1
  for (u32 i = 0; i < 2 && s.row < p.rows; ++i, s.next()) {
    const u32 column = s.segment * kSegment + threadIdx.x % 32 * kLaneColumns;
    const u32 token = p.source == kRowsAreSlots ? s.row / p.top_k : s.row;
    if (column < p.columns)
      prefetch_line(static_cast<const u8*>(p.x) + ((i64)token * p.stride + (i64)column) * (i64)kXBytes);
  }
}

// All rows, by block `part` of `parts`. `shared`: 2 * kPrologueWarps floats (fp8_channel).
__device__ __forceinline__ void convert(const RowsParams& p, const BatchRows& batch, u32 rows, u32 part,
                                        u32 parts, float* shared) {
#if X_TYPE == 4
  copy_codes(p, batch, rows, part, parts);
#elif FORMAT == 6
  convert_rows(p, batch, rows, part, parts, shared);
#else
  convert_segments(p, batch, rows, part, parts);
#endif
}
