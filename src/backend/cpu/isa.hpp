// ISA levels of the CPU backend: what this machine has, and which kernel table to use. Decided once, when a
// context is made.
#pragma once

#include <span>
#include <string>
#include <string_view>

#include "backend/cpu/kernel_table.hpp"

namespace ramp::core {

// The levels that this build has and this machine can run, slowest first; never empty.
std::span<const CpuKernels* const> available_isa_levels();

// "" -> the fastest one. Otherwise by name; throws INVALID_ARGUMENT for a name that ramp does not know and
// UNSUPPORTED for one that the machine or the build lacks, both listing what there is.
const CpuKernels& select_isa(std::string_view name);

}  // namespace ramp::core
