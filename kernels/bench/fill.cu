// Made-up weights written where they are used: the device twin of src/weights/synthetic.cpp, the same bits.
// A row has a key of its own; one 64-bit draw gives five 12-bit indices into a table of codes. Not on any
// path of the library: benchmarks and tests of layers that a host would need minutes for.
#include "common/types.cuh"
#include "params/fill.hpp"

using namespace ramp::core::cuda;

constexpr int kCodes = 4096, kBits = 12, kPerDraw = 5;

// base/rng.hpp
__device__ __forceinline__ u64 mix64(u64 z) {
  z += 0x9e3779b97f4a7c15ull;
  z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9ull;
  z = (z ^ (z >> 27)) * 0x94d049bb133111ebull;
  return z ^ (z >> 31);
}
__device__ __forceinline__ u64 random_u64(u64 seed, u64 index) {
  return mix64(mix64(seed) ^ (index * 0xd1342543de82ef95ull));
}

// A block writes whole rows, a thread five neighbours at a time: a warp's stores lie within 160 elements.
template <typename T>
__device__ __forceinline__ void fill(const FillParams& p) {
  __shared__ T table[kCodes];
  for (int i = threadIdx.x; i < kCodes; i += blockDim.x) table[i] = ((const T*)p.codes)[i];
  __syncthreads();
  for (i64 r = blockIdx.x; r < p.rows; r += gridDim.x) {
    const u64 key = random_u64(p.seed, (u64)r);
    T* const row = (T*)p.out + r * p.cols;
    for (i64 first = (i64)threadIdx.x * kPerDraw; first < p.cols; first += (i64)blockDim.x * kPerDraw) {
      const u64 draw = mix64(key + (u64)first / kPerDraw);
#pragma unroll
      for (int j = 0; j < kPerDraw; ++j)
        if (first + j < p.cols) row[first + j] = table[(draw >> (kBits * j)) & (kCodes - 1)];
    }
  }
}

extern "C" __global__ void __launch_bounds__(256) fill_1(FillParams p) {
  fill<u8>(p);
}
extern "C" __global__ void __launch_bounds__(256) fill_2(FillParams p) {
  fill<u16>(p);
}
extern "C" __global__ void __launch_bounds__(256) fill_4(FillParams p) {
  fill<u32>(p);
}
