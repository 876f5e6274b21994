// The expert block behind its entry of the ABI, and its optional parts, checked: shared with the fused
// forward and with kernels that have ramp's configs in their table.
#pragma once

#include <cstdint>
#include <span>

#include "ramp/ramp.h"
#include "weights/expert_weights.hpp"

namespace ramp::core {

struct BlockExtras {
  std::span<const int32_t> map;
  ramp_tensor addend{};
  int64_t* counters = nullptr;
};
BlockExtras check_extras(const ramp_tensor& expert_map, const ramp_tensor& shared_addend,
                         const ramp_tensor& counters, int64_t tokens, const ExpertWeights& weights,
                         ramp_device device);

// ramp_expert_block without its border: checks everything, throws Error.
void run_expert_block(ramp_context& context, const ramp_expert_block_args& args, void* workspace,
                      uint64_t bytes, void* stream);

}  // namespace ramp::core
