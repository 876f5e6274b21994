// The kernels of one ISA level: written once, compiled per level by isa_*.cpp, which include this file after
// <immintrin.h> and define RAMP_ISA_NAME and RAMP_ISA_TABLE. Everything lives in an anonymous namespace and
// nothing of the standard library is used: no function compiled here may be shared with the rest of the
// program (a test looks at the object files' symbols).
//
// All lengths are multiples of 32 (H, I, tiles and scale groups are), so there are no vector tails. Every
// result depends on its own inputs alone, never on how many rows or columns are computed together: that is
// what makes the backend's bits independent of tiles and schedule.

namespace ramp::core {
namespace {

#include "backend/cpu/vec.inc.hpp"

// ---------------------------------------------------------------- GEMM of one panel

// Rows of x per register block: 2 accumulators each, plus two weight vectors and the broadcast.
#if defined(__AVX512F__)
constexpr int kBlockRows = 12;
#else
constexpr int kBlockRows = 6;
#endif

// Weights are fetched twice: from memory to the L2 cache `far` bytes ahead, and to the L1 cache a little
// ahead of their use. One distance alone either wastes the few L1 miss buffers on memory's latency or comes
// late: 33 of 38 GB/s for bf16 tiles, 37 with both (two cores, docs/kernel-log.md).
constexpr int kNear = 512, kNearQuads = 768;
RAMP_INLINE void prefetch_line(const char* p, int near, int64_t far) {
  __builtin_prefetch(p + near, 0, 3);
  __builtin_prefetch(p + far, 0, 2);
}

// One call's work on one scale group, or all of it where there are none.
struct Piece {
  const void* w;
  const void* a;
  int depth;
  const float* scales;  // [rows] or nullptr
  float w_scale[2];
};

RAMP_INLINE void finish_row(const Piece* p, float* c, int row, int lane, vf sum0, vf sum1) {
  if (p->scales == nullptr) {
    store(c, sum0);
    store(c + VL, sum1);
    return;
  }
  const float s = p->scales[row];
  store(c, madd(sum0, splat(s * p->w_scale[lane / kHalfPanel]), load(c)));
  store(c + VL, madd(sum1, splat(s * p->w_scale[(lane + VL) / kHalfPanel]), load(c + VL)));
}

// M rows of x against all 32 lanes, two vectors of lanes at a time.
template <class W, int M, bool kPrefetch>
__attribute__((noinline)) void gemm_block(const GemmArgs* g, const Piece* p, int row) {
  typedef typename W::T T;
  const float* const a = (const float*)p->a + (int64_t)row * kRowStride;
  const int depth = p->depth;
  for (int lane = 0; lane < kPanelRows; lane += 2 * VL) {
    float* const c = g->c + row * g->c_stride + lane;
    vf acc[M][2];
    if (p->scales == nullptr) {
      RAMP_UNROLL for (int m = 0; m < M; ++m) {
        acc[m][0] = load(c + m * g->c_stride);
        acc[m][1] = load(c + m * g->c_stride + VL);
      }
    } else {
      RAMP_UNROLL for (int m = 0; m < M; ++m) {
        acc[m][0] = vf{};
        acc[m][1] = vf{};
      }
    }
    const T* w = (const T*)p->w + lane * W::kPack;
    for (int k = 0; k < depth; k += W::kPack) {
      if (kPrefetch) {
        prefetch_line((const char*)w, kNear, g->prefetch);
        if (2 * VL * W::kPack * sizeof(T) > 64) prefetch_line((const char*)w + 64, kNear, g->prefetch);
      }
      const typename W::Raw raw0 = W::raw(w);
      const typename W::Raw raw1 = W::raw(w + VL * W::kPack);
      RAMP_UNROLL for (int j = 0; j < W::kPack; ++j) {
        const vf w0 = W::part(raw0, j);
        const vf w1 = W::part(raw1, j);
        RAMP_UNROLL for (int m = 0; m < M; ++m) {
          const vf x = splat(a[m * kRowStride + k + j]);
          acc[m][0] = madd(w0, x, acc[m][0]);
          acc[m][1] = madd(w1, x, acc[m][1]);
        }
      }
      w += kPanelRows * W::kPack;
    }
    RAMP_UNROLL for (int m = 0; m < M; ++m) {
      finish_row(p, c + m * g->c_stride, row + m, lane, acc[m][0], acc[m][1]);
    }
  }
}

#if defined(__AVX512F__)
#define RAMP_ROW_CASES(CASE) \
  CASE(1) CASE(2) CASE(3) CASE(4) CASE(5) CASE(6) CASE(7) CASE(8) CASE(9) CASE(10) CASE(11) CASE(12)
#else
#define RAMP_ROW_CASES(CASE) CASE(1) CASE(2) CASE(3) CASE(4) CASE(5) CASE(6)
#endif

template <class W, bool kPrefetch>
void gemm_rows(const GemmArgs* g, const Piece* p, int row, int rows) {
  switch (rows) {
#define RAMP_CASE(M)                        \
  case M:                                   \
    gemm_block<W, M, kPrefetch>(g, p, row); \
    return;
    RAMP_ROW_CASES(RAMP_CASE)
#undef RAMP_CASE
    default:
      return;
  }
}

// Calls body(piece) for the scale groups of a call. x_bytes, w_bytes: of an element.
template <class Body>
RAMP_INLINE void each_piece(const GemmArgs* g, int x_bytes, int w_bytes, Body body) {
  if (g->scales == nullptr) {
    const Piece p = {g->w, g->a, g->depth, nullptr, {1.0F, 1.0F}};
    body(&p);
    return;
  }
  for (int k = 0, group = 0; k < g->depth; k += kScaleGroup, ++group) {
    const int rest = g->depth - k;
    const Piece p = {(const char*)g->w + (int64_t)k * kPanelRows * w_bytes,
                     (const char*)g->a + (int64_t)k * x_bytes,
                     rest < kScaleGroup ? rest : kScaleGroup,
                     g->scales + group * kMaxTileM,
                     {g->w_scale[0][group], g->w_scale[1][group]}};
    body(&p);
  }
}

template <class W>
void gemm_typed(const GemmArgs* g) {
  each_piece(g, 4, sizeof(typename W::T), [g](const Piece* p) {
    // Equal blocks rather than full ones and a thin rest: 16 rows go as 8 + 8, not 12 + 4.
    const int blocks = (g->rows + kBlockRows - 1) / kBlockRows;
    int row = 0;
    for (int b = 0; b < blocks; ++b) {
      const int rows = (g->rows - row + (blocks - b) - 1) / (blocks - b);
      if (g->prefetch != 0 && b == 0) {
        gemm_rows<W, true>(g, p, row, rows);
      } else {
        gemm_rows<W, false>(g, p, row, rows);
      }
      row += rows;
    }
  });
}

#if defined(__AVX512BF16__)
#include "backend/cpu/kernels_dot.inc.hpp"
#endif
#if defined(__AMX_BF16__)
#include "backend/cpu/kernels_amx.inc.hpp"
#endif

// Calls f.template operator()<Type>() style bodies by dtype without std: one macro, expanded per use.
#define RAMP_BY_DTYPE(dtype, CALL) \
  switch (dtype) {                 \
    case RAMP_F32:                 \
      CALL(F32);                   \
      break;                       \
    case RAMP_F16:                 \
      CALL(F16);                   \
      break;                       \
    case RAMP_BF16:                \
      CALL(BF16);                  \
      break;                       \
    case RAMP_E4M3:                \
      CALL(E4M3);                  \
      break;                       \
    default:                       \
      break;                       \
  }

void gemm(const GemmArgs* g) {
#if defined(__AMX_BF16__)
  if (g->dot != 0) return gemm_tiles(g);
#elif defined(__AVX512BF16__)
  if (g->dot != 0) return gemm_dot(g);
#endif
#define RAMP_CALL(W) gemm_typed<W>(g)
  RAMP_BY_DTYPE(g->w_dtype, RAMP_CALL)
#undef RAMP_CALL
}

// ---------------------------------------------------------------- weights to fp32

template <class W>
void decode_panel_typed(const typename W::T* w, int64_t depth, int32_t prefetch, float* out) {
  for (int64_t k = 0; k < depth; k += W::kPack) {
    const char* const words = (const char*)(w + k * kPanelRows);
    if (prefetch != 0) prefetch_line(words, kNear, prefetch);
    if (prefetch != 0 && kPanelRows * W::kPack * sizeof(*w) > 64) prefetch_line(words + 64, kNear, prefetch);
    for (int v = 0; v < kPanelRows; v += VL) {
      const typename W::Raw raw = W::raw(w + k * kPanelRows + v * W::kPack);
      RAMP_UNROLL for (int j = 0; j < W::kPack; ++j) {
        store(out + (k + j) * kPanelRows + v, W::part(raw, j));
      }
    }
  }
}
void decode_panel(const void* w, int32_t dtype, int64_t depth, int32_t prefetch, float* out) {
#define RAMP_CALL(W) decode_panel_typed<W>((const W::T*)w, depth, prefetch, out)
  RAMP_BY_DTYPE(dtype, RAMP_CALL)
#undef RAMP_CALL
}

template <class W>
void decode_rows_typed(const typename W::T* w, int64_t row_stride, int64_t depth, float* out) {
  constexpr int kStep = 16;  // depth transposed at once
  float block[kHalfPanel][kStep];
  for (int64_t k = 0; k < depth; k += kStep) {
    for (int r = 0; r < kHalfPanel; ++r) {
      for (int v = 0; v < kStep; v += VL) store(&block[r][v], W::get(w + r * row_stride + k + v));
    }
    for (int kk = 0; kk < kStep; ++kk) {
      for (int r = 0; r < kHalfPanel; ++r) out[(k + kk) * kPanelRows + r] = block[r][kk];
    }
  }
}
void decode_rows(const void* first, const void* second, int64_t row_stride, int32_t dtype, int64_t depth,
                 int32_t dot, void* out) {
#if defined(__AVX512BF16__)
  if (dot != 0) return decode_rows_dot(first, second, row_stride, dtype, depth, (uint32_t*)out);
#else
  (void)dot;
#endif
#define RAMP_CALL(W)                                                        \
  decode_rows_typed<W>((const W::T*)first, row_stride, depth, (float*)out); \
  decode_rows_typed<W>((const W::T*)second, row_stride, depth, (float*)out + kHalfPanel)
  RAMP_BY_DTYPE(dtype, RAMP_CALL)
#undef RAMP_CALL
}

// ---------------------------------------------------------------- activations

RAMP_INLINE vf round_value(vf v, int32_t round_to) {
  if (round_to == RAMP_BF16) return bf16_floats(to_bf16(v));
  if (round_to == RAMP_F16) {
    uint16_t h[VL];
    store_u16(h, to_f16(v));
    return f16_floats_at(h);
  }
  return v;
}

template <class X>
void load_row_typed(const LoadArgs* l, float* dst) {
  const typename X::T* const src = (const typename X::T*)l->src;
  const vf factor = splat(l->factor);
  const vf scale = splat(l->scale);
  const int32_t round_to = l->round_to;
  if (l->op == kLoadQuantise) {
    for (int64_t i = 0; i < l->n; i += VL) {
      store(dst + i, e4m3_floats(to_e4m3((X::get(src + i) * factor) / scale)));
    }
  } else if (l->op == kLoadScaled) {
    for (int64_t i = 0; i < l->n; i += VL) store(dst + i, round_value(X::get(src + i) * factor, round_to));
  } else if (round_to == RAMP_F32) {
    for (int64_t i = 0; i < l->n; i += VL) store(dst + i, X::get(src + i));
  } else {
    for (int64_t i = 0; i < l->n; i += VL) store(dst + i, round_value(X::get(src + i), round_to));
  }
}
void load_row_f32(const LoadArgs* l, float* dst) {
#define RAMP_CALL(X) load_row_typed<X>(l, dst)
  RAMP_BY_DTYPE(l->src_dtype, RAMP_CALL)
#undef RAMP_CALL
}
void load_row(const LoadArgs* l) {
#if defined(__AVX512BF16__)
  if (l->layout != kRowF32) return load_row_dot(l);
#endif
  load_row_f32(l, (float*)l->dst);
}

template <class X>
float amax_typed(const typename X::T* src, int64_t n) {
  vf best = vf{};
  for (int64_t i = 0; i < n; i += VL) {
    const vf v = abs_of(X::get(src + i));
    best = select((vi)(v > best), v, best);  // false for NaN
  }
  float result = 0.0F;
  for (int i = 0; i < VL; ++i) result = best[i] > result ? best[i] : result;
  return result;
}
float amax(const void* src, int32_t dtype, int64_t n) {
  float result = 0.0F;
#define RAMP_CALL(X) result = amax_typed<X>((const X::T*)src, n)
  RAMP_BY_DTYPE(dtype, RAMP_CALL)
#undef RAMP_CALL
  return result;
}

template <class X>
void quantise_typed(const typename X::T* src, int64_t n, float scale, uint8_t* q) {
  const vf s = splat(scale);
  for (int64_t i = 0; i < n; i += VL) store_u8(q + i, to_e4m3(X::get(src + i) / s));
}
void quantise(const void* src, int32_t dtype, int64_t n, float scale, uint8_t* q){
#define RAMP_CALL(X) quantise_typed<X>((const X::T*)src, n, scale, q)
    RAMP_BY_DTYPE(dtype, RAMP_CALL)
#undef RAMP_CALL
}

RAMP_INLINE vf silu(vf g) {
  return g / (1.0F + exp_of(-g));
}
// 0.5 g (1 + tanh(u)) = g / (1 + e^(-2u)), u = sqrt(2/pi) (g + 0.044715 g^3): no cancellation for g < 0.
RAMP_INLINE vf gelu_tanh(vf g) {
  const vf u2 = 1.5957691216F * (g + 0.044715F * g * g * g);
  return g / (1.0F + exp_of(-u2));
}
// 0.5 g (1 + erf(g / sqrt 2)) = 0.5 g erfc(-g / sqrt 2), lane by lane with the C library's function.
RAMP_INLINE vf gelu(vf g) {
  vf y;
  for (int i = 0; i < VL; ++i) y[i] = 0.5F * g[i] * __builtin_erfcf(g[i] * -0.70710678118F);
  return y;
}
RAMP_INLINE vf relu2(vf v) {
  const vf positive = select((vi)(v < 0.0F), splat(0.0F), v);  // NaN stays
  return positive * positive;
}

template <int kActivation>
void activate_typed(const ActivateArgs* t) {
  const vf row_scale = splat(t->row_scale);
  constexpr bool kGated = kActivation != RAMP_ACTIVATION_RELU2;
  constexpr int kOut = kGated ? kHalfPanel : kPanelRows;
  for (int p = 0; p < t->panels; ++p) {
    const float* const c = t->c + p * kPanelRows;
    const float* const s = t->lane_scale != nullptr ? t->lane_scale + p * kPanelRows : nullptr;
    float* const out = t->out + p * kOut;
    for (int v = 0; v < kOut; v += VL) {
      const vf first = load(c + v) * (s != nullptr ? row_scale * load(s + v) : row_scale);
      if (!kGated) {
        store(out + v, relu2(first));
        continue;
      }
      const int up_at = kHalfPanel + v;
      const vf up = load(c + up_at) * (s != nullptr ? row_scale * load(s + up_at) : row_scale);
      vf gate = first;
      if (kActivation == RAMP_ACTIVATION_SILU_AND_MUL) gate = silu(first);
      if (kActivation == RAMP_ACTIVATION_GELU_AND_MUL) gate = gelu(first);
      if (kActivation == RAMP_ACTIVATION_GELU_TANH_AND_MUL) gate = gelu_tanh(first);
      store(out + v, gate * up);
    }
  }
}
void activate(const ActivateArgs* t) {
  switch (t->activation) {
    case RAMP_ACTIVATION_SILU_AND_MUL:
      activate_typed<RAMP_ACTIVATION_SILU_AND_MUL>(t);
      break;
    case RAMP_ACTIVATION_GELU_AND_MUL:
      activate_typed<RAMP_ACTIVATION_GELU_AND_MUL>(t);
      break;
    case RAMP_ACTIVATION_GELU_TANH_AND_MUL:
      activate_typed<RAMP_ACTIVATION_GELU_TANH_AND_MUL>(t);
      break;
    default:
      activate_typed<RAMP_ACTIVATION_RELU2>(t);
      break;
  }
}

// ---------------------------------------------------------------- results

template <class Y>
void store_scaled_typed(const float* src, int64_t n, float row_scale, const float* lane_scale,
                        typename Y::T* dst) {
  const vf r = splat(row_scale);
  for (int64_t i = 0; i < n; i += VL) {
    Y::put(dst + i, load(src + i) * (lane_scale != nullptr ? r * load(lane_scale + i) : r));
  }
}
void store_scaled(const float* src, int64_t n, float row_scale, const float* lane_scale, int32_t dtype,
                  void* dst) {
#define RAMP_CALL(Y) store_scaled_typed<Y>(src, n, row_scale, lane_scale, (Y::T*)dst)
  RAMP_BY_DTYPE(dtype, RAMP_CALL)
#undef RAMP_CALL
}

void add(const float* a, const float* b, int64_t n, float* dst) {
  for (int64_t i = 0; i < n; i += VL) store(dst + i, load(a + i) + load(b + i));
}

template <class A>
RAMP_INLINE vf addend_at(const void* addend, int64_t i) {
  return A::get((const typename A::T*)addend + i);
}
template <class Y>
void combine_typed(const CombineArgs* t) {
  for (int64_t i = 0; i < t->n; i += VL) {
    vf sum = vf{};
    for (int j = 0; j < t->count; ++j) sum = madd(splat(t->weights[j]), load(t->rows[j] + i), sum);
    if (t->addend != nullptr) {
      vf extra = vf{};
#define RAMP_CALL(A) extra = addend_at<A>(t->addend, i)
      RAMP_BY_DTYPE(t->addend_dtype, RAMP_CALL)
#undef RAMP_CALL
      sum = sum + extra;
    }
    Y::put((typename Y::T*)t->y + i, sum);
  }
}
void combine(const CombineArgs* t) {
#define RAMP_CALL(Y) combine_typed<Y>(t)
  RAMP_BY_DTYPE(t->y_dtype, RAMP_CALL)
#undef RAMP_CALL
}

// ---------------------------------------------------------------- the router's dot products

template <class X, class W>
void dot_typed(const DotArgs* d) {
  vf acc[4][4];
  for (int i = 0; i < 4; ++i) {
    for (int j = 0; j < 4; ++j) acc[i][j] = vf{};
  }
  for (int64_t k = 0; k < d->n; k += VL) {
    vf x[4];
    RAMP_UNROLL for (int i = 0; i < 4; ++i) x[i] = X::get((const typename X::T*)d->x[i] + k);
    RAMP_UNROLL for (int j = 0; j < 4; ++j) {
      const vf w = W::get((const typename W::T*)d->w[j] + k);
      RAMP_UNROLL for (int i = 0; i < 4; ++i) acc[i][j] = madd(x[i], w, acc[i][j]);
    }
  }
  for (int i = 0; i < d->x_rows; ++i) {
    for (int j = 0; j < d->w_rows; ++j) {
      float lanes[VL];
      store(lanes, acc[i][j]);
      for (int width = VL / 2; width > 0; width /= 2) {  // a fixed tree
        for (int v = 0; v < width; ++v) lanes[v] += lanes[v + width];
      }
      d->out[i * d->out_stride + j] = lanes[0];
    }
  }
}
template <class X>
void dot_by_weight(const DotArgs* d) {
  if (d->w_dtype == RAMP_F32) dot_typed<X, F32>(d);
  if (d->w_dtype == RAMP_F16) dot_typed<X, F16>(d);
  if (d->w_dtype == RAMP_BF16) dot_typed<X, BF16>(d);
}
void dot(const DotArgs* d) {
  if (d->x_dtype == RAMP_F32) dot_by_weight<F32>(d);
  if (d->x_dtype == RAMP_F16) dot_by_weight<F16>(d);
  if (d->x_dtype == RAMP_BF16) dot_by_weight<BF16>(d);
}

#if defined(__AVX512BF16__)
constexpr int kHasDot = 1;
#else
constexpr int kHasDot = 0;
#endif
#if defined(__AMX_BF16__)
constexpr auto kBeginDot = begin_tiles;
constexpr auto kEndDot = end_tiles;
#else
constexpr void (*kBeginDot)(int32_t) = nullptr;
constexpr void (*kEndDot)() = nullptr;
#endif

constexpr CpuKernels kTable = {
    RAMP_ISA_NAME, VL,   kHasDot,  kBeginDot, kEndDot,      kBlockRows, gemm,    decode_panel, decode_rows,
    load_row,      amax, quantise, activate,  store_scaled, add,        combine, dot,
};

}  // namespace

const CpuKernels* RAMP_ISA_TABLE() {
  return &kTable;
}

}  // namespace ramp::core
