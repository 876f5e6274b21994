// The log sink: where the library's few messages go. Never stdout, never stderr; nowhere unless the caller
// gave a sink.
#pragma once

#include <string>

#include "ramp/ramp.h"

namespace ramp::core {

struct LogSink {
  ramp_log_fn fn = nullptr;
  void* user = nullptr;
  void operator()(ramp_log_level level, const std::string& message) const {
    if (fn != nullptr) fn(user, level, message.c_str());
  }
};

}  // namespace ramp::core
