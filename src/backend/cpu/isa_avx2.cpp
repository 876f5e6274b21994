// The kernels for AVX2, FMA and F16C. Compiled with its own flags: see kernels.inc.hpp before adding an
// include.
#include <immintrin.h>

#include "backend/cpu/kernel_table.hpp"

#define RAMP_ISA_NAME "avx2"
#define RAMP_ISA_TABLE kernels_avx2
#include "backend/cpu/kernels.inc.hpp"
