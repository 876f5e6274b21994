// An owning, 64-byte aligned block of host memory (cache line and AVX-512 alignment), never zeroed. Large
// blocks ask for huge pages: streaming weights then misses the TLB 512 times less often.
#pragma once

#if defined(__linux__)
#include <sys/mman.h>
#endif

#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <memory>

#include "base/error.hpp"

namespace ramp::core {

class AlignedBuffer {
 public:
  AlignedBuffer() = default;
  explicit AlignedBuffer(uint64_t bytes) : bytes_(bytes) {
    if (bytes == 0) return;
    if (bytes > UINT64_MAX / 2) fail(RAMP_ERROR_OUT_OF_MEMORY, "host memory: size overflows");
    constexpr uint64_t kHugePage = uint64_t{2} << 20;
    const uint64_t alignment = bytes >= 2 * kHugePage ? kHugePage : 64;
    data_.reset(std::aligned_alloc(alignment, (bytes + alignment - 1) / alignment * alignment));
    if (data_ == nullptr)
      fail(RAMP_ERROR_OUT_OF_MEMORY, "host memory: could not allocate " + std::to_string(bytes) + " bytes");
#if defined(__linux__)
    // Advice: where the system does not take it, nothing is lost.
    if (alignment == kHugePage) madvise(data_.get(), bytes, MADV_HUGEPAGE);
#endif
  }
  [[nodiscard]] void* data() const noexcept { return data_.get(); }
  [[nodiscard]] uint64_t size() const noexcept { return bytes_; }
  template <typename T>
  [[nodiscard]] T* as() const noexcept {
    return static_cast<T*>(data_.get());
  }

 private:
  struct Free {
    void operator()(void* p) const noexcept { std::free(p); }
  };
  std::unique_ptr<void, Free> data_;
  uint64_t bytes_ = 0;
};

}  // namespace ramp::core
