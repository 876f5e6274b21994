// Packed weights of the CPU backend: every matrix becomes panels of 32 rows, depth-major (layouts:
// kernel_table.hpp), in the memory that the checkpoint layout had. Also the view through which kernels read a
// matrix in either layout.
//
// Sizes do not change: panel p of expert e starts where its 32nd part of the expert's matrix started. Values
// are moved, never converted, so unpacking gives back the very bytes.
#pragma once

#include <cstdint>

#include "backend/cpu/executor.hpp"
#include "backend/cpu/kernel_table.hpp"
#include "base/aligned_buffer.hpp"
#include "weights/expert_weights.hpp"

namespace ramp::core {

struct PackedPanels final : PackedWeights {
  AlignedBuffer own13, own2;  // COPY (taken over from the handle) and BORROW (made by pack)
  std::byte* w13 = nullptr;   // [E][rows13 / 32] panels, each H deep
  std::byte* w2 = nullptr;    // [E][H / 32] panels, each I deep
  int64_t total_bytes = 0;
  // e4m3: whether any weight's code is a NaN (set by pack and update, never cleared). Kernels skip the
  // decoding of NaN codes where there are none.
  bool nan_codes = false;
  [[nodiscard]] int64_t bytes() const noexcept override { return total_bytes; }
};

// One matrix (w13 or w2) of all experts.
struct WeightMatrix {
  std::byte* data = nullptr;  // never written through by kernels
  bool packed = false;
  bool paired = false;  // gated w13: a panel is 16 gate rows and their up rows
  bool nan_codes = false;
  ramp_dtype dtype = RAMP_DTYPE_NONE;
  int64_t width = 0;  // bytes per element
  int64_t experts = 0, rows = 0, depth = 0;
  int64_t expert_stride = 0, row_stride = 0;  // elements; checkpoint layout only

  [[nodiscard]] int64_t panels() const noexcept { return rows / kPanelRows; }
  // Panel p of expert e from depth k, a multiple of 4 (packed).
  [[nodiscard]] std::byte* panel(int64_t e, int64_t p, int64_t k) const noexcept {
    return data + ((e * rows + p * kPanelRows) * depth + k * kPanelRows) * width;
  }
  // First element of row r of expert e at depth k (checkpoint layout).
  [[nodiscard]] std::byte* row(int64_t e, int64_t r, int64_t k) const noexcept {
    return data + (e * expert_stride + r * row_stride + k) * width;
  }
  // First rows of the two halves (16 rows each) of panel p.
  [[nodiscard]] int64_t first_row(int64_t p) const noexcept {
    return paired ? p * kHalfPanel : p * kPanelRows;
  }
  [[nodiscard]] int64_t second_row(int64_t p) const noexcept {
    return paired ? rows / 2 + p * kHalfPanel : p * kPanelRows + kHalfPanel;
  }
};

// As the handle holds them now. Throws when the handle was packed by something else.
WeightMatrix w13_matrix(const ExpertWeights& w);
WeightMatrix w2_matrix(const ExpertWeights& w);

// Backend::pack, update and unpack (see backend.hpp) for this layout. pack needs one panel of scratch per
// worker, and for BORROW handles a copy of the weights; it allocates before it changes anything.
void pack_panels(ExpertWeights& w, Executor& executor);
void update_panels(ExpertWeights& w, int64_t first_expert, const ramp_weights_desc& update,
                   Executor& executor);
void unpack_panels(const ExpertWeights& w, const ramp_tensor& w13, const ramp_tensor& w2, Executor& executor);

}  // namespace ramp::core
