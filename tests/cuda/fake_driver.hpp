// What tests steer and ask of the stand-in for libcuda (fake_driver.cpp), found by dlsym in the library that
// the process has loaded as libcuda.so.1.
#pragma once

#include <atomic>

// RAMP_FAKE_DRIVER in the environment: "old" (CUDA 11.8), "no-device", "no-init"; else a GPU of sm_90.
struct FakeState {
  std::atomic<int> refuse_loads{0};       // so many calls of cuModuleLoadData fail next
  std::atomic<int> allocations_left{-1};  // cuMemAlloc is out of memory after so many more; -1: never
  std::atomic<int> modules{0}, allocations{0}, primary_contexts{0};  // alive
  std::atomic<int> loads{0}, launches{0}, copies_3d{0};              // calls so far
  std::atomic<int> capturing{0};                                     // whether every stream is
  // Events alive; the device's clock in us, which stands still but for tests, and which events record.
  std::atomic<int> events{0}, clock_us{0};
};
inline constexpr unsigned long long kFakeMemory = 1ULL << 30;
