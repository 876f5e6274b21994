// The kernels for any CPU of the architecture that the library is built for (SSE2 on x86-64). Compiled with
// its own flags: see kernels.inc.hpp before adding an include.
#include "backend/cpu/kernel_table.hpp"

#define RAMP_ISA_NAME "baseline"
#define RAMP_ISA_TABLE kernels_baseline
#include "backend/cpu/kernels.inc.hpp"
