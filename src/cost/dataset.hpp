// Measured timings of configs on workloads: what cost models are fitted on and judged by. Kernel-agnostic: a
// directory of three CSV files describes any kernel whose work is a grid of tiles.
//   points.csv   point,model,experts,top_k,hidden,intermediate,tokens,split,histogram[,zipf]
//   configs.csv  config,tile_m,tile_n[,warps_n,stages,threads,tile_k,split_k,group_m][,anything]
//   timings.csv  point,config,us[,us_repeat][,anything]
// One row per workload, config and measurement; columns in any order, names distinct.
// Times are microseconds; histograms are space-separated counts that may sum to less than tokens*top_k
// (masked ids).
#pragma once

#include <cstdint>
#include <limits>
#include <span>
#include <string>
#include <vector>

#include "geometry/config.hpp"
#include "geometry/model.hpp"

namespace ramp::core {

struct ConfigTable {
  std::vector<std::string> names;
  std::vector<KernelConfig> configs;       // the columns that geometry knows
  std::vector<std::string> extra_columns;  // the others, in file order
  std::vector<double> extra;               // [config][extra column]; of a text column: ranks, see dataset.cpp
  std::vector<std::string> known_columns;  // which of KernelConfig's fields the file carried
  [[nodiscard]] size_t size() const noexcept { return names.size(); }
  [[nodiscard]] bool has(std::string_view column) const noexcept;
};

struct WorkPoint {
  std::string name;
  int32_t model = 0;  // index into Dataset::models
  int64_t tokens = 0;
  double zipf = std::numeric_limits<double>::quiet_NaN();
  bool train = false;
  std::vector<int32_t> histogram;
};

struct Dataset {
  std::string source;
  ConfigTable configs;
  std::vector<ModelShape> models;
  std::vector<WorkPoint> points;
  std::vector<double> us;         // [point][config]; NaN = not measured (only with allow_missing)
  std::vector<double> us_repeat;  // same shape; NaN where there is none
  bool has_repeat = false;
  [[nodiscard]] double time(size_t point, size_t config) const noexcept {
    return us[point * configs.size() + config];
  }
  [[nodiscard]] double repeat(size_t point, size_t config) const noexcept {
    return us_repeat[point * configs.size() + config];
  }
};

struct DatasetOptions {
  bool allow_missing = false;  // accept pairs without a timing (configs dropped early by a profile)
};

// Throws Error(BAD_FILE) that names file, line, column, what was found and what is expected: unknown,
// duplicate or missing rows, NaN, zero or negative timings, histograms that are too short, too long or sum to
// more than tokens*top_k.
Dataset read_dataset(const std::string& directory, const DatasetOptions& options = {});
// The same from texts in memory (tests, fuzzing).
Dataset parse_dataset(std::string_view points, std::string_view configs, std::string_view timings,
                      const DatasetOptions& options = {});

// The rows of one split or model as indices into dataset.points.
std::vector<size_t> select_points(const Dataset& d, int32_t model, bool train);

}  // namespace ramp::core
