// Is h right? Samples of it in fp64 with the sums that the derived bounds need (docs/numerics.md,
// sections 3.1 and 3.2), made once per step; every rung is judged by them.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "backend/reference/bounds.hpp"

namespace ladder {

// One row of GEMM1 on the host: a token and its expert.
struct HostRow {
  int64_t row = 0;         // in sorted order, as in h
  const uint8_t* x;        // [H] e4m3
  const float* x_scale;    // [H/128]
  const uint8_t* w13;      // the expert's [2I, H]
  const float* w13_scale;  // ... and [2I/128, H/128]
  int64_t hidden, intermediate;
};

struct Sample {
  int64_t row, column;
  ramp::core::reference::DotSums gate, up;
};

// Columns first, first + stride, ... of the row.
void add_samples(const HostRow& r, int64_t first, int64_t stride, std::vector<Sample>& samples);

struct Verdict {
  double relative_error = 0;  // ||h - reference|| / ||reference|| over the samples
  double ratio = 0;           // largest |h - reference| / bound, of both bounds; NaN counts as infinite
  int64_t unwritten = 0;      // elements of h that still hold the poison (0xffff)
  [[nodiscard]] bool ok() const noexcept { return ratio <= 1.0 && unwritten == 0; }
};
// h: bf16 [rows, I], poisoned with 0xffff before the rung ran. tensor_unit: 0 for fp32 sums, kFp8TensorUnit
// for wgmma's.
Verdict judge(std::span<const Sample> samples, std::span<const uint16_t> h, int64_t hidden,
              int64_t intermediate, double tensor_unit);

}  // namespace ladder
