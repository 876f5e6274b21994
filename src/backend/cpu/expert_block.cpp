// The phases of a job, each a parallel loop: quantise x; GEMM1 with activation; where the activation could
// not be finished in its tile, a pass that finishes it; GEMM2; weighted combine in slot order.
//
// Every fp32 value is computed by the same operations in the same order whatever the number of workers, the
// schedule, the tiles or the neighbours in the batch. The one exception is split_k, which cuts GEMM1's sum
// over depth in a fixed way that depends on the config; batch-invariant mode does not split.
#include <algorithm>
#include <atomic>
#include <cstring>

#include "backend/cpu/gemm_tile.hpp"
#include "backend/cpu/job.hpp"
#include "base/float_types.hpp"
#include "weights/quantize.hpp"

namespace ramp::core {
namespace {

constexpr int64_t ceil_div(int64_t a, int64_t b) noexcept {
  return (a + b - 1) / b;
}

// Rows per task of a row-wise pass: about four tasks per worker, whole rows.
int64_t rows_per_task(int64_t rows, int32_t workers) noexcept {
  return std::max<int64_t>(1, ceil_div(rows, 4 * int64_t{workers}));
}

// ---------------------------------------------------------------- x

void quantise_x_row(const Job& j, int64_t r) noexcept {
  const CpuKernels& k = *j.kernels;
  const std::byte* const x = j.x + j.x_map.at(r);
  auto* const codes = reinterpret_cast<uint8_t*>(j.x_codes.data()) + r * j.hidden;
  if (j.quantisation == Quantisation::kStatic) {
    if (!j.weight_on_input) k.quantise(x, j.x_dtype, j.hidden, j.weights->w13_input_scale, codes);
    return;
  }
  float* const scales = j.x_code_scale.data() + r * j.groups13;
  const int64_t step = j.quantisation == Quantisation::kGroup ? kGroup : j.hidden;
  const int64_t width = dtype_bytes(j.x_dtype);
  for (int64_t at = 0, g = 0; at < j.hidden; at += step, ++g) {
    const int64_t n = std::min(step, j.hidden - at);
    const float amax = k.amax(x + at * width, j.x_dtype, n);
    // With the router weight on the input each slot has its own scale: keep what it is made from.
    scales[g] = j.weight_on_input ? amax : amax_scale(amax);
    if (!j.weight_on_input) k.quantise(x + at * width, j.x_dtype, n, scales[g], codes + at);
  }
}

void quantise_x(const Job& j) {
  // Batched slabs have rows that must not be read: go by the valid slots there.
  const int64_t count = j.batched ? j.rows : j.x_rows;
  const int64_t step = rows_per_task(count, j.executor->workers());
  j.executor->run(ceil_div(count, step), [&](int64_t task, int32_t) {
    for (int64_t i = task * step; i < std::min(count, (task + 1) * step); ++i) {
      quantise_x_row(j, j.batched ? j.sorted_slots[static_cast<size_t>(i)] : i);
    }
  });
}

// ---------------------------------------------------------------- GEMM1

// How GEMM1's results become the intermediate h.
enum class Finish : int32_t {
  kInTile,    // activation and rounding or requantisation at the end of each tile
  kStaged,    // fp8_block with slices that are not whole scale groups: activations to `staged`, then a pass
  kRowScale,  // fp8_channel: activations (fp32) to h, then a pass that quantises rows in place
  kPartial,   // split depth: partial sums to `staged`, then a pass that adds, activates, requantises
};

struct Gemm1 {
  Operand x;
  Finish finish = Finish::kInTile;
  int64_t columns_per_panel = 0;  // intermediate values that a panel gives: 16 gated, else 32
  int64_t splits = 1;
  int64_t panel0 = 0, panels = 0;  // of this block of columns
};

int64_t slice_panels(const Job& j) noexcept {
  return j.config.tile_n / kPanelRows;
}

Gemm1 plan_gemm1(const Job& j) noexcept {
  Gemm1 g;
  g.x = x_operand(j);
  g.columns_per_panel = j.w13.paired ? kHalfPanel : kPanelRows;
  g.panels = j.w13.panels();
  // A split is honoured while its partial sums fit the workspace's budget: it is meant for few rows.
  const int64_t floats = std::max<int64_t>(j.rows * j.rows13, 1);
  g.splits = std::clamp<int64_t>(static_cast<int64_t>(j.staged.size()) / floats, 1, j.config.split_k);
  const int64_t slice_columns = slice_panels(j) * g.columns_per_panel;
  if (g.splits > 1) {
    g.finish = Finish::kPartial;
  } else if (j.quantisation == Quantisation::kRow) {
    g.finish = Finish::kRowScale;
  } else if (j.quantisation == Quantisation::kGroup && slice_columns % kGroup != 0) {
    g.finish = Finish::kStaged;
  }
  return g;
}

// Weight scales of the lanes of panels [panel0, panel0 + panels), for formats whose scale is per row or
// tensor.
const float* lane_scales13(const Job& j, int64_t expert, int64_t panel0, int64_t panels,
                           float* lanes) noexcept {
  if (j.quantisation != Quantisation::kRow && j.quantisation != Quantisation::kStatic) return nullptr;
  for (int64_t p = 0; p < panels; ++p) {
    const int64_t rows[2] = {j.w13.first_row(panel0 + p), j.w13.second_row(panel0 + p)};
    for (int h = 0; h < 2; ++h) {
      for (int64_t i = 0; i < kHalfPanel; ++i) {
        lanes[p * kPanelRows + h * kHalfPanel + i] = w13_scale_at(*j.weights, expert, rows[h] + i, 0);
      }
    }
  }
  return lanes;
}

// One row's activations, columns [column, column + n), into h. fp8_block: whole scale groups.
void emit_h(const Job& j, int64_t p, int64_t column, int64_t n, const float* v) noexcept {
  const CpuKernels& k = *j.kernels;
  std::byte* const row = j.h.data() + p * j.h_row_bytes();
  switch (j.quantisation) {
    case Quantisation::kNone:
      k.store_scaled(v, n, 1.0F, nullptr, j.w2.dtype, row + column * j.w2.width);
      return;
    case Quantisation::kRow:
      std::memcpy(row + column * 4, v, static_cast<size_t>(n) * 4);
      return;
    case Quantisation::kStatic:
      k.quantise(v, RAMP_F32, n, j.weights->w2_input_scale, reinterpret_cast<uint8_t*>(row) + column);
      return;
    case Quantisation::kGroup:
      for (int64_t at = 0; at < n; at += kGroup) {
        const int64_t count = std::min(kGroup, n - at);
        const float scale = amax_scale(k.amax(v + at, RAMP_F32, count));
        j.h_scale[static_cast<size_t>(p * j.groups2 + (column + at) / kGroup)] = scale;
        k.quantise(v + at, RAMP_F32, count, scale, reinterpret_cast<uint8_t*>(row) + column + at);
      }
      return;
  }
}

// fp8_channel: row p of h from fp32 to codes, in the same place (a code is written where its row's values
// have been read already).
void quantise_h_row(const Job& j, int64_t p) noexcept {
  std::byte* const row = j.h.data() + p * j.h_row_bytes();
  const float scale = amax_scale(j.kernels->amax(row, RAMP_F32, j.intermediate));
  j.h_scale[static_cast<size_t>(p)] = scale;
  j.kernels->quantise(row, RAMP_F32, j.intermediate, scale, reinterpret_cast<uint8_t*>(row));
}

// The scale of row p that is left for the end: fp8_block's were applied on the way.
float row_scale(const Job& j, const Operand& a, int64_t p) noexcept {
  return j.quantisation == Quantisation::kRow || j.quantisation == Quantisation::kStatic
             ? activation_scale(j, a, p, 0)
             : 1.0F;
}

void gemm1_task(const Job& j, const Gemm1& g, int64_t task, int32_t worker) noexcept {
  const TileScratch s = worker_scratch(j, worker);
  const int64_t per_slice = slice_panels(j);
  const Tile tile = tile_of_task(j.plan, j.config, ceil_div(g.panels, per_slice), g.splits, task);
  const int64_t first = j.offsets[static_cast<size_t>(tile.expert)];
  TileRange t;
  t.expert = tile.expert;
  t.row0 = first + int64_t{tile.m} * j.config.tile_m;
  t.rows = std::min<int64_t>(j.config.tile_m, j.offsets[static_cast<size_t>(tile.expert) + 1] - t.row0);
  const int64_t panel = tile.slice * per_slice;
  t.panel0 = g.panel0 + panel;
  t.panels = std::min(per_slice, g.panels - panel);
  // Whole depth steps, as evenly as they go.
  const int64_t steps = ceil_div(j.hidden, j.config.tile_k);
  t.k0 = tile.split * steps / g.splits * j.config.tile_k;
  t.k1 = std::min(j.hidden, (tile.split + 1) * steps / g.splits * j.config.tile_k);
  gemm_tile(j, g.x, j.w13, t, s);

  if (g.finish == Finish::kPartial) {
    for (int64_t i = 0; i < t.rows; ++i) {
      float* const out =
          j.staged.data() + (tile.split * j.rows + t.row0 + i) * j.rows13 + t.panel0 * kPanelRows;
      std::memcpy(out, s.c + i * kSumStride, static_cast<size_t>(t.panels * kPanelRows) * sizeof(float));
    }
    return;
  }
  ActivateArgs a{};
  a.lane_scale = lane_scales13(j, t.expert, t.panel0, t.panels, s.lanes);
  a.panels = static_cast<int32_t>(t.panels);
  a.activation = j.weights->activation;
  const int64_t columns = t.panels * g.columns_per_panel;
  const int64_t column = t.panel0 * g.columns_per_panel;
  for (int64_t i = 0; i < t.rows; ++i) {
    const int64_t p = t.row0 + i;
    a.c = s.c + i * kSumStride;
    a.row_scale = row_scale(j, g.x, p);
    if (g.finish == Finish::kStaged) {
      a.out =
          j.staged.data() + p * g.panels * g.columns_per_panel + (column - g.panel0 * g.columns_per_panel);
      j.kernels->activate(&a);
    } else {
      a.out = s.v;
      j.kernels->activate(&a);
      emit_h(j, p, column, columns, s.v);
    }
  }
}

// The passes after GEMM1, one row at a time.
void finish_staged_row(const Job& j, const Gemm1& g, int64_t p) noexcept {
  const int64_t columns = g.panels * g.columns_per_panel;
  emit_h(j, p, g.panel0 * g.columns_per_panel, columns, j.staged.data() + p * columns);
}
void finish_partial_row(const Job& j, const Gemm1& g, int64_t expert, int64_t p,
                        const TileScratch& s) noexcept {
  // As many panels at a time as make one scale group.
  const int64_t step = kGroup / g.columns_per_panel;
  ActivateArgs a{};
  a.row_scale = row_scale(j, g.x, p);
  a.activation = j.weights->activation;
  a.c = s.c;
  a.out = s.v;
  for (int64_t panel = 0; panel < g.panels; panel += step) {
    const int64_t panels = std::min(step, g.panels - panel);
    const int64_t n = panels * kPanelRows;
    const float* const first = j.staged.data() + p * j.rows13 + panel * kPanelRows;
    std::memcpy(s.c, first, static_cast<size_t>(n) * sizeof(float));
    for (int64_t part = 1; part < g.splits; ++part) {
      j.kernels->add(s.c, first + part * j.rows * j.rows13, n, s.c);
    }
    a.panels = static_cast<int32_t>(panels);
    a.lane_scale = lane_scales13(j, expert, panel, panels, s.lanes);
    j.kernels->activate(&a);
    emit_h(j, p, panel * g.columns_per_panel, panels * g.columns_per_panel, s.v);
  }
}

int64_t expert_of_row(const Job& j, int64_t p) noexcept {
  const auto after = std::upper_bound(j.offsets.begin(), j.offsets.end(), static_cast<int32_t>(p));
  return after - j.offsets.begin() - 1;
}

void gemm1(const Job& j) {
  Gemm1 g = plan_gemm1(j);
  const int64_t all = g.panels;
  int64_t block = all;  // panels per block of columns
  if (g.finish == Finish::kStaged) {
    const int64_t fits = static_cast<int64_t>(j.staged.size()) / j.rows / g.columns_per_panel;
    const int64_t group_panels = kGroup / g.columns_per_panel;
    if (fits < all) block = fits / group_panels * group_panels;
  }
  const int64_t step = rows_per_task(j.rows, j.executor->workers());
  const auto each_row = [&](auto&& body) {
    j.executor->run(ceil_div(j.rows, step), [&](int64_t task, int32_t worker) {
      for (int64_t p = task * step; p < std::min(j.rows, (task + 1) * step); ++p) body(p, worker);
    });
  };
  for (g.panel0 = 0; g.panel0 < all; g.panel0 += block) {
    g.panels = std::min(block, all - g.panel0);
    const int64_t tiles = j.plan.m_tiles() * ceil_div(g.panels, slice_panels(j)) * g.splits;
    j.executor->run(tiles, [&](int64_t task, int32_t worker) { gemm1_task(j, g, task, worker); });
    if (g.finish == Finish::kStaged) each_row([&](int64_t p, int32_t) { finish_staged_row(j, g, p); });
  }
  g.panel0 = 0;
  g.panels = all;
  if (g.finish == Finish::kPartial) {
    each_row([&](int64_t p, int32_t worker) {
      finish_partial_row(j, g, expert_of_row(j, p), p, worker_scratch(j, worker));
      if (j.quantisation == Quantisation::kRow) quantise_h_row(j, p);
    });
  } else if (g.finish == Finish::kRowScale) {
    each_row([&](int64_t p, int32_t) { quantise_h_row(j, p); });
  }
}

// ---------------------------------------------------------------- GEMM2 and the combine

struct Gemm2 {
  Operand h;
  int64_t column0 = 0, columns = 0;  // of this block
};

std::byte* y_row(const Job& j, int64_t slot) noexcept {
  const int64_t at = slot / j.top_k * j.y.stride[0] + slot % j.top_k * j.y.stride[1];
  return static_cast<std::byte*>(j.y.data) + at * dtype_bytes(static_cast<ramp_dtype>(j.y.dtype));
}

// GEMM2's rows are cut into as many slices as GEMM1's, so that both have the same grid and a config that
// divides the one evenly among the workers divides the other. (With tile_n for both, 3 experts with one slice
// each left one of two workers idle for a third of GEMM2.)
int64_t slice_panels2(const Job& j) noexcept {
  const int64_t slices = ceil_div(j.w13.panels(), slice_panels(j));
  return std::clamp<int64_t>(ceil_div(j.w2.panels(), slices), 1, kMaxTileN / kPanelRows);
}

void gemm2_task(const Job& j, const Gemm2& g, int64_t task, int32_t worker) noexcept {
  const TileScratch s = worker_scratch(j, worker);
  const int64_t per_slice = slice_panels2(j);
  const int64_t block_panels = g.columns / kPanelRows;
  const Tile tile = tile_of_task(j.plan, j.config, ceil_div(block_panels, per_slice), 1, task);
  TileRange t;
  t.expert = tile.expert;
  t.row0 = j.offsets[static_cast<size_t>(tile.expert)] + int64_t{tile.m} * j.config.tile_m;
  t.rows = std::min<int64_t>(j.config.tile_m, j.offsets[static_cast<size_t>(tile.expert) + 1] - t.row0);
  const int64_t panel = tile.slice * per_slice;
  t.panel0 = g.column0 / kPanelRows + panel;
  t.panels = std::min(per_slice, block_panels - panel);
  t.k1 = j.intermediate;
  gemm_tile(j, g.h, j.w2, t, s);

  const int64_t column = t.panel0 * kPanelRows;
  const int64_t n = t.panels * kPanelRows;
  const float* lanes = nullptr;
  float weight_scale = 1.0F;
  if (j.quantisation == Quantisation::kRow) {
    lanes = static_cast<const float*>(j.weights->w2_scale.data) + t.expert * j.weights->w2_scale.stride[0] +
            column;
  } else if (j.quantisation == Quantisation::kStatic) {
    weight_scale = w2_scale_at(*j.weights, t.expert, 0, 0);
  }
  for (int64_t i = 0; i < t.rows; ++i) {
    const int64_t p = t.row0 + i;
    const float* const c = s.c + i * kSumStride;
    const float scale = row_scale(j, g.h, p) * weight_scale;
    if (!j.per_slot) {
      j.kernels->store_scaled(c, n, scale, lanes, RAMP_F32,
                              j.out.data() + p * g.columns + (column - g.column0));
      continue;
    }
    const int64_t slot = j.sorted_slots[static_cast<size_t>(p)];
    const auto dtype = static_cast<ramp_dtype>(j.y.dtype);
    j.kernels->store_scaled(c, n, scale, lanes, RAMP_F32, s.v);
    j.kernels->store_scaled(s.v, n, j.weight_on_input ? 1.0F : j.weight(slot), nullptr, dtype,
                            y_row(j, slot) + column * dtype_bytes(dtype));
  }
}

// Tokens [t0, t1), columns [c0, c1) of y.
void combine_tokens(const Job& j, const Gemm2& g, int64_t t0, int64_t t1, int64_t c0, int64_t c1,
                    const TileScratch& s) noexcept {
  const auto y_dtype = static_cast<ramp_dtype>(j.y.dtype);
  const auto addend_dtype = static_cast<ramp_dtype>(j.addend.dtype);
  CombineArgs a{};
  a.rows = s.rows;
  a.weights = s.row_weights;
  a.n = c1 - c0;
  a.addend_dtype = addend_dtype;
  a.y_dtype = y_dtype;
  for (int64_t t = t0; t < t1; ++t) {
    a.count = 0;
    for (int64_t slot = t * j.top_k; slot < (t + 1) * j.top_k; ++slot) {
      const int64_t p = j.positions[static_cast<size_t>(slot)];
      if (p < 0) continue;
      s.rows[a.count] = j.out.data() + p * g.columns + (c0 - g.column0);
      s.row_weights[a.count] = j.weight_on_input ? 1.0F : j.weight(slot);
      ++a.count;
    }
    a.y = static_cast<std::byte*>(j.y.data) + (t * j.y.stride[0] + c0) * dtype_bytes(y_dtype);
    if (j.addend.data != nullptr) {
      a.addend = static_cast<const std::byte*>(j.addend.data) +
                 (t * j.addend.stride[0] + c0) * dtype_bytes(addend_dtype);
    }
    j.kernels->combine(&a);
  }
}

void combine(const Job& j, const Gemm2& g) {
  // Few tokens: columns are divided as well, so that every worker gets some.
  constexpr int64_t kColumns = 512;
  const int64_t step = rows_per_task(j.tokens, j.executor->workers());
  const int64_t parts = j.tokens < 4 * int64_t{j.executor->workers()} ? ceil_div(g.columns, kColumns) : 1;
  const int64_t width = parts == 1 ? g.columns : kColumns;
  j.executor->run(ceil_div(j.tokens, step) * parts, [&](int64_t task, int32_t worker) {
    const int64_t t0 = task / parts * step;
    const int64_t c0 = g.column0 + task % parts * width;
    combine_tokens(j, g, t0, std::min(j.tokens, t0 + step), c0, std::min(g.column0 + g.columns, c0 + width),
                   worker_scratch(j, worker));
  });
}

// Per-slot rows of masked slots.
void zero_masked(const Job& j) {
  const auto bytes = static_cast<size_t>(j.hidden * dtype_bytes(static_cast<ramp_dtype>(j.y.dtype)));
  const int64_t step = rows_per_task(j.slots, j.executor->workers());
  j.executor->run(ceil_div(j.slots, step), [&](int64_t task, int32_t) {
    for (int64_t slot = task * step; slot < std::min(j.slots, (task + 1) * step); ++slot) {
      if (j.positions[static_cast<size_t>(slot)] < 0) std::memset(y_row(j, slot), 0, bytes);
    }
  });
}

void gemm2(const Job& j) {
  Gemm2 g;
  g.h = h_operand(j);
  int64_t block = j.hidden;
  if (!j.per_slot && j.rows > 0) {
    block = std::min(block, static_cast<int64_t>(j.out.size()) / j.rows / kPanelRows * kPanelRows);
  }
  for (g.column0 = 0; g.column0 < j.hidden; g.column0 += block) {
    g.columns = std::min(block, j.hidden - g.column0);
    const int64_t tiles = j.plan.m_tiles() * ceil_div(g.columns / kPanelRows, slice_panels2(j));
    j.executor->run(tiles, [&](int64_t task, int32_t worker) { gemm2_task(j, g, task, worker); });
    if (!j.per_slot) combine(j, g);
  }
}

}  // namespace

void run_job(Job& j) {
  if (j.rows > 0) {
    if (j.quantises_x()) quantise_x(j);
    gemm1(j);
  }
  // Without rows there is still y to write: zeros, or the shared addend.
  gemm2(j);
  if (j.per_slot && !j.batched && j.rows < j.slots) zero_masked(j);
}

}  // namespace ramp::core
