// Host side of the flat prefill block: workspace, parameters, launches. As prefill_block.cpp: grids are
// persistent and depend on the GPU alone, the plan on the device says how much of them has work.
#include "backend/cuda/flat_prefill_block.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <array>
#include <atomic>
#include <mutex>

#include "backend/cuda/driver.hpp"
#include "backend/cuda/expected_rows.hpp"
#include "backend/cuda/flat_block.hpp"
#include "backend/cuda/flat_params.hpp"
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

namespace ramp::core::cuda {
namespace {

constexpr unsigned kThreads = 384, kStages = 4;
// kernels/sm90/prefill_flat.cu: per stage three tiles, an item, two barriers; once what results are staged
// in.
constexpr unsigned kSharedBytes = kStages * (3 * 16384 + 16 + 16) + 8 * 4096;

// activation: of GEMM 1 alone. sums: GEMM 2 of fast mode.
KernelProgram flat_prefill_program(int gemm, ramp_format format, ramp_activation activation,
                                   bool sums = false) {
  KernelProgram p{fmt::format("prefill_{}_gemm{}", format_name(format), gemm),
                  "sm90/prefill_flat.cu",
                  {fmt::format("-DGEMM={}", gemm), fmt::format("-DFORMAT={}", static_cast<int>(format)),
                   fmt::format("-DSTAGES={}", kStages)},
                  {"prefill_flat"},
                  90};
  if (gemm == 2 && sums) {
    p.options.emplace_back("-DFAST=1");
    p.name += "_sum";
  }
  if (gemm == 1) add_activation(p, activation);
  return p;
}

struct Parts {
  PrologueWorkspace prologue;
  float* wide = nullptr;    // fp8_channel: h as GEMM 1 leaves it, [T*k, I]
  float* scales = nullptr;  // fp8_channel: of h's codes, [T*k]
  uint8_t* h = nullptr;     // packed (kernels/params/prefill.hpp); fp8_channel: codes [T*k, I]
  void* rows = nullptr;     // [T*k, H] as flat_rows(); or the sums [T, H] of fast mode
};

uint64_t carve(const ExpertWeights& w, int64_t tokens, int64_t top_k, void* base, Parts& parts) {
  const auto slots = static_cast<uint64_t>(tokens) * static_cast<uint64_t>(top_k);
  const auto tiles = static_cast<uint64_t>(max_tiles(tokens * top_k, w.experts, kPrefillRows));
  WorkspaceLayout layout(base, carve_prologue(w, tokens, top_k, kPrefillRows, base, parts.prologue));
  const auto columns = static_cast<uint64_t>(w.intermediate);
  if (w.format == RAMP_FORMAT_FP8_CHANNEL) {
    parts.wide = layout.take<float>(slots * columns);
    parts.scales = layout.take<float>(slots);
  }
  parts.h =
      layout.take<uint8_t>((slots + 7 * tiles) * columns * static_cast<uint64_t>(element_bytes(w.format)));
  parts.rows =
      layout.take<std::byte>(slots * static_cast<uint64_t>(w.hidden * dtype_bytes(flat_rows(w.format))));
  return layout.used();
}

struct Run {
  const Gpu& gpu;
  const ExpertWeights& w;
  const Parts& parts;
  int64_t slots = 0, top_k = 1;
  CUstream stream = nullptr;

  [[nodiscard]] PrefillParams common() const {
    PrefillParams p{};
    set_plan(p, parts.prologue.index, top_k);
    p.h = parts.h;
    p.h_steps = static_cast<int>(w.intermediate / flat_depth(w.format));
    p.early = 1;
    return p;
  }
  [[nodiscard]] Grid grid() const {
    return {static_cast<uint64_t>(gpu.facts().sm_count) / 2 * 2, 1, kThreads,
            kSharedBytes};  // clusters of two
  }
  void gemm1(CUfunction f, const GemmInput& in) const {
    PrefillParams p = common();
    p.weights = static_cast<const unsigned char*>(weight_views(w).w13.data);
    set_flat_input(p, w.format, in, row_source(in.per_slot), row_source(in.scales_per_slot));
    set_flat_scales(p, w.w13_scale, w.format == RAMP_FORMAT_FP8_CHANNEL ? w.intermediate : 1);
    p.slices = static_cast<int>(2 * w.intermediate / kFlatTileRows);
    p.steps = static_cast<int>(w.hidden / flat_depth(w.format));
    if (parts.wide != nullptr) {
      p.h = reinterpret_cast<unsigned char*>(parts.wide);
      p.out_stride = w.intermediate;
    }
    p.h_static = w.w2_input_scale;
    launch_dependent(true, f, grid(), stream, p);
  }
  GemmInput middle(Prologue& prologue) const {
    return flat_middle(prologue, w, parts.wide, slots, parts.prologue.index, parts.h, parts.scales, stream);
  }
  // weights: [T,k], absent where they were applied to the input.
  void gemm2(CUfunction f, const GemmInput& in, const ramp_tensor& weights) const {
    PrefillParams p = common();
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

}  // namespace

std::vector<KernelProgram> flat_prefill_programs(int /*arch*/) {
  std::vector<KernelProgram> list;
  for (const ramp_format format : kFlatFormats) {
    for (size_t a = 0; a < kGatedActivations; ++a)
      list.push_back(flat_prefill_program(1, format, static_cast<ramp_activation>(a)));
    for (const bool sums : {false, true})
      list.push_back(flat_prefill_program(2, format, RAMP_ACTIVATION_SILU_AND_MUL, sums));
  }
  return list;
}

KernelConfig flat_prefill_config(ramp_format format, bool sums) noexcept {
  KernelConfig c;
  c.tile_m = kPrefillRows;
  c.tile_n = 2 * kFlatTileRows;
  c.tile_k = static_cast<int32_t>(flat_depth(format));
  c.stages = kStages;
  c.threads = kThreads;
  c.sums = sums;
  return c;
}

bool is_flat_prefill(const KernelConfig& config, ramp_format format) noexcept {
  return config == flat_prefill_config(format, config.sums);
}

struct FlatPrefillBlock::State {
  // Of configs with sums, by format: GEMM 2 and zeros, loaded when a call first asks, which may be inside a
  // capture.
  struct Sums {
    CUfunction gemm2 = nullptr, zero = nullptr;
  };
  std::array<Sums, kFlatFormats.size()> sums{};
  std::mutex mutex;  // guards `sums`, and who fills `functions`
  std::array<std::array<std::atomic<bool>, kGatedActivations>, kFlatFormats.size()> ready{};
  // By format, activation and GEMM.
  std::array<std::array<std::array<CUfunction, 2>, kGatedActivations>, kFlatFormats.size()> functions{};

  static CUfunction load(KernelLibrary& library, const KernelProgram& program) {
    CUfunction const function = library.get(program, "prefill_flat");
    RAMP_CU(cuFuncSetAttribute, function, CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES,
            static_cast<int>(kSharedBytes));
    return function;
  }
  Sums get_sums(KernelLibrary& library, ramp_format format) {
    const std::lock_guard lock(mutex);
    Sums& s = sums[flat_number(format)];
    if (s.gemm2 == nullptr) {
      s.zero = library.get(prefill_zero_program(), "prefill_zero");
      s.gemm2 = load(library, flat_prefill_program(2, format, RAMP_ACTIVATION_SILU_AND_MUL, true));
    }
    return s;
  }
};

FlatPrefillBlock::FlatPrefillBlock(std::shared_ptr<const Gpu> gpu, KernelLibrary& library, Prologue& prologue,
                                   Combine& combine)
    : gpu_(std::move(gpu)),
      library_(library),
      prologue_(prologue),
      combine_(combine),
      state_(std::make_shared<State>()) {}

std::vector<KernelProgram> FlatPrefillBlock::programs(ramp_format format, ramp_activation activation,
                                                      bool sums) {
  std::vector<KernelProgram> list = {flat_prefill_program(1, format, activation),
                                     flat_prefill_program(2, format, activation, sums)};
  if (sums) list.push_back(prefill_zero_program());
  return list;
}

void FlatPrefillBlock::prepare(const ExpertWeights& weights, ramp_dtype x_dtype) {
  prologue_.prepare(weights, x_dtype);
  const size_t f = flat_number(weights.format);
  const auto a = static_cast<size_t>(weights.activation);
  if (state_->ready[f][a].load(std::memory_order_acquire)) return;
  const std::lock_guard lock(state_->mutex);
  if (state_->ready[f][a].load(std::memory_order_relaxed)) return;
  for (int gemm = 1; gemm <= 2; ++gemm)
    state_->functions[f][a][static_cast<size_t>(gemm) - 1] =
        State::load(library_, flat_prefill_program(gemm, weights.format, weights.activation));
  state_->ready[f][a].store(true, std::memory_order_release);
}

uint64_t FlatPrefillBlock::workspace(const ExpertWeights& weights, int64_t tokens, int64_t top_k) {
  Parts parts;
  return carve(weights, tokens, top_k, nullptr, parts);
}

bool FlatPrefillBlock::takes(const KernelConfig* config, const ExpertWeights& weights, int64_t tokens,
                             int64_t top_k) noexcept {
  if (config != nullptr) return is_flat_prefill(*config, weights.format);
  // From T = 128 ... 512 over three models (docs/kernel-log.md), by mean rows per expert.
  constexpr int64_t kRowsPerExpert = 32, kRowsPerFp8Expert = 48;
  const int64_t rows = element_bytes(weights.format) == 1 ? kRowsPerFp8Expert : kRowsPerExpert;
  return tokens * top_k >= rows * std::max<int64_t>(1, weights.experts);
}

bool FlatPrefillBlock::takes(const BlockCall& call) noexcept {
  return takes(call.config, *call.weights, expected_tokens(call), expected_top_k(call));
}

bool FlatPrefillBlock::takes_batched(const KernelConfig* config, const ExpertWeights& weights,
                                     int64_t max_tokens) noexcept {
  if (config != nullptr) return is_flat_prefill(*config, weights.format);
  // Decode steps come with capacities of up to 128 and few rows: as PrefillBlock.
  constexpr int64_t kDecodeCapacity = 128;
  return max_tokens > kDecodeCapacity;
}

void FlatPrefillBlock::block(const BlockCall& call, const RouteCall* routing) {
  const ExpertWeights& w = *call.weights;
  Parts parts;
  check_workspace(call.workspace, call.workspace_bytes,
                  carve(w, call.tokens, call.top_k, call.workspace, parts));
  auto* const stream = static_cast<CUstream>(call.stream);
  const Run run{*gpu_, w, parts, call.tokens * call.top_k, call.top_k, stream};
  const bool sums = call.config != nullptr && call.config->sums && adds_up(call);
  State::Sums fast{};
  if (sums) {
    fast = state_->get_sums(library_, w.format);
    zero_sums(*gpu_, fast.zero, static_cast<float*>(parts.rows), call.tokens * w.hidden, stream);
  }
  const GemmInput x = prologue_.block(call, routing, parts.prologue, stream);
  const auto& functions = state_->functions[flat_number(w.format)][static_cast<size_t>(w.activation)];
  run.gemm1(functions[0], x);
  run.gemm2(sums ? fast.gemm2 : functions[1], run.middle(prologue_), weights_for_gemm2(call));
  if (sums)
    combine_.convert(call, static_cast<float*>(parts.rows), stream);
  else
    combine_.block(call, parts.rows, flat_rows(w.format), parts.prologue.index, stream);
}

void FlatPrefillBlock::batched(const BatchedCall& call) {
  const ExpertWeights& w = *call.weights;
  const int64_t slots = w.experts * call.max_tokens;
  Parts parts;
  check_workspace(call.workspace, call.workspace_bytes, carve(w, slots, 1, call.workspace, parts));
  auto* const stream = static_cast<CUstream>(call.stream);
  const Run run{*gpu_, w, parts, slots, call.max_tokens, stream};
  const GemmInput x = prologue_.batched(call, parts.prologue, stream);
  const auto& functions = state_->functions[flat_number(w.format)][static_cast<size_t>(w.activation)];
  run.gemm1(functions[0], x);
  run.gemm2(functions[1], run.middle(prologue_), weights_for_gemm2(call));
  combine_.batched(call, parts.rows, flat_rows(w.format), parts.prologue.index, stream);
}

}  // namespace ramp::core::cuda
