// The kernels for AVX-512 F, BW, VL, DQ and BF16. Compiled with its own flags: see kernels.inc.hpp before
// adding an include.
#include <immintrin.h>

#include "backend/cpu/kernel_table.hpp"

#define RAMP_ISA_NAME "avx512_bf16"
#define RAMP_ISA_TABLE kernels_avx512_bf16
#include "backend/cpu/kernels.inc.hpp"
