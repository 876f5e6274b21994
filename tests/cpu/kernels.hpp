// What the tests of the kernel tables share: one parameter per ISA level that this machine can run.
#pragma once

#include <gtest/gtest.h>

#include <bit>
#include <cmath>
#include <cstdint>
#include <string>
#include <vector>

#include "backend/cpu/isa.hpp"
#include "base/float_types.hpp"
#include "base/rng.hpp"
#include "geometry/model.hpp"

namespace ramp::core::cpu_test {

inline constexpr double kUnit = 0x1p-24;

class IsaTest : public testing::TestWithParam<const CpuKernels*> {
 protected:
  void SetUp() override { ASSERT_TRUE(permit_isa(k)); }
  const CpuKernels& k = *GetParam();
};
inline auto isa_levels() {
  return testing::ValuesIn(available_isa_levels().begin(), available_isa_levels().end());
}
inline std::string isa_name(const testing::TestParamInfo<const CpuKernels*>& p) {
  return p.param->isa;
}

// The compiler may keep either NaN operand's payload; only its being NaN counts where a value was computed.
inline bool same(float a, float b) {
  return (std::isnan(a) && std::isnan(b)) || std::bit_cast<uint32_t>(a) == std::bit_cast<uint32_t>(b);
}

// Normal values, seeded, as n elements of dtype.
inline std::vector<uint8_t> random_weights(ramp_dtype dtype, int64_t n, uint64_t seed) {
  std::vector<uint8_t> bytes(static_cast<size_t>(n * dtype_bytes(dtype)));
  for (int64_t i = 0; i < n; ++i) {
    store_f32(bytes.data(), dtype, i, static_cast<float>(random_normal(seed, static_cast<uint64_t>(i))));
  }
  return bytes;
}

}  // namespace ramp::core::cpu_test
