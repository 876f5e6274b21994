// Status codes, the thread's last error, the sized-struct protocol and the check of opaque handles.
#include <fmt/format.h>

#include <algorithm>
#include <array>
#include <cstddef>
#include <new>

#include "abi/border.hpp"
#include "base/error.hpp"
#include "ramp/version.h"

namespace ramp::core {
namespace {

// A plain array, not a std::string: no allocation when memory is what ran out, and no thread-exit destructor
// that would pin or outlive a library opened with dlopen. Long enough for a message with a full path.
constexpr size_t kErrorBytes = 6144;
thread_local std::array<char, kErrorBytes> t_last_error{};

// Smallest struct anyone can have: struct_size and one more field. Largest: far above every struct here, so
// that an uninitialised struct_size is recognised as such before anything beyond it is read.
constexpr uint64_t kMinStruct = 16;
constexpr uint64_t kMaxStruct = 16384;

uint64_t caller_size(const void* user, uint64_t alignment, std::string_view type) {
  const auto init = [&] { return fmt::format("initialise it with {}_init()", type); };
  if (user == nullptr) fail_argument(type, "NULL", fmt::format("a pointer to a {}", type), init());
  if (reinterpret_cast<uintptr_t>(user) % alignment != 0) {
    fail_argument(type, fmt::format("an address that is no multiple of {}", alignment),
                  fmt::format("an aligned {}", type));
  }
  uint64_t size = 0;
  std::memcpy(&size, user, sizeof size);
  if (size < kMinStruct || size > kMaxStruct || size % alignment != 0) {
    fail_argument(fmt::format("{}.struct_size", type), std::to_string(size), fmt::format("sizeof({})", type),
                  init());
  }
  return size;
}

}  // namespace

void set_last_error(std::string_view message) noexcept {
  constexpr std::string_view kCut = "...";
  size_t n = message.size();
  const bool cut = n > kErrorBytes - 1;
  if (cut) n = kErrorBytes - 1 - kCut.size();
  std::memcpy(t_last_error.data(), message.data(), n);
  if (cut) {
    std::memcpy(t_last_error.data() + n, kCut.data(), kCut.size());
    n += kCut.size();
  }
  t_last_error[n] = '\0';
}

const char* last_error() noexcept {
  return t_last_error.data();
}

ramp_status report_current_exception() noexcept {
  try {
    throw;
  } catch (const Error& e) {
    set_last_error(e.what());
    return e.status() == RAMP_OK ? RAMP_ERROR_INTERNAL : e.status();
  } catch (const std::bad_alloc&) {
    set_last_error("host memory: allocation failed; use smaller shapes or free memory");
    return RAMP_ERROR_OUT_OF_MEMORY;
  } catch (const std::exception& e) {
    std::array<char, 512> text{};
    const auto end = fmt::format_to_n(text.data(), text.size(), "internal error: {}; please report this",
                                      std::string_view(e.what()));
    set_last_error({text.data(), std::min(end.size, text.size())});
    return RAMP_ERROR_INTERNAL;
  } catch (...) {
    set_last_error("internal error: an exception of unknown type; please report this");
    return RAMP_ERROR_INTERNAL;
  }
}

void read_sized(const void* user, void* out, uint64_t known, uint64_t alignment, std::string_view type) {
  const uint64_t size = caller_size(user, alignment, type);
  std::memset(out, 0, known);
  std::memcpy(out, user, std::min(size, known));
  std::memcpy(out, &known, sizeof known);
  const auto* bytes = static_cast<const std::byte*>(user);
  for (uint64_t i = known; i < size; ++i) {
    if (bytes[i] == std::byte{0}) continue;
    fail(RAMP_ERROR_UNSUPPORTED,
         fmt::format(
             "{}: got a value other than zero at byte {} of {}, expected zeros from byte {} on (ramp {} "
             "does not know these fields); leave the newer fields zero or use a newer library",
             type, i, size, known, RAMP_VERSION_STRING));
  }
}

void write_sized(void* user, const void* value, uint64_t known, uint64_t alignment, std::string_view type) {
  const uint64_t size = caller_size(user, alignment, type);
  const uint64_t skip = sizeof(uint64_t);  // struct_size stays the caller's
  auto* to = static_cast<std::byte*>(user);
  std::memcpy(to + skip, static_cast<const std::byte*>(value) + skip, std::min(size, known) - skip);
  if (size > known) std::memset(to + known, 0, size - known);
}

void check_out(const void* out, std::string_view name) {
  if (out == nullptr) fail_argument(name, "NULL", "a pointer to where the result goes");
}

void check_handle(const void* handle, uint64_t magic, std::string_view name, std::string_view maker) {
  if (handle == nullptr) fail_argument(name, "NULL", "a handle", fmt::format("make one with {}", maker));
  uint64_t found = 0;
  if (reinterpret_cast<uintptr_t>(handle) % alignof(uint64_t) == 0) std::memcpy(&found, handle, sizeof found);
  if (found != magic) {
    fail_argument(name, "a pointer that is no such handle (foreign, or already destroyed)",
                  fmt::format("a live handle from {}", maker));
  }
}

}  // namespace ramp::core

extern "C" {

const char* ramp_last_error(void) {
  return ramp::core::last_error();
}

const char* ramp_status_name(ramp_status status) {
  return ramp::core::status_name(status);
}

const char* ramp_version(void) {
  return RAMP_VERSION_STRING;
}

}  // extern "C"
