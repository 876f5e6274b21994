// Counts every allocation of the program it is linked into, so that "allocation-free" is a test and not a
// claim. A file of its own: the compiler must not see these definitions where tests are created and
// destroyed.
#include <atomic>
#include <cstddef>
#include <cstdlib>
#include <new>

namespace {
std::atomic<size_t> g_allocations{0};
void* counted(size_t n, size_t align) {
  ++g_allocations;
  void* const p = align == 0 ? std::malloc(n) : std::aligned_alloc(align, (n + align - 1) / align * align);
  if (p == nullptr) throw std::bad_alloc();
  return p;
}
}  // namespace

size_t count_allocations() {
  return g_allocations;
}

// NOLINTBEGIN(misc-new-delete-overloads)
void* operator new(size_t n) {
  return counted(n, 0);
}
void* operator new[](size_t n) {
  return counted(n, 0);
}
void* operator new(size_t n, std::align_val_t a) {
  return counted(n, static_cast<size_t>(a));
}
// (The algorithms of the standard library ask for temporary room with this one.)
void* operator new(size_t n, const std::nothrow_t&) noexcept {
  ++g_allocations;
  return std::malloc(n);
}
void operator delete(void* p, const std::nothrow_t&) noexcept {
  std::free(p);
}
void operator delete(void* p) noexcept {
  std::free(p);
}
void operator delete[](void* p) noexcept {
  std::free(p);
}
void operator delete(void* p, size_t) noexcept {
  std::free(p);
}
void operator delete[](void* p, size_t) noexcept {
  std::free(p);
}
void operator delete(void* p, std::align_val_t) noexcept {
  std::free(p);
}
void operator delete(void* p, size_t, std::align_val_t) noexcept {
  std::free(p);
}
// NOLINTEND(misc-new-delete-overloads)
