// What the prefill kernel needs besides ptx.cuh: shared-memory accesses, register shares of warpgroups, and
// the arithmetic of its epilogues (twins of the stream kernel's: the same bits).
#pragma once

#include "common/quotient.cuh"
#include "common/types.cuh"
#include "sm90/activate.cuh"

__device__ __forceinline__ float load_float(u32 address) {
  float v;
  asm volatile("ld.shared.f32 %0, [%1];" : "=f"(v) : "r"(address) : "memory");
  return v;
}
// Two token scales 8 rows apart and two weight scales, in the lanes that `mine` names. No branch, which would
// make ptxas wait for the wgmmas under way.
__device__ __forceinline__ void load_scales(float (&token)[2], float (&scale)[2], u32 tokens, u32 weights,
                                            bool mine) {
  asm volatile(
      "{\n.reg .pred p;\nsetp.ne.u32 p, %6, 0;\n"
      "mov.f32 %0, 0f00000000;\nmov.f32 %1, 0f00000000;\nmov.f32 %2, 0f00000000;\nmov.f32 %3, 0f00000000;\n"
      "@p ld.shared.f32 %0, [%4];\n@p ld.shared.f32 %1, [%4 + 32];\n@p ld.shared.v2.f32 {%2,%3}, [%5];\n}"
      : "=&f"(token[0]), "=&f"(token[1]), "=&f"(scale[0]), "=&f"(scale[1])
      : "r"(tokens), "r"(weights), "r"((u32)mine)
      : "memory");
}
__device__ __forceinline__ uint4 load_words(u32 address) {
  uint4 v;
  asm volatile("ld.shared.v4.u32 {%0,%1,%2,%3}, [%4];"
               : "=r"(v.x), "=r"(v.y), "=r"(v.z), "=r"(v.w)
               : "r"(address)
               : "memory");
  return v;
}
// The same in the lanes that `mine` names, zeros in the others.
__device__ __forceinline__ uint4 load_words_where(u32 address, bool mine) {
  uint4 v;
  asm volatile(
      "{\n.reg .pred p;\nsetp.ne.u32 p, %5, 0;\n"
      "mov.u32 %0, 0;\nmov.u32 %1, 0;\nmov.u32 %2, 0;\nmov.u32 %3, 0;\n"
      "@p ld.shared.v4.u32 {%0,%1,%2,%3}, [%4];\n}"
      : "=&r"(v.x), "=&r"(v.y), "=&r"(v.z), "=&r"(v.w)
      : "r"(address), "r"((u32)mine)
      : "memory");
  return v;
}
__device__ __forceinline__ uint4 load_global(const void* address) {
  uint4 v;
  asm volatile("ld.global.v4.u32 {%0,%1,%2,%3}, [%4];"
               : "=r"(v.x), "=r"(v.y), "=r"(v.z), "=r"(v.w)
               : "l"(address)
               : "memory");
  return v;
}
__device__ __forceinline__ void store_global(void* address, const uint4& v) {
  asm volatile("st.global.v4.u32 [%0], {%1,%2,%3,%4};" ::"l"(address), "r"(v.x), "r"(v.y), "r"(v.z), "r"(v.w)
               : "memory");
}
__device__ __forceinline__ void store_float(u32 address, float v) {
  asm volatile("st.shared.f32 [%0], %1;" ::"r"(address), "f"(v) : "memory");
}
__device__ __forceinline__ void store_u16(u32 address, u16 v) {
  asm volatile("st.shared.u16 [%0], %1;" ::"r"(address), "h"(v) : "memory");
}
__device__ __forceinline__ void store_words(u32 address, u32 a, u32 b, u32 c, u32 d) {
  asm volatile("st.shared.v4.u32 [%0], {%1,%2,%3,%4};" ::"r"(address), "r"(a), "r"(b), "r"(c), "r"(d)
               : "memory");
}

// Counters in global memory that blocks of this GPU share.
__device__ __forceinline__ u32 atomic_increment(int* counter) {
  u32 before;
  asm volatile("atom.relaxed.gpu.global.add.u32 %0, [%1], 1;" : "=r"(before) : "l"(counter) : "memory");
  return before;
}
__device__ __forceinline__ void add_release(int* counter, int v) {
  asm volatile("red.release.gpu.global.add.s32 [%0], %1;" ::"l"(counter), "r"(v) : "memory");
}
__device__ __forceinline__ void store_release(int* to, int v) {
  asm volatile("st.release.gpu.global.s32 [%0], %1;" ::"l"(to), "r"(v) : "memory");
}
__device__ __forceinline__ int load_acquire(const int* from) {
  int v;
  asm volatile("ld.acquire.gpu.global.s32 %0, [%1];" : "=r"(v) : "l"(from) : "memory");
  return v;
}
// Between ordinary accesses to global memory and those of bulk copies.
__device__ __forceinline__ void proxy_fence_global() {
  asm volatile("fence.proxy.async.global;" ::: "memory");
}

// Arrives in the partner block: bar is an address that remote_address() has given.
__device__ __forceinline__ void barrier_arrive_remote(u32 bar) {
  asm volatile("mbarrier.arrive.shared::cluster.b64 _, [%0];" ::"r"(bar) : "memory");
}
// A bulk copy into both blocks of a cluster, to the same place, counted on the barrier at the same place.
__device__ __forceinline__ void bulk_copy_both(u32 dst, const void* src, u32 bytes, u32 bar) {
  asm volatile(
      "cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes.multicast::cluster [%0], [%1], %2, "
      "[%3], %4;" ::"r"(dst),
      "l"(src), "r"(bytes), "r"(bar), "h"((u16)3)
      : "memory");
}
// shared -> global, multiples of 16 bytes.
__device__ __forceinline__ void bulk_store(void* dst, u32 src, u32 bytes) {
  asm volatile("cp.async.bulk.global.shared::cta.bulk_group [%0], [%1], %2;" ::"l"(dst), "r"(src), "r"(bytes)
               : "memory");
}
__device__ __forceinline__ void bulk_commit() {
  asm volatile("cp.async.bulk.commit_group;" ::: "memory");
}
// Until this thread's bulk stores have read shared memory; until they are done.
__device__ __forceinline__ void bulk_wait_read() {
  asm volatile("cp.async.bulk.wait_group.read 0;" ::: "memory");
}
__device__ __forceinline__ void bulk_wait() {
  asm volatile("cp.async.bulk.wait_group 0;" ::: "memory");
}
// Four 8x8 matrices of 16-bit elements in the accumulators' layout; lane l names the address of row l % 8 of
// matrix l / 8.
__device__ __forceinline__ void store_matrices(u32 address, u32 a, u32 b, u32 c, u32 d) {
  asm volatile("stmatrix.sync.aligned.m8n8.x4.shared.b16 [%0], {%1,%2,%3,%4};" ::"r"(address), "r"(a), "r"(b),
               "r"(c), "r"(d)
               : "memory");
}
// No use of v moves up over this: for accumulators behind a wait for wgmma.
__device__ __forceinline__ void pin(float& v) {
  asm volatile("" : "+f"(v)::"memory");
}
// The value that the first lane of this lane's quad has.
__device__ __forceinline__ float from_quad(float v) {
  return __shfl_sync(0xffffffffu, v, (int)(threadIdx.x & 28u));
}

// A value that all lanes have, in such a way that the compiler knows it: what depends on it stays in uniform
// registers, branches on it are no divergence.
__device__ __forceinline__ int uniform(u32 v) {
  return (int)__shfl_sync(0xffffffffu, v, 0);
}

// Registers per thread of this warpgroup from here on.
template <int COUNT>
__device__ __forceinline__ void registers_take() {
  asm volatile("setmaxnreg.inc.sync.aligned.u32 %0;" ::"n"(COUNT));
}
template <int COUNT>
__device__ __forceinline__ void registers_release() {
  asm volatile("setmaxnreg.dec.sync.aligned.u32 %0;" ::"n"(COUNT));
}
