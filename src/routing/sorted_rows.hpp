// The histogram and the padding-free sorted row index: which (token, slot) pairs belong to which local
// expert, in a stable order (by expert, then token, then slot). No padding rows exist anywhere after this.
#pragma once

#include <cstdint>
#include <span>

#include "ramp/ramp.h"

namespace ramp::core {

// Where an id leads: a local expert in [0, num_local), -1 (masked), or -2 (out of range). Never reads outside
// the map. map: optional i32 [E_global]; without it (data() == nullptr) ids in [0, num_local) are local ids.
// An id inside the map whose entry is neither -1 nor a local expert is out of range.
int32_t local_expert(int64_t id, std::span<const int32_t> map, int64_t num_local) noexcept;

struct SortedRows {
  // offsets[e]..offsets[e+1]: positions of expert e's rows in `slots`. Size E+1. offsets[E] = number of valid
  // rows.
  std::span<int32_t> offsets;
  // For each sorted position the flat slot t*k + j. Size >= number of valid rows (T*k is always enough); only
  // that many are written.
  std::span<int32_t> slots;
  // Inverse: for each flat slot its sorted position, or -1 where masked or out of range. Size T*k, or empty
  // when not wanted.
  std::span<int32_t> positions;
  int64_t masked = 0;        // slots with id -1 or mapped to -1
  int64_t out_of_range = 0;  // slots with any other invalid id
};

// Counting sort, O(T*k + E), no allocation. ids: i32 or i64 [T,k]. T*k < 2^31 (checked by the caller).
void sort_rows(const ramp_tensor& ids, std::span<const int32_t> map, int64_t num_local,
               SortedRows& out) noexcept;

// c_e of the local experts.
void histogram(const ramp_tensor& ids, std::span<const int32_t> map, std::span<int32_t> counts) noexcept;

// The two passes of the sort over tokens [begin, end), for callers with several workers. Worker w counts its
// tokens into its own zeroed counts[w][E]; an exclusive scan in the order (expert, worker) turns the counts
// into cursors; then every worker scatters its tokens with its own cursors (which advance). With contiguous
// token ranges in the order of the workers the result is exactly that of sort_rows.
struct RowCounts {
  int64_t masked = 0, out_of_range = 0;
};
RowCounts count_rows(const ramp_tensor& ids, std::span<const int32_t> map, int64_t begin, int64_t end,
                     std::span<int32_t> counts) noexcept;
void scatter_rows(const ramp_tensor& ids, std::span<const int32_t> map, int64_t begin, int64_t end,
                  std::span<int32_t> cursors, std::span<int32_t> slots,
                  std::span<int32_t> positions) noexcept;

}  // namespace ramp::core
