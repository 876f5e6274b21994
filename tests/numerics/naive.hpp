// The expert block once more, independent of the library's reference: its own decoding (ldexp), its own
// quantiser (search over all codes), its own scale lookup, one triple loop per slot. Slow and short: what the
// reference is tested against.
#pragma once

#include <cstdint>
#include <vector>

#include "numerics/cases.hpp"

namespace ramp::core::test {

// e4m3fn by its definition.
double naive_e4m3(uint8_t code);
// The code nearest to v, ties to the even code, saturating; NaN gives NaN.
uint8_t naive_to_e4m3(float v);

// y [T,H] or [T,k,H] of a case, not rounded to y's dtype.
std::vector<double> naive_block(const BlockCase& c);
// y [E,max_tokens,H]; rows beyond the counts are left zero.
std::vector<double> naive_batched(const BatchedCase& c);

}  // namespace ramp::core::test
