// The only place that reads the environment, and the facts about this process's machine.
#pragma once

#include <cstdint>
#include <optional>
#include <string>

namespace ramp::core {

std::optional<std::string> env(const char* name);  // unset and empty are both nullopt
int32_t available_cores();                         // from the affinity mask, at least 1
std::string cpu_model_name();  // "Intel(R) Xeon(R) Processor"; "unknown CPU" if it cannot be read
std::string cache_directory(const std::string& explicit_dir);  // DESIGN §8's search order; "" if none applies

}  // namespace ramp::core
