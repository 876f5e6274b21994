// RAMP_TRACE: a file that receives what the device decided, one line per layer call (docs/dispatch.md,
// Traces); RAMP_TRACE_TIMES=1: with the times of those that were no part of a graph.
#pragma once

#include "ramp/ramp.h"

namespace ramp::cli {

// Begins a trace where RAMP_TRACE names a file and the context runs on a GPU. Throws what the library says.
void begin_trace(ramp_context* context);
// Writes the file of a context for which a trace was begun; a failure is one line on standard error.
void finish_trace(ramp_context* context) noexcept;

}  // namespace ramp::cli
