// The rest of the driver's functions, as weak symbols that say "not supported": so the table of driver.hpp is
// complete, and a function that is added to it needs nothing here. As in a driver of CUDA 12.0 there is no
// second cuEventElapsedTime.
#include "backend/cuda/driver.hpp"

#undef cuEventElapsedTime

extern "C" CUresult fake_not_supported() {
  return CUDA_ERROR_NOT_SUPPORTED;
}
#define RAMP_FAKE_TEXT(name) #name
#define RAMP_FAKE_WEAK(name) \
  RAMP_FAKE_TEXT(.weak name) "\n" RAMP_FAKE_TEXT(.set name) ", fake_not_supported\n"
#define RAMP_FAKE_SYMBOL(name) asm(RAMP_FAKE_WEAK(name));
RAMP_CUDA_FUNCTIONS(RAMP_FAKE_SYMBOL)
