// The border between the C ABI and the C++ inside: exceptions become a status and the thread's last error,
// sized structs of any age become the ones this library knows, and opaque pointers are checked before use.
#pragma once

#include <cstdint>
#include <cstring>
#include <string_view>
#include <type_traits>

#include "ramp/ramp.h"

namespace ramp::core {

// Stores the calling thread's message, shortened if need be. Never allocates.
void set_last_error(std::string_view message) noexcept;
const char* last_error() noexcept;

// Call inside a catch block: turns the exception in flight into a status and the last error.
ramp_status report_current_exception() noexcept;

// Every function of the ABI runs its body in here.
template <typename Body>
ramp_status border(Body&& body) noexcept {
  try {
    body();
    return RAMP_OK;
  } catch (...) {
    return report_current_exception();
  }
}

// Reads the sized struct at `user` (whose real type has `known` bytes here) into `out`: missing fields become
// zero, unknown trailing bytes must be zero. `type` is the struct's C name, for the message.
// Throws INVALID_ARGUMENT (NULL, misaligned or absurd struct_size) or UNSUPPORTED (unknown field in use).
void read_sized(const void* user, void* out, uint64_t known, uint64_t alignment, std::string_view type);

// Writes `known` bytes of `value` into the caller's struct at `user`, as many as its struct_size holds;
// fields beyond what this library knows become zero. The caller's struct_size is kept.
void write_sized(void* user, const void* value, uint64_t known, uint64_t alignment, std::string_view type);

template <typename T>
T read_sized(const T* user, std::string_view type) {
  static_assert(std::is_trivially_copyable_v<T>);
  T out;
  read_sized(user, &out, sizeof(T), alignof(T), type);
  return out;
}

template <typename T>
void write_sized(T* user, const T& value, std::string_view type) {
  static_assert(std::is_trivially_copyable_v<T>);
  write_sized(user, &value, sizeof(T), alignof(T), type);
}

// Throws unless `out` (where a new handle or a number goes) is a pointer.
void check_out(const void* out, std::string_view name);

// Throws INVALID_ARGUMENT unless `handle` points at an object whose first eight bytes are `magic`.
void check_handle(const void* handle, uint64_t magic, std::string_view name, std::string_view maker);

}  // namespace ramp::core
