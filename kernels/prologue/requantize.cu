// GEMM2's input: h f32 in sorted row order, as many rows as the device knows, in the activation type of the
// format. Compiled with X_TYPE 1 (f32).
#include "prologue/quantize.cuh"

extern "C" __global__ void __launch_bounds__(kPrologueThreads, 2)
    requantize(const __grid_constant__ RowsParams p) {
  __shared__ float shared[2 * kPrologueWarps];
  dependency_wait();
  launch_dependents();
  const u32 known = (u32)*p.rows_at;
  const u32 rows = known < p.rows ? known : p.rows;
  convert(p, BatchRows{nullptr, 0, 1}, rows, blockIdx.x, gridDim.x, shared);
}
