// The router on the CPU: logits = x * router_weight^T where they are not given, then routing::route_tokens
// over the tokens in parallel, then capacity.
#pragma once

#include <cstdint>

#include "backend/backend.hpp"
#include "backend/cpu/executor.hpp"
#include "backend/cpu/kernel_table.hpp"

namespace ramp::core {

uint64_t cpu_route_workspace(const ramp_router_config& router, int64_t num_logits, int64_t max_tokens,
                             int32_t workers) noexcept;
// Throws WORKSPACE_TOO_SMALL. Each token's logits and routing depend on its own row alone (one order of
// summation per ISA level), capacity excepted.
void cpu_route(const RouteCall& call, const CpuKernels& kernels, Executor& executor);

}  // namespace ramp::core
