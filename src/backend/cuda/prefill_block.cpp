// Host side of the prefill block: workspace, parameters, launches. Grids are persistent and depend on the GPU
// alone; the plan on the device says how much of them has work.
#include "backend/cuda/prefill_block.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <array>
#include <atomic>
#include <map>
#include <mutex>

#include "backend/cuda/driver.hpp"
#include "backend/cuda/gated_programs.hpp"
#include "backend/cuda/gemm_params.hpp"
#include "backend/cuda/launch.hpp"
#include "backend/cuda/prefill_sums.hpp"
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

struct Parts {
  PrologueWorkspace prologue;
  GemmPair pair;
  uint8_t* x = nullptr;  // x in the order of the rows, packed as h is, where that pays; and its scales
  float* x_scale = nullptr;
};

// Whether GEMM 1's rows are put in order first (docs/kernel-log.md): T*k rows of H bytes more to write and to
// read against a gather that slows the math down, which costs nothing while memory is what limits GEMM 1.
bool packs(const ExpertWeights& w, int64_t slots) noexcept {
  constexpr int64_t kRowsPerExpert = 96;
  return slots >= kRowsPerExpert * std::max<int64_t>(1, w.experts);
}

uint64_t carve(const ExpertWeights& w, int64_t tokens, int64_t top_k, bool tall, void* base, Parts& parts) {
  const int32_t height = tall ? kPrefillTallRows : kPrefillRows;
  const auto slots = static_cast<uint64_t>(tokens) * static_cast<uint64_t>(top_k);
  const auto tiles = static_cast<uint64_t>(max_tiles(tokens * top_k, w.experts, height));
  WorkspaceLayout layout(base, carve_prologue(w, tokens, top_k, height, base, parts.prologue));
  const uint64_t rows = slots + 7 * tiles;
  PrefillBlock::carve_h(w, tokens * top_k, layout, parts.pair);
  parts.pair.rows = layout.take<uint16_t>(slots * static_cast<uint64_t>(w.hidden));
  parts.pair.weights = &w;
  parts.pair.index = parts.prologue.index;
  if (tall || packs(w, tokens * top_k)) {
    parts.x = layout.take<uint8_t>(rows * static_cast<uint64_t>(w.hidden));
    parts.x_scale = layout.take<float>(rows * static_cast<uint64_t>(w.hidden / kGroup));
  }
  return layout.used();
}

struct Run {
  const Gpu& gpu;
  const ExpertWeights& w;
  const GemmPair& pair;
  PrefillVariant variant;
  uint8_t* packed_x = nullptr;  // Parts::x
  float* packed_scale = nullptr;

  [[nodiscard]] PrefillParams common() const {
    PrefillParams p{};
    set_plan(p, pair.index, pair.top_k);
    p.h = pair.h;
    p.h_scale = pair.h_scale;
    p.h_steps = static_cast<int>(w.intermediate / kGroup);
    p.early = 1;
    p.tickets = pair.index.num_tiles + 1;
    p.experts = static_cast<int>(w.experts);
    return p;
  }
  [[nodiscard]] Grid grid() const {
    return {static_cast<uint64_t>(gpu.facts().sm_count) / 2 * 2, 1, variant.threads(),
            variant.shared_bytes()};  // clusters of two
  }

  void pack(CUfunction f, const GemmInput& in) const {
    const RowIndex& index = pair.index;
    PrefillPackParams p{};
    set_input(p, in);
    p.tiles = reinterpret_cast<const StreamTile*>(index.tiles);
    p.num_tiles = index.num_tiles;
    p.slots = index.slots;
    p.top_k = static_cast<int>(pair.top_k);
    p.steps = static_cast<int>(w.hidden / kGroup);
    p.packed = packed_x;
    p.packed_scale = packed_scale;
    constexpr unsigned kPackThreads = 256, kPackBlocks = 4;  // per SM
    launch_dependent(true, f,
                     Grid{static_cast<uint64_t>(gpu.facts().sm_count) * kPackBlocks, 1, kPackThreads, 0},
                     pair.stream, p);
  }

  // in: what pack() has read where there is a packed x.
  void gemm1(CUfunction f, const GemmInput& in) const {
    const WeightViews views = weight_views(w);
    PrefillParams p = common();
    p.weights = static_cast<const unsigned char*>(views.w13.data);
    set_block_scales(p, w.w13_scale);
    p.up_scale_row = static_cast<int>(w.intermediate / kGroup);
    p.beside = pair.beside ? 1 : 0;
    set_input(p, in);
    if (packed_x != nullptr) {
      p.x = packed_x;
      p.x_scale = packed_scale;
    }
    p.slices = static_cast<int>(2 * w.intermediate / kSliceRows);
    p.steps = static_cast<int>(w.hidden / kGroup);
    launch_dependent(true, f, grid(), pair.stream, p);
  }

  // weights: [T,k], absent where they were applied to the input.
  void gemm2(CUfunction f, const ramp_tensor& weights) const {
    const WeightViews views = weight_views(w);
    PrefillParams p = common();
    p.weights = static_cast<const unsigned char*>(views.w2.data);
    set_block_scales(p, w.w2_scale);
    p.slices = static_cast<int>(w.hidden / kSliceRows);
    p.steps = static_cast<int>(w.intermediate / kGroup);
    p.rows = pair.rows;
    p.out_stride = w.hidden;
    set_router_weights(p, weights);
    launch_dependent(true, f, grid(), pair.stream, p);
  }

  // weights: as gemm2().
  void gemms(const std::array<CUfunction, kPrefillKernels>& f, const GemmInput& x,
             const ramp_tensor& weights) const {
    if (packed_x != nullptr) pack(f[kPrefillPack], x);
    gemm1(f[packed_x != nullptr ? kPrefillGemm1Packed : kPrefillGemm1], x);
    gemm2(f[kPrefillGemm2], weights);
  }
};

}  // namespace

struct PrefillBlock::State {
  using Functions = std::array<CUfunction, kPrefillKernels>;
  std::mutex mutex;  // guards `extra`, and who fills `functions`
  std::array<std::atomic<bool>, kGatedActivations> ready{};
  std::array<Functions, kGatedActivations> functions{};                   // of what ships
  std::map<std::pair<PrefillVariant, ramp_activation>, Functions> extra;  // of the rest of the space

  // Compiled or read from the cache on first use, which may be inside a capture.
  Functions get(KernelLibrary& library, const PrefillVariant& v, ramp_activation activation) {
    if (v == kPrefillShipped) return functions[static_cast<size_t>(activation)];
    const std::lock_guard lock(mutex);
    const auto known = extra.find({v, activation});
    if (known != extra.end()) return known->second;
    return extra[{v, activation}] = load(library, v, activation);
  }
  static Functions load(KernelLibrary& library, const PrefillVariant& v, ramp_activation activation) {
    Functions f{};
    for (size_t i = 0; i < kPrefillKernels; ++i) {
      const auto kernel = static_cast<PrefillKernel>(i);
      if (!v.needs(kernel)) continue;
      f[i] = library.get(prefill_program(v, kernel, activation), prefill_entry(kernel));
      if (kernel != kPrefillPack && kernel != kPrefillZero)
        RAMP_CU(cuFuncSetAttribute, f[i], CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES,
                static_cast<int>(v.shared_bytes()));
    }
    return f;
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
  return prefill_programs_of(kPrefillShipped, activation);
}

void PrefillBlock::prepare(const ExpertWeights& weights, ramp_dtype x_dtype) {
  prologue_.prepare(weights, x_dtype);
  const auto a = static_cast<size_t>(weights.activation);
  if (state_->ready[a].load(std::memory_order_acquire)) return;
  const std::lock_guard lock(state_->mutex);
  if (state_->ready[a].load(std::memory_order_relaxed)) return;
  state_->functions[a] = State::load(library_, kPrefillShipped, weights.activation);
  state_->ready[a].store(true, std::memory_order_release);
}

uint64_t PrefillBlock::workspace(const ExpertWeights& weights, int64_t tokens, int64_t top_k) {
  Parts parts, tall;
  return std::max(carve(weights, tokens, top_k, false, nullptr, parts),
                  carve(weights, tokens, top_k, true, nullptr, tall));
}

// Of the smaller tiles' number, which is no less than that of tall ones.
void PrefillBlock::carve_h(const ExpertWeights& w, int64_t slots, WorkspaceLayout& layout, GemmPair& pair) {
  const auto tiles = static_cast<uint64_t>(max_tiles(slots, w.experts, kPrefillRows));
  const uint64_t rows = static_cast<uint64_t>(slots) + 7 * tiles;  // kernels/params/prefill.hpp
  pair.h = layout.take<uint8_t>(rows * static_cast<uint64_t>(w.intermediate));
  pair.h_scale = layout.take<float>(rows * static_cast<uint64_t>(w.intermediate / kGroup));
}

void PrefillBlock::gemm1(const GemmPair& pair, const GemmInput& x) const {
  const ExpertWeights& w = *pair.weights;
  Run{*gpu_, w, pair, kPrefillShipped}.gemm1(
      state_->functions[static_cast<size_t>(w.activation)][kPrefillGemm1], x);
}

void PrefillBlock::gemm2(const GemmPair& pair, const ramp_tensor& weights) const {
  const ExpertWeights& w = *pair.weights;
  Run{*gpu_, w, pair, kPrefillShipped}.gemm2(
      state_->functions[static_cast<size_t>(w.activation)][kPrefillGemm2], weights);
}

bool PrefillBlock::takes(const KernelConfig* config, const ExpertWeights& weights, int64_t tokens,
                         int64_t top_k) noexcept {
  if (config != nullptr) return prefill_variant(*config).has_value();
  // From the profiles of twelve models (docs/kernel-log.md), by mean rows per expert. Large experts, whose
  // weights this kernel streams as quickly as the stream kernels do, from fewer rows on, and the sooner the
  // more there are of them: one block per SM then loses least at the ends.
  constexpr int64_t kLargeExpert = int64_t{16} << 20;
  const int64_t experts = std::max<int64_t>(1, weights.experts);
  const int64_t rows = tokens * top_k;
  if (3 * weights.hidden * weights.intermediate < kLargeExpert)
    return rows >= (experts > 128 ? 16 : 32) * experts;
  if (experts > 128) return 2 * rows >= experts;
  return rows >= (experts > 64 ? 4 : 8) * experts;
}

bool PrefillBlock::takes_batched(const KernelConfig* config, int64_t max_tokens) noexcept {
  if (config != nullptr) return prefill_variant(*config).has_value();
  // Decode steps come with capacities of up to 128 and few rows; full experts of the same size lose less on
  // the stream kernels than those would lose here.
  constexpr int64_t kDecodeCapacity = 128;
  return max_tokens > kDecodeCapacity;
}

namespace {
// Of a call that takes() has let through.
PrefillVariant variant_of(const KernelConfig* forced) {
  return forced != nullptr ? prefill_variant(*forced).value_or(kPrefillShipped) : kPrefillShipped;
}
}  // namespace

void PrefillBlock::block(const BlockCall& call, const RouteCall* routing) {
  const ExpertWeights& w = *call.weights;
  PrefillVariant variant = variant_of(call.config);
  variant.sums = variant.sums && adds_up(call);
  Parts parts;
  check_workspace(call.workspace, call.workspace_bytes,
                  carve(w, call.tokens, call.top_k, variant.tall, call.workspace, parts));
  parts.pair.stream = static_cast<CUstream>(call.stream);
  CUstream const stream = parts.pair.stream;
  const State::Functions functions = state_->get(library_, variant, w.activation);
  parts.pair.top_k = call.top_k;
  const Run run{*gpu_, w, parts.pair, variant, parts.x, parts.x_scale};
  // In the place of the rows, which are no smaller (adds_up()).
  auto* const sums = reinterpret_cast<float*>(parts.pair.rows);
  if (variant.sums) zero_sums(*gpu_, functions[kPrefillZero], sums, call.tokens * w.hidden, stream);
  const GemmInput x = prologue_.block(call, routing, parts.prologue, stream);
  run.gemms(functions, x, weights_for_gemm2(call));
  if (variant.sums)
    combine_.convert(call, sums, stream);
  else
    combine_.block(call, parts.pair.rows, RAMP_BF16, parts.prologue.index, stream);
}

void PrefillBlock::batched(const BatchedCall& call) {
  const ExpertWeights& w = *call.weights;
  const int64_t slots = w.experts * call.max_tokens;
  PrefillVariant variant = variant_of(call.config);
  variant.sums = false;  // every row is a result of its own
  Parts parts;
  check_workspace(call.workspace, call.workspace_bytes,
                  carve(w, slots, 1, variant.tall, call.workspace, parts));
  parts.pair.stream = static_cast<CUstream>(call.stream);
  CUstream const stream = parts.pair.stream;
  const State::Functions functions = state_->get(library_, variant, w.activation);
  parts.pair.top_k = call.max_tokens;
  const Run run{*gpu_, w, parts.pair, variant, parts.x, parts.x_scale};
  const GemmInput x = prologue_.batched(call, parts.prologue, stream);
  run.gemms(functions, x, weights_for_gemm2(call));
  combine_.batched(call, parts.pair.rows, RAMP_BF16, parts.prologue.index, stream);
}

}  // namespace ramp::core::cuda
