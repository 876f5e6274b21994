// PTX of sm_80, one instruction per wrapper: small asynchronous copies, ldmatrix, mma, and (from sm_90 on)
// dependent launches. Shared-memory addresses are 32-bit (shared_address).
#pragma once

#include "common/dependent.cuh"
#include "common/types.cuh"

// FP8 products by the tensor cores themselves; elsewhere codes are decoded to f16 in registers. sm_90 has
// them in mma.sync too: m16n8k32 at 8.0 cycles per SM quarter (two m16n8k16 of f16: 12.6, and the decoding).
#if __CUDA_ARCH__ == 890 || __CUDA_ARCH__ >= 1200
#define NATIVE_E4M3 1
#else
#define NATIVE_E4M3 0
#endif

__device__ __forceinline__ u32 shared_address(const void* p) {
  return (u32)__cvta_generic_to_shared(p);
}

// ---------------------------------------------------------------- copies

// 16 bytes past L1; zeros where !valid.
__device__ __forceinline__ void copy16(u32 dst, const void* src, bool valid) {
  asm volatile("cp.async.cg.shared.global.L2::128B [%0], [%1], 16, %2;" ::"r"(dst), "l"(src),
               "r"(valid ? 16 : 0)
               : "memory");
}
// The same, by the threads that `taken` says, without a branch.
__device__ __forceinline__ void copy16_if(bool taken, u32 dst, const void* src, bool valid) {
  asm volatile(
      "{\n.reg .pred p;\nsetp.ne.u32 p, %3, 0;\n@p cp.async.cg.shared.global.L2::128B [%0], [%1], 16, "
      "%2;\n}" ::"r"(dst),
      "l"(src), "r"(valid ? 16 : 0), "r"((u32)taken)
      : "memory");
}
// 4 bytes, by the threads that `taken` says, without a branch.
__device__ __forceinline__ void copy4_if(bool taken, u32 dst, const void* src, bool valid) {
  asm volatile(
      "{\n.reg .pred p;\nsetp.ne.u32 p, %3, 0;\n@p cp.async.ca.shared.global [%0], [%1], 4, %2;\n}" ::"r"(
          dst),
      "l"(src), "r"(valid ? 4 : 0), "r"((u32)taken)
      : "memory");
}
__device__ __forceinline__ void copy_commit() {
  asm volatile("cp.async.commit_group;" ::: "memory");
}
template <int GROUPS>
__device__ __forceinline__ void copy_wait() {
  asm volatile("cp.async.wait_group %0;" ::"n"(GROUPS) : "memory");
}

// ---------------------------------------------------------------- fragments

__device__ __forceinline__ void load_matrix4(u32 (&r)[4], u32 address) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0,%1,%2,%3}, [%4];"
               : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
               : "r"(address)
               : "memory");
}
__device__ __forceinline__ void load_matrix2(u32 (&r)[2], u32 address) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x2.shared.b16 {%0,%1}, [%2];"
               : "=r"(r[0]), "=r"(r[1])
               : "r"(address)
               : "memory");
}

// Four e4m3 codes -> four f16, exactly: codes 0 and 1 in `low`, 2 and 3 in `high` (below sm_89 0 and 2, 1 and
// 3: the order along the depth does not matter as long as both operands have the same).
__device__ __forceinline__ void decode4(u32 codes, u32& low, u32& high) {
#if __CUDA_ARCH__ >= 890
  asm("{\n.reg .b16 a, b;\nmov.b32 {a, b}, %2;\ncvt.rn.f16x2.e4m3x2 %0, a;\ncvt.rn.f16x2.e4m3x2 %1, b;\n}"
      : "=r"(low), "=r"(high)
      : "r"(codes));
#else
  // A code's bits shifted into place are the value times 2^-8. A NaN code gives 480 = 0x5f80, which one more
  // bit of its exponent makes a NaN: the bit that adding 1 to the code's magnitude carries into.
  const u32 even = ((codes << 8) & 0x80008000u) | ((codes << 7) & 0x3f803f80u);
  const u32 odd = (codes & 0x80008000u) | ((codes >> 1) & 0x3f803f80u);
  constexpr u32 k256 = 0x5c005c00u;
  asm("mul.f16x2 %0, %1, %2;" : "=r"(low) : "r"(even), "r"(k256));
  asm("mul.f16x2 %0, %1, %2;" : "=r"(high) : "r"(odd), "r"(k256));
  const u32 nan = (codes & 0x7f7f7f7fu) + 0x01010101u;
  low |= (nan << 6) & 0x20002000u;
  high |= (nan >> 2) & 0x20002000u;
#endif
}

// d += a * b, m16n8k16, fp32 sums. TYPE: 2 bf16, else f16.
template <int TYPE>
__device__ __forceinline__ void mma16(float (&d)[4], const u32 (&a)[4], u32 b0, u32 b1) {
  if constexpr (TYPE == 2) {
    asm("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, "
        "{%0,%1,%2,%3};"
        : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
  } else {
    asm("mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, "
        "{%0,%1,%2,%3};"
        : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
  }
}
#if NATIVE_E4M3
// d += a * b, m16n8k32 on e4m3 codes.
__device__ __forceinline__ void mma32(float (&d)[4], const u32 (&a)[4], u32 b0, u32 b1) {
  asm("mma.sync.aligned.m16n8k32.row.col.f32.e4m3.e4m3.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, "
      "{%0,%1,%2,%3};"
      : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}
#endif

// ---------------------------------------------------------------- arithmetic

// Two values rounded to nearest even: the first one in the lower half. NaN has no payload.
__device__ __forceinline__ u32 bf16_pair(float low, float high) {
  u32 r;
  asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(r) : "f"(high), "f"(low));
  return r;
}
__device__ __forceinline__ u32 f16_pair(float low, float high) {
  u32 r;
  asm("cvt.rn.f16x2.f32 %0, %1, %2;" : "=r"(r) : "f"(high), "f"(low));
  return r;
}
__device__ __forceinline__ float reciprocal(float v) {
  float r;
  asm("rcp.approx.ftz.f32 %0, %1;" : "=f"(r) : "f"(v));
  return r;
}
// a / b without the branches of the compiler's division, which would run an epilogue's elements one after the
// other; correctly rounded but where a result is subnormal. b between 2^-60 and 2^126; a finite.
__device__ __forceinline__ float divide(float a, float b) {
  float r = reciprocal(b);
  r = __fmaf_rn(r, __fmaf_rn(-b, r, 1.0f), r);
  const float q = __fmul_rn(a, r);
  return __fmaf_rn(r, __fmaf_rn(-b, q, a), q);
}
