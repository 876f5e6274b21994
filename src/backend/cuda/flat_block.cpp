// Host side of the flat stream block: variants, workspace, parameters, launches. As stream_block.cpp: grids
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
#include "backend/cuda/expected_rows.hpp"
#include "backend/cuda/flat_params.hpp"
#include "backend/cuda/launch.hpp"
#include "backend/cuda/weights.hpp"
#include "backend/cuda/workspace.hpp"
#include "base/error.hpp"
#include "base/tensor.hpp"
#include "params/block.hpp"
#include "params/stream.hpp"

namespace ramp::core::cuda {
namespace {

constexpr int64_t kTileRows = 128;   // of weights in a packed tile
constexpr int64_t kTileBytes = 128;  // of its depth

// Measured at T = 1, 32 and 128 over four models (docs/kernel-log.md).
constexpr std::array<FlatVariant, 4> kVariants = {
    {{8, 64, 12, 2}, {32, 128, 5, 2}, {64, 128, 4, 2}, {96, 256, 5, 1}}};

int64_t depth_of(ramp_format format) noexcept {
  return element_bytes(format) == 2 ? kTileBytes / 2 : kTileBytes;
}

constexpr int32_t kStep = 8;  // the width of a tile is a multiple of it

unsigned threads_of(const FlatVariant& v) noexcept {
  return static_cast<unsigned>(2 * v.rows + 64);
}

// FP8 has a step's sums beside the promoted ones: no registers for 96 columns.
bool compiles(const FlatVariant& v, ramp_format format) noexcept {
  constexpr int32_t kWidestFp8 = 64;
  return element_bytes(format) == 2 || v.width <= kWidestFp8;
}

// What an SM of sm_90 has.
constexpr uint32_t kSharedPerSm = 228 << 10, kSharedPerBlock = 227 << 10, kSharedReserved = 1 << 10;
constexpr int32_t kRegistersPerSm = 65536;

// Beside its sums (and FP8's of a step) a thread of the stream kernels gets by with 32 registers where there
// are no more (ptxas of CUDA 13.0).
int32_t blocks_by_registers(const FlatVariant& v, ramp_format format) noexcept {
  constexpr int32_t kWorking = 32, kGranule = 8;
  const int32_t sums = v.width / 2 * (element_bytes(format) == 2 ? 1 : 2);
  const int32_t each = (sums + kWorking + kGranule - 1) / kGranule * kGranule;
  return kRegistersPerSm / (each * static_cast<int32_t>(threads_of(v)));
}
// As many blocks as an SM holds, up to the most that are searched; 0: not even one.
constexpr int32_t kMostBlocks = 4;
int32_t natural_blocks(const FlatVariant& v, ramp_format format) noexcept {
  if (v.shared_bytes() > kSharedPerBlock) return 0;
  return std::min({kMostBlocks, blocks_by_registers(v, format),
                   static_cast<int32_t>(kSharedPerSm / (v.shared_bytes() + kSharedReserved))});
}

// activation: of GEMM 1 alone.
KernelProgram flat_program(const FlatVariant& v, int gemm, ramp_format format, ramp_activation activation) {
  KernelProgram p{
      fmt::format("stream_{}_gemm{}_w{}_r{}_s{}", format_name(format), gemm, v.width, v.rows, v.stages),
      "sm90/stream_flat.cu",
      {fmt::format("-DGEMM={}", gemm), fmt::format("-DFORMAT={}", static_cast<int>(format)),
       fmt::format("-DWIDTH={}", v.width),
       v.rows == 64 ? std::string("-DHALVES=1") : fmt::format("-DSLICES={}", v.rows / kTileRows),
       fmt::format("-DSTEP={}", kStep), fmt::format("-DSTAGES={}", v.stages),
       fmt::format("-DBLOCKS={}", v.blocks)},
      {"stream_flat"},
      90};
  if (v.config(format).blocks != 0) p.name += fmt::format("_b{}", v.blocks);
  if (gemm == 1) {
    p.options.push_back(fmt::format("-DACTIVATION={}", static_cast<int>(activation)));
    if (activation == RAMP_ACTIVATION_GELU_AND_MUL) p.name += "_gelu";
    if (activation == RAMP_ACTIVATION_GELU_TANH_AND_MUL) p.name += "_gelu_tanh";
  }
  return p;
}

constexpr size_t kFormats = 4, kActivations = 3;  // the gated ones
constexpr std::array<ramp_format, kFormats> kFormatList = {RAMP_FORMAT_BF16, RAMP_FORMAT_F16,
                                                           RAMP_FORMAT_FP8_TENSOR, RAMP_FORMAT_FP8_CHANNEL};
size_t number_of(ramp_format format) noexcept {
  return static_cast<size_t>(std::find(kFormatList.begin(), kFormatList.end(), format) - kFormatList.begin());
}

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
  const uint64_t padded = slots + (tiles + 1) * uint64_t{kStep};
  parts.codes = layout.take<std::byte>(padded * i * static_cast<uint64_t>(element_bytes(w.format)));
  parts.rows =
      layout.take<std::byte>(slots * static_cast<uint64_t>(w.hidden * dtype_bytes(flat_rows(w.format))));
  return layout.used();
}

}  // namespace

uint32_t FlatVariant::shared_bytes() const noexcept {
  const auto per_stage = static_cast<uint32_t>(width + rows) * 128;
  return static_cast<uint32_t>(stages) * (per_stage + 16);  // two barriers of 8 bytes each
}

KernelConfig FlatVariant::config(ramp_format format) const noexcept {
  KernelConfig c;
  c.tile_m = width;
  c.tile_n = rows;
  c.tile_k = static_cast<int32_t>(depth_of(format));
  c.stages = stages;
  c.threads = static_cast<int32_t>(threads_of(*this));
  if (blocks != natural_blocks(*this, format)) c.blocks = blocks;
  return c;
}

std::string FlatVariant::rejection(ramp_format format, int64_t hidden, int64_t intermediate) const {
  if (hidden % rows != 0 || 2 * intermediate % rows != 0)
    return fmt::format("{} weight rows per tile divide not both H = {} and 2I = {}", rows, hidden,
                       2 * intermediate);
  if (!compiles(*this, format))
    return fmt::format("{} token rows per tile leave too few registers in {}", width, format_name(format));
  if (shared_bytes() > kSharedPerBlock)
    return fmt::format("shared memory {} bytes exceed {} ({} stages)", shared_bytes(), kSharedPerBlock,
                       stages);
  if (static_cast<uint32_t>(blocks) * (shared_bytes() + kSharedReserved) > kSharedPerSm)
    return fmt::format("{} blocks of {} bytes (and {} reserved) exceed an SM's {} bytes of shared memory",
                       blocks, shared_bytes(), kSharedReserved, kSharedPerSm);
  if (blocks > blocks_by_registers(*this, format))
    return fmt::format("{} blocks of {} threads leave too few registers for tiles of {} token rows", blocks,
                       threads_of(*this), width);
  return {};
}

std::vector<FlatVariant> flat_space() {
  std::vector<FlatVariant> all;
  for (const int32_t rows : {64, 128, 256})
    for (const int32_t width : {8, 16, 32, 48, 64, 96})
      for (int32_t blocks = 1; blocks <= kMostBlocks; ++blocks)
        for (const int32_t stages : {3, 4, 5, 6, 8, 12}) all.push_back({width, rows, stages, blocks});
  return all;
}

std::optional<FlatVariant> flat_variant(const KernelConfig& config, ramp_format format) {
  FlatVariant v{config.tile_m, config.tile_n, config.stages, config.blocks};
  const std::vector<FlatVariant> all = flat_space();
  const bool known = std::any_of(all.begin(), all.end(), [&](const FlatVariant& a) {
    return a.width == v.width && a.rows == v.rows && a.stages == v.stages;
  });
  if (!known) return std::nullopt;
  if (v.blocks == 0) v.blocks = natural_blocks(v, format);
  if (v.blocks < 1 || !(v.config(format) == config) || !v.rejection(format, v.rows, v.rows).empty())
    return std::nullopt;
  return v;
}

std::vector<KernelProgram> flat_programs_of(const FlatVariant& variant, ramp_format format,
                                            ramp_activation activation) {
  return {flat_program(variant, 1, format, activation), flat_program(variant, 2, format, activation)};
}

bool FlatVariant::runs(ramp_format format, int64_t hidden, int64_t intermediate) const noexcept {
  return compiles(*this, format) && hidden % rows == 0 && 2 * intermediate % rows == 0;
}

std::vector<FlatVariant> flat_variants(ramp_format format, int64_t hidden, int64_t intermediate) {
  std::vector<FlatVariant> list;
  for (const FlatVariant& v : kVariants)
    if (v.runs(format, hidden, intermediate)) list.push_back(v);
  return list;
}

std::vector<KernelProgram> flat_programs(int /*arch*/) {
  std::vector<KernelProgram> list;
  for (const ramp_format format : kFormatList) {
    for (size_t a = 0; a < kActivations; ++a) {
      for (KernelProgram& p : FlatBlock::programs(format, static_cast<ramp_activation>(a)))
        if (a == 0 || p.name.find("_gemm1_") != std::string::npos) list.push_back(std::move(p));
    }
  }
  return list;
}

bool flat_applies(ramp_format format, ramp_activation activation, int64_t hidden, int64_t intermediate,
                  std::string* reason) {
  const auto no = [&](std::string text) {
    if (reason != nullptr) *reason = std::move(text);
    return false;
  };
  if (!flat_format(format))
    return no(fmt::format("format {} (these kernels take bf16, fp16, fp8_tensor and fp8_channel)",
                          format_name(format)));
  if (!is_gated(activation)) return no("relu2 is not gated (the stream kernels interleave gate and up rows)");
  if (hidden % kTileRows != 0 || intermediate % depth_of(format) != 0)
    return no(fmt::format("H = {} and I = {}, expected multiples of {} and {}", hidden, intermediate,
                          kTileRows, depth_of(format)));
  return true;
}

bool flat_format(ramp_format format) noexcept {
  return number_of(format) < kFormats;
}

ramp_dtype flat_rows(ramp_format format) noexcept {
  return format == RAMP_FORMAT_F16 ? RAMP_F32 : RAMP_BF16;
}

struct FlatBlock::State {
  using Functions = std::array<std::array<CUfunction, 2>, kVariants.size()>;  // by variant and GEMM
  using Pair = std::array<CUfunction, 2>;
  std::mutex mutex;
  std::array<std::array<std::atomic<bool>, kActivations>, kFormats> ready{};
  std::array<std::array<Functions, kActivations>, kFormats> functions{};        // of what ships
  std::map<std::tuple<FlatVariant, ramp_format, ramp_activation>, Pair> extra;  // of the rest of the space

  // Compiled or read from the cache on first use, which may be inside a capture.
  Pair get(KernelLibrary& library, const FlatVariant& v, const ExpertWeights& w) {
    for (size_t i = 0; i < kVariants.size(); ++i)
      if (kVariants[i] == v) return functions[number_of(w.format)][static_cast<size_t>(w.activation)][i];
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
  std::vector<KernelProgram> list;
  for (const FlatVariant& v : kVariants) {
    if (!compiles(v, format)) continue;
    for (const int gemm : {1, 2}) list.push_back(flat_program(v, gemm, format, activation));
  }
  return list;
}

void FlatBlock::prepare(const ExpertWeights& weights, ramp_dtype x_dtype) {
  prologue_.prepare(weights, x_dtype);
  const size_t f = number_of(weights.format);
  const auto a = static_cast<size_t>(weights.activation);
  if (state_->ready[f][a].load(std::memory_order_acquire)) return;
  const std::lock_guard lock(state_->mutex);
  if (state_->ready[f][a].load(std::memory_order_relaxed)) return;
  for (size_t i = 0; i < kVariants.size(); ++i) {
    if (compiles(kVariants[i], weights.format))
      state_->functions[f][a][i] = State::load(library_, kVariants[i], weights);
  }
  state_->ready[f][a].store(true, std::memory_order_release);
}

uint64_t FlatBlock::workspace(const ExpertWeights& weights, int64_t tokens, int64_t top_k) {
  uint64_t most = 0;
  for (const FlatVariant& v : kVariants) {
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
  if (tokens <= kFewTokens) return kVariants[0];
  if (mean <= kManyRows) return kVariants[1];
  const FlatVariant& widest = kVariants[3];
  return widest.runs(weights.format, weights.hidden, weights.intermediate) ? widest : kVariants[2];
}

namespace {

struct Run {
  const Gpu& gpu;
  const ExpertWeights& w;
  const Parts& parts;
  FlatVariant variant;
  int64_t slots = 0, top_k = 1;
  CUstream stream = nullptr;

  [[nodiscard]] StreamParams common() const {
    const RowIndex& index = parts.prologue.index;
    StreamParams p{};
    p.tiles = reinterpret_cast<const StreamTile*>(index.tiles);
    p.num_tiles = index.num_tiles;
    p.offsets = index.offsets;
    p.slots = index.slots;
    p.top_k = static_cast<int>(top_k);
    p.early = 1;
    return p;
  }
  [[nodiscard]] Grid grid() const {
    const uint64_t blocks =
        static_cast<uint64_t>(gpu.facts().sm_count) * static_cast<uint64_t>(variant.blocks);
    return {blocks, 1, threads_of(variant), variant.shared_bytes()};
  }

  void gemm1(CUfunction f, const GemmInput& in) const {
    StreamParams p = common();
    p.weights = static_cast<const unsigned char*>(weight_views(w).w13.data);
    set_flat_input(p, w.format, in, in.per_slot ? kRowSlot : kRowToken,
                   in.scales_per_slot ? kRowSlot : kRowToken);
    set_flat_scales(p, w.w13_scale, w.format == RAMP_FORMAT_FP8_CHANNEL ? w.intermediate : 1);
    p.slices = static_cast<int>(2 * w.intermediate / kTileRows);
    p.steps = static_cast<int>(w.hidden / depth_of(w.format));
    p.codes = static_cast<unsigned char*>(parts.h != nullptr ? parts.h : parts.codes);
    p.out_stride =
        parts.h != nullptr ? w.intermediate : w.intermediate * element_bytes(w.format);  // floats or bytes
    p.h_static = w.w2_input_scale;
    launch_dependent(true, f, grid(), stream, p);
  }
  // What GEMM 1 wrote, or is to be requantised from it.
  GemmInput middle(Prologue& prologue) const {
    const int64_t slots = w.format == RAMP_FORMAT_FP8_CHANNEL ? this->slots : 0;
    if (slots > 0)
      return prologue.requantize(w, parts.h, slots, parts.prologue.index, parts.codes, parts.scales, stream);
    GemmInput in;
    in.data = parts.codes;
    in.stride = w.intermediate;
    in.static_scale = w.w2_input_scale;
    return in;
  }
  // weights: [T,k], absent where they were applied to the input.
  void gemm2(CUfunction f, const GemmInput& in, const ramp_tensor& weights) const {
    StreamParams p = common();
    p.weights = static_cast<const unsigned char*>(weight_views(w).w2.data);
    set_flat_input(p, w.format, in, kRowSorted, kRowSorted);
    set_flat_scales(p, w.w2_scale, 0);
    p.slices = static_cast<int>(w.hidden / kTileRows);
    p.steps = static_cast<int>(w.intermediate / depth_of(w.format));
    p.rows = static_cast<unsigned short*>(parts.rows);
    p.out_stride = w.hidden;
    if (present(weights)) {
      p.slot_weight = static_cast<const float*>(weights.data);
      p.slot_weight_token = weights.stride[0];
      p.slot_weight_slot = weights.stride[1];
    }
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
  const Run run{*gpu_, w, parts, variant, call.tokens * call.top_k, call.top_k, stream};
  const GemmInput x = routing != nullptr ? prologue_.routed_block(*routing, call, parts.prologue, stream)
                                         : prologue_.block(call, parts.prologue, stream);
  run.gemm1(functions[0], x);
  run.gemm2(functions[1], run.middle(prologue_),
            call.router_weight_on_input ? ramp_tensor{} : call.topk_weights);
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
  GemmInput x = prologue_.batched(call, parts.prologue, stream);
  x.per_slot = x.scales_per_slot = true;
  run.gemm1(functions[0], x);
  run.gemm2(functions[1], run.middle(prologue_),
            call.router_weight_on_input ? ramp_tensor{} : call.row_weights);
  combine_.batched(call, parts.rows, flat_rows(w.format), parts.prologue.index, stream);
}

}  // namespace ramp::core::cuda
