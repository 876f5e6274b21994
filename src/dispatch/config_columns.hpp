// The columns of a config table that geometry knows, by name: one list for profile files, CSV files and
// registered kernels.
#pragma once

#include <algorithm>
#include <array>
#include <string_view>

#include "geometry/config.hpp"

namespace ramp::core {

struct ConfigColumn {
  std::string_view name;
  int32_t KernelConfig::*member;
  int32_t low;  // smallest legal value
};

inline constexpr int32_t kMaxConfigValue = 1 << 24;

inline constexpr std::array<ConfigColumn, 8> kConfigColumns = {{{"tile_m", &KernelConfig::tile_m, 1},
                                                                {"tile_n", &KernelConfig::tile_n, 1},
                                                                {"tile_k", &KernelConfig::tile_k, 1},
                                                                {"warps_n", &KernelConfig::warps_n, 0},
                                                                {"stages", &KernelConfig::stages, 0},
                                                                {"threads", &KernelConfig::threads, 0},
                                                                {"split_k", &KernelConfig::split_k, 0},
                                                                {"group_m", &KernelConfig::group_m, 0}}};

inline const ConfigColumn* find_config_column(std::string_view name) {
  const auto at = std::find_if(kConfigColumns.begin(), kConfigColumns.end(),
                               [&](const ConfigColumn& c) { return c.name == name; });
  return at == kConfigColumns.end() ? nullptr : &*at;
}

// What the columns imply, as the CSV reader has it: split_k 0 means 1, a group means grouped order.
inline void finish_config(KernelConfig& c) {
  c.split_k = std::max(c.split_k, 1);
  if (c.group_m > 0) c.order = TaskOrder::kGrouped;
}

}  // namespace ramp::core
