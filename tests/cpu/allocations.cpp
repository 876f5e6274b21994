// malloc and its relatives, counted, on top of glibc's own. See allocations.hpp.
#include "cpu/allocations.hpp"

#include <atomic>
#include <cstddef>

#if defined(__SANITIZE_ADDRESS__) || defined(__SANITIZE_THREAD__) || !defined(__GLIBC__)
#define RAMP_COUNT_ALLOCATIONS 0
#elif defined(__has_feature)
#if __has_feature(address_sanitizer) || __has_feature(thread_sanitizer)
#define RAMP_COUNT_ALLOCATIONS 0
#endif
#endif
#ifndef RAMP_COUNT_ALLOCATIONS
#define RAMP_COUNT_ALLOCATIONS 1
#endif

namespace {
std::atomic<int64_t> count{0};
}

#if RAMP_COUNT_ALLOCATIONS
extern "C" {
void* __libc_malloc(size_t size);                      // NOLINT(bugprone-reserved-identifier)
void* __libc_calloc(size_t n, size_t size);            // NOLINT(bugprone-reserved-identifier)
void* __libc_realloc(void* p, size_t size);            // NOLINT(bugprone-reserved-identifier)
void* __libc_memalign(size_t alignment, size_t size);  // NOLINT(bugprone-reserved-identifier)

void* malloc(size_t size) {
  count.fetch_add(1, std::memory_order_relaxed);
  return __libc_malloc(size);
}
void* calloc(size_t n, size_t size) {
  count.fetch_add(1, std::memory_order_relaxed);
  return __libc_calloc(n, size);
}
void* realloc(void* p, size_t size) {
  count.fetch_add(1, std::memory_order_relaxed);
  return __libc_realloc(p, size);
}
void* aligned_alloc(size_t alignment, size_t size) {
  count.fetch_add(1, std::memory_order_relaxed);
  return __libc_memalign(alignment, size);
}
}
#endif

namespace ramp::core::test {

int64_t allocations_so_far() noexcept {
  return count.load(std::memory_order_relaxed);
}
bool allocations_counted() noexcept {
  return RAMP_COUNT_ALLOCATIONS != 0;
}

}  // namespace ramp::core::test
