// The kernels for AVX-512 F, BW, VL and DQ. Compiled with its own flags: see kernels.inc.hpp before adding an
// include.
#include <immintrin.h>

#include "backend/cpu/kernel_table.hpp"

#define RAMP_ISA_NAME "avx512"
#define RAMP_ISA_TABLE kernels_avx512
#include "backend/cpu/kernels.inc.hpp"
