// How many tiles of a config one SM holds at once: what turns tiles per SM into waves.
#pragma once

#include <vector>

#include "cost/dataset.hpp"
#include "geometry/hardware.hpp"

namespace ramp::core {

enum class ResidencySource {
  kColumn,      // the table's `residency` column
  kResources,   // its smem_bytes and/or regs columns (with threads)
  kDescriptor,  // tile_m, tile_n, warps_n, stages, threads through the fused kernel's own formula
  kNoSharing,   // a machine without SM limits (CPU): one tile per worker
  kUnknown,     // the columns don't say
};

struct Residency {
  ResidencySource source = ResidencySource::kUnknown;
  std::vector<double> tiles;  // per config, whole numbers >= 1; empty when unknown
};

// The first source of the list above that the table supports.
Residency residency_of(const ConfigTable& t, const HardwareConstants& hw);

const char* residency_source_name(ResidencySource s) noexcept;

// What one block of the fused kernel takes (the descriptor). Origin: the kernel's published sources describe
// two buffer layouts that share the same memory,
//   up   = r(stages*depth*tile_n) + r(stages*depth*tile_m) + 8*stages + 4*stages*tile_m     (GEMM1)
//   down = r(stages*depth*tile_n) + r(tile_m*tile_n/2) + 2*264*tile_m + 16*stages           (GEMM2, output)
// with r = round up to 1024 bytes, plus barriers (16*stages) and row indices (4*tile_m). The block takes the
// larger. Registers: 1.5 per fp32 accumulator (running bf16 sums beside it) + 24, limited to what the block
// size allows. Checked on measured timings: the steps of time over tiles per SM sit at multiples of this
// residency, and exactly the (tile, stages) pairs that exceed the block limit are absent from the table.
struct FusedBlock {
  double smem_bytes = 0;
  double registers = 0;  // per thread
  double threads = 0;
};
FusedBlock fused_block(const KernelConfig& c, const HardwareConstants& hw) noexcept;

// Blocks per SM under the limits of shared memory, registers and threads; at least 1 (the config ran).
double blocks_per_sm(const FusedBlock& b, const HardwareConstants& hw) noexcept;

}  // namespace ramp::core
