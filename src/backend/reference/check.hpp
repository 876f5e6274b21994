// The checker: does a backend's y agree with exact arithmetic as far as its rounding allows? For every
// checked element it computes the value in fp64 and, by running error analysis, how far fp32 arithmetic may
// be from it. docs/numerics.md derives the formulas. Two bounds:
//  * rigorous: holds for any order of fp32 additions of at most `sum_depth` terms in a row; one-code flips of
//    the requantised intermediate are allowed where, and only where, the interval of its possible values
//    contains a rounding boundary;
//  * statistical: the same analysis with rounding errors as independent random variables (Higham & Mary, SIAM
//    J. Sci. Comput. 41(5), 2019) at kCheckSigmas standard deviations. Much sharper for long sums; holds for
//    data without adversarial structure.
// A result is right when it meets both (or the first alone, with `statistical` off).
#pragma once

#include <cstdint>
#include <span>
#include <string>

#include "backend/backend.hpp"
#include "weights/synthetic.hpp"

namespace ramp::core {

inline constexpr double kCheckSigmas = 6.0;

struct CheckOptions {
  // Tokens to check (flat rows e * max_tokens + r for the batched entry); empty: all.
  std::span<const int64_t> tokens;
  // Checkpoint-layout weights to read instead of call.weights, when those are packed.
  const ExpertWeights* unpacked = nullptr;
  // Longest chain of fp32 additions in one output of a GEMM of depth K; 0: K, which covers every order.
  int64_t sum_depth = 0;
  // What per-slot rows are stored as before they are combined (bf16 in the GPU's repeatable mode).
  ramp_dtype slot_rows = RAMP_F32;
  // Unit of the tensor cores' sums, relative to the largest term: 0 for fp32; on sm_90 kFp8TensorUnit for
  // e4m3, kHalfTensorUnit for bf16 and f16.
  double tensor_unit = 0;
  bool statistical = true;
  ParallelFor parallel = serial_for;
};

struct CheckResult {
  int64_t rows = 0, elements = 0;  // checked
  double max_ratio = 0;            // largest |y - reference| / rigorous bound
  double max_sigma_ratio = 0;      // largest |y - reference| / statistical bound; 0 when not asked for
  double relative_error = 0;       // ||y - reference|| / ||reference|| over the finite elements
  int64_t nan_mismatches = 0;      // NaN or infinity on one side alone
  int64_t undetermined = 0;        // elements where fp32 may overflow or not: not checked
  int64_t flips_allowed = 0;       // intermediate values whose code could be another one (rigorous bound)
  // The element with the largest ratio, or the first NaN mismatch. slot is -1 for combined output.
  struct Worst {
    int64_t token = -1, slot = -1, column = -1;
    double got = 0, expected = 0, bound = 0;
  } worst;
  [[nodiscard]] bool ok() const noexcept {
    return nan_mismatches == 0 && max_ratio <= 1.0 && max_sigma_ratio <= 1.0;
  }
  // One line: verdict, ratios, relative error and the worst element.
  [[nodiscard]] std::string text() const;
};

CheckResult check_block(const BlockCall& call, const CheckOptions& options = {});
CheckResult check_batched(const BatchedCall& call, const CheckOptions& options = {});

}  // namespace ramp::core
