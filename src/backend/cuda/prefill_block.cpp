// Host side of the prefill block: workspace, parameters, launches. Grids are persistent and depend on the GPU
// alone; the plan on the device says how much of them has work.
#include "backend/cuda/prefill_block.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <array>
#include <atomic>
#include <mutex>

#include "backend/cuda/driver.hpp"
#include "backend/cuda/launch.hpp"
#include "backend/cuda/weights.hpp"
#include "backend/cuda/workspace.hpp"
#include "base/error.hpp"
#include "base/tensor.hpp"
#include "params/block.hpp"
#include "params/prefill.hpp"
#include "weights/quantize.hpp"

namespace ramp::core::cuda {
namespace {

constexpr int64_t kSliceRows = 128;
constexpr unsigned kThreads = 384, kStages = 4;
constexpr size_t kActivations = 3;  // the gated ones
// kernels/sm90/prefill.cu: per stage three tiles, 128 token scales, two weight scales, an item, two barriers;
// once two exchanges of amax, and what results are staged in.
constexpr unsigned kSharedBytes = kStages * (3 * 16384 + 4 * kPrefillRows + 8 + 16 + 16) + 8 * 4096;

// activation: of GEMM 1 alone.
KernelProgram prefill_program(int gemm, ramp_activation activation) {
  KernelProgram p{fmt::format("prefill_gemm{}", gemm),
                  "sm90/prefill.cu",
                  {fmt::format("-DGEMM={}", gemm), fmt::format("-DSTAGES={}", kStages)},
                  {"prefill"},
                  90};
  if (gemm == 1) {
    p.options.push_back(fmt::format("-DACTIVATION={}", static_cast<int>(activation)));
    if (activation == RAMP_ACTIVATION_GELU_AND_MUL) p.name += "_gelu";
    if (activation == RAMP_ACTIVATION_GELU_TANH_AND_MUL) p.name += "_gelu_tanh";
  }
  return p;
}

uint64_t carve(const ExpertWeights& w, int64_t tokens, int64_t top_k, void* base, PrologueWorkspace& prologue,
               GemmPair& pair) {
  const auto slots = static_cast<uint64_t>(tokens) * static_cast<uint64_t>(top_k);
  WorkspaceLayout layout(base, carve_prologue(w, tokens, top_k, kPrefillRows, base, prologue));
  PrefillBlock::carve_h(w, tokens * top_k, layout, pair);
  pair.rows = layout.take<uint16_t>(slots * static_cast<uint64_t>(w.hidden));
  pair.weights = &w;
  pair.index = prologue.index;
  return layout.used();
}

struct Run {
  const Gpu& gpu;
  const ExpertWeights& w;
  const GemmPair& pair;

  [[nodiscard]] PrefillParams common() const {
    const RowIndex& index = pair.index;
    PrefillParams p{};
    p.tiles = reinterpret_cast<const StreamTile*>(index.tiles);
    p.num_tiles = index.num_tiles;
    p.offsets = index.offsets;
    p.slots = index.slots;
    p.top_k = static_cast<int>(pair.top_k);
    p.h = pair.h;
    p.h_scale = pair.h_scale;
    p.h_steps = static_cast<int>(w.intermediate / kGroup);
    p.early = 1;
    p.beside = pair.beside ? 1 : 0;
    return p;
  }
  [[nodiscard]] Grid grid() const {
    return {static_cast<uint64_t>(gpu.facts().sm_count) / 2 * 2, 1, kThreads,
            kSharedBytes};  // clusters of two
  }

  void gemm1(CUfunction f, const GemmInput& in) const {
    const WeightViews views = weight_views(w);
    PrefillParams p = common();
    p.weights = static_cast<const unsigned char*>(views.w13.data);
    p.weight_scale = static_cast<const float*>(w.w13_scale.data);
    p.ws_expert = w.w13_scale.stride[0];
    p.ws_row = w.w13_scale.stride[1];
    p.up_scale_row = static_cast<int>(w.intermediate / kGroup);
    p.x = static_cast<const unsigned char*>(in.data);
    p.x_stride = in.stride;
    p.x_scale = in.scales;
    p.x_scale_stride = in.scale_stride;
    p.x_source = in.per_slot ? kRowSlot : kRowToken;
    p.x_scale_source = in.scales_per_slot ? kRowSlot : kRowToken;
    p.slices = static_cast<int>(2 * w.intermediate / kSliceRows);
    p.steps = static_cast<int>(w.hidden / kGroup);
    launch_dependent(true, f, grid(), pair.stream, p);
  }

  // weights: [T,k], absent where they were applied to the input.
  void gemm2(CUfunction f, const ramp_tensor& weights) const {
    const WeightViews views = weight_views(w);
    PrefillParams p = common();
    p.weights = static_cast<const unsigned char*>(views.w2.data);
    p.weight_scale = static_cast<const float*>(w.w2_scale.data);
    p.ws_expert = w.w2_scale.stride[0];
    p.ws_row = w.w2_scale.stride[1];
    p.slices = static_cast<int>(w.hidden / kSliceRows);
    p.steps = static_cast<int>(w.intermediate / kGroup);
    p.rows = pair.rows;
    p.out_stride = w.hidden;
    if (present(weights)) {
      p.slot_weight = static_cast<const float*>(weights.data);
      p.slot_weight_token = weights.stride[0];
      p.slot_weight_slot = weights.stride[1];
    }
    launch_dependent(true, f, grid(), pair.stream, p);
  }
};

}  // namespace

std::vector<KernelProgram> prefill_programs(int /*arch*/) {
  std::vector<KernelProgram> list;
  for (size_t a = 0; a < kActivations; ++a)
    list.push_back(prefill_program(1, static_cast<ramp_activation>(a)));
  list.push_back(prefill_program(2, RAMP_ACTIVATION_SILU_AND_MUL));
  return list;
}

KernelConfig prefill_config() noexcept {
  KernelConfig c;
  c.tile_m = kPrefillRows;
  c.tile_n = 2 * kSliceRows;
  c.tile_k = kGroup;
  c.stages = kStages;
  c.threads = kThreads;
  return c;
}

struct PrefillBlock::State {
  std::mutex mutex;
  std::array<std::atomic<bool>, kActivations> ready{};
  std::array<std::array<CUfunction, 2>, kActivations> functions{};  // by activation and GEMM
};

PrefillBlock::PrefillBlock(std::shared_ptr<const Gpu> gpu, KernelLibrary& library, Prologue& prologue,
                           Combine& combine)
    : gpu_(std::move(gpu)),
      library_(library),
      prologue_(prologue),
      combine_(combine),
      state_(std::make_shared<State>()) {}

std::vector<KernelProgram> PrefillBlock::programs(ramp_activation activation) {
  return {prefill_program(1, activation), prefill_program(2, activation)};
}

void PrefillBlock::prepare(const ExpertWeights& weights, ramp_dtype x_dtype) {
  prologue_.prepare(weights, x_dtype);
  const auto a = static_cast<size_t>(weights.activation);
  if (state_->ready[a].load(std::memory_order_acquire)) return;
  const std::lock_guard lock(state_->mutex);
  if (state_->ready[a].load(std::memory_order_relaxed)) return;
  for (int gemm = 1; gemm <= 2; ++gemm) {
    CUfunction const f = library_.get(prefill_program(gemm, weights.activation), "prefill");
    RAMP_CU(cuFuncSetAttribute, f, CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES,
            static_cast<int>(kSharedBytes));
    state_->functions[a][static_cast<size_t>(gemm) - 1] = f;
  }
  state_->ready[a].store(true, std::memory_order_release);
}

uint64_t PrefillBlock::workspace(const ExpertWeights& weights, int64_t tokens, int64_t top_k) {
  PrologueWorkspace prologue;
  GemmPair pair;
  return carve(weights, tokens, top_k, nullptr, prologue, pair);
}

void PrefillBlock::carve_h(const ExpertWeights& w, int64_t slots, WorkspaceLayout& layout, GemmPair& pair) {
  const auto tiles = static_cast<uint64_t>(max_tiles(slots, w.experts, kPrefillRows));
  const uint64_t rows = static_cast<uint64_t>(slots) + 7 * tiles;  // kernels/params/prefill.hpp
  pair.h = layout.take<uint8_t>(rows * static_cast<uint64_t>(w.intermediate));
  pair.h_scale = layout.take<float>(rows * static_cast<uint64_t>(w.intermediate / kGroup));
}

bool PrefillBlock::takes(const KernelConfig* config, const ExpertWeights& weights, int64_t tokens,
                         int64_t top_k) noexcept {
  if (config != nullptr) return *config == prefill_config();
  // From T = 64 ... 8192 over four models and five skews (docs/kernel-log.md), by mean rows per expert: large
  // experts, whose weights this kernel streams as quickly as the stream kernels do, from fewer rows on.
  constexpr int64_t kLargeExpert = int64_t{16} << 20, kRowsPerExpert = 32, kRowsPerLargeExpert = 16;
  const bool large = 3 * weights.hidden * weights.intermediate >= kLargeExpert;
  return tokens * top_k >=
         (large ? kRowsPerLargeExpert : kRowsPerExpert) * std::max<int64_t>(1, weights.experts);
}

bool PrefillBlock::takes_batched(const KernelConfig* config, int64_t max_tokens) noexcept {
  if (config != nullptr) return *config == prefill_config();
  // Decode steps come with capacities of up to 128 and few rows; full experts of the same size lose less on
  // the stream kernels than those would lose here.
  constexpr int64_t kDecodeCapacity = 128;
  return max_tokens > kDecodeCapacity;
}

void PrefillBlock::gemm1(const GemmPair& pair, const GemmInput& x) const {
  const ExpertWeights& w = *pair.weights;
  Run{*gpu_, w, pair}.gemm1(state_->functions[static_cast<size_t>(w.activation)][0], x);
}

void PrefillBlock::gemm2(const GemmPair& pair, const ramp_tensor& weights) const {
  const ExpertWeights& w = *pair.weights;
  Run{*gpu_, w, pair}.gemm2(state_->functions[static_cast<size_t>(w.activation)][1], weights);
}

void PrefillBlock::block(const BlockCall& call, const RouteCall* routing) {
  const ExpertWeights& w = *call.weights;
  PrologueWorkspace prologue;
  GemmPair pair;
  check_workspace(call.workspace, call.workspace_bytes,
                  carve(w, call.tokens, call.top_k, call.workspace, prologue, pair));
  pair.top_k = call.top_k;
  pair.stream = static_cast<CUstream>(call.stream);
  const GemmInput x = routing != nullptr ? prologue_.routed_block(*routing, call, prologue, pair.stream)
                                         : prologue_.block(call, prologue, pair.stream);
  gemm1(pair, x);
  gemm2(pair, call.router_weight_on_input ? ramp_tensor{} : call.topk_weights);
  combine_.block(call, pair.rows, RAMP_BF16, prologue.index, pair.stream);
}

void PrefillBlock::batched(const BatchedCall& call) {
  const ExpertWeights& w = *call.weights;
  const int64_t slots = w.experts * call.max_tokens;
  PrologueWorkspace prologue;
  GemmPair pair;
  check_workspace(call.workspace, call.workspace_bytes, carve(w, slots, 1, call.workspace, prologue, pair));
  pair.top_k = call.max_tokens;
  pair.stream = static_cast<CUstream>(call.stream);
  GemmInput x = prologue_.batched(call, prologue, pair.stream);
  x.per_slot = x.scales_per_slot = true;
  gemm1(pair, x);
  gemm2(pair, call.router_weight_on_input ? ramp_tensor{} : call.row_weights);
  combine_.batched(call, pair.rows, RAMP_BF16, prologue.index, pair.stream);
}

}  // namespace ramp::core::cuda
