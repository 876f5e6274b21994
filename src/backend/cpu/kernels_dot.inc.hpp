// GEMM on bf16 dot products (AVX512-BF16), and what it shares with the matrix unit: included by
// kernels.inc.hpp for the levels that have either. bf16 weights go in as they are. e4m3 weights become bf16
// on the way, exactly: 4 significand bits and an exponent of 4 bits fit. x rows are bf16 in tile scratch.
//
// vdpbf16ps adds the product of the pair's second elements to the sum, then that of the first, each rounded
// to fp32 to nearest; it takes subnormal inputs as zero and flushes subnormal results (docs/numerics.md).

RAMP_INLINE __m512i load_words(const void* p) {
  return _mm512_loadu_si512(p);
}
RAMP_INLINE __m512 dot2(__m512 sum, __m512i w, __m512i x) {
  return _mm512_dpbf16_ps(sum, (__m512bh)w, (__m512bh)x);
}
RAMP_INLINE __m512i pair_at(const uint16_t* a) {
  int32_t pair;
  __builtin_memcpy(&pair, a, sizeof pair);
  return _mm512_set1_epi32(pair);
}

// The two pairs of each word of 4 e4m3 codes, times 1 / kQuadScale: codes 0 and 2, and codes 1 and 3. The
// exponent and mantissa bits move to bf16's places, where 0x3800 makes the bias right; subnormals (and
// zeros) come from a table instead, and kNan adds what NaN codes need.
struct Pairs {
  __m512i even, odd;
};
template <bool kNan>
RAMP_INLINE Pairs decode_quads(__m512i v) {
  const __m512i magnitude = _mm512_set1_epi16(0x07f0);
  const __m512i bias = _mm512_set1_epi16(0x3800);
  const __m512i sign = _mm512_set1_epi16((short)0x8000);
  // m * 2^-17 for m = 0..7
  const __m512i subnormals =
      _mm512_broadcast_i32x4(_mm_setr_epi16(0, 0x3700, 0x3780, 0x37c0, 0x3800, 0x3820, 0x3840, 0x3860));
  constexpr int kAndOr = 0xea;  // (a & b) | c
  constexpr int kOrAnd = 0xf8;  // a | (b & c)
  Pairs p;
  p.even = _mm512_ternarylogic_epi32(_mm512_slli_epi16(v, 4), magnitude, bias, kAndOr);
  p.even = _mm512_mask_permutexvar_epi16(p.even, _mm512_testn_epi16_mask(v, _mm512_set1_epi16(0x0078)), v,
                                         subnormals);
  p.odd = _mm512_ternarylogic_epi32(_mm512_srli_epi16(v, 4), magnitude, bias, kAndOr);
  p.odd = _mm512_mask_permutexvar_epi16(p.odd, _mm512_testn_epi16_mask(v, _mm512_set1_epi16(0x7800)),
                                        _mm512_srli_epi16(v, 8), subnormals);
  if (kNan) {
    const __m512i nan = _mm512_set1_epi16(0x7fc0);
    const __m512i low = _mm512_set1_epi16(0x007f);
    const __m512i high = _mm512_set1_epi16(0x7f00);
    p.even = _mm512_or_si512(
        p.even, _mm512_maskz_mov_epi16(_mm512_cmpeq_epi16_mask(_mm512_and_si512(v, low), low), nan));
    p.odd = _mm512_or_si512(
        p.odd, _mm512_maskz_mov_epi16(_mm512_cmpeq_epi16_mask(_mm512_and_si512(v, high), high), nan));
  }
  p.even = _mm512_ternarylogic_epi32(p.even, _mm512_slli_epi16(v, 8), sign, kOrAnd);
  p.odd = _mm512_ternarylogic_epi32(p.odd, v, sign, kOrAnd);
  return p;
}

// e4m3 panel [depth / 4][32][4] -> bf16 pairs [depth / 2][32][2] in quad order.
template <bool kNan>
RAMP_INLINE void decode_pairs_as(int64_t prefetch, const char* w, int depth, uint32_t* out) {
  for (int k = 0; k < depth; k += 4) {
    if (prefetch != 0) {
      prefetch_line(w, kNearQuads, prefetch);
      prefetch_line(w + 64, kNearQuads, prefetch);
    }
    const Pairs low = decode_quads<kNan>(load_words(w));
    const Pairs high = decode_quads<kNan>(load_words(w + 64));
    _mm512_storeu_si512(out, low.even);
    _mm512_storeu_si512(out + 16, high.even);
    _mm512_storeu_si512(out + 32, low.odd);
    _mm512_storeu_si512(out + 48, high.odd);
    w += 4 * kPanelRows;
    out += 2 * kPanelRows;
  }
}
// Scale group `group` of the panel to one of the two halves of g->decoded, in turns; -> which.
const uint32_t* decode_group(const GemmArgs* g, int group) {
  const int k = group * kScaleGroup;
  const int depth = g->depth - k < kScaleGroup ? g->depth - k : kScaleGroup;
  const char* const w = (const char*)g->w + (int64_t)k * kPanelRows;
  uint32_t* const out = (uint32_t*)g->decoded + group % 2 * (kScaleGroup / 2 * kPanelRows);
  if (g->nan_codes != 0) {
    decode_pairs_as<true>(g->prefetch, w, depth, out);
  } else {
    decode_pairs_as<false>(g->prefetch, w, depth, out);
  }
  return out;
}

// Calls body(piece) with e4m3 panels decoded, at most kScaleGroup deep at a time. Each group is decoded while
// the one before is multiplied: what was just stored cannot be loaded as a tile before it reached the cache.
template <class Body>
RAMP_INLINE void each_decoded_piece(const GemmArgs* g, Body body) {
  const int groups = (g->depth + kScaleGroup - 1) / kScaleGroup;
  const uint32_t* next = decode_group(g, 0);
  for (int group = 0; group < groups; ++group) {
    const uint32_t* const w = next;
    if (group + 1 < groups) next = decode_group(g, group + 1);
    const int k = group * kScaleGroup;
    const int rest = g->depth - k;
    const bool scaled = g->scales != nullptr;
    const Piece p = {w,
                     (const uint16_t*)g->a + k,
                     rest < kScaleGroup ? rest : kScaleGroup,
                     scaled ? g->scales + group * kMaxTileM : nullptr,
                     {scaled ? g->w_scale[0][group] : 1.0F, scaled ? g->w_scale[1][group] : 1.0F}};
    body(&p);
  }
}

#if !defined(__AMX_BF16__)
// M rows of x against all 32 lanes. W: BF16 or E4M3, the type of the panel at p->w.
template <class W, int M, bool kPrefetch>
__attribute__((noinline)) void dot_block(const GemmArgs* g, const Piece* p, int row) {
  const uint16_t* const a = (const uint16_t*)p->a + (int64_t)row * kRowStride;
  float* const c = g->c + row * g->c_stride;
  __m512 acc[M][2];
  if (p->scales == nullptr) {
    RAMP_UNROLL for (int m = 0; m < M; ++m) {
      acc[m][0] = _mm512_loadu_ps(c + m * g->c_stride);
      acc[m][1] = _mm512_loadu_ps(c + m * g->c_stride + 16);
    }
  } else {
    RAMP_UNROLL for (int m = 0; m < M; ++m) acc[m][0] = acc[m][1] = _mm512_setzero_ps();
  }
  const char* w = (const char*)p->w;
  for (int k = 0; k < p->depth; k += W::kPack) {
    if (kPrefetch) {
      prefetch_line(w, W::kPack == 2 ? kNear : kNearQuads, g->prefetch);
      prefetch_line(w + 64, W::kPack == 2 ? kNear : kNearQuads, g->prefetch);
    }
    const __m512i w0 = load_words(w);
    const __m512i w1 = load_words(w + 64);
    if (W::kPack == 2) {
      RAMP_UNROLL for (int m = 0; m < M; ++m) {
        const __m512i x = pair_at(a + m * kRowStride + k);
        acc[m][0] = dot2(acc[m][0], w0, x);
        acc[m][1] = dot2(acc[m][1], w1, x);
      }
    } else {
      const Pairs p0 = decode_quads<false>(w0);
      const Pairs p1 = decode_quads<false>(w1);
      RAMP_UNROLL for (int m = 0; m < M; ++m) {
        const __m512i even = pair_at(a + m * kRowStride + k);
        acc[m][0] = dot2(acc[m][0], p0.even, even);
        acc[m][1] = dot2(acc[m][1], p1.even, even);
        const __m512i odd = pair_at(a + m * kRowStride + k + 2);
        acc[m][0] = dot2(acc[m][0], p0.odd, odd);
        acc[m][1] = dot2(acc[m][1], p1.odd, odd);
      }
    }
    w += 128;
  }
  RAMP_UNROLL for (int m = 0; m < M; ++m) {
    finish_row(p, c + m * g->c_stride, row + m, 0, (vf)acc[m][0], (vf)acc[m][1]);
  }
}

// Up to this many rows e4m3 words are decoded in registers, once per block of rows: 2 sums per row, and the
// decoded pairs and constants want the other half of the registers.
constexpr int kDirectQuadRows = 8;

template <class W, bool kPrefetch>
void dot_rows(const GemmArgs* g, const Piece* p, int row, int rows) {
  switch (rows) {
#define RAMP_CASE(M)                                                                    \
  case M:                                                                               \
    if (W::kPack == 2 || (M) <= kDirectQuadRows) dot_block<W, M, kPrefetch>(g, p, row); \
    return;
    RAMP_ROW_CASES(RAMP_CASE)
#undef RAMP_CASE
    default:
      return;
  }
}

template <class W>
void dot_piece(const GemmArgs* g, const Piece* p, bool prefetch) {
  const int blocks = (g->rows + kBlockRows - 1) / kBlockRows;
  int row = 0;
  for (int b = 0; b < blocks; ++b) {
    const int rows = (g->rows - row + (blocks - b) - 1) / (blocks - b);
    if (prefetch && b == 0) {
      dot_rows<W, true>(g, p, row, rows);
    } else {
      dot_rows<W, false>(g, p, row, rows);
    }
    row += rows;
  }
}

void gemm_dot(const GemmArgs* g) {
  if (g->w_dtype == RAMP_BF16) {
    each_piece(g, 2, 2, [g](const Piece* p) { dot_piece<BF16>(g, p, g->prefetch != 0); });
  } else if (g->rows <= kDirectQuadRows && g->nan_codes == 0) {
    each_piece(g, 2, 1, [g](const Piece* p) { dot_piece<E4M3>(g, p, g->prefetch != 0); });
  } else {
    each_decoded_piece(g, [g](const Piece* p) { dot_piece<BF16>(g, p, false); });
  }
}

#endif

// ---------------------------------------------------------------- x rows and checkpoint rows as bf16

void load_row_f32(const LoadArgs* l, float* dst);

// 32 fp32 values that bf16 holds exactly -> bf16; quads: times kQuadScale and in quad order.
RAMP_INLINE __m512i bf16_of(const float* v, bool quads) {
  const __m512 factor = _mm512_set1_ps(quads ? kQuadScale : 1.0F);
  const __m512i low = _mm512_srli_epi32((__m512i)(_mm512_loadu_ps(v) * factor), 16);
  const __m512i high = _mm512_srli_epi32((__m512i)(_mm512_loadu_ps(v + 16) * factor), 16);
  const __m512i words =
      _mm512_inserti64x4(_mm512_castsi256_si512(_mm512_cvtepi32_epi16(low)), _mm512_cvtepi32_epi16(high), 1);
  constexpr int kSwapMiddle = 0xd8;  // 0, 2, 1, 3
  return quads ? _mm512_shufflehi_epi16(_mm512_shufflelo_epi16(words, kSwapMiddle), kSwapMiddle) : words;
}

void load_row_dot(const LoadArgs* l) {
  if (l->src_dtype == RAMP_BF16 && l->op == kLoadPlain && l->layout == kRowBf16) {
    __builtin_memcpy(l->dst, l->src, (size_t)l->n * 2);
    return;
  }
  constexpr int kChunk = 256;
  float values[kChunk];
  const int width = l->src_dtype == RAMP_F32 ? 4 : l->src_dtype == RAMP_E4M3 ? 1 : 2;
  LoadArgs part = *l;
  for (int64_t at = 0; at < l->n; at += kChunk) {
    part.src = (const char*)l->src + at * width;
    part.n = l->n - at < kChunk ? l->n - at : kChunk;
    load_row_f32(&part, values);
    uint16_t* const dst = (uint16_t*)l->dst + at;
    for (int64_t i = 0; i < part.n; i += 32) {
      _mm512_storeu_si512(dst + i, bf16_of(values + i, l->layout == kRowBf16Quads));
    }
  }
}

// decode_rows for dot kernels: 16 rows to half a panel of pairs.
void decode_half_dot(const char* w, int64_t row_stride, int32_t dtype, int64_t depth, uint32_t* out) {
  const int width = dtype == RAMP_E4M3 ? 1 : 2;
  uint32_t block[kHalfPanel][16];  // 32 deep
  for (int64_t k = 0; k < depth; k += 32) {
    for (int r = 0; r < kHalfPanel; ++r) {
      const char* const src = w + (r * row_stride + k) * width;
      if (dtype == RAMP_BF16) {
        __builtin_memcpy(block[r], src, 64);
        continue;
      }
      float values[32];
      for (int v = 0; v < 32; v += VL) {
        store(values + v, E4M3::get((const uint8_t*)src + v) * splat(1.0F / (kQuadScale * kQuadScale)));
      }
      _mm512_storeu_si512(block[r], bf16_of(values, true));
    }
    for (int pair = 0; pair < 16; ++pair) {
      for (int r = 0; r < kHalfPanel; ++r) out[(k / 2 + pair) * kPanelRows + r] = block[r][pair];
    }
  }
}
void decode_rows_dot(const void* first, const void* second, int64_t row_stride, int32_t dtype, int64_t depth,
                     uint32_t* out) {
  decode_half_dot((const char*)first, row_stride, dtype, depth, out);
  decode_half_dot((const char*)second, row_stride, dtype, depth, out + kHalfPanel);
}
