// Matrix instructions of the emulated PTX (ptx.hpp): 8 x 8 tiles between shared memory and registers, and the
// products of a warp (mma) and of a warpgroup (wgmma). Here is only what gathers a thread's operands; the
// threads meet in ptx_matrix.cpp and ptx_wgmma.cpp.
#pragma once

#include "emulator/ptx_operands.hpp"

namespace ptx {
namespace detail {

enum class Element { kE4m3, kBf16, kF16 };

void load_matrices(u32* registers, int count, u64 row);
void store_matrices(const u32* registers, int count, u64 row);
u32 transpose_matrix(u32 v);
// d = a b + c: 16 x depth times depth x 8, depth 32 bytes of elements.
void multiply_warp(float* d, const u32* a, const u32* b, const float* c, Element type);
// d = a b + d, or a b: 64 x 32 bytes times 32 bytes x n, of the operands that the descriptors describe.
void multiply_warpgroup(float* const* d, int n, u64 a, u64 b, bool add, Element type);
void products_commit();
void products_wait(u32 groups);
void check_scales(int a, int b, int transposed);

template <typename D, typename A, typename B, typename C>
void mma(const D& d, const A& a, const B& b, const C& c, Element type) {
  static_assert(D::kSize == 4 && A::kSize == 4 && B::kSize == 2 && C::kSize == 4);
  const u32 ra[4] = {get<u32>(a[0]), get<u32>(a[1]), get<u32>(a[2]), get<u32>(a[3])};
  const u32 rb[2] = {get<u32>(b[0]), get<u32>(b[1])};
  const float rc[4] = {c[0], c[1], c[2], c[3]};
  float rd[4];
  multiply_warp(rd, ra, rb, rc, type);
  for (int i = 0; i < 4; i++) d[i] = rd[i];
}

}  // namespace detail

template <typename V>
void ldmatrix_sync_aligned_m8n8_x4_shared_b16(const V& d, u64 row) {
  static_assert(V::kSize == 4);
  u32 r[4];
  detail::load_matrices(r, 4, row);
  for (int i = 0; i < 4; i++) put(d[i], r[i]);
}
template <typename V>
void ldmatrix_sync_aligned_m8n8_x2_shared_b16(const V& d, u64 row) {
  static_assert(V::kSize == 2);
  u32 r[2];
  detail::load_matrices(r, 2, row);
  for (int i = 0; i < 2; i++) put(d[i], r[i]);
}
template <typename V>
void stmatrix_sync_aligned_m8n8_x4_shared_b16(u64 row, const V& s) {
  static_assert(V::kSize == 4);
  const u32 r[4] = {get<u32>(s[0]), get<u32>(s[1]), get<u32>(s[2]), get<u32>(s[3])};
  detail::store_matrices(r, 4, row);
}
template <typename D, typename S>
void movmatrix_sync_aligned_m8n8_trans_b16(D& d, const S& s) {
  put(d, detail::transpose_matrix(get<u32>(s)));
}

template <typename D, typename A, typename B, typename C>
void mma_sync_aligned_m16n8k16_row_col_f32_bf16_bf16_f32(const D& d, const A& a, const B& b, const C& c) {
  detail::mma(d, a, b, c, detail::Element::kBf16);
}
template <typename D, typename A, typename B, typename C>
void mma_sync_aligned_m16n8k16_row_col_f32_f16_f16_f32(const D& d, const A& a, const B& b, const C& c) {
  detail::mma(d, a, b, c, detail::Element::kF16);
}
template <typename D, typename A, typename B, typename C>
void mma_sync_aligned_m16n8k32_row_col_f32_e4m3_e4m3_f32(const D& d, const A& a, const B& b, const C& c) {
  detail::mma(d, a, b, c, detail::Element::kE4m3);
}

// One width of wgmma in the three element types, both operands in shared memory.
#define RAMP_PTX_WGMMA(n)                                                                                 \
  template <typename D>                                                                                   \
  void wgmma_mma_async_sync_aligned_m64n##n##k32_f32_e4m3_e4m3(const D& d, u64 a, u64 b, bool add,        \
                                                               int scale_a, int scale_b) {                \
    static_assert(D::kSize == n / 2);                                                                     \
    detail::check_scales(scale_a, scale_b, 0);                                                            \
    detail::multiply_warpgroup(d.at, n, a, b, add, detail::Element::kE4m3);                               \
  }                                                                                                       \
  template <typename D>                                                                                   \
  void wgmma_mma_async_sync_aligned_m64n##n##k16_f32_bf16_bf16(                                           \
      const D& d, u64 a, u64 b, bool add, int scale_a, int scale_b, int transposed_a, int transposed_b) { \
    static_assert(D::kSize == n / 2);                                                                     \
    detail::check_scales(scale_a, scale_b, transposed_a | transposed_b);                                  \
    detail::multiply_warpgroup(d.at, n, a, b, add, detail::Element::kBf16);                               \
  }                                                                                                       \
  template <typename D>                                                                                   \
  void wgmma_mma_async_sync_aligned_m64n##n##k16_f32_f16_f16(                                             \
      const D& d, u64 a, u64 b, bool add, int scale_a, int scale_b, int transposed_a, int transposed_b) { \
    static_assert(D::kSize == n / 2);                                                                     \
    detail::check_scales(scale_a, scale_b, transposed_a | transposed_b);                                  \
    detail::multiply_warpgroup(d.at, n, a, b, add, detail::Element::kF16);                                \
  }
#define RAMP_PTX_WGMMA_64(a, b, c, d, e, f, g, h) \
  RAMP_PTX_WGMMA(a)                               \
  RAMP_PTX_WGMMA(b)                               \
  RAMP_PTX_WGMMA(c) RAMP_PTX_WGMMA(d) RAMP_PTX_WGMMA(e) RAMP_PTX_WGMMA(f) RAMP_PTX_WGMMA(g) RAMP_PTX_WGMMA(h)

RAMP_PTX_WGMMA_64(8, 16, 24, 32, 40, 48, 56, 64)
RAMP_PTX_WGMMA_64(72, 80, 88, 96, 104, 112, 120, 128)
RAMP_PTX_WGMMA_64(136, 144, 152, 160, 168, 176, 184, 192)
RAMP_PTX_WGMMA_64(200, 208, 216, 224, 232, 240, 248, 256)

#undef RAMP_PTX_WGMMA_64
#undef RAMP_PTX_WGMMA

inline void wgmma_fence_sync_aligned() {}
inline void wgmma_commit_group_sync_aligned() {
  detail::products_commit();
}
inline void wgmma_wait_group_sync_aligned(u32 groups) {
  detail::products_wait(groups);
}

}  // namespace ptx
