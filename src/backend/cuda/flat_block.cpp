// Host side of the flat stream block: workspace, parameters, launches. As stream_block.cpp: grids
// are persistent and depend on the GPU alone, the plan on the device says how much of them has work.
#include "backend/cuda/flat_block.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <array>
#include <atomic>
#include <map>
#include <mutex>
#include <tuple>

#include "backend/cuda/driver.hpp"
#include "backend/cuda/early_weights.hpp"
#include "backend/cuda/expected_rows.hpp"
#include "backend/cuda/flat_params.hpp"
#include "backend/cuda/gated_programs.hpp"
#include "backend/cuda/gemm_params.hpp"
#include "backend/cuda/launch.hpp"
#include "backend/cuda/weights.hpp"
#include "backend/cuda/workspace.hpp"
#include "base/error.hpp"
#include "base/tensor.hpp"
#include "params/block.hpp"
#include "params/stream.hpp"

namespace ramp::core::cuda {
namespace {

struct Parts {
  PrologueWorkspace prologue;
  float* h = nullptr;       // fp8_channel: [T*k, I], of which the next two are made
  void* codes = nullptr;    // [T*k, I] in the format's type
  float* scales = nullptr;  // fp8_channel: [T*k]
  void* rows = nullptr;     // [T*k, H] as flat_rows()
};

uint64_t carve(const ExpertWeights& w, int64_t tokens, int64_t top_k, const FlatVariant& v, void* base,
               Parts& parts) {
  const auto slots = static_cast<uint64_t>(tokens) * static_cast<uint64_t>(top_k);
  WorkspaceLayout layout(base, carve_prologue(w, tokens, top_k, v.width, base, parts.prologue));
  const auto i = static_cast<uint64_t>(w.intermediate);
  if (w.format == RAMP_FORMAT_FP8_CHANNEL) {
    parts.h = layout.take<float>(slots * i);
    parts.scales = layout.take<float>(slots);
  }
  // Packed tiles of GEMM 2's input begin at multiples of the step: kernels/sm90/stream_items.cuh,
  // packed_row().
  const auto tiles = static_cast<uint64_t>(max_tiles(static_cast<int64_t>(slots), w.experts, v.width));
  const uint64_t padded = slots + (tiles + 1) * uint64_t{kFlatStep};
  parts.codes = layout.take<std::byte>(padded * i * static_cast<uint64_t>(element_bytes(w.format)));
  parts.rows =
      layout.take<std::byte>(slots * static_cast<uint64_t>(w.hidden * dtype_bytes(flat_rows(w.format))));
  return layout.used();
}

}  // namespace

ramp_dtype flat_rows(ramp_format format) noexcept {
  return format == RAMP_FORMAT_F16 ? RAMP_F32 : RAMP_BF16;
}

struct FlatBlock::State {
  using Functions = std::array<std::array<CUfunction, 2>, kFlatVariants.size()>;  // by variant and GEMM
  using Pair = std::array<CUfunction, 2>;
  std::mutex mutex;
  std::array<std::array<std::atomic<bool>, kGatedActivations>, kFlatFormats.size()> ready{};
  std::array<std::array<Functions, kGatedActivations>, kFlatFormats.size()> functions{};  // of what ships
  std::map<std::tuple<FlatVariant, ramp_format, ramp_activation>, Pair> extra;  // of the rest of the space

  // Compiled or read from the cache on first use, which may be inside a capture.
  Pair get(KernelLibrary& library, const FlatVariant& v, const ExpertWeights& w) {
    for (size_t i = 0; i < kFlatVariants.size(); ++i)
      if (kFlatVariants[i] == v)
        return functions[flat_number(w.format)][static_cast<size_t>(w.activation)][i];
    const std::lock_guard lock(mutex);
    const auto known = extra.find({v, w.format, w.activation});
    if (known != extra.end()) return known->second;
    return extra[{v, w.format, w.activation}] = load(library, v, w);
  }
  static Pair load(KernelLibrary& library, const FlatVariant& v, const ExpertWeights& w) {
    Pair f{};
    for (int gemm = 1; gemm <= 2; ++gemm) {
      CUfunction const function = library.get(flat_program(v, gemm, w.format, w.activation), "stream_flat");
      RAMP_CU(cuFuncSetAttribute, function, CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES,
              static_cast<int>(v.shared_bytes()));
      f[static_cast<size_t>(gemm) - 1] = function;
    }
    return f;
  }
};

FlatBlock::FlatBlock(std::shared_ptr<const Gpu> gpu, KernelLibrary& library, Prologue& prologue,
                     Combine& combine)
    : gpu_(std::move(gpu)),
      library_(library),
      prologue_(prologue),
      combine_(combine),
      state_(std::make_shared<State>()) {}

std::vector<KernelProgram> FlatBlock::programs(ramp_format format, ramp_activation activation) {
  return flat_block_programs(format, activation);
}

void FlatBlock::prepare(const ExpertWeights& weights, ramp_dtype x_dtype) {
  prologue_.prepare(weights, x_dtype);
  const size_t f = flat_number(weights.format);
  const auto a = static_cast<size_t>(weights.activation);
  if (state_->ready[f][a].load(std::memory_order_acquire)) return;
  const std::lock_guard lock(state_->mutex);
  if (state_->ready[f][a].load(std::memory_order_relaxed)) return;
  for (size_t i = 0; i < kFlatVariants.size(); ++i) {
    if (kFlatVariants[i].compiles(weights.format))
      state_->functions[f][a][i] = State::load(library_, kFlatVariants[i], weights);
  }
  state_->ready[f][a].store(true, std::memory_order_release);
}

uint64_t FlatBlock::workspace(const ExpertWeights& weights, int64_t tokens, int64_t top_k) {
  uint64_t most = 0;
  for (const FlatVariant& v : kFlatVariants) {
    if (!v.runs(weights.format, weights.hidden, weights.intermediate)) continue;
    Parts parts;
    most = std::max(most, carve(weights, tokens, top_k, v, nullptr, parts));
  }
  return most;
}

FlatVariant FlatBlock::choose(const ExpertWeights& weights, int64_t tokens, int64_t top_k) noexcept {
  // By mean rows per expert. (The histogram itself will decide once the dispatcher runs on the device.)
  constexpr int64_t kFewTokens = 2;
  constexpr double kManyRows = 24;
  const double mean =
      static_cast<double>(tokens * top_k) / static_cast<double>(std::max<int64_t>(1, weights.experts));
  if (tokens <= kFewTokens) return kFlatVariants[0];
  if (mean <= kManyRows) return kFlatVariants[1];
  const FlatVariant& widest = kFlatVariants[3];
  return widest.runs(weights.format, weights.hidden, weights.intermediate) ? widest : kFlatVariants[2];
}

namespace {

struct Run {
  const Gpu& gpu;
  const ExpertWeights& w;
  const Parts& parts;
  FlatVariant variant;
  int64_t slots = 0, top_k = 1;
  CUstream stream = nullptr;
  int64_t tokens = 0;  // 0: only the device knows

  [[nodiscard]] StreamParams common() const {
    StreamParams p{};
    set_plan(p, parts.prologue.index, top_k);
    p.early = 1;
    return p;
  }
  [[nodiscard]] Grid grid() const {
    const uint64_t blocks =
        static_cast<uint64_t>(gpu.facts().sm_count) * static_cast<uint64_t>(variant.blocks);
    return {blocks, 1, variant.threads(), variant.shared_bytes()};
  }

  void gemm1(CUfunction f, const GemmInput& in) const {
    StreamParams p = common();
    p.weights = static_cast<const unsigned char*>(weight_views(w).w13.data);
    set_flat_input(p, w.format, in, row_source(in.per_slot), row_source(in.scales_per_slot));
    set_flat_scales(p, w.w13_scale, w.format == RAMP_FORMAT_FP8_CHANNEL ? w.intermediate : 1);
    p.slices = static_cast<int>(2 * w.intermediate / kFlatTileRows);
    p.steps = static_cast<int>(w.hidden / flat_depth(w.format));
    p.codes = static_cast<unsigned char*>(parts.h != nullptr ? parts.h : parts.codes);
    p.out_stride =
        parts.h != nullptr ? w.intermediate : w.intermediate * element_bytes(w.format);  // floats or bytes
    p.h_static = w.w2_input_scale;
    p.ahead = stream_ahead(w, variant.rows, tokens);
    launch_dependent(true, f, grid(), stream, p);
  }
  GemmInput middle(Prologue& prologue) const {
    return flat_middle(prologue, w, parts.h, slots, parts.prologue.index, parts.codes, parts.scales, stream);
  }
  // weights: [T,k], absent where they were applied to the input.
  void gemm2(CUfunction f, const GemmInput& in, const ramp_tensor& weights) const {
    StreamParams p = common();
    p.weights = static_cast<const unsigned char*>(weight_views(w).w2.data);
    set_flat_input(p, w.format, in, kRowSorted, kRowSorted);
    set_flat_scales(p, w.w2_scale, 0);
    p.slices = static_cast<int>(w.hidden / kFlatTileRows);
    p.steps = static_cast<int>(w.intermediate / flat_depth(w.format));
    p.rows = static_cast<unsigned short*>(parts.rows);
    p.out_stride = w.hidden;
    set_router_weights(p, weights);
    launch_dependent(true, f, grid(), stream, p);
  }
};

FlatVariant variant_of(const KernelConfig* forced, const FlatVariant& chosen, const ExpertWeights& w) {
  if (forced == nullptr) return chosen;
  const std::optional<FlatVariant> v = flat_variant(*forced, w.format);
  if (v && v->runs(w.format, w.hidden, w.intermediate)) return *v;
  fail_argument("config", config_name(*forced), "a config of the stream kernels",
                "ramp_config_name lists them");
}

}  // namespace

void FlatBlock::block(const BlockCall& call, const RouteCall* routing) {
  const ExpertWeights& w = *call.weights;
  const FlatVariant variant =
      variant_of(call.config, choose(w, expected_tokens(call), expected_top_k(call)), w);
  const State::Pair functions = state_->get(library_, variant, w);
  Parts parts;
  check_workspace(call.workspace, call.workspace_bytes,
                  carve(w, call.tokens, call.top_k, variant, call.workspace, parts));
  auto* const stream = static_cast<CUstream>(call.stream);
  const Run run{*gpu_, w, parts, variant, call.tokens * call.top_k, call.top_k, stream, call.tokens};
  // An item has as many slices as it has 128 weight rows, or half of one.
  const auto slices = static_cast<int64_t>(run.grid().x) * variant.rows / kFlatTileRows;
  constexpr int64_t kLeastTokens = 5;  // at 2 and 4 up to 1% slower with it
  parts.prologue.weights =
      early_weights(w, slices, expected_tokens(call), expected_top_k(call), kLeastTokens);
  const GemmInput x = prologue_.block(call, routing, parts.prologue, stream);
  run.gemm1(functions[0], x);
  run.gemm2(functions[1], run.middle(prologue_), weights_for_gemm2(call));
  combine_.block(call, parts.rows, flat_rows(w.format), parts.prologue.index, stream);
}

void FlatBlock::batched(const BatchedCall& call) {
  const ExpertWeights& w = *call.weights;
  const int64_t slots = w.experts * call.max_tokens;
  const FlatVariant variant = variant_of(call.config, choose(w, slots, 1), w);
  const State::Pair functions = state_->get(library_, variant, w);
  Parts parts;
  check_workspace(call.workspace, call.workspace_bytes, carve(w, slots, 1, variant, call.workspace, parts));
  auto* const stream = static_cast<CUstream>(call.stream);
  const Run run{*gpu_, w, parts, variant, slots, call.max_tokens, stream};
  const GemmInput x = prologue_.batched(call, parts.prologue, stream);
  run.gemm1(functions[0], x);
  run.gemm2(functions[1], run.middle(prologue_), weights_for_gemm2(call));
  combine_.batched(call, parts.rows, flat_rows(w.format), parts.prologue.index, stream);
}

}  // namespace ramp::core::cuda
