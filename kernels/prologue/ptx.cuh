// The PTX instructions of the prologue's kernels, one per wrapper.
#pragma once

#include "common/dependent.cuh"
#include "common/types.cuh"

struct Words4 {
  u32 v[4];
};
// 16 bytes, aligned, from L2. What is read here may have been written while this kernel was already on the
// machine, so neither the read-only path nor L1 will do, and the load stays behind dependency_wait().
__device__ __forceinline__ Words4 load_words(const void* p) {
  Words4 r;
  asm volatile("ld.global.cg.v4.u32 {%0, %1, %2, %3}, [%4];"
               : "=r"(r.v[0]), "=r"(r.v[1]), "=r"(r.v[2]), "=r"(r.v[3])
               : "l"(p));
  return r;
}
// Brings the line of p to L2. No value is read, so this may run ahead of dependency_wait(): what is written
// to the line meanwhile is written to L2 as well.
__device__ __forceinline__ void prefetch_line(const void* p) {
  asm volatile("prefetch.global.L2 [%0];" ::"l"(p));
}
#if __CUDA_ARCH__ >= 900
// The same for `bytes` from p on, both multiples of 16.
__device__ __forceinline__ void prefetch_bytes(const void* p, u32 bytes) {
  asm volatile("cp.async.bulk.prefetch.L2.global [%0], %1;" ::"l"(p), "r"(bytes) : "memory");
}
#endif
__device__ __forceinline__ void store_words(void* p, u32 a, u32 b, u32 c, u32 d) {
  asm volatile("st.global.v4.u32 [%0], {%1, %2, %3, %4};" ::"l"(p), "r"(a), "r"(b), "r"(c), "r"(d)
               : "memory");
}

#if __CUDA_ARCH__ >= 890
// Codes of two values, saturating; lo in the low byte. NaN gives 0x7f.
__device__ __forceinline__ u32 e4m3_pair(float lo, float hi) {
  u16 r;
  asm("cvt.rn.satfinite.e4m3x2.f32 %0, %1, %2;" : "=h"(r) : "f"(hi), "f"(lo));
  return r;
}
#else
__device__ __forceinline__ u32 e4m3_pair(float lo, float hi) {
  return (u32)f32_to_e4m3(lo) | ((u32)f32_to_e4m3(hi) << 8);
}
#endif

// v, and what is computed from it is computed after this: the compiler moves none of it out of a loop that
// comes here once, to be kept in registers all along.
__device__ __forceinline__ u32 not_before(u32 v) {
  asm volatile("" : "+r"(v));
  return v;
}

// The same of an address, of which the compiler then no longer knows where it leads.
__device__ __forceinline__ u64 not_before(u64 v) {
  asm volatile("" : "+l"(v));
  return v;
}

// Dependent launches. Every kernel here waits on every path before it ends, and, but for the prologue's
// `early` rows, before it reads what another kernel may have written and before it writes global memory. It
// lets its dependents start only after that: so whoever runs behind two of these knows that all in front of
// the first has completed.
#if __CUDA_ARCH__ >= 900
__device__ __forceinline__ u32 cluster_rank() {
  u32 r;
  asm("mov.u32 %0, %%cluster_ctarank;" : "=r"(r));
  return r;
}
__device__ __forceinline__ u32 cluster_blocks() {
  u32 r;
  asm("mov.u32 %0, %%cluster_nctarank;" : "=r"(r));
  return r;
}
__device__ __forceinline__ void cluster_arrive() {
  asm volatile("barrier.cluster.arrive.release;" ::: "memory");
}
__device__ __forceinline__ void cluster_wait() {
  asm volatile("barrier.cluster.wait.acquire;" ::: "memory");
}
// The address of this block's shared word p in the shared memory of block `rank` of the cluster.
__device__ __forceinline__ u32 peer_address(const u32* p, u32 rank) {
  u32 r;
  asm("mapa.shared::cluster.u32 %0, %1, %2;" : "=r"(r) : "r"((u32)__cvta_generic_to_shared(p)), "r"(rank));
  return r;
}
__device__ __forceinline__ u32 load_peer(u32 address) {
  u32 r;
  asm volatile("ld.shared::cluster.u32 %0, [%1];" : "=r"(r) : "r"(address) : "memory");
  return r;
}
__device__ __forceinline__ u32 peer_word(const u32* p, u32 rank) {
  return load_peer(peer_address(p, rank));
}
#else
// No clusters: every block is one of its own.
__device__ __forceinline__ u32 cluster_rank() {
  return 0;
}
__device__ __forceinline__ u32 cluster_blocks() {
  return 1;
}
__device__ __forceinline__ void cluster_arrive() {}
__device__ __forceinline__ void cluster_wait() {}
__device__ __forceinline__ u32 peer_word(const u32* p, u32) {
  return *p;
}
#endif
