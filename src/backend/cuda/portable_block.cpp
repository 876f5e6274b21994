// Host side of the portable block: choice of the variant, workspace, parameters, launches. Grids are
// persistent and depend on the GPU and the shapes alone; the plan on the device says how much of them has
// work.
#include "backend/cuda/portable_block.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <array>
#include <atomic>
#include <mutex>
#include <span>

#include "backend/cuda/driver.hpp"
#include "backend/cuda/gemm_params.hpp"
#include "backend/cuda/launch.hpp"
#include "backend/cuda/weights.hpp"
#include "backend/cuda/workspace.hpp"
#include "base/error.hpp"
#include "base/tensor.hpp"
#include "params/block.hpp"
#include "params/portable.hpp"
#include "weights/quantize.hpp"

namespace ramp::core::cuda {
namespace {

constexpr int32_t kGroupTiles = 8;  // tiles of a group in grouped order

// The automatic choice by the mean number of rows per expert, measured (docs/kernel-log.md). Around 128 rows
// half of the experts would need a second tile of 128 for a few rows; tiles of 128 keep FP8's sums in units.
struct Choice {
  double up_to;
  int32_t tokens;  // of a tile
};
constexpr std::array<Choice, 4> kChoices = {{{2, 8}, {16, 32}, {160, 64}, {1e30, 128}}};
constexpr std::array<Choice, 6> kFp8Choices = {
    {{2, 8}, {16, 32}, {48, 64}, {100, 128}, {400, 64}, {1e30, 128}}};
constexpr size_t kKinds = 2;  // GATED of the kernel

// Shipped variants, then those on trial: what the block counts by.
constexpr size_t kShipped = kPortableVariants.size();
constexpr size_t kVariants = kShipped + kPortableTrials.size();
const PortableVariant& variant(size_t number) noexcept {
  return number < kShipped ? kPortableVariants[number] : kPortableTrials[number - kShipped];
}

static_assert(sizeof(PortableTile) == sizeof(Tile));

bool is_fp8_format(ramp_format format) noexcept {
  return weight_dtype(format) == RAMP_E4M3;
}
// Formats whose scales of GEMM 2's input come from more columns than a tile has: h leaves GEMM 1 as fp32.
bool requantizes(ramp_format format) noexcept {
  return format == RAMP_FORMAT_FP8_BLOCK || format == RAMP_FORMAT_FP8_CHANNEL;
}

// What GEMM 2 leaves: bf16 would cost fp16 three of its bits.
ramp_dtype rows_dtype(ramp_format format) noexcept {
  return format == RAMP_FORMAT_F16 ? RAMP_F32 : RAMP_BF16;
}

// The kernels count rows in 32 bits: of 16 bytes where values begin, of elements where scales do.
void check_reach(const char* what, int64_t rows, int64_t stride, int64_t limit) {
  if (rows > 0 && stride > 0 && rows > limit / stride)
    fail_argument(what, fmt::format("{} rows, {} from one to the next", rows, stride),
                  fmt::format("at most {} in all", limit), "pass rows that lie closer, or fewer tokens");
}
constexpr int64_t kReachBytes = int64_t{1} << 36, kReachScales = int64_t{1} << 32;

struct Parts {
  PrologueWorkspace prologue;
  float* h = nullptr;       // [T*k, I]: formats that requantise apart
  void* codes = nullptr;    // [T*k, I] in the activation type
  float* scales = nullptr;  // its scales
  void* rows = nullptr;     // [T*k, H], of rows_dtype
};

uint64_t carve(const ExpertWeights& w, int64_t tokens, int64_t top_k, int32_t tile_m, void* base,
               Parts& parts) {
  const auto slots = static_cast<uint64_t>(tokens) * static_cast<uint64_t>(top_k);
  const auto i = static_cast<uint64_t>(w.intermediate);
  WorkspaceLayout layout(base, carve_prologue(w, tokens, top_k, tile_m, base, parts.prologue));
  parts.codes =
      layout.take<std::byte>(slots * i * static_cast<uint64_t>(dtype_bytes(weight_dtype(w.format))));
  parts.rows = layout.take<std::byte>(slots * static_cast<uint64_t>(w.hidden) *
                                      static_cast<uint64_t>(dtype_bytes(rows_dtype(w.format))));
  if (requantizes(w.format)) {
    parts.h = layout.take<float>(slots * i);
    parts.scales = layout.take<float>(slots * ceil_div(i, kGroup));
  }
  return layout.used();
}

}  // namespace

struct PortableBlock::State {
  struct Kernel {
    CUfunction function = nullptr;
    int blocks = 1;  // that fit an SM
  };
  using Kernels = std::array<std::array<Kernel, kKinds>, kVariants>;
  std::mutex mutex;
  std::array<std::atomic<bool>, 8> ready{};                                         // by ramp_format
  std::array<std::array<std::atomic<bool>, kPortableTrials.size()>, 8> on_trial{};  // ... and variant
  std::array<Kernels, 8> kernels{};
};

PortableBlock::PortableBlock(std::shared_ptr<const Gpu> gpu, KernelLibrary& library, Prologue& prologue,
                             Combine& combine)
    : gpu_(std::move(gpu)),
      library_(library),
      prologue_(prologue),
      combine_(combine),
      state_(std::make_shared<State>()) {}

bool PortableBlock::fits(const PortableVariant& v, ramp_format format) const noexcept {
  const int arch = portable_arch(gpu_->facts());
  return v.is_for(format, arch) &&
         v.shared_bytes(format, arch) <= static_cast<uint32_t>(gpu_->facts().shared_per_block);
}

std::vector<KernelConfig> PortableBlock::configs(ramp_format format) const {
  std::vector<KernelConfig> list = space(format);
  std::erase_if(list, [](const KernelConfig& c) { return c.warps_n != 0; });
  return list;
}

std::vector<KernelConfig> PortableBlock::space(ramp_format format) const {
  std::vector<KernelConfig> list;
  const auto add = [&](auto& variants) {
    for (const TaskOrder order : {TaskOrder::kColumnMajor, TaskOrder::kRowMajor, TaskOrder::kGrouped}) {
      for (const PortableVariant& v : variants) {
        if (!fits(v, format)) continue;
        KernelConfig c = v.config(format);
        c.order = order;
        c.group_m = order == TaskOrder::kGrouped ? kGroupTiles : 0;
        list.push_back(c);
      }
    }
  };
  add(kPortableVariants);
  add(kPortableTrials);
  return list;
}

std::vector<KernelProgram> PortableBlock::programs(ramp_format format) const {
  std::vector<KernelProgram> list;
  for (const PortableVariant& v : kPortableVariants) {
    for (size_t kind = 0; fits(v, format) && kind < kKinds; ++kind)
      list.push_back(portable_program(v, format, kind == 1));
  }
  return list;
}

void PortableBlock::prepare(const ExpertWeights& weights, ramp_dtype x_dtype) {
  prologue_.prepare(weights, x_dtype);
  load(weights.format);
}

// Also by calls: a handle whose weights the plain kernels took may have been what the format was prepared
// for.
void PortableBlock::load(ramp_format format) {
  const auto at = static_cast<size_t>(format);
  if (state_->ready[at].load(std::memory_order_acquire)) return;
  const std::lock_guard lock(state_->mutex);
  if (state_->ready[at].load(std::memory_order_relaxed)) return;
  for (size_t i = 0; i < kShipped; ++i) load_variant(format, i);
  state_->ready[at].store(true, std::memory_order_release);
}

void PortableBlock::load_trial(ramp_format format, size_t number) {
  if (number < kShipped) return;
  std::atomic<bool>& ready = state_->on_trial[static_cast<size_t>(format)][number - kShipped];
  if (ready.load(std::memory_order_acquire)) return;
  const std::lock_guard lock(state_->mutex);
  if (ready.load(std::memory_order_relaxed)) return;
  load_variant(format, number);
  ready.store(true, std::memory_order_release);
}

// Under the lock.
void PortableBlock::load_variant(ramp_format format, size_t number) {
  const PortableVariant& v = variant(number);
  const auto shared = static_cast<int>(v.shared_bytes(format, portable_arch(gpu_->facts())));
  for (size_t kind = 0; fits(v, format) && kind < kKinds; ++kind) {
    CUfunction const f = library_.get(portable_program(v, format, kind == 1), "gemm");
    RAMP_CU(cuFuncSetAttribute, f, CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES, shared);
    int blocks = 0;
    RAMP_CU(cuOccupancyMaxActiveBlocksPerMultiprocessor, &blocks, f, v.threads(),
            static_cast<size_t>(shared));
    state_->kernels[static_cast<size_t>(format)][number][kind] = {f, std::max(blocks, 1)};
  }
}

uint64_t PortableBlock::workspace(const ExpertWeights& weights, int64_t tokens, int64_t top_k) {
  Parts parts;
  return carve(weights, tokens, top_k, kPortableVariants.front().tokens, nullptr,
               parts);  // the smallest tiles need most
}

KernelConfig PortableBlock::choose(const ExpertWeights& weights, int64_t tokens, int64_t top_k,
                                   ramp_determinism determinism) const {
  // By the mean number of rows per expert. (The histogram itself will decide once the dispatcher runs on the
  // device.)
  const double mean =
      static_cast<double>(tokens * top_k) / static_cast<double>(std::max<int64_t>(1, weights.experts));
  // Batch-invariant: one order of sums and of roundings.
  const int arch = portable_arch(gpu_->facts());
  const bool invariant = determinism == RAMP_BATCH_INVARIANT;
  const auto taken = [&](const PortableVariant& v) {
    return !invariant || (v.warps_k == 1 && !v.sums_in_units(weights.format, arch));
  };
  const PortableVariant* chosen = &kPortableVariants.front();
  const auto choices = is_fp8_format(weights.format) ? std::span<const Choice>(kFp8Choices)
                                                     : std::span<const Choice>(kChoices);
  for (const Choice& c : choices) {
    for (const PortableVariant& v : kPortableVariants)
      if (v.tokens == c.tokens && fits(v, weights.format) && taken(v)) chosen = &v;
    if (mean <= c.up_to && taken(*chosen)) break;
  }
  return chosen->config(weights.format);
}

BlockArithmetic PortableBlock::arithmetic(ramp_format format) const noexcept {
  const bool native = portable_multiplies_codes(portable_arch(gpu_->facts()));
  return {rows_dtype(format), native && is_fp8_format(format) ? kFp8TensorUnit : kHalfTensorUnit};
}

size_t PortableBlock::number_of(const KernelConfig& config, ramp_format format) const {
  KernelConfig plain = config;
  plain.order = TaskOrder::kColumnMajor;
  plain.group_m = 0;
  for (size_t i = 0; i < kVariants; ++i)
    if (variant(i).config(format) == plain && fits(variant(i), format)) return i;
  fail_argument("config", config_name(config), "a config of the portable kernels",
                "ramp_config_name lists them");
}

// One call's launches.
struct PortableBlock::Run {
  PortableBlock& block;
  const ExpertWeights& w;
  const KernelConfig& config;
  const Parts& parts;
  int64_t slots = 0, top_k = 1;
  size_t number = 0;
  CUstream stream = nullptr;

  [[nodiscard]] PortableParams common(const GemmInput& in) const {
    PortableParams p{};
    set_plan(p, parts.prologue.index, top_k);
    constexpr int kAllTiles = 1 << 30;
    p.group = config.order == TaskOrder::kColumnMajor ? kAllTiles
              : config.order == TaskOrder::kRowMajor  ? 1
                                                      : config.group_m;
    p.early = 1;
    if (variant(number).trial) {
      p.rotate = 1;
      p.tickets = reinterpret_cast<unsigned*>(parts.prologue.index.num_tiles) + 1;
    }
    p.x = static_cast<const unsigned char*>(in.data);
    p.x_stride = in.stride * dtype_bytes(in.dtype);
    p.x_scale = in.scales;
    p.x_scale_stride = in.scale_stride;
    p.x_static = in.static_scale;
    check_reach("x", slots, p.x_stride, kReachBytes);
    check_reach("x_scale", slots, p.x_scale_stride, kReachScales);
    p.groups = static_cast<int>(in.groups);
    return p;
  }
  void set_weights(PortableParams& p, const ramp_tensor& values, const ramp_tensor& scale, int64_t n,
                   int64_t depth) const {
    const int64_t bytes = dtype_bytes(weight_dtype(w.format));
    p.w = static_cast<const unsigned char*>(values.data);
    p.w_expert = values.stride[0] * bytes;
    p.w_row = values.stride[1] * bytes;
    p.n = static_cast<int>(n);
    p.depth = static_cast<int>(depth * bytes);
    if (!present(scale)) return;
    p.w_scale = static_cast<const float*>(scale.data);
    p.ws_expert = scale.stride[0];
    p.ws_row = scale.ndim > 1 ? scale.stride[1] : 0;  // [E]: gate and up share one
    p.ws_column = w.format == RAMP_FORMAT_FP8_BLOCK ? scale.stride[2] : 0;
    check_reach("weight scales", w.experts, p.ws_expert, kReachScales);
  }
  void start(size_t kind, const PortableParams& p) const {
    const State::Kernel& kernel = block.state_->kernels[static_cast<size_t>(w.format)][number][kind];
    const PortableVariant& shape = variant(number);
    const auto columns = static_cast<uint64_t>(shape.unit_columns(w.format, kind == 1));
    const auto tiles = static_cast<uint64_t>(max_tiles(slots, w.experts, shape.tokens));
    const uint64_t units = tiles * ceil_div(static_cast<uint64_t>(p.n), columns);
    const auto resident =
        static_cast<uint64_t>(block.gpu_->facts().sm_count) * static_cast<uint64_t>(kernel.blocks);
    launch_dependent(block.gpu_->facts().major >= 9, kernel.function,
                     {std::min(units, resident), 1, static_cast<unsigned>(shape.threads()),
                      shape.shared_bytes(w.format, portable_arch(block.gpu_->facts()))},
                     stream, p);
  }

  void gemm1(const GemmInput& in) const {
    PortableParams p = common(in);
    set_weights(p, weight_views(w).w13, w.w13_scale, w.intermediate, w.hidden);
    p.x_source = row_source(in.per_slot);
    p.x_scale_source = row_source(in.scales_per_slot);
    p.up_row = static_cast<int>(w.intermediate);
    p.up_scale_row = static_cast<int>(ceil_div(static_cast<uint64_t>(w.intermediate), kGroup));
    p.activation = w.activation;
    p.out = requantizes(w.format) && !fuses() ? static_cast<void*>(parts.h) : parts.codes;
    p.out_stride = w.intermediate;
    p.out_scale = w.w2_input_scale;
    p.out_groups = static_cast<int>(ceil_div(static_cast<uint64_t>(w.intermediate), kGroup));
    p.h = parts.h;
    p.out_scales = parts.scales;
    start(w.gated() ? 1 : 0, p);
  }
  [[nodiscard]] bool fuses() const noexcept { return w.gated() && variant(number).fuses(w.format); }
  // GEMM 2's input: h requantised, or what GEMM 1 wrote.
  [[nodiscard]] GemmInput middle() const {
    if (requantizes(w.format) && !fuses())
      return block.prologue_.requantize(w, parts.h, slots, parts.prologue.index, parts.codes, parts.scales,
                                        stream);
    GemmInput in;
    in.data = parts.codes;
    in.dtype = weight_dtype(w.format);
    in.stride = w.intermediate;
    in.static_scale = w.w2_input_scale;
    if (fuses()) {
      in.groups = in.scale_stride =
          static_cast<int64_t>(ceil_div(static_cast<uint64_t>(w.intermediate), kGroup));
      in.scales = parts.scales;
    }
    return in;
  }
  // weights: [T,k] with strides, absent where they were applied to the input.
  void gemm2(const GemmInput& in, const ramp_tensor& weights) const {
    PortableParams p = common(in);
    set_weights(p, weight_views(w).w2, w.w2_scale, w.hidden, w.intermediate);
    p.second = 1;
    if (p.tickets != nullptr) ++p.tickets;  // the index leaves a zero for each
    p.x_source = p.x_scale_source = kRowSorted;
    p.out = parts.rows;
    p.out_stride = w.hidden;
    set_router_weights(p, weights);
    start(0, p);
  }
};

void PortableBlock::block(const BlockCall& call, const RouteCall* routing) {
  const ExpertWeights& w = *call.weights;
  load(w.format);
  const KernelConfig config =
      call.config != nullptr ? *call.config : choose(w, call.tokens, call.top_k, call.determinism);
  const size_t number = number_of(config, w.format);
  load_trial(w.format, number);
  Parts parts;
  check_workspace(call.workspace, call.workspace_bytes,
                  carve(w, call.tokens, call.top_k, variant(number).tokens, call.workspace, parts));
  auto* const stream = static_cast<CUstream>(call.stream);
  const Run run{*this, w, config, parts, call.tokens * call.top_k, call.top_k, number, stream};
  const GemmInput x = prologue_.block(call, routing, parts.prologue, stream);
  run.gemm1(x);
  run.gemm2(run.middle(), weights_for_gemm2(call));
  combine_.block(call, parts.rows, rows_dtype(w.format), parts.prologue.index, stream);
}

void PortableBlock::batched(const BatchedCall& call) {
  const ExpertWeights& w = *call.weights;
  load(w.format);
  const int64_t slots = w.experts * call.max_tokens;
  const KernelConfig config = call.config != nullptr ? *call.config : choose(w, slots, 1, call.determinism);
  const size_t number = number_of(config, w.format);
  load_trial(w.format, number);
  Parts parts;
  check_workspace(call.workspace, call.workspace_bytes,
                  carve(w, slots, 1, variant(number).tokens, call.workspace, parts));
  auto* const stream = static_cast<CUstream>(call.stream);
  // Slots are e*max_tokens + r, and so are the rows of x; "top_k" splits them for the strides of row_weights.
  const Run run{*this, w, config, parts, slots, call.max_tokens, number, stream};
  const GemmInput x = prologue_.batched(call, parts.prologue, stream);
  run.gemm1(x);
  run.gemm2(run.middle(), weights_for_gemm2(call));
  combine_.batched(call, parts.rows, rows_dtype(w.format), parts.prologue.index, stream);
}

}  // namespace ramp::core::cuda
