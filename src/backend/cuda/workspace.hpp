// Cutting a call's workspace into parts, the same way when its size is asked for and when it is used.
#pragma once

#include <fmt/format.h>

#include <cstddef>
#include <cstdint>

#include "base/error.hpp"

namespace ramp::core::cuda {

// Parts one behind the other, each at a multiple of 256 bytes (what every kernel's widest copies ask for).
// With base NULL there are no parts: only used() counts.
class WorkspaceLayout {
 public:
  // used: bytes that are taken already.
  explicit WorkspaceLayout(void* base, uint64_t used = 0) noexcept
      : base_(static_cast<std::byte*>(base)), used_(aligned(used)) {}
  // Room for so many T; NULL without a base.
  template <typename T>
  T* take(uint64_t count) noexcept {
    std::byte* const at = base_ == nullptr ? nullptr : base_ + used_;
    used_ += aligned(count * sizeof(T));
    return reinterpret_cast<T*>(at);
  }
  [[nodiscard]] uint64_t used() const noexcept { return used_; }

 private:
  static constexpr uint64_t kAlignment = 256;
  static constexpr uint64_t aligned(uint64_t n) noexcept {
    return (n + kAlignment - 1) / kAlignment * kAlignment;
  }
  std::byte* base_;
  uint64_t used_;
};

// Throws WORKSPACE_TOO_SMALL unless there is one of at least `needed` bytes.
inline void check_workspace(const void* workspace, uint64_t got, uint64_t needed) {
  if (workspace != nullptr && got >= needed) return;
  fail_argument("workspace_bytes", fmt::format("{}", got), fmt::format("at least {}", needed),
                "ask for the size first", RAMP_ERROR_WORKSPACE_TOO_SMALL);
}

}  // namespace ramp::core::cuda
