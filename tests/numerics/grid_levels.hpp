// The levels that the grids of the CPU and of the GPU have in common: every value of every option, and the
// (E, k) of well-known models.
#pragma once

#include <array>

#include "numerics/cases.hpp"

namespace ramp::core::test {

inline constexpr std::array kFormats = {RAMP_FORMAT_FP8_BLOCK,  RAMP_FORMAT_BF16,
                                        RAMP_FORMAT_F16,        RAMP_FORMAT_F32,
                                        RAMP_FORMAT_FP8_TENSOR, RAMP_FORMAT_FP8_CHANNEL};
inline constexpr std::array kActivations = {RAMP_ACTIVATION_SILU_AND_MUL, RAMP_ACTIVATION_GELU_AND_MUL,
                                            RAMP_ACTIVATION_GELU_TANH_AND_MUL, RAMP_ACTIVATION_RELU2};
inline constexpr std::array kX = {RAMP_BF16, RAMP_F16, RAMP_F32, RAMP_E4M3};
inline constexpr std::array kY = {RAMP_BF16, RAMP_F16, RAMP_F32};
inline constexpr std::array kShared = {RAMP_DTYPE_NONE, RAMP_BF16, RAMP_F16, RAMP_F32};
inline constexpr std::array kIds = {Ids::kDistinct, Ids::kSkewed,    Ids::kSingle,    Ids::kDuplicates,
                                    Ids::kMasked,   Ids::kAllMasked, Ids::kOutOfRange};
inline constexpr std::array kDeterminism = {RAMP_REPEATABLE, RAMP_BATCH_INVARIANT, RAMP_FAST};
inline constexpr std::array<std::array<int64_t, 2>, 12> kExperts = {{{1, 1},
                                                                     {6, 2},
                                                                     {8, 2},
                                                                     {16, 4},
                                                                     {60, 4},
                                                                     {64, 4},
                                                                     {64, 8},
                                                                     {128, 8},
                                                                     {160, 6},
                                                                     {256, 8},
                                                                     {384, 8},
                                                                     {512, 10}}};

}  // namespace ramp::core::test
