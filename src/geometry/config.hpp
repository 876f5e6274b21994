// A config: one set of compile-time parameters of one kernel. The same struct serves our CPU and GPU kernels,
// somebody else's kernel registered by callback, and rows of a profile.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>

namespace ramp::core {

// Order in which a kernel walks its tiles. With M tiles (token tiles of one expert) and N tiles (weight
// slices):
enum class TaskOrder : int32_t {
  kColumnMajor = 0,  // slice outer, M tiles inner: neighbours share weights
  kRowMajor = 1,     // M tile outer, slices inner: neighbours share activations
  kGrouped = 2,      // group_m M tiles at a time, column-major inside the group
  kMixed = 3,        // experts with many rows and with few by turns; inside an expert as the kernel likes
};

struct KernelConfig {
  int32_t tile_m = 0;    // tokens per tile (bm)
  int32_t tile_n = 0;    // rows of w13 per tile, gate and up counted (ttn = bn * wn)
  int32_t tile_k = 128;  // depth per pipeline step
  int32_t warps_n = 0;   // warps along n (0: not applicable)
  int32_t stages = 1;    // pipeline depth (GPU); prefetch distance (CPU, configs.hpp)
  int32_t threads = 0;   // threads per block (GPU); 0 on the CPU
  int32_t split_k = 1;   // depth split over this many tiles whose partial sums are added in fixed order
  int32_t group_m = 0;   // M tiles per group when order == kGrouped
  TaskOrder order = TaskOrder::kColumnMajor;
  int32_t blocks = 0;  // per SM (GPU); 0: as many as one holds
  // Expert rows are added to their tokens' sums in memory where GEMM 2 ends, in any order. Of calls in fast
  // mode alone: others run the same config without it.
  bool sums = false;
  friend bool operator==(const KernelConfig&, const KernelConfig&) = default;
};

// "m32_n64_k128" + "_s2", "_w4", "_sk4", "_b2", "_row", "_g8", "_mix" or "_sum" where they differ from the
// default: short, unique, parseable.
std::string config_name(const KernelConfig& c);
KernelConfig parse_config(std::string_view name);  // throws Error
const char* order_name(TaskOrder o) noexcept;      // "column", "row", "grouped", "mixed"

}  // namespace ramp::core
