// Histogram and counting sort of (token, slot) pairs by local expert: one pass that counts, a scan over the
// experts, one pass that scatters. The passes are templates over the id type and over whether there is a map,
// so that the loop bodies carry no branches on either.
#include "routing/sorted_rows.hpp"

#include <algorithm>

#include "base/tensor.hpp"

namespace ramp::core {
namespace {

constexpr int32_t kMasked = -1;
constexpr int32_t kOutOfRange = -2;

// unsigned comparison: negative ids are larger than every bound.
bool inside(int64_t id, uint64_t bound) noexcept {
  return static_cast<uint64_t>(id) < bound;
}

struct Identity {
  uint64_t num_local;
  int32_t operator()(int64_t id) const noexcept {
    if (inside(id, num_local)) return static_cast<int32_t>(id);
    return id == -1 ? kMasked : kOutOfRange;
  }
};
struct Mapped {
  std::span<const int32_t> map;
  uint64_t num_local;
  int32_t operator()(int64_t id) const noexcept {
    if (!inside(id, map.size())) return id == -1 ? kMasked : kOutOfRange;
    const int32_t local = map[static_cast<size_t>(id)];
    if (inside(local, num_local)) return local;
    return local == -1 ? kMasked : kOutOfRange;
  }
};

// Calls fn(flat slot, local expert or negative) for every slot of tokens [begin, end), in order.
template <typename Id, typename Where, typename Fn>
void for_each_slot(const ramp_tensor& ids, int64_t begin, int64_t end, const Where& where, Fn&& fn) noexcept {
  const int64_t k = ids.shape[1];
  for (int64_t t = begin; t < end; ++t) {
    const Id* const row = static_cast<const Id*>(ids.data) + t * ids.stride[0];
    for (int64_t j = 0; j < k; ++j) fn(t * k + j, where(row[j]));
  }
}
template <typename Fn>
void visit(const ramp_tensor& given, std::span<const int32_t> map, uint64_t num_local, int64_t begin,
           int64_t end, Fn&& fn) noexcept {
  const ramp_tensor ids = with_strides(given);
  if (ids.dtype == RAMP_I64) {
    if (map.data() == nullptr) return for_each_slot<int64_t>(ids, begin, end, Identity{num_local}, fn);
    return for_each_slot<int64_t>(ids, begin, end, Mapped{map, num_local}, fn);
  }
  if (map.data() == nullptr) return for_each_slot<int32_t>(ids, begin, end, Identity{num_local}, fn);
  return for_each_slot<int32_t>(ids, begin, end, Mapped{map, num_local}, fn);
}

}  // namespace

int32_t local_expert(int64_t id, std::span<const int32_t> map, int64_t num_local) noexcept {
  const auto bound = static_cast<uint64_t>(std::max<int64_t>(num_local, 0));
  return map.data() == nullptr ? Identity{bound}(id) : Mapped{map, bound}(id);
}

RowCounts count_rows(const ramp_tensor& ids, std::span<const int32_t> map, int64_t begin, int64_t end,
                     std::span<int32_t> counts) noexcept {
  RowCounts invalid;
  int32_t* const count = counts.data();
  visit(ids, map, counts.size(), begin, end, [&](int64_t, int32_t expert) {
    if (expert >= 0) {
      ++count[expert];
    } else {
      ++(expert == kMasked ? invalid.masked : invalid.out_of_range);
    }
  });
  return invalid;
}

void scatter_rows(const ramp_tensor& ids, std::span<const int32_t> map, int64_t begin, int64_t end,
                  std::span<int32_t> cursors, std::span<int32_t> slots,
                  std::span<int32_t> positions) noexcept {
  int32_t* const cursor = cursors.data();
  int32_t* const slot_at = slots.data();
  if (positions.empty()) {
    visit(ids, map, cursors.size(), begin, end, [&](int64_t slot, int32_t expert) {
      if (expert >= 0) slot_at[cursor[expert]++] = static_cast<int32_t>(slot);
    });
    return;
  }
  int32_t* const position_of = positions.data();
  visit(ids, map, cursors.size(), begin, end, [&](int64_t slot, int32_t expert) {
    int32_t position = -1;
    if (expert >= 0) {
      position = cursor[expert]++;
      slot_at[position] = static_cast<int32_t>(slot);
    }
    position_of[slot] = position;
  });
}

void sort_rows(const ramp_tensor& ids, std::span<const int32_t> map, int64_t num_local,
               SortedRows& out) noexcept {
  const auto experts = static_cast<size_t>(num_local);
  const std::span<int32_t> cursors = out.offsets.first(experts);
  std::fill_n(out.offsets.begin(), experts + 1, 0);
  const RowCounts invalid = count_rows(ids, map, 0, ids.shape[0], cursors);
  out.masked = invalid.masked;
  out.out_of_range = invalid.out_of_range;
  int32_t start = 0;
  for (int32_t& c : cursors) {
    const int32_t count = c;
    c = start;
    start += count;
  }
  scatter_rows(ids, map, 0, ids.shape[0], cursors, out.slots, out.positions);
  // Every cursor now stands at its expert's end, which is where the next one begins.
  for (size_t e = experts; e > 0; --e) out.offsets[e] = out.offsets[e - 1];
  out.offsets[0] = 0;
}

void histogram(const ramp_tensor& ids, std::span<const int32_t> map, std::span<int32_t> counts) noexcept {
  std::fill(counts.begin(), counts.end(), 0);
  count_rows(ids, map, 0, ids.shape[0], counts);
}

}  // namespace ramp::core
