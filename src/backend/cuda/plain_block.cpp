// Host side of the plain expert block: workspace, parameters, launches. Grids depend on shapes alone.
#include "backend/cuda/plain_block.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <array>
#include <atomic>
#include <mutex>

#include "backend/cuda/driver.hpp"
#include "backend/cuda/gemm_params.hpp"
#include "backend/cuda/launch.hpp"
#include "backend/cuda/portable_block.hpp"
#include "backend/cuda/weights.hpp"
#include "backend/cuda/workspace.hpp"
#include "base/error.hpp"
#include "base/tensor.hpp"
#include "params/block.hpp"
#include "weights/quantize.hpp"

namespace ramp::core::cuda {
namespace {

constexpr int32_t kTileRows = 64, kTileColumns = 64;  // kernels/reference/gemm.cu

static_assert(sizeof(TileParams) == sizeof(Tile));

KernelProgram plain_program(ramp_format format, PlainPrecision precision) {
  const bool f64 = precision == PlainPrecision::kF64;
  return {fmt::format("plain_{}_{}", format_name(format), f64 ? "f64" : "f32"),
          "reference/gemm.cu",
          {fmt::format("-DFORMAT={}", static_cast<int>(format)), f64 ? "-DACC=double" : "-DACC=float"},
          {"gemm1_gated", "gemm1_plain", "gemm2", "gemm2_accumulate"},
          80};
}

// Workspace of the plain block, behind that of the prologue.
struct Parts {
  PrologueWorkspace prologue;
  float* h = nullptr;       // [T*k, I]
  void* codes = nullptr;    // [T*k, I] in the activation type
  float* scales = nullptr;  // its scales
  float* rows = nullptr;    // [T*k, H]; or the sums [T, H] in fast mode
};

uint64_t carve(const ExpertWeights& w, int64_t tokens, int64_t top_k, void* base, Parts& parts) {
  const auto slots = static_cast<uint64_t>(tokens) * static_cast<uint64_t>(top_k);
  const auto h = static_cast<uint64_t>(w.hidden);
  const auto i = static_cast<uint64_t>(w.intermediate);
  WorkspaceLayout layout(base, carve_prologue(w, tokens, top_k, kTileRows, base, parts.prologue));
  parts.h = layout.take<float>(slots * i);
  parts.codes =
      layout.take<std::byte>(slots * i * static_cast<uint64_t>(dtype_bytes(weight_dtype(w.format))));
  parts.scales = layout.take<float>(slots * ceil_div(i, kGroup));
  parts.rows = layout.take<float>(slots * h);
  return layout.used();
}

void set_rows(PlainGemmParams& p, const RowIndex& index, int64_t top_k) noexcept {
  p.tiles = reinterpret_cast<const TileParams*>(index.tiles);
  p.num_tiles = index.num_tiles;
  p.slots = index.slots;
  p.top_k = static_cast<int>(top_k);
}

void set_input(PlainGemmParams& p, const GemmInput& in, RowSource rows, RowSource scale_rows) noexcept {
  p.a = in.data;
  p.a_stride = in.stride;
  p.a_scale = in.scales;
  p.a_scale_stride = in.scale_stride;
  p.a_static = in.static_scale;
  p.a_source = rows;
  p.a_scale_source = scale_rows;
  p.a_groups = static_cast<int>(in.groups);
  p.a_aligned = rows_aligned(in.data, dtype_bytes(in.dtype), {in.stride}) ? 1 : 0;
}

void set_weights(PlainGemmParams& p, const ramp_tensor& w, const ramp_tensor& scale,
                 ramp_format format) noexcept {
  p.w = w.data;
  p.w_expert = w.stride[0];
  p.w_row = w.stride[1];
  p.w_aligned =
      rows_aligned(w.data, dtype_bytes(static_cast<ramp_dtype>(w.dtype)), {w.stride[0], w.stride[1]}) ? 1 : 0;
  p.w_scale = static_cast<const float*>(scale.data);
  if (!present(scale)) return;
  p.ws_expert = scale.stride[0];
  p.ws_row = scale.ndim > 1 ? scale.stride[1] : 0;  // [E]: gate and up share one
  p.ws_column = format == RAMP_FORMAT_FP8_BLOCK ? scale.stride[2] : 0;
}

}  // namespace

bool rows_aligned(const void* data, int64_t element_bytes, std::initializer_list<int64_t> strides) noexcept {
  constexpr uint64_t kVector = 16;
  if (reinterpret_cast<uintptr_t>(data) % kVector != 0) return false;
  for (const int64_t s : strides)
    if (static_cast<uint64_t>(s * element_bytes) % kVector != 0) return false;
  return true;
}

std::vector<KernelProgram> plain_programs(int /*arch*/) {
  std::vector<KernelProgram> list;
  for (const ramp_format f : {RAMP_FORMAT_FP8_BLOCK, RAMP_FORMAT_BF16, RAMP_FORMAT_F16, RAMP_FORMAT_F32,
                              RAMP_FORMAT_FP8_TENSOR, RAMP_FORMAT_FP8_CHANNEL}) {
    list.push_back(plain_program(f, PlainPrecision::kF32));
    list.push_back(plain_program(f, PlainPrecision::kF64));
  }
  return list;
}

KernelConfig plain_config(ramp_activation activation) noexcept {
  KernelConfig c;
  c.tile_m = kTileRows;
  c.tile_n = is_gated(activation) ? 2 * kTileColumns : kTileColumns;
  c.tile_k = 32;
  c.threads = 256;
  return c;
}

struct PlainBlock::State {
  std::mutex mutex;
  std::array<Kernels, 8> kernels;  // by ramp_format; complete once `ready`
  std::array<std::atomic<bool>, 8> ready{};
};

PlainBlock::PlainBlock(std::shared_ptr<const Gpu> gpu, KernelLibrary& library, Prologue& prologue,
                       Combine& combine, PlainPrecision precision)
    : gpu_(std::move(gpu)),
      library_(library),
      prologue_(prologue),
      combine_(combine),
      precision_(precision),
      state_(std::make_shared<State>()) {}

const PlainBlock::Kernels& PlainBlock::kernels(ramp_format format) {
  const auto at = static_cast<size_t>(format);
  if (!state_->ready[at].load(std::memory_order_acquire)) {
    const std::lock_guard lock(state_->mutex);
    if (!state_->ready[at].load(std::memory_order_relaxed)) {
      const KernelProgram program = plain_program(format, precision_);
      Kernels& k = state_->kernels[at];
      k.gemm1_gated = library_.get(program, "gemm1_gated");
      k.gemm1_plain = library_.get(program, "gemm1_plain");
      k.gemm2 = library_.get(program, "gemm2");
      k.gemm2_accumulate = library_.get(program, "gemm2_accumulate");
      state_->ready[at].store(true, std::memory_order_release);
    }
  }
  return state_->kernels[at];
}

void PlainBlock::add_portable() {
  portable_ = std::make_shared<PortableBlock>(gpu_, library_, prologue_, combine_);
}
bool PlainBlock::portable(const ExpertWeights& weights) const noexcept {
  return portable_ != nullptr && portable_applies(weights);
}

std::vector<KernelConfig> PlainBlock::configs(ramp_format format, ramp_activation activation) const {
  if (portable_ != nullptr && portable_takes(format)) return portable_->configs(format);
  return {plain_config(activation)};
}

std::vector<KernelConfig> PlainBlock::space(ramp_format format, ramp_activation activation) const {
  if (portable_ != nullptr && portable_takes(format)) return portable_->space(format);
  return configs(format, activation);
}

KernelConfig PlainBlock::choose(const ExpertWeights& weights, std::span<const int32_t> histogram,
                                ramp_determinism determinism, int64_t top_k) const {
  if (!portable(weights)) return plain_config(weights.activation);
  int64_t slots = 0;
  for (const int32_t c : histogram) slots += c;
  const int64_t k = std::max<int64_t>(1, top_k);
  return portable_->choose(weights, (slots + k - 1) / k, k, determinism);
}

BlockArithmetic PlainBlock::arithmetic(const ExpertWeights& weights) const noexcept {
  return portable(weights) ? portable_->arithmetic(weights.format) : BlockArithmetic{};
}

void PlainBlock::prepare(const ExpertWeights& weights, ramp_dtype x_dtype) {
  if (portable(weights)) {
    portable_->prepare(weights, x_dtype);
    return;
  }
  prologue_.prepare(weights, x_dtype);
  kernels(weights.format);
}

std::vector<KernelProgram> PlainBlock::programs(ramp_format format) const {
  if (portable_ != nullptr && portable_takes(format)) return portable_->programs(format);
  return {plain_program(format, precision_)};
}

uint64_t PlainBlock::workspace(const ExpertWeights& weights, int64_t tokens, int64_t top_k) {
  Parts parts;
  const uint64_t plain = carve(weights, tokens, top_k, nullptr, parts);
  return portable_applies(weights) ? std::max(plain, PortableBlock::workspace(weights, tokens, top_k))
                                   : plain;
}

namespace {

struct Run {
  const ExpertWeights& w;
  const Parts& parts;
  int64_t slots = 0, top_k = 1;
  CUstream stream = nullptr;

  [[nodiscard]] uint64_t tiles() const {
    return static_cast<uint64_t>(max_tiles(slots, w.experts, kTileRows));
  }

  void gemm1(CUfunction f, const GemmInput& in) const {
    const WeightViews views = weight_views(w);
    PlainGemmParams p{};
    set_rows(p, parts.prologue.index, top_k);
    set_input(p, in, row_source(in.per_slot), row_source(in.scales_per_slot));
    set_weights(p, views.w13, w.w13_scale, w.format);
    p.n = static_cast<int>(w.intermediate);
    p.depth = static_cast<int>(w.hidden);
    p.up_row = static_cast<int>(w.intermediate);
    p.up_scale_row = static_cast<int>(ceil_div(static_cast<uint64_t>(w.intermediate), kGroup));
    p.activation = w.activation;
    p.out = parts.h;
    p.out_stride = w.intermediate;
    launch(f, {tiles(), ceil_div(static_cast<uint64_t>(w.intermediate), kTileColumns), 256, 0}, stream, p);
  }

  // weights: [T,k] with strides, absent where they were applied to the input.
  void gemm2(CUfunction f, const GemmInput& in, const ramp_tensor& weights, float* out) const {
    const WeightViews views = weight_views(w);
    PlainGemmParams p{};
    set_rows(p, parts.prologue.index, top_k);
    set_input(p, in, kRowSorted, kRowSorted);
    set_weights(p, views.w2, w.w2_scale, w.format);
    p.n = static_cast<int>(w.hidden);
    p.depth = static_cast<int>(w.intermediate);
    p.out = out;
    p.out_stride = w.hidden;
    set_router_weights(p, weights);
    launch(f, {tiles(), ceil_div(static_cast<uint64_t>(w.hidden), kTileColumns), 256, 0}, stream, p);
  }
};

}  // namespace

void PlainBlock::block(const BlockCall& call, const RouteCall* routing) {
  if (portable(*call.weights)) {
    portable_->block(call, routing);
    return;
  }
  const ExpertWeights& w = *call.weights;
  Parts parts;
  check_workspace(call.workspace, call.workspace_bytes,
                  carve(w, call.tokens, call.top_k, call.workspace, parts));
  const Kernels& k = kernels(w.format);
  auto* const stream = static_cast<CUstream>(call.stream);
  const Run run{w, parts, call.tokens * call.top_k, call.top_k, stream};

  const GemmInput x = prologue_.block(call, routing, parts.prologue, stream);
  run.gemm1(w.gated() ? k.gemm1_gated : k.gemm1_plain, x);
  const GemmInput h =
      prologue_.requantize(w, parts.h, run.slots, parts.prologue.index, parts.codes, parts.scales, stream);
  const ramp_tensor weights = weights_for_gemm2(call);
  if (call.determinism == RAMP_FAST && call.output == RAMP_OUTPUT_COMBINED) {
    const auto bytes = static_cast<size_t>(call.tokens * w.hidden) * sizeof(float);
    RAMP_CU(cuMemsetD8Async, reinterpret_cast<CUdeviceptr>(parts.rows), static_cast<unsigned char>(0), bytes,
            stream);
    run.gemm2(k.gemm2_accumulate, h, weights, parts.rows);
    combine_.convert(call, parts.rows, stream);
    return;
  }
  run.gemm2(k.gemm2, h, weights, parts.rows);
  combine_.block(call, parts.rows, RAMP_F32, parts.prologue.index, stream);
}

void PlainBlock::batched(const BatchedCall& call) {
  if (portable(*call.weights)) {
    portable_->batched(call);
    return;
  }
  const ExpertWeights& w = *call.weights;
  const int64_t slots = w.experts * call.max_tokens;
  Parts parts;
  check_workspace(call.workspace, call.workspace_bytes, carve(w, slots, 1, call.workspace, parts));
  const Kernels& k = kernels(w.format);
  auto* const stream = static_cast<CUstream>(call.stream);
  // Slots are e*max_tokens + r, and so are the rows of x; "top_k" splits them for the strides of row_weights.
  const Run run{w, parts, slots, call.max_tokens, stream};

  const GemmInput x = prologue_.batched(call, parts.prologue, stream);
  run.gemm1(w.gated() ? k.gemm1_gated : k.gemm1_plain, x);
  const GemmInput h =
      prologue_.requantize(w, parts.h, run.slots, parts.prologue.index, parts.codes, parts.scales, stream);
  run.gemm2(k.gemm2, h, weights_for_gemm2(call), parts.rows);
  combine_.batched(call, parts.rows, RAMP_F32, parts.prologue.index, stream);
}

}  // namespace ramp::core::cuda
