// Error construction: one message format for the whole library.
#include "base/error.hpp"

#include <fmt/format.h>

namespace ramp::core {

void fail(ramp_status status, std::string message) {
  throw Error(status, std::move(message));
}

void fail_argument(std::string_view argument, std::string_view got, std::string_view expected,
                   std::string_view fix, ramp_status status) {
  std::string text = fmt::format("{}: got {}, expected {}", argument, got, expected);
  if (!fix.empty()) text += fmt::format("; {}", fix);
  throw Error(status, std::move(text));
}

std::string printable(std::string_view text, size_t limit) {
  std::string out;
  for (const char c : text.substr(0, limit)) out += (c >= 0x20 && c < 0x7f) ? c : '?';
  return text.size() > limit ? out + "..." : out;
}

const char* status_name(ramp_status status) noexcept {
  switch (status) {
    case RAMP_OK:
      return "ok";
    case RAMP_ERROR_INVALID_ARGUMENT:
      return "invalid argument";
    case RAMP_ERROR_UNSUPPORTED:
      return "unsupported";
    case RAMP_ERROR_OUT_OF_MEMORY:
      return "out of memory";
    case RAMP_ERROR_WORKSPACE_TOO_SMALL:
      return "workspace too small";
    case RAMP_ERROR_IO:
      return "input/output error";
    case RAMP_ERROR_BAD_FILE:
      return "bad file";
    case RAMP_ERROR_DEVICE:
      return "device error";
    case RAMP_ERROR_INTERNAL:
      return "internal error";
  }
  return "unknown status";
}

}  // namespace ramp::core
