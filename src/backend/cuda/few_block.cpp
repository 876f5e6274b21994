// Host side of the few-token block: programs, workspace, parameters, launches. Grids and shared memory depend
// on shapes and the GPU alone.
#include "backend/cuda/few_block.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <array>

#include "backend/cuda/driver.hpp"
#include "backend/cuda/gpu.hpp"
#include "backend/cuda/launch.hpp"
#include "backend/cuda/prologue_kernels.hpp"
#include "backend/cuda/prologue_state.hpp"
#include "backend/cuda/weights.hpp"
#include "base/error.hpp"
#include "base/tensor.hpp"
#include "params/few.hpp"
#include "weights/quantize.hpp"

namespace ramp::core::cuda {
namespace {

constexpr uint64_t kAlignment = 256;
constexpr int64_t kSliceRows = 128;
// A token brings an expert one row, unless ids repeat: so many tokens are one tile per expert at most.
constexpr std::array<int, 2> kTileWidths = {8, 16};
constexpr int64_t kMaxTokens = 16;
// Rings of both GEMMs fit on an SM together, so that GEMM 2's first copies run while GEMM 1 ends.
constexpr int kStages = 6;
// Copies of GEMM 1 (GEMM 2) that are still to be started when the next kernel may begin.
constexpr unsigned kLead = 0;

KernelProgram gemm_program(int gemm, int width) {
  return {
      fmt::format("few_gemm{}_w{}", gemm, width),
      "sm90/few.cu",
      {fmt::format("-DGEMM={}", gemm), fmt::format("-DWIDTH={}", width), fmt::format("-DSTAGES={}", kStages)},
      {"few"},
      90};
}
KernelProgram combine_of_width(int width) {
  return {fmt::format("few_combine_w{}", width),
          "sm90/few_combine.cu",
          {fmt::format("-DWIDTH={}", width)},
          {"few_combine"},
          90};
}
// Of the ring, its factors and its barriers; the plan is static.
unsigned shared_bytes(int width) noexcept {
  const auto w = static_cast<unsigned>(width);
  return kStages * (16384 + w * 128 + w * 8 + 16);
}
constexpr unsigned kThreads = 256 + 32 * kStages;

size_t width_of(int64_t tokens) noexcept {
  return tokens <= kTileWidths[0] ? 0 : 1;
}

struct Parts {
  FewSums gemm1{}, gemm2{};
};
uint64_t carve(const ExpertWeights& w, int64_t tokens, int64_t top_k, void* base, Parts& parts) noexcept {
  uint64_t at = 0;
  const auto take = [&](int64_t floats) {
    void* const p = base == nullptr ? nullptr : static_cast<std::byte*>(base) + at;
    at += (static_cast<uint64_t>(floats) * sizeof(float) + kAlignment - 1) / kAlignment * kAlignment;
    return static_cast<float*>(p);
  };
  const int64_t slots = tokens * top_k;
  const int64_t rest = int64_t{kFewMaxBlocks} * kTileWidths[width_of(tokens)] * kSliceRows;
  parts.gemm1 = {take(slots * 2 * w.intermediate), take(rest)};
  parts.gemm2 = {take(slots * w.hidden), take(rest)};
  return at;
}

bool few(int64_t tokens, int64_t top_k) noexcept {
  return tokens >= 1 && tokens <= kMaxTokens && top_k >= 1 && tokens * top_k <= int64_t{kFewSlots};
}

struct Run {
  const BlockCall& call;
  const ExpertWeights& w;
  Parts parts;
  unsigned blocks;
  CUstream stream;

  [[nodiscard]] FewIds ids() const {
    FewIds p{};
    p.ids = call.ids.data;
    p.ids_stride = call.ids.stride[0];
    p.map = call.expert_map.data();
    p.map_size = call.expert_map.size();
    p.ids_wide = call.ids.dtype == RAMP_I64 ? 1 : 0;
    p.top_k = static_cast<unsigned>(call.top_k);
    p.slots = static_cast<unsigned>(call.tokens * call.top_k);
    p.experts = static_cast<unsigned>(w.experts);
    return p;
  }
  // Slices and steps of the GEMMs.
  [[nodiscard]] unsigned slices1() const { return static_cast<unsigned>(2 * w.intermediate / kSliceRows); }
  [[nodiscard]] unsigned steps1() const { return static_cast<unsigned>(w.hidden / kGroup); }
  [[nodiscard]] unsigned slices2() const { return static_cast<unsigned>(w.hidden / kSliceRows); }
  [[nodiscard]] unsigned steps2() const { return static_cast<unsigned>(w.intermediate / kGroup); }

  void gemm1(CUfunction f, int width) const {
    FewParams p{};
    p.ids = ids();
    p.counters = reinterpret_cast<long long*>(call.counters);
    p.weights = static_cast<const unsigned char*>(weight_views(w).w13.data);
    p.weight_scale = static_cast<const float*>(w.w13_scale.data);
    p.ws_expert = w.w13_scale.stride[0];
    p.ws_row = w.w13_scale.stride[1];
    p.up_scale_row = static_cast<int>(w.intermediate / kGroup);
    p.slices = slices1();
    p.steps = steps1();
    p.blocks = blocks;
    p.lead = kLead;
    p.x = call.x.data;
    p.x_stride = call.x.stride[0];
    p.x_dtype = call.x.dtype;
    if (call.x.dtype == RAMP_E4M3) {
      p.x_scale = static_cast<const float*>(call.x_scale.data);
      p.x_scale_stride = call.x_scale.stride[0];
    }
    if (call.router_weight_on_input) {
      p.input_weight = static_cast<const float*>(call.topk_weights.data);
      p.input_weight_token = call.topk_weights.stride[0];
      p.input_weight_slot = call.topk_weights.stride[1];
    }
    p.out = parts.gemm1;
    launch_kernel(f,
                  {.grid_x = blocks, .threads = kThreads, .shared = shared_bytes(width), .dependent = true},
                  stream, &p);
  }

  void gemm2(CUfunction f, int width) const {
    FewParams p{};
    p.ids = ids();
    p.weights = static_cast<const unsigned char*>(weight_views(w).w2.data);
    p.weight_scale = static_cast<const float*>(w.w2_scale.data);
    p.ws_expert = w.w2_scale.stride[0];
    p.ws_row = w.w2_scale.stride[1];
    p.slices = slices2();
    p.steps = steps2();
    p.before_slices = slices1();
    p.before_steps = steps1();
    p.blocks = blocks;
    p.lead = kLead;
    p.activation = w.activation;
    p.in = parts.gemm1;
    p.out = parts.gemm2;
    launch_dependent(true, f, {blocks, 1, kThreads, shared_bytes(width)}, stream, p);
  }

  void combine(CUfunction f) const {
    FewCombineParams p{};
    p.ids = ids();
    p.in = parts.gemm2;
    p.tokens = static_cast<unsigned>(call.tokens);
    p.hidden = static_cast<unsigned>(w.hidden);
    p.slices = slices2();
    p.steps = steps2();
    p.blocks = blocks;
    if (!call.router_weight_on_input) {
      p.weights = static_cast<const float*>(call.topk_weights.data);
      p.weights_token = call.topk_weights.stride[0];
      p.weights_slot = call.topk_weights.stride[1];
    }
    p.y = call.y.data;
    p.y_token = call.y.stride[0];
    p.y_dtype = call.y.dtype;
    if (present(call.shared_addend)) {
      p.addend = call.shared_addend.data;
      p.addend_dtype = call.shared_addend.dtype;
      p.addend_token = call.shared_addend.stride[0];
    }
    const auto pairs = static_cast<uint64_t>(call.tokens * w.hidden) / kFewColumns;
    launch_dependent(true, f, {ceil_div(pairs, kFewCombineThreads), 1, kFewCombineThreads, 0}, stream, p);
  }
};

}  // namespace

std::vector<KernelProgram> few_programs(int /*arch*/) {
  std::vector<KernelProgram> list;
  for (const int width : kTileWidths) {
    list.push_back(gemm_program(1, width));
    list.push_back(gemm_program(2, width));
    list.push_back(combine_of_width(width));
  }
  return list;
}

FewBlock::FewBlock(std::shared_ptr<const Gpu> gpu, KernelLibrary& library, Prologue& prologue)
    : gpu_(std::move(gpu)), library_(library), prologue_(prologue) {}

void FewBlock::prepare() {
  if (ready_.load(std::memory_order_acquire)) return;
  const std::lock_guard lock(mutex_);
  if (ready_.load(std::memory_order_relaxed)) return;
  for (size_t i = 0; i < kWidths; ++i) {
    const int width = kTileWidths[i];
    Kernels& k = kernels_[i];
    k.gemm1 = library_.get(gemm_program(1, width), "few");
    k.gemm2 = library_.get(gemm_program(2, width), "few");
    k.combine = library_.get(combine_of_width(width), "few_combine");
    for (CUfunction const f : {k.gemm1, k.gemm2})
      RAMP_CU(cuFuncSetAttribute, f, CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES,
              static_cast<int>(shared_bytes(width)));
  }
  ready_.store(true, std::memory_order_release);
}

bool FewBlock::applies(const BlockCall& call) noexcept {
  return few(call.tokens, call.top_k) && call.config == nullptr && call.determinism != RAMP_BATCH_INVARIANT &&
         call.output == RAMP_OUTPUT_COMBINED && rows_aligned(call.x) && rows_aligned(call.y) &&
         (!present(call.shared_addend) || rows_aligned(call.shared_addend));
}

uint64_t FewBlock::workspace(const ExpertWeights& weights, int64_t tokens, int64_t top_k) noexcept {
  if (top_k < 1 || tokens < 1) return 0;
  const int64_t most = std::min({tokens, kMaxTokens, int64_t{kFewSlots} / top_k});
  Parts parts;
  return most < 1 ? 0 : carve(weights, most, top_k, nullptr, parts);
}

void FewBlock::block(const BlockCall& call, const RouteCall* routing) {
  prepare();
  const ExpertWeights& w = *call.weights;
  const size_t number = width_of(call.tokens);
  auto* const stream = static_cast<CUstream>(call.stream);
  const auto blocks = std::min(static_cast<unsigned>(gpu_->facts().sm_count), kFewMaxBlocks);
  Run run{call, w, {}, blocks, stream};
  const uint64_t needed = carve(w, call.tokens, call.top_k, call.workspace, run.parts);
  if (call.workspace == nullptr || call.workspace_bytes < needed) {
    fail_argument("workspace_bytes", fmt::format("{}", call.workspace_bytes),
                  fmt::format("at least {}", needed), "ask for the size first",
                  RAMP_ERROR_WORKSPACE_TOO_SMALL);
  }
  if (routing != nullptr) {
    RouteCall before = *routing;
    before.stream = call.stream;
    prologue_.route(before);
  }
  run.gemm1(kernels_[number].gemm1, kTileWidths[number]);
  run.gemm2(kernels_[number].gemm2, kTileWidths[number]);
  run.combine(kernels_[number].combine);
}

}  // namespace ramp::core::cuda
