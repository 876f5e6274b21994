// The activation as a kernel of its own, behind a GEMM that leaves gate and up side by side: what fusing them
// saves (docs/ablations.md). Rows of 2n bf16 in, silu(gate) * up as n bf16 out, eight columns a thread.
#include "common/types.cuh"

struct ActivateParams {
  const u16* gate_up;
  u16* h;
  long long rows;
  int n;
};

extern "C" __global__ void __launch_bounds__(256) activate(const __grid_constant__ ActivateParams p) {
  const i64 eights = p.n / 8;
  for (i64 at = blockIdx.x * 256ll + threadIdx.x; at < p.rows * eights; at += gridDim.x * 256ll) {
    const i64 row = at / eights;
    const i64 column = at % eights * 8;
    const uint4 g4 = *(const uint4*)(p.gate_up + row * 2 * p.n + column);
    const uint4 u4 = *(const uint4*)(p.gate_up + row * 2 * p.n + p.n + column);
    const u32 g[4] = {g4.x, g4.y, g4.z, g4.w};
    const u32 u[4] = {u4.x, u4.y, u4.z, u4.w};
    u32 h[4];
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      u32 both = 0;
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        const float a = bf16_to_f32((u16)(g[i] >> (16 * half)));
        const float b = bf16_to_f32((u16)(u[i] >> (16 * half)));
        both |= (u32)f32_to_bf16(a / (1.0f + expf(-a)) * b) << (16 * half);
      }
      h[i] = both;
    }
    *(uint4*)(p.h + row * p.n + column) = make_uint4(h[0], h[1], h[2], h[3]);
  }
}
