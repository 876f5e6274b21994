// Loads, stores, atomics and prefetches of the emulated PTX instructions (ptx.hpp). An address that is not a
// multiple of what is moved is a fault, as on hardware; shared addresses outside of the block's arena are one
// as well. Caching qualifiers (.cg, .cs, L1::no_allocate) change nothing here. A load that acquires is how a
// kernel polls another block's flag, so it lets other threads run.
#pragma once

#include <cmath>

#include "emulator/ptx_operands.hpp"

namespace ptx {
namespace detail {

template <typename T>
T* global(u64 address, u32 bytes, const char* what) {
  check_aligned(address, bytes, what);
  return reinterpret_cast<T*>(address);
}
template <typename T>
T* shared(u64 address, u32 bytes, const char* what) {
  check_aligned(address, bytes, what);
  return reinterpret_cast<T*>(emu::shared(static_cast<u32>(address), bytes));
}

}  // namespace detail

// One register, or N of them in braces, from and to a state space (`global` or `shared`).
#define RAMP_PTX_LOAD(name, type, space)                                              \
  template <typename D>                                                               \
  void name(D& d, u64 address) {                                                      \
    type v;                                                                           \
    std::memcpy(&v, detail::space<const u8>(address, sizeof(type), #name), sizeof v); \
    put(d, v);                                                                        \
  }
#define RAMP_PTX_LOAD_VECTOR(name, type, n, space)                                       \
  template <typename V>                                                                  \
  void name(const V& d, u64 address) {                                                   \
    static_assert(V::kSize == n);                                                        \
    type v[n];                                                                           \
    std::memcpy(v, detail::space<const u8>(address, n * sizeof(type), #name), sizeof v); \
    for (int i = 0; i < n; i++) put(d[i], v[i]);                                         \
  }
#define RAMP_PTX_STORE(name, type, space)                                       \
  template <typename S>                                                         \
  void name(u64 address, const S& s) {                                          \
    const type v = get<type>(s);                                                \
    std::memcpy(detail::space<u8>(address, sizeof(type), #name), &v, sizeof v); \
  }
#define RAMP_PTX_STORE_VECTOR(name, type, n, space)                                \
  template <typename V>                                                            \
  void name(u64 address, const V& s) {                                             \
    static_assert(V::kSize == n);                                                  \
    type v[n];                                                                     \
    for (int i = 0; i < n; i++) v[i] = get<type>(s[i]);                            \
    std::memcpy(detail::space<u8>(address, n * sizeof(type), #name), v, sizeof v); \
  }

RAMP_PTX_LOAD(ld_shared_u32, u32, shared)
RAMP_PTX_LOAD(ld_shared_f32, float, shared)
RAMP_PTX_LOAD(ld_shared_cluster_u32, u32, shared)
RAMP_PTX_LOAD_VECTOR(ld_shared_v2_f32, float, 2, shared)
RAMP_PTX_LOAD_VECTOR(ld_shared_v4_f32, float, 4, shared)
RAMP_PTX_LOAD_VECTOR(ld_shared_v4_u32, u32, 4, shared)
RAMP_PTX_LOAD(ld_global_cg_s32, i32, global)
RAMP_PTX_LOAD(ld_global_cg_u32, u32, global)
RAMP_PTX_LOAD(ld_global_cg_s64, i64, global)
RAMP_PTX_LOAD(ld_global_cg_u64, u64, global)
RAMP_PTX_LOAD_VECTOR(ld_global_cg_v2_f32, float, 2, global)
RAMP_PTX_LOAD_VECTOR(ld_global_cg_v4_f32, float, 4, global)
RAMP_PTX_LOAD_VECTOR(ld_global_cg_v4_u32, u32, 4, global)
RAMP_PTX_LOAD_VECTOR(ld_global_v4_u32, u32, 4, global)
RAMP_PTX_LOAD_VECTOR(ld_global_L1_no_allocate_v4_u32, u32, 4, global)

RAMP_PTX_STORE(st_shared_u16, u16, shared)
RAMP_PTX_STORE(st_shared_u32, u32, shared)
RAMP_PTX_STORE(st_shared_f32, float, shared)
RAMP_PTX_STORE_VECTOR(st_shared_v4_u32, u32, 4, shared)
RAMP_PTX_STORE_VECTOR(st_global_v2_f32, float, 2, global)
RAMP_PTX_STORE_VECTOR(st_global_v4_u32, u32, 4, global)
RAMP_PTX_STORE_VECTOR(st_global_cs_v4_u32, u32, 4, global)

#undef RAMP_PTX_LOAD
#undef RAMP_PTX_LOAD_VECTOR
#undef RAMP_PTX_STORE
#undef RAMP_PTX_STORE_VECTOR

// ---------------------------------------------------------------- between blocks

namespace detail {

template <typename T>
T load_acquire(u64 address) {
  emu::yield();
  return std::atomic_ref<T>(*global<T>(address, sizeof(T), "ld.acquire")).load(std::memory_order_acquire);
}
template <typename T>
T fetch_add(u64 address, T v, std::memory_order order) {
  return std::atomic_ref<T>(*global<T>(address, sizeof(T), "atom.add")).fetch_add(v, order);
}

}  // namespace detail

template <typename D>
void ld_acquire_gpu_global_s32(D& d, u64 address) {
  put(d, detail::load_acquire<i32>(address));
}
template <typename D>
void ld_acquire_gpu_global_u32(D& d, u64 address) {
  put(d, detail::load_acquire<u32>(address));
}
template <typename S>
void st_release_gpu_global_s32(u64 address, const S& s) {
  std::atomic_ref<i32>(*detail::global<i32>(address, 4, "st.release"))
      .store(get<i32>(s), std::memory_order_release);
}
template <typename S>
void red_release_gpu_global_add_s32(u64 address, const S& s) {
  detail::fetch_add<i32>(address, get<i32>(s), std::memory_order_release);
}
template <typename S>
void red_release_gpu_global_add_u32(u64 address, const S& s) {
  detail::fetch_add<u32>(address, get<u32>(s), std::memory_order_release);
}
template <typename D, typename S>
void atom_relaxed_gpu_global_add_u32(D& d, u64 address, const S& s) {
  put(d, detail::fetch_add<u32>(address, get<u32>(s), std::memory_order_relaxed));
}
template <typename D, typename S>
void atom_acq_rel_gpu_global_add_u32(D& d, u64 address, const S& s) {
  put(d, detail::fetch_add<u32>(address, get<u32>(s), std::memory_order_acq_rel));
}
// Four additions, each atomic. In global memory they take subnormal numbers for zero.
template <typename V>
void red_relaxed_gpu_global_add_v4_f32(u64 address, const V& s) {
  static_assert(V::kSize == 4);
  const auto flushed = [](float v) {
    return std::fpclassify(v) == FP_SUBNORMAL ? std::copysign(0.0F, v) : v;
  };
  auto* const to = detail::global<float>(address, 16, "red.add.v4");
  for (int i = 0; i < 4; i++) {
    const std::atomic_ref<float> sum(to[i]);
    const float v = flushed(get<float>(s[i]));
    float before = sum.load(std::memory_order_relaxed);
    while (!sum.compare_exchange_weak(before, flushed(flushed(before) + v), std::memory_order_relaxed)) {
    }
  }
}

// ---------------------------------------------------------------- hints

inline void prefetch_global_L2(u64) {}
inline void prefetch_tensormap(u64) {}
// Reads what is asked for: a range that is not all there is a fault here.
template <typename S>
void cp_async_bulk_prefetch_L2_global(u64 from, const S& bytes) {
  constexpr u32 kUnit = 16, kPage = 4096;
  const u64 size = get<u32>(bytes);
  check_aligned(from, kUnit, "cp.async.bulk.prefetch.L2");
  check_aligned(size, kUnit, "cp.async.bulk.prefetch.L2's size");
  for (u64 at = 0; at < size; at += kPage) (void)*reinterpret_cast<const volatile u8*>(from + at);
  if (size != 0) (void)*reinterpret_cast<const volatile u8*>(from + size - 1);
}
template <typename S, typename P>
void cp_async_bulk_prefetch_L2_global_L2_cache_hint(u64 from, const S& bytes, const P&) {
  cp_async_bulk_prefetch_L2_global(from, bytes);
}
// Any value: who hands it on to a copy is not asked what it is.
template <typename D>
void createpolicy_fractional_L2_evict_first_b64(D& d, double) {
  put(d, u64{0});
}
template <typename D>
void createpolicy_fractional_L2_evict_last_b64(D& d, double) {
  put(d, u64{0});
}

}  // namespace ptx
