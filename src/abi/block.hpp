// The optional parts of an expert block, checked: shared with the fused forward.
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

}  // namespace ramp::core
