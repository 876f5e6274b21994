// The warp's collective builtins: what device.hpp's __shfl_sync and its like come down to.
#pragma once

#include "emulator/machine.hpp"

namespace emu {

// The value that lane `source` brings; every lane names the lane it wants.
u64 shuffle(u32 mask, u64 value, u32 source);
u32 ballot(u32 mask, bool predicate);
u32 match_any(u32 mask, u64 value);
// The mask where all values are equal, else 0.
u32 match_all(u32 mask, u64 value);
enum class Reduce { kAdd, kAnd, kOr, kXor, kMin, kMax, kMinSigned, kMaxSigned };
u32 reduce(u32 mask, u32 value, Reduce what);
void sync_warp(u32 mask);

}  // namespace emu
