// The CPU backend: threaded, vectorised per ISA level, the default where there is no GPU.
//
// Memory: expert_block, expert_block_batched and route allocate nothing; all they need is in the caller's
// workspace. Concurrency: const weights, one workspace per call; the thread pool runs concurrent calls' loops
// one after the other.
#pragma once

#include <memory>

#include "backend/backend.hpp"

namespace ramp::core {

// Throws UNSUPPORTED for devices other than the CPU and for ISA levels that the machine lacks,
// INVALID_ARGUMENT for an unknown ISA name, a negative thread count or a broken executor.
std::unique_ptr<Backend> make_cpu_backend(const BackendOptions& options);

}  // namespace ramp::core
