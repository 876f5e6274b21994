// gemm_tile: depth step by depth step, rows of x to scratch (fp32, or bf16 for dot products), then panel
// after panel through the ISA level's kernel. The order in which one output's products are added is the
// level's, whatever the config.
#include "backend/cpu/gemm_tile.hpp"

#include <algorithm>
#include <cmath>
#include <cstring>

#include "base/float_types.hpp"
#include "weights/quantize.hpp"

namespace ramp::core {
namespace {

// Bytes of a panel that one of KernelConfig::stages stands for: 17 lines, since distances that are multiples
// of 4 KiB lost up to 40% (measured on codes: 17.5 GB/s at 8192, 33 at 8704).
constexpr int64_t kPrefetchBytes = 1088;

// The scale of a quantised (value * weight), from amax(|value|): rounding is monotone, so the largest rounded
// product is the rounded product of the largest. A NaN or zero amax gives the smallest scale, as in
// quantize.hpp.
float scale_from_amax(float amax, float weight) noexcept {
  const float product = amax * std::fabs(weight);
  return amax_scale(product > 0.0F ? product : 0.0F);
}

float slot_weight(const Job& job, int64_t p) noexcept {
  return job.weight(job.sorted_slots[static_cast<size_t>(p)]);
}

int64_t source_row(const Job& job, const Operand& a, int64_t p) noexcept {
  return a.sorted ? p : job.x_row(job.sorted_slots[static_cast<size_t>(p)]);
}

// Row p, depth [k, k + n) -> tile scratch, fp32 or bf16 as the layout says.
void load_piece(const Job& job, const Operand& a, int64_t p, int64_t k, int64_t n, RowLayout layout,
                std::byte* dst) noexcept {
  LoadArgs l{};
  l.layout = layout;
  l.src = a.data + a.map.at(source_row(job, a, p)) + k * dtype_bytes(a.dtype);
  l.dst = dst;
  l.n = n;
  l.src_dtype = a.dtype;
  l.round_to = a.round_to;
  l.op = a.op;
  l.factor = a.op == kLoadPlain ? 1.0F : slot_weight(job, p);
  l.scale = 1.0F;
  if (a.op != kLoadQuantise) {
    job.kernels->load_row(&l);
    return;
  }
  // Quantised on the way in (router weight on input): per scale group where there are groups.
  const int64_t step = job.quantisation == Quantisation::kGroup ? kScaleGroup : n;
  const auto width = static_cast<size_t>(dtype_bytes(a.dtype));
  const auto* src = static_cast<const std::byte*>(l.src);
  for (int64_t at = 0; at < n; at += step) {
    l.src = src + static_cast<size_t>(at) * width;
    l.dst = dst + at * (layout == kRowF32 ? 4 : 2);
    l.n = std::min(step, n - at);
    l.scale = activation_scale(job, a, p, (k + at) / kScaleGroup);
    job.kernels->load_row(&l);
  }
}

// Where the weight scales of one panel are (fp8_block): of its two halves, one float per depth group.
struct PanelScales {
  const float* half[2] = {};
};
PanelScales panel_scales(const Job& job, const WeightMatrix& w, int64_t e, int64_t panel) noexcept {
  const bool first_gemm = &w == &job.w13;
  const ramp_tensor& t = first_gemm ? job.weights->w13_scale : job.weights->w2_scale;
  const auto* base = static_cast<const float*>(t.data) + e * t.stride[0];
  const int64_t up_blocks = (job.intermediate + kScaleGroup - 1) / kScaleGroup;
  PanelScales s;
  const int64_t rows[2] = {w.first_row(panel), w.second_row(panel)};
  for (int h = 0; h < 2; ++h) {
    const bool up = w.paired && h == 1;
    const int64_t block = up ? up_blocks + (rows[h] - w.rows / 2) / kScaleGroup : rows[h] / kScaleGroup;
    s.half[h] = base + block * t.stride[1];
  }
  return s;
}

}  // namespace

Operand x_operand(const Job& job) noexcept {
  Operand a;
  a.data = job.x;
  a.map = job.x_map;
  a.dtype = job.x_dtype;
  if (job.quantisation == Quantisation::kNone) {
    const ramp_dtype type = job.w13.dtype;
    // f32 takes every x as it is; bf16 and f16 round whatever is not already of their type.
    a.round_to = type == a.dtype && !job.weight_on_input ? RAMP_F32 : type;
    a.op = job.weight_on_input ? kLoadScaled : kLoadPlain;
    return a;
  }
  a.constant = job.weights->w13_input_scale;
  if (!job.quantises_x()) {
    a.scale_data = job.x_scale;
    a.scale_map = job.x_scale_map;
    a.weighted_scale = job.weight_on_input;
    return a;
  }
  a.scale_data = job.quantisation == Quantisation::kStatic ? nullptr : job.x_code_scale.data();
  a.scale_map = {1, job.groups13, 0};
  if (job.weight_on_input) {
    a.op = kLoadQuantise;
    a.from_amax = true;
    return a;
  }
  a.data = job.x_codes.data();
  a.map = {1, job.hidden, 0};
  a.dtype = RAMP_E4M3;
  return a;
}

Operand h_operand(const Job& job) noexcept {
  Operand a;
  a.data = job.h.data();
  a.map = {1, job.h_row_bytes(), 0};
  a.sorted = true;
  a.dtype = job.w2.dtype;
  if (job.quantisation == Quantisation::kNone) return a;
  a.scale_data = job.quantisation == Quantisation::kStatic ? nullptr : job.h_scale.data();
  a.scale_map = {1, job.groups2, 0};
  a.constant = job.weights->w2_input_scale;
  return a;
}

float activation_scale(const Job& job, const Operand& a, int64_t p, int64_t group) noexcept {
  float scale = a.constant;
  if (a.scale_data != nullptr) {
    const int64_t in_row = job.quantisation == Quantisation::kGroup ? group : 0;
    scale = a.scale_data[a.scale_map.at(source_row(job, a, p)) + in_row];
    if (a.from_amax) return scale_from_amax(scale, slot_weight(job, p));
  }
  return a.weighted_scale ? scale * slot_weight(job, p) : scale;
}

namespace {

// Bytes from a panel's piece at depth k to what is to be fetched while it is read. Whole panels lie one after
// the other: some pieces of kPrefetchBytes ahead. Where the depth is cut into steps, the piece that comes
// next: the next panel's, or the first panel's of the next step.
int64_t prefetch_distance(const KernelConfig& c, const WeightMatrix& w, const TileRange& t, int64_t panel,
                          int64_t k) noexcept {
  if (t.k1 - t.k0 <= c.tile_k) return (c.stages - 1) * kPrefetchBytes;
  if (panel + 1 < t.panels) return kPanelRows * w.depth * w.width;
  if (k + c.tile_k >= t.k1) return kPrefetchBytes;
  return (c.tile_k - panel * w.depth) * kPanelRows * w.width;
}

// How a matrix reaches the kernels.
struct Route {
  bool dot = false;     // bf16 dot products
  bool direct = false;  // packed panels as they lie, else decoded to scratch first
  RowLayout rows = kRowF32;
  int32_t w_dtype = RAMP_F32;  // of what the kernel reads
};
Route route_of(const Job& job, const WeightMatrix& w, int64_t rows) noexcept {
  const CpuKernels& kernels = *job.kernels;
  Route r;
  r.dot = kernels.has_dot != 0 && (w.dtype == RAMP_BF16 || w.dtype == RAMP_E4M3);
  const bool cheap = w.dtype == RAMP_F32 || w.dtype == RAMP_BF16;
  r.direct = w.packed && (r.dot || cheap || rows <= kernels.direct_rows);
  if (r.dot) r.rows = w.dtype == RAMP_BF16 ? kRowBf16 : kRowBf16Quads;
  r.w_dtype = r.direct ? w.dtype : r.dot ? RAMP_BF16 : RAMP_F32;
  return r;
}

}  // namespace

void gemm_tile(const Job& job, const Operand& a, const WeightMatrix& w, const TileRange& t,
               const TileScratch& s) noexcept {
  const CpuKernels& kernels = *job.kernels;
  const bool grouped = job.quantisation == Quantisation::kGroup;
  const Route route = route_of(job, w, t.rows);
  const int64_t tile_k = job.config.tile_k;
  for (int64_t i = 0; i < t.rows; ++i) {
    std::memset(s.c + i * kSumStride, 0, static_cast<size_t>(t.panels) * kPanelRows * sizeof(float));
  }
  GemmArgs g{};
  g.a = s.a;
  g.c_stride = kSumStride;
  g.rows = static_cast<int32_t>(t.rows);
  g.w_dtype = route.w_dtype;
  g.dot = route.dot ? 1 : 0;
  g.nan_codes = w.nan_codes ? 1 : 0;
  g.decoded = s.w;
  g.scales = grouped ? s.scales : nullptr;
  const bool set_up = route.dot && kernels.begin_dot != nullptr;
  if (set_up) kernels.begin_dot(g.rows);
  const int64_t row_bytes = kRowStride * (route.rows == kRowF32 ? 4 : 2);
  for (int64_t k = t.k0; k < t.k1; k += tile_k) {
    const int64_t depth = std::min(tile_k, t.k1 - k);
    for (int64_t i = 0; i < t.rows; ++i) {
      load_piece(job, a, t.row0 + i, k, depth, route.rows, reinterpret_cast<std::byte*>(s.a) + i * row_bytes);
    }
    if (grouped) {
      for (int64_t at = 0; at < depth; at += kScaleGroup) {
        float* const scales = s.scales + at / kScaleGroup * kMaxTileM;
        for (int64_t i = 0; i < t.rows; ++i) {
          scales[i] = activation_scale(job, a, t.row0 + i, (k + at) / kScaleGroup);
        }
      }
    }
    g.depth = static_cast<int32_t>(depth);
    for (int64_t panel = 0; panel < t.panels; ++panel) {
      const int64_t at_panel = t.panel0 + panel;
      const auto prefetch = static_cast<int32_t>(
          job.config.stages == 1 || !w.packed ? 0 : prefetch_distance(job.config, w, t, panel, k));
      g.w = s.w;
      if (route.direct) {
        g.w = w.panel(t.expert, at_panel, k);
        g.prefetch = prefetch;
      } else if (w.packed) {
        kernels.decode_panel(w.panel(t.expert, at_panel, k), w.dtype, depth, prefetch, s.w);
      } else {
        kernels.decode_rows(w.row(t.expert, w.first_row(at_panel), k),
                            w.row(t.expert, w.second_row(at_panel), k), w.row_stride, w.dtype, depth, g.dot,
                            s.w);
      }
      g.c = s.c + panel * kPanelRows;
      if (grouped) {
        const PanelScales scales = panel_scales(job, w, t.expert, at_panel);
        g.w_scale[0] = scales.half[0] + k / kScaleGroup;
        g.w_scale[1] = scales.half[1] + k / kScaleGroup;
      }
      kernels.gemm(&g);
    }
  }
  if (set_up) kernels.end_dot();
}

}  // namespace ramp::core
