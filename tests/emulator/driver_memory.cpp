// libcuda of the emulated GPU: memory. Device memory is the host's, poisoned when it is allocated, with pages
// that nobody may touch around it; the bytes between an allocation's end and that page are watched.
#include <cuda.h>
#include <sys/mman.h>

#include <cstdio>
#include <cstring>
#include <map>
#include <mutex>

#include "emulator/driver_state.hpp"

namespace emu {
namespace {

constexpr u64 kPage = 4096, kAlign = 256;
constexpr u8 kPoison = 0xff, kGuard = 0xa5;
constexpr u64 kMostPoison = u64{256} << 20;

struct Allocation {
  u64 bytes = 0, room = 0;  // room: up to the page behind
  void* mapping = nullptr;
  u64 mapped = 0;
};
std::mutex g_mutex;
auto& g_allocations = *new std::map<u64, Allocation>;  // outlives whoever frees memory at exit
u64 g_used = 0;

u64 rounded(u64 n, u64 to) {
  return (n + to - 1) / to * to;
}
void* host(CUdeviceptr p) {
  return reinterpret_cast<void*>(p);
}

bool guard_intact(u64 address, const Allocation& a) {
  const auto* const bytes = reinterpret_cast<const u8*>(address);
  for (u64 i = a.bytes; i < a.room; ++i)
    if (bytes[i] != kGuard) {
      std::fprintf(stderr, "emulated GPU: somebody wrote %llu bytes behind an allocation of %llu bytes\n",
                   static_cast<unsigned long long>(i - a.bytes), static_cast<unsigned long long>(a.bytes));
      return false;
    }
  return true;
}

CUresult allocate(u64* address, u64 bytes) {
  if (bytes == 0) return CUDA_ERROR_INVALID_VALUE;
  const std::lock_guard lock(g_mutex);
  if (bytes > device().memory_bytes - g_used) return CUDA_ERROR_OUT_OF_MEMORY;
  Allocation a;
  a.bytes = bytes;
  a.room = rounded(bytes, kAlign);
  const u64 pages = rounded(a.room, kPage);
  a.mapped = pages + 2 * kPage;
  a.mapping = ::mmap(nullptr, a.mapped, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  if (a.mapping == MAP_FAILED) return CUDA_ERROR_OUT_OF_MEMORY;
  u8* const first = static_cast<u8*>(a.mapping) + kPage;
  if (::mprotect(first, pages, PROT_READ | PROT_WRITE) != 0) {
    ::munmap(a.mapping, a.mapped);
    return CUDA_ERROR_OUT_OF_MEMORY;
  }
  u8* const begin = first + (pages - a.room);
  if (bytes <= kMostPoison) std::memset(begin, kPoison, bytes);
  std::memset(begin + bytes, kGuard, a.room - bytes);
  *address = reinterpret_cast<u64>(begin);
  g_allocations[*address] = a;
  g_used += bytes;
  return CUDA_SUCCESS;
}

CUresult release(u64 address) {
  const std::lock_guard lock(g_mutex);
  const auto at = g_allocations.find(address);
  if (at == g_allocations.end()) return CUDA_ERROR_INVALID_VALUE;
  const bool intact = guard_intact(address, at->second);
  ::munmap(at->second.mapping, at->second.mapped);
  g_used -= at->second.bytes;
  g_allocations.erase(at);
  return intact ? CUDA_SUCCESS : CUDA_ERROR_LAUNCH_FAILED;
}

// `run` on the stream, once the ranges are known to be allocated.
CUresult checked(CUstream stream, std::initializer_list<std::pair<CUdeviceptr, u64>> ranges, Operation run) {
  if (ready() != CUDA_SUCCESS) return ready();
  for (const auto& [p, bytes] : ranges)
    if (bytes != 0 && !inside_memory(host(p), bytes)) return CUDA_ERROR_INVALID_VALUE;
  return enqueue(stream, std::move(run));
}

}  // namespace

bool inside_memory(const void* p, u64 bytes) {
  const std::lock_guard lock(g_mutex);
  const auto address = reinterpret_cast<u64>(p);
  auto at = g_allocations.upper_bound(address);
  if (at == g_allocations.begin()) return false;
  --at;
  const u64 offset = address - at->first;
  return offset <= at->second.bytes && bytes <= at->second.bytes - offset;
}

CUresult check_guards() {
  const std::lock_guard lock(g_mutex);
  for (const auto& [address, a] : g_allocations)
    if (!guard_intact(address, a)) return CUDA_ERROR_LAUNCH_FAILED;
  return CUDA_SUCCESS;
}

}  // namespace emu

using namespace emu;  // NOLINT(google-build-using-namespace)

extern "C" {

CUresult cuMemAlloc(CUdeviceptr* p, size_t bytes) {
  if (const CUresult r = unless_capturing(); r != CUDA_SUCCESS) return r;
  u64 address = 0;
  const CUresult r = allocate(&address, bytes);
  *p = address;
  return r;
}
CUresult cuMemFree(CUdeviceptr p) {
  if (const CUresult r = unless_capturing(); r != CUDA_SUCCESS) return r;
  return p == 0 ? CUDA_SUCCESS : release(p);
}
CUresult cuMemAllocHost(void** p, size_t bytes) {
  if (const CUresult r = unless_capturing(); r != CUDA_SUCCESS) return r;
  u64 address = 0;
  const CUresult r = allocate(&address, bytes);
  *p = host(address);
  return r;
}
CUresult cuMemFreeHost(void* p) {
  return cuMemFree(reinterpret_cast<u64>(p));
}
CUresult cuMemGetInfo(size_t* free, size_t* total) {
  const std::lock_guard lock(g_mutex);
  *free = device().memory_bytes - g_used;
  *total = device().memory_bytes;
  return ready();
}
CUresult cuMemcpyHtoDAsync(CUdeviceptr to, const void* from, size_t bytes, CUstream stream) {
  return checked(stream, {{to, bytes}}, [=] {
    std::memcpy(host(to), from, bytes);
    return CUDA_SUCCESS;
  });
}
CUresult cuMemcpyDtoHAsync(void* to, CUdeviceptr from, size_t bytes, CUstream stream) {
  return checked(stream, {{from, bytes}}, [=] {
    std::memcpy(to, host(from), bytes);
    return CUDA_SUCCESS;
  });
}
CUresult cuMemcpyDtoDAsync(CUdeviceptr to, CUdeviceptr from, size_t bytes, CUstream stream) {
  return checked(stream, {{to, bytes}, {from, bytes}}, [=] {
    std::memmove(host(to), host(from), bytes);
    return CUDA_SUCCESS;
  });
}
CUresult cuMemcpy3DAsync(const CUDA_MEMCPY3D* copy, CUstream stream) {
  const CUDA_MEMCPY3D c = *copy;
  if (c.srcPitch < c.WidthInBytes || c.dstPitch < c.WidthInBytes || c.srcHeight < c.Height ||
      c.dstHeight < c.Height || c.srcMemoryType != CU_MEMORYTYPE_DEVICE ||
      c.dstMemoryType != CU_MEMORYTYPE_DEVICE)
    return CUDA_ERROR_INVALID_VALUE;
  return checked(stream, {}, [=] {
    for (size_t z = 0; z < c.Depth; ++z)
      for (size_t y = 0; y < c.Height; ++y) {
        void* const to = host(c.dstDevice + (z * c.dstHeight + y) * c.dstPitch);
        const void* const from = host(c.srcDevice + (z * c.srcHeight + y) * c.srcPitch);
        if (!inside_memory(to, c.WidthInBytes) || !inside_memory(from, c.WidthInBytes))
          return CUDA_ERROR_INVALID_VALUE;
        std::memcpy(to, from, c.WidthInBytes);
      }
    return CUDA_SUCCESS;
  });
}
CUresult cuMemsetD8Async(CUdeviceptr p, unsigned char value, size_t bytes, CUstream stream) {
  return checked(stream, {{p, bytes}}, [=] {
    std::memset(host(p), value, bytes);
    return CUDA_SUCCESS;
  });
}
CUresult cuMemsetD32Async(CUdeviceptr p, unsigned value, size_t count, CUstream stream) {
  if (p % 4 != 0) return CUDA_ERROR_INVALID_VALUE;
  return checked(stream, {{p, 4 * count}}, [=] {
    for (size_t i = 0; i < count; ++i) static_cast<unsigned*>(host(p))[i] = value;
    return CUDA_SUCCESS;
  });
}

}  // extern "C"
