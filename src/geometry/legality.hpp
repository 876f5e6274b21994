// Which configs a machine can run, how many blocks of one fit an SM, and why the others can't. Pure
// arithmetic on hardware limits; the resource formulas are those of a wgmma kernel that keeps the tokens on
// wgmma's N side (swap-AB) or on its M side (standard).
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "geometry/config.hpp"
#include "geometry/hardware.hpp"
#include "geometry/model.hpp"

namespace ramp::core {

enum class Orientation : int32_t { kSwapAB = 0, kStandard = 1 };

// What one block of a config takes. smem: bytes of the pipeline ring (stages x (weight tile + token tile))
// plus barriers and, for fp8_block, the scales; registers: accumulators (running and promoted) plus a working
// set.
struct BlockResources {
  int64_t smem_bytes = 0;
  int32_t registers_per_thread = 0;
  int32_t threads = 0;
};
// threads == 0 in the config: one producer warpgroup and one math warpgroup per 64 (swap-AB) or 128 rows of
// tile_n.
BlockResources block_resources(const KernelConfig& c, ramp_format format, Orientation orientation) noexcept;

// Blocks of these resources that one SM holds at once (0: not even one).
int32_t residency(const BlockResources& r, const HardwareConstants& hw) noexcept;

// "" when legal; else the reason, with the numbers.
std::string rejection(const KernelConfig& c, const ModelShape& model, ramp_format format,
                      Orientation orientation, const HardwareConstants& hw);

struct EnumeratedConfig {
  KernelConfig config;
  std::string rejection;  // "" = legal
};
// The whole candidate space of the wgmma kernels for a model: token tiles 8..256, 128..512 weight rows, 1..8
// stages, split-K 1, 2, 4, 8 and GROUP_M; legal and rejected ones, in a fixed order.
std::vector<EnumeratedConfig> enumerate_wgmma(const ModelShape& model, ramp_format format,
                                              Orientation orientation, const HardwareConstants& hw);

}  // namespace ramp::core
