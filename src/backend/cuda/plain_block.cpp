// Host side of the plain expert block: workspace, parameters, launches. Grids depend on shapes alone.
#include "backend/cuda/plain_block.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <array>
#include <atomic>
#include <mutex>

#include "backend/cuda/driver.hpp"
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
constexpr unsigned kCombineThreads = 128;             // kernels/combine/combine.cu

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

RowSource row_source(bool per_slot) noexcept {
  return per_slot ? kRowSlot : kRowToken;
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

KernelProgram combine_program(ramp_dtype y_dtype) {
  return {
      fmt::format("combine_{}", dtype_name(y_dtype)),
      "combine/combine.cu",
      {fmt::format("-DY={}", static_cast<int>(y_dtype))},
      {"combine_f32", "combine_f32_k2", "per_slot_f32", "combine_bf16", "combine_bf16_k2", "per_slot_bf16"},
      80};
}

std::vector<KernelProgram> combine_programs(int /*arch*/) {
  return {combine_program(RAMP_F32), combine_program(RAMP_F16), combine_program(RAMP_BF16)};
}

KernelConfig plain_config(ramp_activation activation) noexcept {
  KernelConfig c;
  c.tile_m = kTileRows;
  c.tile_n = is_gated(activation) ? 2 * kTileColumns : kTileColumns;
  c.tile_k = 32;
  c.threads = 256;
  return c;
}

// ---------------------------------------------------------------- combine

struct Combine::State {
  static constexpr size_t kY = 4;  // by ramp_dtype: f32 1, f16 2, bf16 3
  std::mutex mutex;
  std::array<std::atomic<bool>, kY> ready{};
  std::array<std::array<std::array<CUfunction, 3>, 2>, kY> functions{};  // [y][rows][combine, k2, per slot]
};

Combine::Combine(std::shared_ptr<const Gpu> gpu, KernelLibrary& library)
    : gpu_(std::move(gpu)), library_(library), state_(std::make_shared<State>()) {}

void Combine::prepare(ramp_dtype y_dtype) {
  const auto y = static_cast<size_t>(y_dtype);
  if (state_->ready[y].load(std::memory_order_acquire)) return;
  const std::lock_guard lock(state_->mutex);
  if (state_->ready[y].load(std::memory_order_relaxed)) return;
  const KernelProgram program = combine_program(y_dtype);
  constexpr std::array<const char*, 2> kRows = {"f32", "bf16"};
  for (size_t r = 0; r < kRows.size(); ++r) {
    state_->functions[y][r] = {library_.get(program, fmt::format("combine_{}", kRows[r])),
                               library_.get(program, fmt::format("combine_{}_k2", kRows[r])),
                               library_.get(program, fmt::format("per_slot_{}", kRows[r]))};
  }
  state_->ready[y].store(true, std::memory_order_release);
}

CUfunction Combine::function(bool per_slot, ramp_dtype rows, int32_t y, int64_t top_k) {
  prepare(static_cast<ramp_dtype>(y));
  const auto& entries = state_->functions[static_cast<size_t>(y)][rows == RAMP_F32 ? 0 : 1];
  return per_slot ? entries[2] : entries[top_k <= 4 ? 1 : 0];
}

void Combine::block(const BlockCall& call, const void* rows, ramp_dtype rows_dtype, const RowIndex& index,
                    CUstream stream) {
  const bool per_slot = call.output == RAMP_OUTPUT_PER_SLOT;
  CombineParams p{};
  p.rows = rows;
  p.positions = index.positions;
  p.tokens = static_cast<int>(call.tokens);
  p.top_k = static_cast<int>(call.top_k);
  p.hidden = static_cast<int>(call.weights->hidden);
  p.y = call.y.data;
  p.y_token = call.y.stride[0];
  p.y_slot = per_slot ? call.y.stride[1] : 0;
  const int64_t width = dtype_bytes(static_cast<ramp_dtype>(call.y.dtype));
  p.y_aligned = rows_aligned(call.y.data, width, {p.y_token, p.y_slot}) ? 1 : 0;
  if (present(call.shared_addend)) {
    p.addend = call.shared_addend.data;
    p.addend_dtype = call.shared_addend.dtype;
    p.addend_token = call.shared_addend.stride[0];
    p.addend_aligned =
        rows_aligned(p.addend, dtype_bytes(static_cast<ramp_dtype>(p.addend_dtype)), {p.addend_token}) ? 1
                                                                                                       : 0;
  }
  const uint64_t outputs =
      static_cast<uint64_t>(call.tokens) * (per_slot ? static_cast<uint64_t>(call.top_k) : 1);
  const uint64_t vectors = outputs * static_cast<uint64_t>(call.weights->hidden) / 8;
  launch_dependent(gpu_->facts().major >= 9, function(per_slot, rows_dtype, call.y.dtype, call.top_k),
                   {ceil_div(vectors, kCombineThreads), 1, kCombineThreads, 0}, stream, p);
}

void Combine::convert(const BlockCall& call, const float* sums, CUstream stream) {
  RowIndex none;  // no positions: row t is token t
  block(call, sums, RAMP_F32, none, stream);
}

void Combine::batched(const BatchedCall& call, const void* rows, ramp_dtype rows_dtype, const RowIndex& index,
                      CUstream stream) {
  CombineParams p{};
  p.rows = rows;
  p.positions = index.positions;
  p.tokens = static_cast<int>(call.weights->experts);
  p.top_k = static_cast<int>(call.max_tokens);
  p.hidden = static_cast<int>(call.weights->hidden);
  p.y = call.y.data;
  p.y_token = call.y.stride[0];
  p.y_slot = call.y.stride[1];
  p.y_aligned =
      rows_aligned(call.y.data, dtype_bytes(static_cast<ramp_dtype>(call.y.dtype)), {p.y_token, p.y_slot})
          ? 1
          : 0;
  p.keep_masked = 1;
  const uint64_t vectors = static_cast<uint64_t>(call.weights->experts) *
                           static_cast<uint64_t>(call.max_tokens) *
                           static_cast<uint64_t>(call.weights->hidden) / 8;
  launch_dependent(gpu_->facts().major >= 9, function(true, rows_dtype, call.y.dtype, 1),
                   {ceil_div(vectors, kCombineThreads), 1, kCombineThreads, 0}, stream, p);
}

// ---------------------------------------------------------------- the block

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
    if (present(weights)) {
      p.slot_weight = static_cast<const float*>(weights.data);
      p.slot_weight_token = weights.stride[0];
      p.slot_weight_slot = weights.stride[1];
    }
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

  const GemmInput x = routing != nullptr ? prologue_.routed_block(*routing, call, parts.prologue, stream)
                                         : prologue_.block(call, parts.prologue, stream);
  run.gemm1(w.gated() ? k.gemm1_gated : k.gemm1_plain, x);
  const GemmInput h =
      prologue_.requantize(w, parts.h, run.slots, parts.prologue.index, parts.codes, parts.scales, stream);
  const ramp_tensor weights = call.router_weight_on_input ? ramp_tensor{} : call.topk_weights;
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

  GemmInput x = prologue_.batched(call, parts.prologue, stream);
  x.per_slot = x.scales_per_slot = true;
  run.gemm1(w.gated() ? k.gemm1_gated : k.gemm1_plain, x);
  const GemmInput h =
      prologue_.requantize(w, parts.h, run.slots, parts.prologue.index, parts.codes, parts.scales, stream);
  run.gemm2(k.gemm2, h, call.router_weight_on_input ? ramp_tensor{} : call.row_weights, parts.rows);
  combine_.batched(call, parts.rows, RAMP_F32, parts.prologue.index, stream);
}

}  // namespace ramp::core::cuda
