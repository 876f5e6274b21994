// Host side of the stream block: workspace, parameters, launches. Grids are persistent and depend
// on the GPU alone; the plan on the device says how much of them has work.
#include "backend/cuda/stream_block.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <array>
#include <atomic>
#include <cmath>
#include <map>
#include <mutex>

#include "backend/cuda/driver.hpp"
#include "backend/cuda/early_weights.hpp"
#include "backend/cuda/expected_rows.hpp"
#include "backend/cuda/gated_programs.hpp"
#include "backend/cuda/gemm_params.hpp"
#include "backend/cuda/launch.hpp"
#include "backend/cuda/weights.hpp"
#include "backend/cuda/workspace.hpp"
#include "base/error.hpp"
#include "base/tensor.hpp"
#include "params/block.hpp"
#include "params/stream.hpp"
#include "weights/quantize.hpp"

namespace ramp::core::cuda {
namespace {

constexpr int64_t kSliceRows = 128;

static_assert(sizeof(StreamTile) == sizeof(Tile));

uint64_t carve(const ExpertWeights& w, int64_t tokens, int64_t top_k, int32_t tile_m, void* base,
               PrologueWorkspace& prologue, GemmPair& pair) {
  const auto slots = static_cast<uint64_t>(tokens) * static_cast<uint64_t>(top_k);
  WorkspaceLayout layout(base, carve_prologue(w, tokens, top_k, tile_m, base, prologue));
  StreamBlock::carve_h(w, tokens * top_k, tile_m, layout, pair);
  pair.rows = layout.take<uint16_t>(slots * static_cast<uint64_t>(w.hidden));
  pair.weights = &w;
  pair.index = prologue.index;
  return layout.used();
}

}  // namespace

struct StreamBlock::State {
  using Functions = std::array<CUfunction, 2>;  // by GEMM
  std::mutex mutex;                             // guards `extra`, and who fills `functions`
  std::array<std::atomic<bool>, kGatedActivations> ready{};
  std::array<std::array<Functions, kStreamVariants.size()>, kGatedActivations> functions{};  // of what ships
  std::map<std::pair<StreamVariant, ramp_activation>, Functions> extra;  // of the rest of the space

  // Compiled or read from the cache on first use, which may be inside a capture.
  Functions get(KernelLibrary& library, const StreamVariant& v, ramp_activation activation) {
    for (size_t i = 0; i < kStreamVariants.size(); ++i)
      if (kStreamVariants[i] == v) return functions[static_cast<size_t>(activation)][i];
    const std::lock_guard lock(mutex);
    const auto known = extra.find({v, activation});
    if (known != extra.end()) return known->second;
    return extra[{v, activation}] = load(library, v, activation);
  }
  static Functions load(KernelLibrary& library, const StreamVariant& v, ramp_activation activation) {
    Functions f{};
    for (int gemm = 1; gemm <= 2; ++gemm) {
      CUfunction const function = library.get(stream_program(v, gemm, activation), "stream");
      RAMP_CU(cuFuncSetAttribute, function, CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES,
              static_cast<int>(v.shared_bytes(gemm)));
      f[static_cast<size_t>(gemm) - 1] = function;
    }
    return f;
  }
};

StreamBlock::StreamBlock(std::shared_ptr<const Gpu> gpu, KernelLibrary& library, Prologue& prologue,
                         Combine& combine)
    : gpu_(std::move(gpu)),
      library_(library),
      prologue_(prologue),
      combine_(combine),
      state_(std::make_shared<State>()) {}

std::vector<KernelProgram> StreamBlock::programs(ramp_activation activation) const {
  return stream_block_programs(activation);
}

void StreamBlock::prepare(const ExpertWeights& weights, ramp_dtype x_dtype) {
  prologue_.prepare(weights, x_dtype);
  const auto a = static_cast<size_t>(weights.activation);
  if (state_->ready[a].load(std::memory_order_acquire)) return;
  const std::lock_guard lock(state_->mutex);
  if (state_->ready[a].load(std::memory_order_relaxed)) return;
  for (size_t i = 0; i < kStreamVariants.size(); ++i)
    state_->functions[a][i] = State::load(library_, kStreamVariants[i], weights.activation);
  state_->ready[a].store(true, std::memory_order_release);
}

uint64_t StreamBlock::workspace(const ExpertWeights& weights, int64_t tokens, int64_t top_k) {
  PrologueWorkspace prologue;
  GemmPair pair;
  return carve(weights, tokens, top_k, kStreamVariants.front().width, nullptr, prologue,
               pair);  // the smallest tiles need most
}

void StreamBlock::carve_h(const ExpertWeights& w, int64_t slots, int32_t tile_m, WorkspaceLayout& layout,
                          GemmPair& pair) {
  const auto i = static_cast<uint64_t>(w.intermediate);
  // Packed (kernels/sm90/stream.cu): tiles of up to tile_m rows, rounded up to kStreamStep. A tile begins at
  // most kStreamStep rows later for each tile before it and for its own first row's rounding, and has at most
  // kStreamStep - 1 rows more.
  const uint64_t packed = static_cast<uint64_t>(slots) +
                          kStreamStep * static_cast<uint64_t>(max_tiles(slots, w.experts, tile_m) + 1);
  pair.h = layout.take<uint8_t>(packed * i);
  pair.h_scale = layout.take<float>(packed * i / kGroup);
}

StreamVariant StreamBlock::choose(const ExpertWeights& weights, int64_t tokens, int64_t top_k) noexcept {
  // From the profiles of twelve models, T = 1 ... 512, uniform and zipf:1.2 (docs/kernel-log.md), by mean
  // rows per expert and bytes per expert. Within 0.7% of the best of 135 configs in the mean. (Where a fit
  // is, the histogram itself decides.)
  constexpr int64_t kLargeExpert = int64_t{16} << 20, kFewExperts = 16, kManyExperts = 64, kMostExperts = 128;
  constexpr double kSms = 132;
  const auto experts = static_cast<double>(std::max<int64_t>(1, weights.experts));
  const bool large = 3 * weights.hidden * weights.intermediate >= kLargeExpert;
  const double mean = static_cast<double>(tokens * top_k) / experts;
  // Where GEMM 2 has no item of 128 weight rows for every SM, items of 64.
  const double share = std::min(1.0, static_cast<double>(top_k) / experts);
  const double active = experts * (1 - std::pow(1 - share, static_cast<double>(tokens)));
  if (active * static_cast<double>(weights.hidden / kSliceRows) <= kSms) return kStreamVariants[0];
  if (weights.experts <= kFewExperts && mean <= 2) return kStreamVariants[0];
  if (weights.experts <= kManyExperts) {
    if (weights.experts > kFewExperts && mean <= 1.5) return kStreamVariants[1];
    return mean <= 8 ? kStreamVariants[2] : kStreamVariants[3];
  }
  if (mean <= (large || weights.experts > kMostExperts ? 0.75 : 1.5)) return kStreamVariants[1];
  return large && mean <= 1.5 ? kStreamVariants[2] : kStreamVariants[3];
}

namespace {

struct Run {
  const Gpu& gpu;
  const ExpertWeights& w;
  const GemmPair& pair;
  StreamVariant variant;
  int64_t tokens = 0;  // 0: only the device knows, or a candidate of several
  StreamOwnPlan own{};

  [[nodiscard]] StreamParams common() const {
    StreamParams p{};
    set_plan(p, pair.index, pair.top_k);
    // Where GEMM 2 has few items its early blocks crowd onto the SMs that are free first: Mixtral lost up to
    // 24% in the probe, models with many experts gained 0 to 2%.
    constexpr int64_t kManyExperts = 16;
    p.early = w.experts > kManyExperts ? 1 : 0;
    return p;
  }
  [[nodiscard]] Grid grid(int gemm) const {
    // A multiple of the cluster size.
    const uint64_t blocks =
        static_cast<uint64_t>(gpu.facts().sm_count) * static_cast<uint64_t>(variant.blocks_of(gemm));
    return {blocks / 2 * 2, 1, variant.threads(gemm), variant.shared_bytes(gemm)};
  }

  void gemm1(CUfunction f, const GemmInput& in) const {
    const WeightViews views = weight_views(w);
    StreamParams p = common();
    p.own = own;
    p.beside = pair.beside ? 1 : 0;
    p.weights = static_cast<const unsigned char*>(views.w13.data);
    set_block_scales(p, w.w13_scale);
    p.up_scale_row = static_cast<int>(w.intermediate / kGroup);
    const int64_t up_scale = w.intermediate / kGroup * p.ws_row;
    if (up_scale < 0 || up_scale > int64_t{UINT32_MAX})
      fail_argument("w13_scale", fmt::format("rows {} elements apart", p.ws_row),
                    "the up half's scales within 2^32 elements of the gate half's", "copy the scales closer");
    p.up_scale = static_cast<unsigned>(up_scale);
    set_input(p, in);
    p.slices = static_cast<int>(2 * w.intermediate / kSliceRows);
    p.steps = static_cast<int>(w.hidden / kGroup);
    p.codes = pair.h;
    p.out_stride = w.intermediate;
    p.scales = pair.h_scale;
    p.scale_out_stride = w.intermediate / kGroup;
    p.ahead = stream_ahead(w, variant.rows2, tokens);
    p.ahead.own = tokens == 1 ? 1 : 0;  // two tokens: nothing
    launch_dependent(true, f, grid(1), pair.stream, p);
  }

  // weights: [T,k], absent where they were applied to the input.
  void gemm2(CUfunction f, const ramp_tensor& weights) const {
    const WeightViews views = weight_views(w);
    StreamParams p = common();
    p.weights = static_cast<const unsigned char*>(views.w2.data);
    set_block_scales(p, w.w2_scale);
    p.x = pair.h;
    p.x_scale = pair.h_scale;
    p.slices = static_cast<int>(w.hidden / kSliceRows);
    p.steps = static_cast<int>(w.intermediate / kGroup);
    p.rows = pair.rows;
    p.out_stride = w.hidden;
    set_router_weights(p, weights);
    launch_dependent(true, f, grid(2), pair.stream, p);
  }
};

bool plans_itself(const BlockCall& call, const StreamVariant& variant) noexcept {
  return variant.own_plan() && call.tokens * call.top_k <= kStreamOwnSlots;
}
StreamOwnPlan own_plan(const BlockCall& call) {
  StreamOwnPlan own{};
  own.slots = static_cast<int>(call.tokens * call.top_k);
  own.ids_wide = call.ids.dtype == RAMP_I64 ? 1 : 0;
  own.ids = call.ids.data;
  own.ids_stride = call.ids.stride[0];
  own.map = call.expert_map.data();
  own.map_size = call.expert_map.size();
  own.experts = static_cast<unsigned>(call.weights->experts);
  return own;
}

StreamVariant variant_of(const KernelConfig* forced, const StreamVariant& chosen) {
  if (forced == nullptr) return chosen;
  if (const std::optional<StreamVariant> v = stream_variant(*forced)) return *v;
  fail_argument("config", config_name(*forced), "a config of the stream kernels",
                "ramp_config_name lists them");
}

}  // namespace

std::optional<size_t> StreamBlock::number(const KernelConfig* forced, const ExpertWeights& weights,
                                          int64_t tokens, int64_t top_k) {
  const StreamVariant variant = variant_of(forced, choose(weights, tokens, top_k));
  for (size_t i = 0; i < kStreamVariants.size(); ++i)
    if (kStreamVariants[i] == variant) return i;
  return std::nullopt;
}

void StreamBlock::gemm1(size_t variant, const GemmPair& pair, const GemmInput& x) const {
  const ExpertWeights& w = *pair.weights;
  Run{*gpu_, w, pair, kStreamVariants[variant]}.gemm1(
      state_->functions[static_cast<size_t>(w.activation)][variant][0], x);
}

void StreamBlock::gemm2(size_t variant, const GemmPair& pair, const ramp_tensor& weights) const {
  const ExpertWeights& w = *pair.weights;
  Run{*gpu_, w, pair, kStreamVariants[variant]}.gemm2(
      state_->functions[static_cast<size_t>(w.activation)][variant][1], weights);
}

void StreamBlock::block(const BlockCall& call, const RouteCall* routing) {
  const ExpertWeights& w = *call.weights;
  const StreamVariant variant =
      variant_of(call.config, choose(w, expected_tokens(call), expected_top_k(call)));
  const State::Functions functions = state_->get(library_, variant, w.activation);
  PrologueWorkspace prologue;
  GemmPair pair;
  check_workspace(call.workspace, call.workspace_bytes,
                  carve(w, call.tokens, call.top_k, variant.width, call.workspace, prologue, pair));
  pair.top_k = call.top_k;
  pair.stream = static_cast<CUstream>(call.stream);
  Run run{*gpu_, w, pair, variant, call.tokens};
  constexpr int64_t kLeastTokens = 2;  // one token: the block is a microsecond slower with it
  prologue.weights = early_weights(w, static_cast<int64_t>(run.grid(1).x), expected_tokens(call),
                                   expected_top_k(call), kLeastTokens);
  if (plans_itself(call, variant)) {
    run.own = own_plan(call);
    prologue.overlap = true;
  }
  const GemmInput x = prologue_.block(call, routing, prologue, pair.stream);
  run.gemm1(functions[0], x);
  run.gemm2(functions[1], weights_for_gemm2(call));
  combine_.block(call, pair.rows, RAMP_BF16, prologue.index, pair.stream);
}

void StreamBlock::batched(const BatchedCall& call) {
  const ExpertWeights& w = *call.weights;
  const int64_t slots = w.experts * call.max_tokens;
  const StreamVariant variant = variant_of(call.config, choose(w, slots, 1));
  const State::Functions functions = state_->get(library_, variant, w.activation);
  PrologueWorkspace prologue;
  GemmPair pair;
  check_workspace(call.workspace, call.workspace_bytes,
                  carve(w, slots, 1, variant.width, call.workspace, prologue, pair));
  pair.top_k = call.max_tokens;
  pair.stream = static_cast<CUstream>(call.stream);
  const Run run{*gpu_, w, pair, variant};
  const GemmInput x = prologue_.batched(call, prologue, pair.stream);
  run.gemm1(functions[0], x);
  run.gemm2(functions[1], weights_for_gemm2(call));
  combine_.batched(call, pair.rows, RAMP_BF16, prologue.index, pair.stream);
}

}  // namespace ramp::core::cuda
