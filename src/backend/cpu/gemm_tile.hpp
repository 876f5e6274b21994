// The main loop of both GEMMs: one tile (up to tile_m rows of one expert x up to tile_n weight rows) over a
// range of depth, into the worker's fp32 accumulators.
#pragma once

#include <cstdint>

#include "backend/cpu/job.hpp"

namespace ramp::core {

// Left side of a GEMM: where row p's values and scales are and how they become fp32.
struct Operand {
  const std::byte* data = nullptr;
  RowMap map;           // bytes
  bool sorted = false;  // rows are numbered by sorted position (h), else by row of x
  ramp_dtype dtype = RAMP_DTYPE_NONE;
  ramp_dtype round_to = RAMP_F32;
  LoadOp op = kLoadPlain;
  // Scales of quantised values: scale_data[scale_map.at(row) + group], or `constant`, times the slot's router
  // weight where weighted_scale says so. from_amax: scale_data holds amax, see Job::x_code_scale.
  const float* scale_data = nullptr;
  RowMap scale_map;
  float constant = 1.0F;
  bool weighted_scale = false, from_amax = false;
};
Operand x_operand(const Job& job) noexcept;
Operand h_operand(const Job& job) noexcept;

// The scale that multiplies back group `group` of sorted row p.
float activation_scale(const Job& job, const Operand& a, int64_t p, int64_t group) noexcept;

struct TileRange {
  int64_t expert = 0;
  int64_t row0 = 0, rows = 0;      // sorted rows
  int64_t panel0 = 0, panels = 0;  // of the matrix
  int64_t k0 = 0, k1 = 0;
};
// scratch.c[i][lane] = sums of the range. For fp8_block they are scaled; for the other fp8 formats they are
// sums of products of e4m3 values, still to be multiplied by both scales. w: job.w13 or job.w2 itself.
void gemm_tile(const Job& job, const Operand& a, const WeightMatrix& w, const TileRange& t,
               const TileScratch& scratch) noexcept;

}  // namespace ramp::core
