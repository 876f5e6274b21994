// Zeros for the sums that GEMM 2 adds rows to in fast mode (prefill_fast.cuh): in front of a call's prologue.
// Whatever is in front on the stream may still read the memory (conversion of the call before), so nothing is
// written before its end.
#include "common/types.cuh"
#include "params/block.hpp"
#include "params/prefill.hpp"
#include "sm90/prefill_ptx.cuh"
#include "sm90/ptx.cuh"

using namespace ramp::core::cuda;

extern "C" __global__ void __launch_bounds__(256) prefill_zero(const __grid_constant__ PrefillZeroParams p) {
  dependency_wait();
  launch_dependents();
  const i64 step = (i64)gridDim.x * blockDim.x;
  for (i64 at = (i64)blockIdx.x * blockDim.x + threadIdx.x; at < p.vectors; at += step)
    store_global(p.sums + 4 * at, make_uint4(0, 0, 0, 0));
}
