// Moving weights between the checkpoint layout and panels. In place, a gated w13 takes two steps: exchange
// blocks of 16 rows so that gate and up blocks alternate (following the permutation's cycles with one block
// of scratch), then transpose each panel through one panel of scratch.
#include "backend/cpu/panels.hpp"

#include <algorithm>
#include <atomic>
#include <cstring>
#include <vector>

#include "base/error.hpp"
#include "base/tensor.hpp"

namespace ramp::core {
namespace {

// Bytes of what stays together on the way into a panel: an f16 value, else a 32-bit word (an f32 value, two
// bf16 or four e4m3 of consecutive depths).
constexpr int64_t unit_bytes(ramp_dtype dtype) noexcept {
  return dtype == RAMP_F16 ? 2 : 4;
}

// [32 rows][units] -> [units][32]; the rows' halves lie at first and second, row_bytes apart. Both directions
// work on 64 columns at a time: 32 row pieces and their transpose stay in the L1 cache. Rows need not be
// aligned to the unit (memcpy).
constexpr int64_t kColumns = 64;

template <int kUnit>
void to_panel_units(const std::byte* first, const std::byte* second, int64_t row_bytes, int64_t units,
                    std::byte* panel) noexcept {
  for (int64_t u0 = 0; u0 < units; u0 += kColumns) {
    const int64_t u1 = std::min(units, u0 + kColumns);
    for (int64_t r = 0; r < kPanelRows; ++r) {
      const std::byte* src = r < kHalfPanel ? first + r * row_bytes : second + (r - kHalfPanel) * row_bytes;
      for (int64_t u = u0; u < u1; ++u) {
        std::memcpy(panel + (u * kPanelRows + r) * kUnit, src + u * kUnit, kUnit);
      }
    }
  }
}
template <int kUnit>
void from_panel_units(const std::byte* panel, int64_t units, std::byte* first, std::byte* second,
                      int64_t row_bytes) noexcept {
  for (int64_t u0 = 0; u0 < units; u0 += kColumns) {
    const int64_t u1 = std::min(units, u0 + kColumns);
    for (int64_t r = 0; r < kPanelRows; ++r) {
      std::byte* dst = r < kHalfPanel ? first + r * row_bytes : second + (r - kHalfPanel) * row_bytes;
      for (int64_t u = u0; u < u1; ++u) {
        std::memcpy(dst + u * kUnit, panel + (u * kPanelRows + r) * kUnit, kUnit);
      }
    }
  }
}

// row_stride, depth: elements.
void to_panel(ramp_dtype dtype, const std::byte* first, const std::byte* second, int64_t row_stride,
              int64_t depth, std::byte* panel) noexcept {
  const int64_t width = dtype_bytes(dtype);
  const int64_t units = depth * width / unit_bytes(dtype);
  if (unit_bytes(dtype) == 2) return to_panel_units<2>(first, second, row_stride * width, units, panel);
  to_panel_units<4>(first, second, row_stride * width, units, panel);
}
void from_panel(ramp_dtype dtype, const std::byte* panel, int64_t depth, std::byte* first, std::byte* second,
                int64_t row_stride) noexcept {
  const int64_t width = dtype_bytes(dtype);
  const int64_t units = depth * width / unit_bytes(dtype);
  if (unit_bytes(dtype) == 2) return from_panel_units<2>(panel, units, first, second, row_stride * width);
  from_panel_units<4>(panel, units, first, second, row_stride * width);
}

// Whether any of n bytes (a multiple of 32) is a NaN of e4m3: all bits of the magnitude set.
bool any_nan_code(const std::byte* codes, int64_t n) noexcept {
  constexpr uint64_t kLow = 0x0101010101010101U;
  uint64_t found = 0;
  for (int64_t i = 0; i < n; i += 8) {
    uint64_t word = 0;
    std::memcpy(&word, codes + i, 8);
    // A magnitude of 0x7f plus 1 carries into its byte's top bit, and no other does; no carry leaves a byte.
    found |= (word & ~(kLow << 7)) + kLow;
  }
  return (found & (kLow << 7)) != 0;
}

const PackedPanels& panels_of(const ExpertWeights& w) {
  const auto* packed = dynamic_cast<const PackedPanels*>(w.packed.get());
  if (packed == nullptr) {
    fail_argument("weights", "weights packed by another backend",
                  "unpacked weights, or weights that the cpu backend packed");
  }
  return *packed;
}

// panels, data: nullptr while the weights are not packed.
WeightMatrix describe(const ExpertWeights& w, const ramp_tensor& checkpoint, const PackedPanels* panels,
                      std::byte* data, bool paired, int64_t rows, int64_t depth) noexcept {
  WeightMatrix m;
  m.packed = panels != nullptr;
  m.nan_codes = m.packed && panels->nan_codes;
  m.data = m.packed ? data : static_cast<std::byte*>(checkpoint.data);
  m.paired = paired;
  m.dtype = weight_dtype(w.format);
  m.width = dtype_bytes(m.dtype);
  m.experts = w.experts;
  m.rows = rows;
  m.depth = depth;
  m.expert_stride = checkpoint.stride[0];
  m.row_stride = checkpoint.stride[1];
  return m;
}

// Exchanges blocks of 16 rows within one contiguous expert of a gated w13: block b of the gate half goes to
// place 2b, block b of the up half to place 2b + 1. moved: one flag per block; scratch: two blocks.
void interleave_halves(std::byte* expert, int64_t blocks, size_t block_bytes, std::byte* moved,
                       std::byte* scratch) noexcept {
  const auto target = [&](int64_t b) { return b < blocks / 2 ? 2 * b : 2 * (b - blocks / 2) + 1; };
  std::memset(moved, 0, static_cast<size_t>(blocks));
  std::byte* const carried = scratch;
  std::byte* const spare = scratch + block_bytes;
  for (int64_t start = 0; start < blocks; ++start) {
    if (moved[start] != std::byte{0}) continue;
    std::memcpy(carried, expert + static_cast<size_t>(start) * block_bytes, block_bytes);
    int64_t to = target(start);
    while (moved[to] == std::byte{0}) {
      std::byte* const place = expert + static_cast<size_t>(to) * block_bytes;
      moved[to] = std::byte{1};
      if (to == start) {
        std::memcpy(place, carried, block_bytes);
        break;
      }
      std::memcpy(spare, place, block_bytes);
      std::memcpy(place, carried, block_bytes);
      std::memcpy(carried, spare, block_bytes);
      to = target(to);
    }
  }
}

// m.data: contiguous checkpoint layout; becomes panels. scratch: per worker scratch_bytes(m).
int64_t scratch_bytes(const WeightMatrix& m) noexcept {
  return (kPanelRows * m.depth * m.width + m.rows / kHalfPanel + 63) / 64 * 64;
}
// -> whether any code is a NaN.
bool pack_in_place(const WeightMatrix& m, std::byte* scratch, int64_t per_worker, Executor& executor) {
  const int64_t panel_bytes = kPanelRows * m.depth * m.width;
  if (m.paired) {
    executor.run(m.experts, [&](int64_t e, int32_t worker) {
      std::byte* const own = scratch + worker * per_worker;
      interleave_halves(m.panel(e, 0, 0), m.rows / kHalfPanel, static_cast<size_t>(panel_bytes / 2),
                        own + panel_bytes, own);
    });
  }
  const int64_t panels = m.panels();
  std::atomic<bool> nan_codes = false;
  executor.run(m.experts * panels, [&](int64_t task, int32_t worker) {
    std::byte* const place = m.panel(task / panels, task % panels, 0);
    std::byte* const rows = scratch + worker * per_worker;
    std::memcpy(rows, place, static_cast<size_t>(panel_bytes));
    to_panel(m.dtype, rows, rows + panel_bytes / 2, m.depth, m.depth, place);
    if (m.dtype == RAMP_E4M3 && any_nan_code(rows, panel_bytes)) nan_codes = true;
  });
  return nan_codes;
}

// Experts [0, from.experts) of `from` (checkpoint layout, strided) -> experts from `first` on of `to`
// (panels). -> whether any code is a NaN.
bool pack_from(const WeightMatrix& from, const WeightMatrix& to, int64_t first, Executor& executor) {
  const int64_t panels = to.panels();
  std::atomic<bool> nan_codes = false;
  executor.run(from.experts * panels, [&](int64_t task, int32_t) {
    const int64_t e = task / panels;
    const int64_t p = task % panels;
    std::byte* const panel = to.panel(first + e, p, 0);
    to_panel(to.dtype, from.row(e, from.first_row(p), 0), from.row(e, from.second_row(p), 0), from.row_stride,
             to.depth, panel);
    if (to.dtype == RAMP_E4M3 && any_nan_code(panel, kPanelRows * to.depth)) nan_codes = true;
  });
  return nan_codes;
}

WeightMatrix checkpoint_matrix(const WeightMatrix& like, const ramp_tensor& t) noexcept {
  WeightMatrix m = like;
  m.packed = false;
  m.data = static_cast<std::byte*>(t.data);
  m.experts = t.shape[0];
  m.expert_stride = t.stride[0];
  m.row_stride = t.stride[1];
  return m;
}

void unpack_matrix(const WeightMatrix& m, const ramp_tensor& out, Executor& executor) {
  if (!present(out)) return;
  const WeightMatrix to = checkpoint_matrix(m, with_strides(out));
  const int64_t panels = m.panels();
  executor.run(m.experts * panels, [&](int64_t task, int32_t) {
    const int64_t e = task / panels;
    const int64_t p = task % panels;
    from_panel(m.dtype, m.panel(e, p, 0), m.depth, to.row(e, to.first_row(p), 0),
               to.row(e, to.second_row(p), 0), to.row_stride);
  });
}

}  // namespace

WeightMatrix w13_matrix(const ExpertWeights& w) {
  return describe(w, w.w13, w.packed != nullptr ? &panels_of(w) : nullptr,
                  w.packed != nullptr ? panels_of(w).w13 : nullptr, w.gated(), w.rows13(), w.hidden);
}
WeightMatrix w2_matrix(const ExpertWeights& w) {
  return describe(w, w.w2, w.packed != nullptr ? &panels_of(w) : nullptr,
                  w.packed != nullptr ? panels_of(w).w2 : nullptr, false, w.hidden, w.intermediate);
}

void pack_panels(ExpertWeights& w, Executor& executor) {
  if (w.packed != nullptr) {
    panels_of(w);
    return;
  }
  const WeightMatrix from13 = w13_matrix(w);
  const WeightMatrix from2 = w2_matrix(w);
  const int64_t bytes13 = from13.experts * from13.rows * from13.depth * from13.width;
  const int64_t bytes2 = from2.experts * from2.rows * from2.depth * from2.width;
  auto packed = std::make_unique<PackedPanels>();
  packed->total_bytes = bytes13 + bytes2;
  WeightMatrix to13 = from13;
  WeightMatrix to2 = from2;
  to13.packed = to2.packed = true;
  if (w.ownership == RAMP_BORROW) {
    packed->own13 = AlignedBuffer(static_cast<uint64_t>(bytes13));
    packed->own2 = AlignedBuffer(static_cast<uint64_t>(bytes2));
    to13.data = packed->own13.as<std::byte>();
    to2.data = packed->own2.as<std::byte>();
    packed->nan_codes = pack_from(from13, to13, 0, executor);
    packed->nan_codes |= pack_from(from2, to2, 0, executor);
  } else {
    const int64_t per_worker = std::max(scratch_bytes(from13), scratch_bytes(from2));
    const AlignedBuffer scratch(static_cast<uint64_t>(per_worker) *
                                static_cast<uint64_t>(executor.workers()));
    packed->nan_codes = pack_in_place(to13, scratch.as<std::byte>(), per_worker, executor);
    packed->nan_codes |= pack_in_place(to2, scratch.as<std::byte>(), per_worker, executor);
    packed->own13 = std::move(w.own_w13);
    packed->own2 = std::move(w.own_w2);
    w.w13.data = nullptr;
    w.w2.data = nullptr;
  }
  packed->w13 = to13.data;
  packed->w2 = to2.data;
  w.packed = std::move(packed);
}

void update_panels(ExpertWeights& w, int64_t first_expert, const ramp_weights_desc& update,
                   Executor& executor) {
  if (w.packed == nullptr && w.ownership == RAMP_BORROW) {
    fail(RAMP_ERROR_UNSUPPORTED,
         "weights: got a handle that borrows the caller's buffers, expected one that owns its values; write "
         "to "
         "your buffers instead, pack the handle first, or create it with RAMP_COPY or RAMP_IN_PLACE");
  }
  const WeightMatrix to13 = w13_matrix(w);
  const WeightMatrix to2 = w2_matrix(w);
  update_scales(w, first_expert, update);
  if (w.packed == nullptr) {
    copy_elements(update.w13, expert_range(w.w13, first_expert, update.num_experts));
    copy_elements(update.w2, expert_range(w.w2, first_expert, update.num_experts));
    return;
  }
  auto& packed = dynamic_cast<PackedPanels&>(*w.packed);
  // Panels may be left half written (a caller's executor that fails): until all are, assume the worst.
  const bool before = packed.nan_codes;
  packed.nan_codes = true;
  const bool nan13 = pack_from(checkpoint_matrix(to13, update.w13), to13, first_expert, executor);
  const bool nan2 = pack_from(checkpoint_matrix(to2, update.w2), to2, first_expert, executor);
  packed.nan_codes = before || nan13 || nan2;
}

void unpack_panels(const ExpertWeights& w, const ramp_tensor& w13, const ramp_tensor& w2,
                   Executor& executor) {
  if (w.packed == nullptr) {
    if (present(w13)) copy_elements(w.w13, with_strides(w13));
    if (present(w2)) copy_elements(w.w2, with_strides(w2));
    return;
  }
  unpack_matrix(w13_matrix(w), w13, executor);
  unpack_matrix(w2_matrix(w), w2, executor);
}

}  // namespace ramp::core
