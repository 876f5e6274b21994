// Counts heap allocations of the whole program: malloc and its relatives, which operator new uses too, are
// interposed by allocations.cpp. Not under sanitizers, which interpose them themselves; counts are then 0.
#pragma once

#include <cstdint>

namespace ramp::core::test {

int64_t allocations_so_far() noexcept;
// False where allocations cannot be counted: a test that relies on it should skip its count, not the rest.
bool allocations_counted() noexcept;

class AllocationCount {
 public:
  AllocationCount() : start_(allocations_so_far()) {}
  [[nodiscard]] int64_t so_far() const noexcept { return allocations_so_far() - start_; }

 private:
  int64_t start_;
};

}  // namespace ramp::core::test
