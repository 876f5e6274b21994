// Strided copies that the driver's own three-dimensional copy does not take: zero and small strides, four
// dimensions, planes that are no multiple of the pitch. One kernel per unit of 1, 2, 4, 8 or 16 bytes.
#include "common/types.cuh"

// Twin of CopyParameters in src/backend/cuda/strided_copy.hpp.
struct CopyParameters {
  u64 to, from;
  u64 rows, units;
  u64 count[4];
  u64 to_stride[4], from_stride[4];
};

// A warp takes a row of units; the blocks stride over the rows.
template <typename Unit>
__device__ __forceinline__ void copy_rows(const CopyParameters& p) {
  const u64 step = (u64)gridDim.x * blockDim.y;
  for (u64 row = (u64)blockIdx.x * blockDim.y + threadIdx.y; row < p.rows; row += step) {
    u64 rest = row;
    u64 to = p.to;
    u64 from = p.from;
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      // 64-bit division is some hundred instructions: only where the numbers need it.
      u64 index;
      if ((rest | p.count[i]) >> 32) {
        index = rest % p.count[i];
        rest /= p.count[i];
      } else {
        index = (u32)rest % (u32)p.count[i];
        rest = (u32)rest / (u32)p.count[i];
      }
      to += index * p.to_stride[i];
      from += index * p.from_stride[i];
    }
    for (u64 u = threadIdx.x; u < p.units; u += blockDim.x) ((Unit*)to)[u] = ((const Unit*)from)[u];
  }
}

extern "C" __global__ void __launch_bounds__(256) copy_1(CopyParameters p) {
  copy_rows<u8>(p);
}
extern "C" __global__ void __launch_bounds__(256) copy_2(CopyParameters p) {
  copy_rows<u16>(p);
}
extern "C" __global__ void __launch_bounds__(256) copy_4(CopyParameters p) {
  copy_rows<u32>(p);
}
extern "C" __global__ void __launch_bounds__(256) copy_8(CopyParameters p) {
  copy_rows<u64>(p);
}
extern "C" __global__ void __launch_bounds__(256) copy_16(CopyParameters p) {
  copy_rows<uint4>(p);
}
