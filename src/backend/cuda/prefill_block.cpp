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
// what results are staged in; the queue of GEMM 2 (GEMM 1's, which is longer, and its exchanges of amax have
// room in its staging, which is shorter).
constexpr unsigned kSharedBytes = kStages * (3 * 16384 + 4 * kPrefillRows + 8 + 16 + 16) + 8 * 4096 + 192;

// GEMM 1 gathers x itself, or reads rows that prefill_pack has put in order.
enum Kernel : size_t { kGemm1, kGemm1Packed, kGemm2, kPack, kKernels };

// activation: of GEMM 1 alone.
KernelProgram prefill_program(Kernel kernel, ramp_activation activation) {
  if (kernel == kPack) return {"prefill_pack", "sm90/prefill_pack.cu", {}, {"prefill_pack"}, 90};
  KernelProgram p{kernel == kGemm2 ? "prefill_gemm2" : "prefill_gemm1",
                  "sm90/prefill.cu",
                  {fmt::format("-DGEMM={}", kernel == kGemm2 ? 2 : 1),
                   fmt::format("-DGATHER={}", kernel == kGemm1 ? 1 : 0), fmt::format("-DSTAGES={}", kStages)},
                  {"prefill"},
                  90};
  if (kernel != kGemm2) {
    p.options.push_back(fmt::format("-DACTIVATION={}", static_cast<int>(activation)));
    if (kernel == kGemm1Packed) p.name += "_packed";
    if (activation == RAMP_ACTIVATION_GELU_AND_MUL) p.name += "_gelu";
    if (activation == RAMP_ACTIVATION_GELU_TANH_AND_MUL) p.name += "_gelu_tanh";
  }
  return p;
}

struct Parts {
  PrologueWorkspace prologue;
  uint8_t* h = nullptr;  // rows of I bytes, and their scales: kernels/params/prefill.hpp
  float* h_scale = nullptr;
  uint16_t* rows = nullptr;  // bf16 [T*k, H]
  uint8_t* x = nullptr;      // x in the order of the rows, packed as h is, where that pays; and its scales
  float* x_scale = nullptr;
};

// Whether GEMM 1's rows are put in order first (docs/kernel-log.md): T*k rows of H bytes more to write and to
// read against a gather that slows the math down, which costs nothing while memory is what limits GEMM 1.
bool packs(const ExpertWeights& w, int64_t slots) noexcept {
  constexpr int64_t kRowsPerExpert = 96;
  return slots >= kRowsPerExpert * std::max<int64_t>(1, w.experts);
}

uint64_t carve(const ExpertWeights& w, int64_t tokens, int64_t top_k, void* base, Parts& parts) {
  const auto slots = static_cast<uint64_t>(tokens) * static_cast<uint64_t>(top_k);
  const auto tiles = static_cast<uint64_t>(max_tiles(tokens * top_k, w.experts, kPrefillRows));
  WorkspaceLayout layout(base, carve_prologue(w, tokens, top_k, kPrefillRows, base, parts.prologue));
  const uint64_t rows = slots + 7 * tiles;
  parts.h = layout.take<uint8_t>(rows * static_cast<uint64_t>(w.intermediate));
  parts.h_scale = layout.take<float>(rows * static_cast<uint64_t>(w.intermediate / kGroup));
  parts.rows = layout.take<uint16_t>(slots * static_cast<uint64_t>(w.hidden));
  if (packs(w, tokens * top_k)) {
    parts.x = layout.take<uint8_t>(rows * static_cast<uint64_t>(w.hidden));
    parts.x_scale = layout.take<float>(rows * static_cast<uint64_t>(w.hidden / kGroup));
  }
  return layout.used();
}

struct Run {
  const Gpu& gpu;
  const ExpertWeights& w;
  const Parts& parts;
  int64_t top_k = 1;
  CUstream stream = nullptr;

  [[nodiscard]] PrefillParams common() const {
    const RowIndex& index = parts.prologue.index;
    PrefillParams p{};
    p.tiles = reinterpret_cast<StreamTile*>(index.tiles);
    p.num_tiles = index.num_tiles;
    p.offsets = index.offsets;
    p.slots = index.slots;
    p.top_k = static_cast<int>(top_k);
    p.h = parts.h;
    p.h_scale = parts.h_scale;
    p.h_steps = static_cast<int>(w.intermediate / kGroup);
    p.early = 1;
    p.tickets = index.num_tiles + 1;
    return p;
  }
  [[nodiscard]] Grid grid() const {
    return {static_cast<uint64_t>(gpu.facts().sm_count) / 2 * 2, 1, kThreads,
            kSharedBytes};  // clusters of two
  }

  void pack(CUfunction f, const GemmInput& in) const {
    const RowIndex& index = parts.prologue.index;
    PrefillPackParams p{};
    p.x = static_cast<const unsigned char*>(in.data);
    p.x_stride = in.stride;
    p.x_scale = in.scales;
    p.x_scale_stride = in.scale_stride;
    p.x_source = in.per_slot ? kRowSlot : kRowToken;
    p.x_scale_source = in.scales_per_slot ? kRowSlot : kRowToken;
    p.tiles = reinterpret_cast<const StreamTile*>(index.tiles);
    p.num_tiles = index.num_tiles;
    p.slots = index.slots;
    p.top_k = static_cast<int>(top_k);
    p.steps = static_cast<int>(w.hidden / kGroup);
    p.packed = parts.x;
    p.packed_scale = parts.x_scale;
    constexpr unsigned kPackThreads = 256, kPackBlocks = 4;  // per SM
    launch_dependent(true, f,
                     Grid{static_cast<uint64_t>(gpu.facts().sm_count) * kPackBlocks, 1, kPackThreads, 0},
                     stream, p);
  }

  // in: what pack() has read where there is a packed x.
  void gemm1(CUfunction f, const GemmInput& in) const {
    const WeightViews views = weight_views(w);
    PrefillParams p = common();
    p.weights = static_cast<const unsigned char*>(views.w13.data);
    p.weight_scale = static_cast<const float*>(w.w13_scale.data);
    p.ws_expert = w.w13_scale.stride[0];
    p.ws_row = w.w13_scale.stride[1];
    p.up_scale_row = static_cast<int>(w.intermediate / kGroup);
    p.x = parts.x != nullptr ? parts.x : static_cast<const unsigned char*>(in.data);
    p.x_stride = in.stride;
    p.x_scale = parts.x != nullptr ? parts.x_scale : in.scales;
    p.x_scale_stride = in.scale_stride;
    p.x_source = in.per_slot ? kRowSlot : kRowToken;
    p.x_scale_source = in.scales_per_slot ? kRowSlot : kRowToken;
    p.slices = static_cast<int>(2 * w.intermediate / kSliceRows);
    p.steps = static_cast<int>(w.hidden / kGroup);
    launch_dependent(true, f, grid(), stream, p);
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
    p.rows = parts.rows;
    p.out_stride = w.hidden;
    if (present(weights)) {
      p.slot_weight = static_cast<const float*>(weights.data);
      p.slot_weight_token = weights.stride[0];
      p.slot_weight_slot = weights.stride[1];
    }
    launch_dependent(true, f, grid(), stream, p);
  }
};

}  // namespace

std::vector<KernelProgram> prefill_programs(int /*arch*/) {
  std::vector<KernelProgram> list;
  for (const Kernel kernel : {kGemm1, kGemm1Packed})
    for (size_t a = 0; a < kActivations; ++a)
      list.push_back(prefill_program(kernel, static_cast<ramp_activation>(a)));
  for (const Kernel kernel : {kGemm2, kPack})
    list.push_back(prefill_program(kernel, RAMP_ACTIVATION_SILU_AND_MUL));
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
  std::array<std::array<CUfunction, kKernels>, kActivations> functions{};  // by activation

  void gemms(const Run& run, const GemmInput& x, const ramp_tensor& weights, size_t activation) const {
    const auto& f = functions[activation];
    if (run.parts.x != nullptr) run.pack(f[kPack], x);
    run.gemm1(f[run.parts.x != nullptr ? kGemm1Packed : kGemm1], x);
    run.gemm2(f[kGemm2], weights);
  }
};

PrefillBlock::PrefillBlock(std::shared_ptr<const Gpu> gpu, KernelLibrary& library, Prologue& prologue,
                           Combine& combine)
    : gpu_(std::move(gpu)),
      library_(library),
      prologue_(prologue),
      combine_(combine),
      state_(std::make_shared<State>()) {}

std::vector<KernelProgram> PrefillBlock::programs(ramp_activation activation) {
  std::vector<KernelProgram> list;
  for (size_t kernel = 0; kernel < kKernels; ++kernel)
    list.push_back(prefill_program(static_cast<Kernel>(kernel), activation));
  return list;
}

void PrefillBlock::prepare(const ExpertWeights& weights, ramp_dtype x_dtype) {
  prologue_.prepare(weights, x_dtype);
  const auto a = static_cast<size_t>(weights.activation);
  if (state_->ready[a].load(std::memory_order_acquire)) return;
  const std::lock_guard lock(state_->mutex);
  if (state_->ready[a].load(std::memory_order_relaxed)) return;
  for (size_t kernel = 0; kernel < kKernels; ++kernel) {
    CUfunction const f = library_.get(prefill_program(static_cast<Kernel>(kernel), weights.activation),
                                      kernel == kPack ? "prefill_pack" : "prefill");
    if (kernel != kPack)
      RAMP_CU(cuFuncSetAttribute, f, CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES,
              static_cast<int>(kSharedBytes));
    state_->functions[a][kernel] = f;
  }
  state_->ready[a].store(true, std::memory_order_release);
}

uint64_t PrefillBlock::workspace(const ExpertWeights& weights, int64_t tokens, int64_t top_k) {
  Parts parts;
  return carve(weights, tokens, top_k, nullptr, parts);
}

bool PrefillBlock::takes(const KernelConfig* config, const ExpertWeights& weights, int64_t tokens,
                         int64_t top_k) noexcept {
  if (config != nullptr) return *config == prefill_config();
  // From T = 512 ... 8192 over four models (docs/kernel-log.md), by mean rows per expert.
  constexpr int64_t kRowsPerExpert = 32;
  return tokens * top_k >= kRowsPerExpert * std::max<int64_t>(1, weights.experts);
}

bool PrefillBlock::takes_batched(const KernelConfig* config, int64_t max_tokens) noexcept {
  if (config != nullptr) return *config == prefill_config();
  // Decode steps come with capacities of up to 128 and few rows; full experts of the same size lose less on
  // the stream kernels than those would lose here.
  constexpr int64_t kDecodeCapacity = 128;
  return max_tokens > kDecodeCapacity;
}

void PrefillBlock::block(const BlockCall& call, const RouteCall* routing) {
  const ExpertWeights& w = *call.weights;
  Parts parts;
  check_workspace(call.workspace, call.workspace_bytes,
                  carve(w, call.tokens, call.top_k, call.workspace, parts));
  auto* const stream = static_cast<CUstream>(call.stream);
  const Run run{*gpu_, w, parts, call.top_k, stream};
  const GemmInput x = routing != nullptr ? prologue_.routed_block(*routing, call, parts.prologue, stream)
                                         : prologue_.block(call, parts.prologue, stream);
  state_->gemms(run, x, call.router_weight_on_input ? ramp_tensor{} : call.topk_weights,
                static_cast<size_t>(w.activation));
  combine_.block(call, parts.rows, RAMP_BF16, parts.prologue.index, stream);
}

void PrefillBlock::batched(const BatchedCall& call) {
  const ExpertWeights& w = *call.weights;
  const int64_t slots = w.experts * call.max_tokens;
  Parts parts;
  check_workspace(call.workspace, call.workspace_bytes, carve(w, slots, 1, call.workspace, parts));
  auto* const stream = static_cast<CUstream>(call.stream);
  const Run run{*gpu_, w, parts, call.max_tokens, stream};
  GemmInput x = prologue_.batched(call, parts.prologue, stream);
  x.per_slot = x.scales_per_slot = true;
  state_->gemms(run, x, call.router_weight_on_input ? ramp_tensor{} : call.row_weights,
                static_cast<size_t>(w.activation));
  combine_.batched(call, parts.rows, RAMP_BF16, parts.prologue.index, stream);
}

}  // namespace ramp::core::cuda
