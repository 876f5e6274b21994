// Host side of the stream block: variants, workspace, parameters, launches. Grids are persistent and depend
// on the GPU alone; the plan on the device says how much of them has work.
#include "backend/cuda/stream_block.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <array>
#include <atomic>
#include <map>
#include <mutex>

#include "backend/cuda/driver.hpp"
#include "backend/cuda/expected_rows.hpp"
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
constexpr int32_t kStep = 8;  // widths of tiles are multiples of it

// Many small rings for few rows. choose() knows when which is best.
constexpr std::array<StreamVariant, 6> kVariants = {
    {{8, 6, 2, 8, 3, 64}, {8, 6, 2}, {16, 4, 3}, {32, 3, 3}, {32, 5, 2}, {64, 4, 2}}};

static_assert(sizeof(StreamTile) == sizeof(Tile));

// What an SM of sm_90 has.
constexpr uint32_t kSharedPerSm = 228 << 10, kSharedPerBlock = 227 << 10, kSharedReserved = 1 << 10;
constexpr int32_t kLeastStages = 2, kMostStages = 13, kWidest = 64, kMostBlocks = 4;

// Blocks per SM whose registers hold the sums without spilling (ptxas of CUDA 13.0, both GEMMs; four blocks
// leave a thread 48 registers, three 64).
int32_t blocks_by_registers(int32_t width) noexcept {
  return width <= 16 ? 4 : width <= 32 ? 3 : 2;
}
// As many blocks as an SM holds; 0: not even one.
int32_t natural_blocks(const StreamVariant& v) noexcept {
  const uint32_t bytes = v.shared_bytes(1);
  if (bytes > kSharedPerBlock) return 0;
  return std::min(blocks_by_registers(v.width),
                  static_cast<int32_t>(kSharedPerSm / (bytes + kSharedReserved)));
}

// activation: of GEMM 1 alone.
KernelProgram stream_program(const StreamVariant& v, int gemm, ramp_activation activation) {
  const bool halves = v.halves(gemm);
  const int32_t stages = v.stages_of(gemm);
  const int32_t blocks = v.blocks_of(gemm);
  KernelProgram p{
      fmt::format("stream_gemm{}_w{}{}_s{}_b{}", gemm, v.width, halves ? "_r64" : "", stages, blocks),
      "sm90/stream.cu",
      {fmt::format("-DGEMM={}", gemm), fmt::format("-DWIDTH={}", v.width), fmt::format("-DSTEP={}", kStep),
       fmt::format("-DSTAGES={}", stages), fmt::format("-DBLOCKS={}", blocks),
       fmt::format("-DHALVES={}", halves ? 1 : 0),
       fmt::format("-DOWN_PLAN={}", gemm == 1 && v.own_plan() ? 1 : 0)},
      {"stream"},
      90};
  if (gemm == 1) {
    p.options.push_back(fmt::format("-DACTIVATION={}", static_cast<int>(activation)));
    if (activation == RAMP_ACTIVATION_GELU_AND_MUL) p.name += "_gelu";
    if (activation == RAMP_ACTIVATION_GELU_TANH_AND_MUL) p.name += "_gelu_tanh";
  }
  return p;
}

constexpr size_t kActivations = 3;  // the gated ones

// Variants may share a GEMM's program.
void add_program(std::vector<KernelProgram>& list, KernelProgram program) {
  const auto same = [&](const KernelProgram& other) { return other.name == program.name; };
  if (std::none_of(list.begin(), list.end(), same)) list.push_back(std::move(program));
}

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

// As kernels/sm90/stream.cu lays it out: the ring; GEMM 1's amax per warp, scales with their inverses and the
// other block's amax of two items; barriers; the block's own plan.
uint32_t StreamVariant::shared_bytes(int gemm) const noexcept {
  const auto w = static_cast<uint32_t>(width);
  const auto s = static_cast<uint32_t>(stages_of(gemm));
  const uint32_t ring = s * ((halves(gemm) ? 8192 : 16384) + w * 128 + (w * 4 + 127) / 128 * 128);
  const uint32_t group = gemm == 1 ? 4 * w * (8 + 2 + 2) : 0;
  const uint32_t plan = gemm == 1 ? 12 * kStreamOwnSlots + 16 : 0;
  return ring + group + 16 * s + 16 + plan;
}

bool StreamVariant::own_plan() const noexcept {
  // The others have no registers for it, and more tokens.
  constexpr int32_t kMost = 64;
  return width * blocks <= kMost && blocks <= 3;
}
unsigned StreamVariant::threads(int gemm) const noexcept {
  return halves(gemm) ? 192 : 320;  // a warpgroup per 64 weight rows, two warps that copy
}

KernelConfig StreamVariant::config() const noexcept {
  KernelConfig c;
  c.tile_m = width;
  c.tile_n = rows2;
  c.tile_k = kGroup;
  c.stages = stages;
  c.threads = static_cast<int32_t>(threads(1));
  if (blocks != natural_blocks(*this)) c.blocks = blocks;
  return c;
}

std::string StreamVariant::rejection() const {
  if (width < kStep || width > kWidest || width % kStep != 0)
    return fmt::format("{} token rows per tile, expected {} to {} in steps of {}", width, kStep, kWidest,
                       kStep);
  if (stages < kLeastStages) return fmt::format("{} stages, expected at least {}", stages, kLeastStages);
  const uint32_t bytes = shared_bytes(1);
  if (bytes > kSharedPerBlock)
    return fmt::format("shared memory {} bytes exceed {} ({} stages)", bytes, kSharedPerBlock, stages);
  if (blocks < 1 || static_cast<uint32_t>(blocks) * (bytes + kSharedReserved) > kSharedPerSm)
    return fmt::format("{} blocks of {} bytes (and {} reserved) exceed an SM's {} bytes of shared memory",
                       blocks, bytes, kSharedReserved, kSharedPerSm);
  if (blocks > blocks_by_registers(width))
    return fmt::format(
        "{} blocks of {} threads leave too few registers for tiles of {} token rows (at most "
        "{} blocks)",
        blocks, threads(1), width, blocks_by_registers(width));
  return {};
}

std::span<const StreamVariant> stream_variants() noexcept {
  return kVariants;
}

std::vector<StreamVariant> stream_space() {
  std::vector<StreamVariant> all;
  for (int32_t width = kStep; width <= kWidest; width += kStep)
    for (int32_t blocks = 1; blocks <= kMostBlocks; ++blocks)
      for (int32_t stages = kLeastStages; stages <= kMostStages; ++stages)
        all.push_back({width, stages, blocks});
  return all;
}

std::optional<StreamVariant> stream_variant(const KernelConfig& config) {
  for (const StreamVariant& v : kVariants)
    if (v.config() == config) return v;
  StreamVariant v{config.tile_m, config.stages, config.blocks};
  if (v.width < 1 || v.stages < 1) return std::nullopt;
  if (v.blocks == 0) v.blocks = natural_blocks(v);
  if (!(v.config() == config) || !v.rejection().empty()) return std::nullopt;
  return v;
}

std::vector<KernelProgram> stream_programs_of(const StreamVariant& variant, ramp_activation activation) {
  return {stream_program(variant, 1, activation), stream_program(variant, 2, activation)};
}

std::vector<KernelProgram> stream_programs(int /*arch*/) {
  std::vector<KernelProgram> list;
  for (const StreamVariant& v : kVariants) {
    for (size_t a = 0; a < kActivations; ++a)
      add_program(list, stream_program(v, 1, static_cast<ramp_activation>(a)));
    add_program(list, stream_program(v, 2, RAMP_ACTIVATION_SILU_AND_MUL));
  }
  return list;
}

bool stream_applies(ramp_format format, ramp_activation activation, int64_t hidden, int64_t intermediate,
                    std::string* reason) {
  const auto no = [&](std::string text) {
    if (reason != nullptr) *reason = std::move(text);
    return false;
  };
  if (format != RAMP_FORMAT_FP8_BLOCK)
    return no(fmt::format("format {} (the stream kernels take fp8_block)", format_name(format)));
  if (!is_gated(activation)) return no("relu2 is not gated (the stream kernels interleave gate and up rows)");
  if (hidden % kGroup != 0 || intermediate % kGroup != 0)
    return no(fmt::format("H = {} and I = {}, expected multiples of {}", hidden, intermediate, kGroup));
  return true;
}

struct StreamBlock::State {
  using Functions = std::array<CUfunction, 2>;  // by GEMM
  std::mutex mutex;                             // guards `extra`, and who fills `functions`
  std::array<std::atomic<bool>, kActivations> ready{};
  std::array<std::array<Functions, kVariants.size()>, kActivations> functions{};  // of what ships
  std::map<std::pair<StreamVariant, ramp_activation>, Functions> extra;           // of the rest of the space

  // Compiled or read from the cache on first use, which may be inside a capture.
  Functions get(KernelLibrary& library, const StreamVariant& v, ramp_activation activation) {
    for (size_t i = 0; i < kVariants.size(); ++i)
      if (kVariants[i] == v) return functions[static_cast<size_t>(activation)][i];
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
  std::vector<KernelProgram> list;
  for (const StreamVariant& v : kVariants)
    for (const int gemm : {1, 2}) add_program(list, stream_program(v, gemm, activation));
  return list;
}

void StreamBlock::prepare(const ExpertWeights& weights, ramp_dtype x_dtype) {
  prologue_.prepare(weights, x_dtype);
  const auto a = static_cast<size_t>(weights.activation);
  if (state_->ready[a].load(std::memory_order_acquire)) return;
  const std::lock_guard lock(state_->mutex);
  if (state_->ready[a].load(std::memory_order_relaxed)) return;
  for (size_t i = 0; i < kVariants.size(); ++i)
    state_->functions[a][i] = State::load(library_, kVariants[i], weights.activation);
  state_->ready[a].store(true, std::memory_order_release);
}

uint64_t StreamBlock::workspace(const ExpertWeights& weights, int64_t tokens, int64_t top_k) {
  PrologueWorkspace prologue;
  GemmPair pair;
  return carve(weights, tokens, top_k, kVariants.front().width, nullptr, prologue,
               pair);  // the smallest tiles need most
}

void StreamBlock::carve_h(const ExpertWeights& w, int64_t slots, int32_t tile_m, WorkspaceLayout& layout,
                          GemmPair& pair) {
  const auto i = static_cast<uint64_t>(w.intermediate);
  // Packed (kernels/sm90/stream.cu): tiles of up to tile_m rows, rounded up to kStep. A tile begins at most
  // kStep rows later for each tile before it and for its own first row's rounding, and has at most kStep - 1
  // rows more.
  const uint64_t packed =
      static_cast<uint64_t>(slots) + kStep * static_cast<uint64_t>(max_tiles(slots, w.experts, tile_m) + 1);
  pair.h = layout.take<uint8_t>(packed * i);
  pair.h_scale = layout.take<float>(packed * i / kGroup);
}

StreamVariant StreamBlock::choose(const ExpertWeights& weights, int64_t tokens, int64_t top_k) noexcept {
  // From T = 8 ... 1024 over five models, uniform and zipf:1.2 (docs/kernel-log.md), by mean rows per expert
  // and bytes per expert: narrow tiles where experts have a few MB, whose slices are short; wider ones where
  // reading an expert's weights twice costs more. Few experts make few items: two deep rings per SM share
  // them better than three. (The histogram itself will decide once the dispatcher runs on the device.)
  constexpr int64_t kLargeExpert = int64_t{16} << 20, kFewExperts = 16;
  const bool large = 3 * weights.hidden * weights.intermediate >= kLargeExpert;
  const double mean =
      static_cast<double>(tokens * top_k) / static_cast<double>(std::max<int64_t>(1, weights.experts));
  if (tokens == 1) return kVariants[0];  // GEMM 2's half slices: more items, all on their way at once
  if (mean <= (large ? 0.5 : 1.0)) return kVariants[1];
  if (weights.experts <= kFewExperts) return mean <= 16 ? kVariants[4] : kVariants[5];
  if (mean <= (large ? 2.0 : 4.0)) return kVariants[2];
  return mean <= 64 ? kVariants[3] : kVariants[5];
}

namespace {

struct Run {
  const Gpu& gpu;
  const ExpertWeights& w;
  const GemmPair& pair;
  StreamVariant variant;
  StreamOwnPlan own{};

  [[nodiscard]] StreamParams common() const {
    const RowIndex& index = pair.index;
    StreamParams p{};
    p.tiles = reinterpret_cast<const StreamTile*>(index.tiles);
    p.num_tiles = index.num_tiles;
    p.offsets = index.offsets;
    p.slots = index.slots;
    p.top_k = static_cast<int>(pair.top_k);
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
    p.weight_scale = static_cast<const float*>(w.w13_scale.data);
    p.ws_expert = w.w13_scale.stride[0];
    p.ws_row = w.w13_scale.stride[1];
    p.up_scale_row = static_cast<int>(w.intermediate / kGroup);
    const int64_t up_scale = w.intermediate / kGroup * p.ws_row;
    if (up_scale < 0 || up_scale > int64_t{UINT32_MAX})
      fail_argument("w13_scale", fmt::format("rows {} elements apart", p.ws_row),
                    "the up half's scales within 2^32 elements of the gate half's", "copy the scales closer");
    p.up_scale = static_cast<unsigned>(up_scale);
    p.x = static_cast<const unsigned char*>(in.data);
    p.x_stride = in.stride;
    p.x_scale = in.scales;
    p.x_scale_stride = in.scale_stride;
    p.x_source = in.per_slot ? kRowSlot : kRowToken;
    p.x_scale_source = in.scales_per_slot ? kRowSlot : kRowToken;
    p.slices = static_cast<int>(2 * w.intermediate / kSliceRows);
    p.steps = static_cast<int>(w.hidden / kGroup);
    p.codes = pair.h;
    p.out_stride = w.intermediate;
    p.scales = pair.h_scale;
    p.scale_out_stride = w.intermediate / kGroup;
    launch_dependent(true, f, grid(1), pair.stream, p);
  }

  // weights: [T,k], absent where they were applied to the input.
  void gemm2(CUfunction f, const ramp_tensor& weights) const {
    const WeightViews views = weight_views(w);
    StreamParams p = common();
    p.weights = static_cast<const unsigned char*>(views.w2.data);
    p.weight_scale = static_cast<const float*>(w.w2_scale.data);
    p.ws_expert = w.w2_scale.stride[0];
    p.ws_row = w.w2_scale.stride[1];
    p.x = pair.h;
    p.x_scale = pair.h_scale;
    p.slices = static_cast<int>(w.hidden / kSliceRows);
    p.steps = static_cast<int>(w.intermediate / kGroup);
    p.rows = pair.rows;
    p.out_stride = w.hidden;
    if (present(weights)) {
      p.slot_weight = static_cast<const float*>(weights.data);
      p.slot_weight_token = weights.stride[0];
      p.slot_weight_slot = weights.stride[1];
    }
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
  for (size_t i = 0; i < kVariants.size(); ++i)
    if (kVariants[i] == variant) return i;
  return std::nullopt;
}

void StreamBlock::gemm1(size_t variant, const GemmPair& pair, const GemmInput& x) const {
  const ExpertWeights& w = *pair.weights;
  Run{*gpu_, w, pair, kVariants[variant]}.gemm1(
      state_->functions[static_cast<size_t>(w.activation)][variant][0], x);
}

void StreamBlock::gemm2(size_t variant, const GemmPair& pair, const ramp_tensor& weights) const {
  const ExpertWeights& w = *pair.weights;
  Run{*gpu_, w, pair, kVariants[variant]}.gemm2(
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
  Run run{*gpu_, w, pair, variant};
  if (plans_itself(call, variant)) {
    run.own = own_plan(call);
    prologue.overlap = true;
  }
  const GemmInput x = routing != nullptr ? prologue_.routed_block(*routing, call, prologue, pair.stream)
                                         : prologue_.block(call, prologue, pair.stream);
  run.gemm1(functions[0], x);
  run.gemm2(functions[1], call.router_weight_on_input ? ramp_tensor{} : call.topk_weights);
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
  GemmInput x = prologue_.batched(call, prologue, pair.stream);
  x.per_slot = x.scales_per_slot = true;
  run.gemm1(functions[0], x);
  run.gemm2(functions[1], call.router_weight_on_input ? ramp_tensor{} : call.row_weights);
  combine_.batched(call, pair.rows, RAMP_BF16, prologue.index, pair.stream);
}

}  // namespace ramp::core::cuda
