// CUDA C++ for g++: the builtins that the kernels use, for a translated program (translate.hpp) to include.
// PTX is in ptx.hpp.
#pragma once

#include <math.h>

#include <type_traits>
#include <utility>

#include "emulator/collectives.hpp"
#include "emulator/kernel.hpp"
#include "emulator/ptx.hpp"

// ---------------------------------------------------------------- who and where

#define threadIdx (::emu::here().thread_index)
#define blockIdx (::emu::block().index)
#define blockDim (::emu::block().threads)
#define gridDim (::emu::block().grid)
inline constexpr int warpSize = 32;

// ---------------------------------------------------------------- vector types

#define EMU_VECTOR(T, name)                                         \
  struct alignas(2 * sizeof(T)) name##2 {                           \
    T x, y;                                                         \
  };                                                                \
  struct name##3 {                                                  \
    T x, y, z;                                                      \
  };                                                                \
  struct alignas(4 * sizeof(T) > 16 ? 16 : 4 * sizeof(T)) name##4 { \
    T x, y, z, w;                                                   \
  };                                                                \
  inline name##2 make_##name##2(T x, T y) {                         \
    return {x, y};                                                  \
  }                                                                 \
  inline name##3 make_##name##3(T x, T y, T z) {                    \
    return {x, y, z};                                               \
  }                                                                 \
  inline name##4 make_##name##4(T x, T y, T z, T w) {               \
    return {x, y, z, w};                                            \
  }
EMU_VECTOR(signed char, char)
EMU_VECTOR(unsigned char, uchar)
EMU_VECTOR(short, short)
EMU_VECTOR(unsigned short, ushort)
EMU_VECTOR(int, int)
EMU_VECTOR(unsigned, uint)
EMU_VECTOR(long long, longlong)
EMU_VECTOR(unsigned long long, ulonglong)
EMU_VECTOR(float, float)
EMU_VECTOR(double, double)
#undef EMU_VECTOR

// ---------------------------------------------------------------- kernels and shared memory

namespace emu {

// This program's, not the process's: its symbols are hidden. (libcuda sees to it that it is not too much.)
inline u32 static_bytes = 0;
inline u32 reserve_static(u32 bytes, u32 align) {
  const u32 at = (static_bytes + align - 1) / align * align;
  static_bytes = at + bytes;
  return kStaticShared + at;
}
// A __shared__ variable of type T. Tag: a type that each declaration, and each instance of it, has to itself.
template <typename T, u32 ALIGN, typename Tag>
struct StaticShared {
  static inline const u32 address = reserve_static(sizeof(T), ALIGN > alignof(T) ? ALIGN : alignof(T));
};
template <typename T, u32 ALIGN = 1, typename Tag>
T& static_shared(Tag) {
  return *reinterpret_cast<T*>(shared(StaticShared<T, ALIGN, Tag>::address, sizeof(T)));
}
// extern __shared__ T name[]
template <typename T>
struct DynamicShared {
  static T* pointer() { return reinterpret_cast<T*>(shared(kDynamicShared, 0)); }
};

struct Bounds {
  u32 threads = 0, blocks = 0;
};
constexpr Bounds bounds(u32 threads = 0, u32 blocks = 0, u32 = 0) {
  return {threads, blocks};
}
constexpr Dim cluster_dims() {
  return {0, 0, 0};
}
constexpr Dim cluster_dims(u32 x, u32 y = 1, u32 z = 1) {
  return {x, y, z};
}

template <auto FUNCTION>
struct Entry;
template <typename... P, void (*FUNCTION)(P...)>
struct Entry<FUNCTION> {
  static inline const u32 bytes[sizeof...(P) + 1] = {static_cast<u32>(sizeof(P))..., 0};
  static void run(void** a) {
    [&]<size_t... I>(std::index_sequence<I...>) {
      FUNCTION(*static_cast<std::remove_reference_t<P>*>(a[I])...);
    }
    (std::index_sequence_for<P...>());
  }
  static constexpr u32 count = sizeof...(P);
};

}  // namespace emu

// Symbols that libcuda looks for.
#define EMU_BUILD(id)                                                                    \
  extern "C" __attribute__((visibility("default"))) const char* const emu_program_build; \
  const char* const emu_program_build = id;
#define EMU_KERNEL(name, bounds_, cluster_)                                                        \
  extern "C" __attribute__((visibility("default"))) const ::emu::Kernel emu_kernel_##name;         \
  const ::emu::Kernel emu_kernel_##name = {&::emu::Entry<&name>::run,  ::emu::Entry<&name>::count, \
                                           ::emu::Entry<&name>::bytes, (bounds_).threads,          \
                                           (bounds_).blocks,           cluster_,                   \
                                           &::emu::static_bytes};

// ---------------------------------------------------------------- synchronisation

inline void __syncthreads() {
  ::emu::named_barrier(0, 0, true);
}
inline void __syncwarp(unsigned mask = ~0U) {
  ::emu::sync_warp(mask);
}
inline void __threadfence() {
  __atomic_thread_fence(__ATOMIC_SEQ_CST);
}
inline void __threadfence_block() {
  __atomic_thread_fence(__ATOMIC_SEQ_CST);
}
inline void __threadfence_system() {
  __atomic_thread_fence(__ATOMIC_SEQ_CST);
}
inline void __nanosleep(unsigned) {
  ::emu::yield();
}
inline void __trap() {
  ::emu::trap("__trap()");
}
inline long long clock64() {
  return static_cast<long long>(::emu::clock_ns());
}
inline unsigned __activemask() {
  return ::emu::warp_alive();
}
inline size_t __cvta_generic_to_shared(const void* p) {
  return ::emu::shared_address(p);
}
inline size_t __cvta_generic_to_global(const void* p) {
  return reinterpret_cast<size_t>(p);
}

// ---------------------------------------------------------------- warps

namespace emu {
template <typename T>
u64 bits_of(T v) {
  static_assert(sizeof(T) <= 8);
  u64 bits = 0;
  __builtin_memcpy(&bits, &v, sizeof v);
  return bits;
}
template <typename T>
T from_bits(u64 bits) {
  T v;
  __builtin_memcpy(&v, &bits, sizeof v);
  return v;
}
template <typename T>
T shuffle_of(u32 mask, T v, u32 source) {
  return from_bits<T>(shuffle(mask, bits_of(v), source));
}
}  // namespace emu

template <typename T>
T __shfl_sync(unsigned mask, T v, int source, int width = 32) {
  const unsigned lane = ::emu::here().lane;
  return ::emu::shuffle_of(mask, v, (lane & ~(width - 1U)) | (static_cast<unsigned>(source) & (width - 1U)));
}
template <typename T>
T __shfl_xor_sync(unsigned mask, T v, int lanes, int width = 32) {
  const unsigned lane = ::emu::here().lane;
  const unsigned source = lane ^ static_cast<unsigned>(lanes);
  return ::emu::shuffle_of(mask, v, source > (lane | (width - 1U)) ? lane : source);
}
template <typename T>
T __shfl_up_sync(unsigned mask, T v, unsigned lanes, int width = 32) {
  const unsigned lane = ::emu::here().lane;
  return ::emu::shuffle_of(mask, v, (lane & (width - 1U)) < lanes ? lane : lane - lanes);
}
template <typename T>
T __shfl_down_sync(unsigned mask, T v, unsigned lanes, int width = 32) {
  const unsigned lane = ::emu::here().lane;
  return ::emu::shuffle_of(
      mask, v, (lane & (width - 1U)) + lanes >= static_cast<unsigned>(width) ? lane : lane + lanes);
}
inline unsigned __ballot_sync(unsigned mask, int p) {
  return ::emu::ballot(mask, p != 0);
}
inline int __any_sync(unsigned mask, int p) {
  return ::emu::ballot(mask, p != 0) != 0;
}
inline int __all_sync(unsigned mask, int p) {
  return ::emu::ballot(mask, p != 0) == mask;
}
template <typename T>
unsigned __match_any_sync(unsigned mask, T v) {
  return ::emu::match_any(mask, ::emu::bits_of(v));
}
template <typename T>
unsigned __match_all_sync(unsigned mask, T v, int* all) {
  const unsigned m = ::emu::match_all(mask, ::emu::bits_of(v));
  *all = m != 0;
  return m;
}
inline unsigned __reduce_add_sync(unsigned m, unsigned v) {
  return ::emu::reduce(m, v, ::emu::Reduce::kAdd);
}
inline int __reduce_add_sync(unsigned m, int v) {
  return static_cast<int>(::emu::reduce(m, static_cast<unsigned>(v), ::emu::Reduce::kAdd));
}
inline unsigned __reduce_min_sync(unsigned m, unsigned v) {
  return ::emu::reduce(m, v, ::emu::Reduce::kMin);
}
inline unsigned __reduce_max_sync(unsigned m, unsigned v) {
  return ::emu::reduce(m, v, ::emu::Reduce::kMax);
}
inline int __reduce_min_sync(unsigned m, int v) {
  return static_cast<int>(::emu::reduce(m, static_cast<unsigned>(v), ::emu::Reduce::kMinSigned));
}
inline int __reduce_max_sync(unsigned m, int v) {
  return static_cast<int>(::emu::reduce(m, static_cast<unsigned>(v), ::emu::Reduce::kMaxSigned));
}
inline unsigned __reduce_or_sync(unsigned m, unsigned v) {
  return ::emu::reduce(m, v, ::emu::Reduce::kOr);
}
inline unsigned __reduce_and_sync(unsigned m, unsigned v) {
  return ::emu::reduce(m, v, ::emu::Reduce::kAnd);
}
inline unsigned __reduce_xor_sync(unsigned m, unsigned v) {
  return ::emu::reduce(m, v, ::emu::Reduce::kXor);
}

// ---------------------------------------------------------------- memory

template <typename T>
T __ldg(const T* p) {
  return *p;
}
template <typename T>
T __ldcg(const T* p) {
  return *p;
}
template <typename T>
T __ldcs(const T* p) {
  return *p;
}
template <typename T>
void __stcg(T* p, T v) {
  *p = v;
}
template <typename T>
void __stcs(T* p, T v) {
  *p = v;
}

namespace emu {
template <typename T, typename F>
T atomic_update(T* p, F next) {
  T before = __atomic_load_n(p, __ATOMIC_RELAXED);
  while (!__atomic_compare_exchange_n(p, &before, next(before), false, __ATOMIC_RELAXED, __ATOMIC_RELAXED)) {
  }
  return before;
}
}  // namespace emu
#define EMU_ATOMICS(T)                                                                      \
  inline T atomicAdd(T* p, T v) {                                                           \
    return __atomic_fetch_add(p, v, __ATOMIC_RELAXED);                                      \
  }                                                                                         \
  inline T atomicSub(T* p, T v) {                                                           \
    return __atomic_fetch_sub(p, v, __ATOMIC_RELAXED);                                      \
  }                                                                                         \
  inline T atomicOr(T* p, T v) {                                                            \
    return __atomic_fetch_or(p, v, __ATOMIC_RELAXED);                                       \
  }                                                                                         \
  inline T atomicAnd(T* p, T v) {                                                           \
    return __atomic_fetch_and(p, v, __ATOMIC_RELAXED);                                      \
  }                                                                                         \
  inline T atomicXor(T* p, T v) {                                                           \
    return __atomic_fetch_xor(p, v, __ATOMIC_RELAXED);                                      \
  }                                                                                         \
  inline T atomicExch(T* p, T v) {                                                          \
    return __atomic_exchange_n(p, v, __ATOMIC_RELAXED);                                     \
  }                                                                                         \
  inline T atomicMin(T* p, T v) {                                                           \
    return ::emu::atomic_update(p, [v](T b) { return b < v ? b : v; });                     \
  }                                                                                         \
  inline T atomicMax(T* p, T v) {                                                           \
    return ::emu::atomic_update(p, [v](T b) { return b < v ? v : b; });                     \
  }                                                                                         \
  inline T atomicCAS(T* p, T compare, T v) {                                                \
    __atomic_compare_exchange_n(p, &compare, v, false, __ATOMIC_RELAXED, __ATOMIC_RELAXED); \
    return compare;                                                                         \
  }
EMU_ATOMICS(int)
EMU_ATOMICS(unsigned)
EMU_ATOMICS(unsigned long long)
#undef EMU_ATOMICS
inline float atomicAdd(float* p, float v) {
  const auto word = reinterpret_cast<unsigned*>(p);
  const unsigned before = ::emu::atomic_update(
      word, [v](unsigned b) { return __builtin_bit_cast(unsigned, __builtin_bit_cast(float, b) + v); });
  return __builtin_bit_cast(float, before);
}

// ---------------------------------------------------------------- integers

inline int __popc(unsigned v) {
  return __builtin_popcount(v);
}
inline int __popcll(unsigned long long v) {
  return __builtin_popcountll(v);
}
inline int __clz(int v) {
  return v == 0 ? 32 : __builtin_clz(static_cast<unsigned>(v));
}
inline int __clzll(long long v) {
  return v == 0 ? 64 : __builtin_clzll(static_cast<unsigned long long>(v));
}
inline int __ffs(int v) {
  return __builtin_ffs(v);
}
inline int __ffsll(long long v) {
  return __builtin_ffsll(v);
}
inline unsigned __brev(unsigned v) {
  unsigned r = 0;
  for (int i = 0; i < 32; ++i) r |= (v >> i & 1U) << (31 - i);
  return r;
}
inline unsigned __umulhi(unsigned a, unsigned b) {
  return static_cast<unsigned>(static_cast<unsigned long long>(a) * b >> 32);
}
inline unsigned long long __umul64hi(unsigned long long a, unsigned long long b) {
  return static_cast<unsigned long long>(static_cast<unsigned __int128>(a) * b >> 64);
}
inline unsigned __byte_perm(unsigned low, unsigned high, unsigned selector) {
  const unsigned long long bytes = static_cast<unsigned long long>(high) << 32 | low;
  unsigned r = 0;
  for (int i = 0; i < 4; ++i) {
    const unsigned s = selector >> (4 * i);
    unsigned b = static_cast<unsigned>(bytes >> (8 * (s & 7U))) & 0xffU;
    if ((s & 8U) != 0) b = (b & 0x80U) != 0 ? 0xffU : 0;
    r |= b << (8 * i);
  }
  return r;
}
inline unsigned __funnelshift_l(unsigned low, unsigned high, unsigned shift) {
  return static_cast<unsigned>((static_cast<unsigned long long>(high) << 32 | low) << (shift & 31U) >> 32);
}
inline unsigned __funnelshift_r(unsigned low, unsigned high, unsigned shift) {
  return static_cast<unsigned>((static_cast<unsigned long long>(high) << 32 | low) >> (shift & 31U));
}
template <typename A, typename B>
constexpr std::common_type_t<A, B> min(A a, B b) {
  using T = std::common_type_t<A, B>;
  return static_cast<T>(b) < static_cast<T>(a) ? static_cast<T>(b) : static_cast<T>(a);
}
template <typename A, typename B>
constexpr std::common_type_t<A, B> max(A a, B b) {
  using T = std::common_type_t<A, B>;
  return static_cast<T>(a) < static_cast<T>(b) ? static_cast<T>(b) : static_cast<T>(a);
}

// ---------------------------------------------------------------- floating point

inline unsigned __float_as_uint(float v) {
  return __builtin_bit_cast(unsigned, v);
}
inline int __float_as_int(float v) {
  return __builtin_bit_cast(int, v);
}
inline float __uint_as_float(unsigned v) {
  return __builtin_bit_cast(float, v);
}
inline float __int_as_float(int v) {
  return __builtin_bit_cast(float, v);
}
inline float __fadd_rn(float a, float b) {
  return a + b;
}
inline float __fsub_rn(float a, float b) {
  return a - b;
}
inline float __fmul_rn(float a, float b) {
  return a * b;
}
inline float __fdiv_rn(float a, float b) {
  return a / b;
}
inline float __frcp_rn(float a) {
  return 1.0F / a;
}
inline float __fsqrt_rn(float a) {
  return __builtin_sqrtf(a);
}
inline float __fmaf_rn(float a, float b, float c) {
  return __builtin_fmaf(a, b, c);
}
inline float rsqrtf(float a) {
  return static_cast<float>(1.0 / __builtin_sqrt(static_cast<double>(a)));
}
inline float __expf(float a) {
  return expf(a);
}
inline float __logf(float a) {
  return logf(a);
}
inline float __fdividef(float a, float b) {
  return a / b;
}
