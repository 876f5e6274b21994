// How things fail inside the library: an exception that carries a status and one line of text. The C ABI
// catches it at the border (src/abi); nothing else may cross it.
#pragma once

#include <exception>
#include <string>
#include <string_view>

#include "ramp/ramp.h"

namespace ramp::core {

class Error : public std::exception {
 public:
  Error(ramp_status status, std::string message) : status_(status), message_(std::move(message)) {}
  [[nodiscard]] const char* what() const noexcept override { return message_.c_str(); }
  [[nodiscard]] ramp_status status() const noexcept { return status_; }

 private:
  ramp_status status_;
  std::string message_;
};

[[noreturn]] void fail(ramp_status status, std::string message);

// The house format of every complaint about an argument, a file or an option:
// "<argument>: got <got>, expected <expected>; <fix>". `fix` says what the caller can do; it may be empty.
[[noreturn]] void fail_argument(std::string_view argument, std::string_view got, std::string_view expected,
                                std::string_view fix = {}, ramp_status status = RAMP_ERROR_INVALID_ARGUMENT);

const char* status_name(ramp_status status) noexcept;

// Text from outside (a file, a user) as it may appear in a message: printable ASCII, the rest as '?',
// shortened to `limit` characters.
std::string printable(std::string_view text, size_t limit = 60);

}  // namespace ramp::core
