// Operands of the emulated PTX instructions (ptx.hpp): vectors in braces, addresses in brackets, and the
// moves between an asm operand's C++ type and the type that the instruction names (a "=r" operand may be an
// int, a "=h" one a short: only the bits count).
#pragma once

#include <atomic>
#include <bit>
#include <cstring>
#include <type_traits>

#include "emulator/machine.hpp"

namespace ptx {

using emu::i32;
using emu::i64;
using emu::u16;
using emu::u32;
using emu::u64;
using emu::u8;

// The value of operand `s` as the instruction's type T.
template <typename T, typename S>
T get(const S& s) {
  if constexpr (std::is_array_v<S>) {
    return static_cast<T>(reinterpret_cast<u64>(&s[0]));
  } else if constexpr (std::is_pointer_v<S>) {
    return static_cast<T>(reinterpret_cast<u64>(s));
  } else if constexpr (std::is_floating_point_v<T> == std::is_floating_point_v<S>) {
    return static_cast<T>(s);
  } else {
    static_assert(sizeof(T) == sizeof(S), "an operand has another width than its instruction");
    return std::bit_cast<T>(s);
  }
}
// The instruction's result `v` into operand `d`.
template <typename D, typename T>
void put(D& d, const T& v) {
  d = get<D>(v);
}

// {a, b, ..} of variables: destinations, or sources.
template <typename T, int N>
struct References {
  T* at[N];
  static constexpr int kSize = N;
  T& operator[](int i) const { return *at[i]; }
};
// {a, b, ..} of expressions: sources.
template <typename T, int N>
struct Values {
  T at[N];
  static constexpr int kSize = N;
  const T& operator[](int i) const { return at[i]; }
};

template <typename First, typename... Rest>
auto vec(First&& first, Rest&&... rest) {
  using T = std::remove_reference_t<First>;
  constexpr int n = 1 + sizeof...(Rest);
  if constexpr (std::is_lvalue_reference_v<First> && !std::is_const_v<T> &&
                (std::is_same_v<First, Rest> && ...)) {
    return References<T, n>{{&first, &rest...}};
  } else {
    using V = std::common_type_t<std::remove_cvref_t<First>, std::remove_cvref_t<Rest>...>;
    return Values<V, n>{{static_cast<V>(first), static_cast<V>(rest)...}};
  }
}

// [x] and [x + offset]: a 32-bit shared address, or a host pointer.
template <typename T>
u64 at(const T& x, i64 offset = 0) {
  return get<u64>(x) + static_cast<u64>(offset);
}

// '_': a destination that is not wanted.
struct Sink {};
inline Sink sink() {
  return {};
}

// 0f3F800000
inline float f32bits(u32 bits) {
  return std::bit_cast<float>(bits);
}

inline void check_aligned(u64 address, u32 bytes, const char* what) {
  if (address % bytes != 0) [[unlikely]] {
    emu::trapf("%s: got address 0x%llx, expected a multiple of %u", what,
               static_cast<unsigned long long>(address), bytes);
  }
}

}  // namespace ptx
