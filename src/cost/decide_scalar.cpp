// The lane code without vectorisation (compile options in CMakeLists.txt): the yardstick that the other
// builds must equal bit for bit.
#define RAMP_DECIDE_SYMBOL kDecideScalar
#define RAMP_DECIDE_NAME "scalar"
#include "cost/decide_kernel.inl"
