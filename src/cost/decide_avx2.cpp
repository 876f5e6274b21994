// The lane code for AVX2 (compile options in CMakeLists.txt; no FMA, so that no build rounds differently).
// Entered only after the processor said that it has AVX2.
#define RAMP_DECIDE_SYMBOL kDecideAvx2
#define RAMP_DECIDE_NAME "avx2"
#include "cost/decide_kernel.inl"
