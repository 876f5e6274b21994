// The vectors that kernels.inc.hpp is written in: fp32 and uint32 lanes of the width of the ISA level that
// the including file is compiled for, on the compilers' vector types; intrinsics only for fused multiply-add,
// the widening loads and the conversions that those types have no word for. Included by isa_*.cpp only,
// inside an anonymous namespace: nothing here may get a linker symbol.

#if defined(__AVX512F__)
constexpr int VL = 16;
#elif defined(__AVX2__)
constexpr int VL = 8;
#else
constexpr int VL = 4;
#endif

typedef float vf __attribute__((vector_size(VL * 4)));
typedef uint32_t vu __attribute__((vector_size(VL * 4)));
typedef int32_t vi __attribute__((vector_size(VL * 4)));

#if defined(__clang__)
#define RAMP_UNROLL _Pragma("unroll")
#else
#define RAMP_UNROLL _Pragma("GCC unroll 16")
#endif
#define RAMP_INLINE static inline __attribute__((always_inline))

RAMP_INLINE vu bits(vf v) {
  return (vu)v;
}
RAMP_INLINE vf floats(vu v) {
  return (vf)v;
}
RAMP_INLINE vf splat(float s) {
  return s - vf{};
}
RAMP_INLINE vu splat_u(uint32_t s) {
  return s - vu{};
}
// m: all ones or zero per lane (what a comparison gives).
RAMP_INLINE vf select(vi m, vf a, vf b) {
  return floats((bits(a) & (vu)m) | (bits(b) & ~(vu)m));
}
RAMP_INLINE vu select(vi m, vu a, vu b) {
  return (a & (vu)m) | (b & ~(vu)m);
}
RAMP_INLINE vf abs_of(vf v) {
  return floats(bits(v) & splat_u(0x7fffffffU));
}
RAMP_INLINE vi is_nan(vf v) {
  return (vi)(v != v);
}

RAMP_INLINE vf load(const float* p) {
  vf v;
  __builtin_memcpy(&v, p, sizeof v);
  return v;
}
RAMP_INLINE void store(float* p, vf v) {
  __builtin_memcpy(p, &v, sizeof v);
}

// a * b + c: one rounding where the ISA has fma, two in the baseline; never left to contraction.
RAMP_INLINE vf madd(vf a, vf b, vf c) {
#if defined(__AVX512F__)
  return (vf)_mm512_fmadd_ps((__m512)a, (__m512)b, (__m512)c);
#elif defined(__AVX2__)
  return (vf)_mm256_fmadd_ps((__m256)a, (__m256)b, (__m256)c);
#else
  return a * b + c;
#endif
}

// VL unsigned values of 8 or 16 bits, widened and narrowed (values fit).
RAMP_INLINE vu load_u8(const uint8_t* p) {
#if defined(__AVX512F__)
  return (vu)_mm512_cvtepu8_epi32(_mm_loadu_si128((const __m128i*)p));
#elif defined(__AVX2__)
  return (vu)_mm256_cvtepu8_epi32(_mm_loadl_epi64((const __m128i*)p));
#else
  return vu{p[0], p[1], p[2], p[3]};
#endif
}
RAMP_INLINE vu load_u16(const uint16_t* p) {
#if defined(__AVX512F__)
  return (vu)_mm512_cvtepu16_epi32(_mm256_loadu_si256((const __m256i*)p));
#elif defined(__AVX2__)
  return (vu)_mm256_cvtepu16_epi32(_mm_loadu_si128((const __m128i*)p));
#else
  return vu{p[0], p[1], p[2], p[3]};
#endif
}
RAMP_INLINE void store_u8(uint8_t* p, vu v) {
#if defined(__AVX512F__)
  _mm_storeu_si128((__m128i*)p, _mm512_cvtepi32_epi8((__m512i)v));
#else
  for (int i = 0; i < VL; ++i) p[i] = (uint8_t)v[i];
#endif
}
RAMP_INLINE void store_u16(uint16_t* p, vu v) {
#if defined(__AVX512F__)
  _mm256_storeu_si256((__m256i*)p, _mm512_cvtepi32_epi16((__m512i)v));
#else
  for (int i = 0; i < VL; ++i) p[i] = (uint16_t)v[i];
#endif
}

// ---- storage types: the vector twins of base/float_types.hpp, equal bit for bit

RAMP_INLINE vf bf16_floats(vu v) {
  return floats(v << 16);
}
RAMP_INLINE vu to_bf16(vf v) {
  const vu u = bits(v);
  const vu rounded = (u + 0x7fffU + ((u >> 16) & 1U)) >> 16;
  return select(is_nan(v), (u >> 16) | 0x40U, rounded);
}

// Placing a small float's bits at an exponent one step too high and subtracting that step's value decodes
// subnormals without ever making an fp32 subnormal (those cost a microcode assist).
RAMP_INLINE vf e4m3_floats(vu v) {
  const vu magnitude = v & 0x7fU;
  const vu sign = (v & 0x80U) << 24;
  const vu normal = (magnitude << 20) + (120U << 23);
  const vu subnormal = (vu)(magnitude < 8U);
  vu u = bits(floats(normal + (subnormal & (1U << 23))) - floats(subnormal & 0x3c800000U));  // 2^-6
  u |= (vu)(magnitude == 0x7fU) & 0x7fc00000U;
  return floats(u | sign);
}
// Adding 2^14, whose last mantissa bit is worth 2^-9, rounds what lies below 2^-6 to the subnormal grid.
RAMP_INLINE vu to_e4m3(vf v) {
  const vu a = bits(v) & 0x7fffffffU;
  const vu sign = (bits(v) >> 24) & 0x80U;
  const vu small = bits(floats(a) + 16384.0F) - 0x46800000U;
  const vu normal = (a + 0x7ffffU + ((a >> 20) & 1U) - 0x3c000000U) >> 20;
  vu code = select((vi)(a < 0x3c800000U), small, normal);
  code = select((vi)(a >= 0x43e00000U), splat_u(0x7eU), code);
  code = select((vi)(a > 0x7f800000U), splat_u(0x7fU), code);
  return code | sign;
}

#if defined(__AVX2__)
RAMP_INLINE vf f16_floats_at(const uint16_t* p) {
#if defined(__AVX512F__)
  return (vf)_mm512_cvtph_ps(_mm256_loadu_si256((const __m256i*)p));
#else
  return (vf)_mm256_cvtph_ps(_mm_loadu_si128((const __m128i*)p));
#endif
}
// The hardware keeps a NaN's payload; float_types.hpp does not.
RAMP_INLINE vu to_f16(vf v) {
  uint16_t h[VL];
#if defined(__AVX512F__)
  _mm256_storeu_si256((__m256i*)h, _mm512_cvtps_ph((__m512)v, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC));
#else
  _mm_storeu_si128((__m128i*)h, _mm256_cvtps_ph((__m256)v, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC));
#endif
  const vu sign = (bits(v) >> 16) & 0x8000U;
  return select(is_nan(v), sign | 0x7e00U, load_u16(h));
}
#else
RAMP_INLINE vf f16_floats_at(const uint16_t* p) {
  const vu v = load_u16(p);
  const vu magnitude = v & 0x7fffU;
  const vu sign = (v & 0x8000U) << 16;
  const vu subnormal = (vu)(magnitude < 0x400U);
  const vu normal = (magnitude << 13) + (112U << 23);
  vu u = bits(floats(normal + (subnormal & (1U << 23))) - floats(subnormal & 0x38800000U));  // 2^-14
  u = select((vi)(magnitude >= 0x7c00U), (magnitude << 13) | 0x7f800000U, u);
  return floats(u | sign);
}
RAMP_INLINE vu to_f16(vf v) {
  const vu a = bits(v) & 0x7fffffffU;
  const vu sign = (bits(v) >> 16) & 0x8000U;
  const vu small = bits(floats(a) + 0.5F) - 0x3f000000U;  // 0.5's last mantissa bit is worth 2^-24
  const vu normal = (a + 0xfffU + ((a >> 13) & 1U) - 0x38000000U) >> 13;
  vu code = select((vi)(a < 0x38800000U), small, normal);
  code = select((vi)(a >= 0x477ff000U), splat_u(0x7c00U), code);
  code = select((vi)(a > 0x7f800000U), splat_u(0x7e00U), code);
  return code | sign;
}
#endif

// ---- element types, as template arguments: VL values in memory order (get, put), and panels, whose words
// hold kPack depths of one lane (raw, part)

struct F32 {
  typedef float T;
  typedef vf Raw;
  static constexpr int kPack = 1;
  RAMP_INLINE vf get(const float* p) { return load(p); }
  RAMP_INLINE void put(float* p, vf v) { store(p, v); }
  RAMP_INLINE vf raw(const float* p) { return load(p); }
  RAMP_INLINE vf part(vf v, int) { return v; }
};
struct F16 {
  typedef uint16_t T;
  typedef vf Raw;
  static constexpr int kPack = 1;
  RAMP_INLINE vf get(const uint16_t* p) { return f16_floats_at(p); }
  RAMP_INLINE void put(uint16_t* p, vf v) { store_u16(p, to_f16(v)); }
  RAMP_INLINE vf raw(const uint16_t* p) { return get(p); }
  RAMP_INLINE vf part(vf v, int) { return v; }
};
struct BF16 {
  typedef uint16_t T;
  typedef vu Raw;
  static constexpr int kPack = 2;
  RAMP_INLINE vf get(const uint16_t* p) { return bf16_floats(load_u16(p)); }
  RAMP_INLINE void put(uint16_t* p, vf v) { store_u16(p, to_bf16(v)); }
  RAMP_INLINE vu raw(const uint16_t* p) { return bits(load((const float*)p)); }
  RAMP_INLINE vf part(vu v, int j) { return floats(j == 0 ? v << 16 : v & 0xffff0000U); }
};
struct E4M3 {
  typedef uint8_t T;
  typedef vu Raw;
  static constexpr int kPack = 4;
  RAMP_INLINE vf get(const uint8_t* p) { return e4m3_floats(load_u8(p)); }
  RAMP_INLINE void put(uint8_t* p, vf v) { store_u8(p, to_e4m3(v)); }
  RAMP_INLINE vu raw(const uint8_t* p) { return bits(load((const float*)p)); }
  RAMP_INLINE vf part(vu v, int j) { return e4m3_floats((v >> (8 * j)) & 0xffU); }
};

// e^x for x in fp32, error below 2 ulp; inf above 88.72, 0 below -87.34 (no subnormal results), NaN stays
// NaN. Range reduction x = n ln2 + r, |r| <= ln2 / 2, with ln2 in two parts (the first with 9 bits, so n
// times it is exact); e^r by the Taylor polynomial of degree 7, whose first omitted term is r^8 / 8! < 6e-9.
RAMP_INLINE vf exp_of(vf x) {
  const vf n = (x * 1.44269504F + 12582912.0F) - 12582912.0F;  // 1.5 * 2^23: rounds to an integer
  vf r = madd(n, splat(-0.693359375F), x);
  r = madd(n, splat(2.12194440e-4F), r);
  vf p = splat(1.0F / 5040.0F);
  p = madd(p, r, splat(1.0F / 720.0F));
  p = madd(p, r, splat(1.0F / 120.0F));
  p = madd(p, r, splat(1.0F / 24.0F));
  p = madd(p, r, splat(1.0F / 6.0F));
  p = madd(p, r, splat(0.5F));
  p = madd(p, r, splat(1.0F));
  p = madd(p, r, splat(1.0F));
  // 2^n in two factors, so that n = 128 (x near 88.7) still works. Out-of-range lanes are replaced below.
  const vf in_range = select((vi)(x < 89.0F) & (vi)(x > -88.0F), n, splat(0.0F));
  const vi whole = __builtin_convertvector(in_range, vi);
  const vi half = whole >> 1;
  const vf low = floats((vu)(half + 127) << 23);
  const vf high = floats((vu)(whole - half + 127) << 23);
  vf y = p * low * high;
  y = select((vi)(x > 88.72283F), splat(__builtin_inff()), y);
  y = select((vi)(x < -87.33654F), splat(0.0F), y);
  return select(is_nan(x), x, y);
}
