// ISA levels of the CPU backend: what this machine has, and which kernel table to use. Decided once, when a
// context is made.
#pragma once

#include <span>
#include <string>
#include <string_view>

#include "backend/cpu/kernel_table.hpp"
#include "base/log.hpp"

namespace ramp::core {

// The levels that this build has and this machine can run, slowest first; never empty. A level has to be
// permitted before its kernels may be called.
std::span<const CpuKernels* const> available_isa_levels();

// Asks the operating system for what a level needs: Linux lets a process use the matrix unit's registers on
// request. -> whether it may (false: errno says why). Only for the level that is going to run, since granting
// has an effect on the whole process: 8 KiB more to save per thread, so that alternate signal stacks of the
// old 8 KiB size are refused from then on (and where a thread has one already, the request is).
bool permit_isa(const CpuKernels& level) noexcept;

// "" -> the fastest one that is permitted. Otherwise by name; throws INVALID_ARGUMENT for a name that ramp
// does not know and UNSUPPORTED for one that the machine, the build or the system lacks, listing what there
// is.
const CpuKernels& select_isa(std::string_view name, const LogSink& log = {});

}  // namespace ramp::core
