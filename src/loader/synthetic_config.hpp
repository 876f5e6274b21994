// What synthetic_checkpoint.cpp needs to know about the model families: their config.json and their limits.
#pragma once

#include <nlohmann/json.hpp>

#include "loader/synthetic_checkpoint.hpp"

namespace ramp::core {

// A key in config.json that marks a directory as made up, and so free to be overwritten.
inline constexpr const char* kSyntheticMarker = "ramp_synthetic";

// Throws Error(INVALID_ARGUMENT) naming the option.
void check_synthetic_options(const SyntheticOptions& options);
nlohmann::ordered_json synthetic_config(const SyntheticOptions& options);

}  // namespace ramp::core
