// Leaves a test out, saying why, where the process has no driver with a GPU.
#pragma once

#include <gtest/gtest.h>

#include <string>

#include "backend/cuda/driver.hpp"

#define RAMP_NEEDS_GPU()                                                                     \
  do {                                                                                       \
    std::string why;                                                                         \
    if (::ramp::core::cuda::find_driver(&why) == nullptr) GTEST_SKIP() << "no GPU: " << why; \
  } while (false)
