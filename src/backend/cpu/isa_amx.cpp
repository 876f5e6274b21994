// The kernels of isa_avx512_bf16.cpp with the matrix unit, AMX-BF16. Compiled with its own flags: see
// kernels.inc.hpp before adding an include.
#include <immintrin.h>

#include "backend/cpu/kernel_table.hpp"

#define RAMP_ISA_NAME "amx"
#define RAMP_ISA_TABLE kernels_amx
#include "backend/cpu/kernels.inc.hpp"
