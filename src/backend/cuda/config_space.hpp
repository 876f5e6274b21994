// The whole space of configs that the sm_90 kernels of packed weights can be compiled to: what ships and what
// `ramp profile` may find to be better. Pure arithmetic on shapes and hardware limits: no GPU is asked.
//
// A config of the space that does not ship is compiled (or read from the cubin cache) and loaded when a
// forced config or a fit first asks for it.
#pragma once

#include <string>
#include <vector>

#include "backend/backend.hpp"
#include "backend/cuda/kernel_library.hpp"

namespace ramp::core::cuda {

// Both mainloops; legal ones with the shipped configs first. Group sizes of the prefill kernel are all there
// where the performance regions predict GROUP_M for the shape, else few. rejected: filled when asked for.
ConfigList config_space(const ModelShape& model, ramp_format format, ramp_activation activation,
                        bool with_rejected);

// Blocks of this config that share an SM; 1 for one that is not of the space.
int32_t config_residency(const KernelConfig& config, ramp_format format) noexcept;

// The programs of a config of the space; none for any other.
std::vector<KernelProgram> config_programs(const KernelConfig& config, ramp_format format,
                                           ramp_activation activation);

}  // namespace ramp::core::cuda
