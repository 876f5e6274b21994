// The lane code for the target's baseline instruction set.
#define RAMP_DECIDE_SYMBOL kDecideBaseline
#define RAMP_DECIDE_NAME "baseline"
#include "cost/decide_kernel.inl"
