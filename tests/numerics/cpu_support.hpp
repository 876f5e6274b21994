// What the CPU backend's numerics tests share: backends per ISA level and thread count, ways to hold the
// weights, routings of a workload put into a case, and a parallel loop for the checker.
#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "backend/backend.hpp"
#include "numerics/cases.hpp"

namespace ramp::core::test {

// Under a sanitizer (a build without the vectoriser, ten times slower) the two longest tests sample: they say
// where. What they leave out there differs in size or tile shape alone from what stays.
#if defined(__SANITIZE_ADDRESS__) || defined(__SANITIZE_THREAD__)
inline constexpr bool kSanitized = true;
#else
inline constexpr bool kSanitized = false;
#endif

// ISA levels of this machine, slowest first ("baseline", "avx2", "avx512"): the tests run on every one of
// them.
const std::vector<std::string>& isa_levels();
// One backend per (ISA level, threads), made on first use and kept. isa "": the best.
Backend& cpu_backend(const std::string& isa = "", int32_t threads = 2);

// How a handle holds its weights.
enum class Hold : int32_t { kPackedCopy, kPackedInPlace, kPackedBorrow, kBorrow, kCopy };
const char* hold_name(Hold hold);
std::unique_ptr<ExpertWeights> make_held(BlockCase& c, Hold hold, Backend& backend);
std::unique_ptr<ExpertWeights> make_held(BatchedCase& c, Hold hold, Backend& backend);

// Replaces the case's ids by a workload's (spec: "zipf:1.2", "balanced", ...); expected_masked becomes 0.
void set_routing(BlockCase& c, const std::string& workload, uint64_t seed);

// Up to `count` tokens spread over the case, first and last among them (all, if there are that few).
std::vector<int64_t> sample_tokens(const BlockCase& c, int64_t count);

// The checker on two threads.
CheckOptions check_options();

}  // namespace ramp::core::test
