// The stream probe's helper kernels: the combine as its own launch, and the random fill. Both are launched
// with and without programmatic dependent launch; without it the two instructions do nothing.
#include "device.cuh"

// Stands for the combine: adds k fp32 rows per token in fixed order, writes bf16.
extern "C" __global__ void combine(const float* __restrict__ rows, u16* __restrict__ y, u32 tokens, u32 k,
                                   u32 columns) {
  launch_dependents();
  dependency_wait();
  for (u32 i = blockIdx.x * blockDim.x + threadIdx.x; i < tokens * columns; i += gridDim.x * blockDim.x) {
    const u32 t = i / columns;
    const u32 c = i % columns;
    float s = 0.0f;
    for (u32 j = 0; j < k; ++j) s += rows[(u64)(t * k + j) * columns + c];
    y[i] = (u16)to_bf16(s);
  }
}

extern "C" __global__ void fill(uint4* p, u64 n, u32 keep, u32 set, u32 seed) {
  for (u64 i = blockIdx.x * (u64)blockDim.x + threadIdx.x; i < n; i += (u64)gridDim.x * blockDim.x) {
    u64 z = (i + 1) * 0x9e3779b97f4a7c15ull + seed;
    z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9ull;
    z = (z ^ (z >> 27)) * 0x94d049bb133111ebull;
    const u32 a = (u32)z;
    const u32 b = (u32)(z >> 32);
    p[i] = make_uint4((a & keep) | set, (b & keep) | set, ((a * 2654435761u) & keep) | set,
                      ((b * 2246822519u) & keep) | set);
  }
}
