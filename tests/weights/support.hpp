// Descriptors for the tests of the weights room: synthetic values behind a desc whose fields a test may
// spoil.
#pragma once

#include <gtest/gtest.h>

#include <functional>
#include <string>

#include "base/error.hpp"
#include "weights/expert_weights.hpp"
#include "weights/synthetic.hpp"

namespace ramp::core::test {

inline constexpr ramp_format kFormats[] = {RAMP_FORMAT_FP8_BLOCK,  RAMP_FORMAT_BF16,
                                           RAMP_FORMAT_F16,        RAMP_FORMAT_F32,
                                           RAMP_FORMAT_FP8_TENSOR, RAMP_FORMAT_FP8_CHANNEL};

inline SyntheticWeights values(ramp_format format, ramp_activation activation = RAMP_ACTIVATION_SILU_AND_MUL,
                               int64_t experts = 3, int64_t hidden = 160, int64_t intermediate = 96,
                               uint64_t seed = 1) {
  SyntheticWeightsOptions o;
  o.seed = seed;
  return make_synthetic_weights({"test", experts, 1, hidden, intermediate}, format, activation, o);
}

// The message of the Error that f throws; fails the test when it throws none or another status.
inline std::string message_of(const std::function<void()>& f,
                              ramp_status status = RAMP_ERROR_INVALID_ARGUMENT) {
  try {
    f();
  } catch (const Error& e) {
    EXPECT_EQ(e.status(), status) << e.what();
    return e.what();
  }
  ADD_FAILURE() << "no error";
  return {};
}

// What the message must contain: the argument's name, what was got and what was expected.
inline void expect_parts(const std::string& message, std::initializer_list<const char*> parts) {
  for (const char* part : parts)
    EXPECT_NE(message.find(part), std::string::npos) << "'" << part << "' in: " << message;
}

}  // namespace ramp::core::test
