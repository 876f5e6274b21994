// Host side of the few-token block: programs, workspace, parameters, the launch. Grid and shared memory
// depend on the GPU alone.
#include "backend/cuda/few_block.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <array>

#include "backend/cuda/driver.hpp"
#include "backend/cuda/gpu.hpp"
#include "backend/cuda/prologue_state.hpp"
#include "backend/cuda/weights.hpp"
#include "backend/cuda/workspace.hpp"
#include "base/error.hpp"
#include "base/tensor.hpp"
#include "params/few.hpp"
#include "weights/quantize.hpp"

namespace ramp::core::cuda {
namespace {

constexpr int64_t kSliceRows = 128;
constexpr int64_t kMaxTokens = 16;

// The compiled kernels. direct: codes are made where they are used, for the very fewest tokens; stages: of
// the ring; window: copies of 16 KB under way per SM.
struct FewKernel {
  bool direct;
  int width, stages, window;  // width: tokens at most
};
// As many stages as shared memory holds beside 4 KB of plan; direct kernels have a warp per stage: with 11
// there are 20 warps.
constexpr std::array<FewKernel, 3> kKernels = {{{true, 8, 11, 4}, {false, 8, 12, 4}, {false, 16, 12, 4}}};
// Measured (docs/kernel-log.md).
constexpr int64_t kDirectTokens = 1;

KernelProgram few_program(const FewKernel& k) {
  return {fmt::format("few{}_w{}", k.direct ? "_direct" : "", k.width),
          "sm90/few.cu",
          {fmt::format("-DDIRECT={}", k.direct ? 1 : 0), fmt::format("-DWIDTH={}", k.width),
           fmt::format("-DSTAGES={}", k.stages), fmt::format("-DWINDOW={}", k.window)},
          {"few"},
          90};
}
unsigned shared_bytes(const FewKernel& k) noexcept {
  return few_shared(static_cast<unsigned>(k.width), static_cast<unsigned>(k.stages));
}

size_t program_of(int64_t tokens) noexcept {
  return tokens <= kDirectTokens ? 0 : tokens <= kKernels[1].width ? 1 : 2;
}
bool few(const ExpertWeights& w, int64_t tokens, int64_t top_k) noexcept {
  constexpr int64_t kDeepest = int64_t{kFewDepth} * kGroup;
  return tokens >= 1 && tokens <= kMaxTokens && top_k >= 1 && tokens * top_k <= int64_t{kFewSlots} &&
         w.hidden <= kDeepest && w.intermediate <= kDeepest;
}

struct Parts {
  FewCodes in1{}, in2{};
  float *out1 = nullptr, *out2 = nullptr;
};
uint64_t carve(const ExpertWeights& w, int64_t tokens, int64_t top_k, void* base, Parts& parts) noexcept {
  WorkspaceLayout layout(base);
  const int64_t width = kKernels[program_of(tokens)].width;
  const int64_t slots = tokens * top_k;
  const int64_t active = std::min(slots, w.experts);
  parts.in1.codes = layout.take<unsigned char>(width * w.hidden);
  parts.in1.scales = layout.take<float>(width * w.hidden / kGroup);
  parts.in2.codes = layout.take<unsigned char>(active * width * w.intermediate);
  parts.in2.scales = layout.take<float>(active * width * w.intermediate / kGroup);
  // How many parts an item has is decided on the device, from the experts that are active.
  const auto most = [](int64_t steps) { return std::min<int64_t>(kFewParts, steps); };
  parts.out1 = layout.take<float>(most(w.hidden / kGroup) * slots * 2 * w.intermediate);
  parts.out2 = layout.take<float>(most(w.intermediate / kGroup) * slots * w.hidden);
  return layout.used();
}

FewWeights weights_of(const ramp_tensor& values, const ramp_tensor& scale, int64_t rows, int64_t depth) {
  return {static_cast<const unsigned char*>(values.data),
          static_cast<const float*>(scale.data),
          scale.stride[0],
          scale.stride[1],
          static_cast<unsigned>(rows / kSliceRows),
          static_cast<unsigned>(depth / kGroup)};
}

FewParams describe(const BlockCall& call, const Parts& parts) {
  const ExpertWeights& w = *call.weights;
  const WeightViews views = weight_views(w);
  FewParams p{};
  p.ids = call.ids.data;
  p.ids_stride = call.ids.stride[0];
  p.map = call.expert_map.data();
  p.map_size = call.expert_map.size();
  p.ids_wide = call.ids.dtype == RAMP_I64 ? 1 : 0;
  p.tokens = static_cast<unsigned>(call.tokens);
  p.top_k = static_cast<unsigned>(call.top_k);
  p.slots = p.tokens * p.top_k;
  p.experts = static_cast<unsigned>(w.experts);
  p.counters = reinterpret_cast<long long*>(call.counters);
  p.w13 = weights_of(views.w13, w.w13_scale, 2 * w.intermediate, w.hidden);
  p.w2 = weights_of(views.w2, w.w2_scale, w.hidden, w.intermediate);
  p.up_scale_row = static_cast<unsigned>(w.intermediate / kGroup);
  p.hidden = static_cast<unsigned>(w.hidden);
  p.intermediate = static_cast<unsigned>(w.intermediate);
  p.x = call.x.data;
  p.x_stride = call.x.stride[0];
  p.x_dtype = call.x.dtype;
  p.activation = w.activation;
  if (call.x.dtype == RAMP_E4M3) {
    p.x_scale = static_cast<const float*>(call.x_scale.data);
    p.x_scale_stride = call.x_scale.stride[0];
  }
  p.in1 = parts.in1;
  p.in2 = parts.in2;
  p.out1 = parts.out1;
  p.out2 = parts.out2;
  p.weights = static_cast<const float*>(call.topk_weights.data);
  p.weights_token = call.topk_weights.stride[0];
  p.weights_slot = call.topk_weights.stride[1];
  p.y = call.y.data;
  p.y_token = call.y.stride[0];
  p.y_dtype = call.y.dtype;
  if (present(call.shared_addend)) {
    p.addend = call.shared_addend.data;
    p.addend_dtype = call.shared_addend.dtype;
    p.addend_token = call.shared_addend.stride[0];
  }
  return p;
}

}  // namespace

std::vector<KernelProgram> few_programs(int /*arch*/) {
  std::vector<KernelProgram> list;
  for (const FewKernel& k : kKernels) list.push_back(few_program(k));
  return list;
}

FewBlock::FewBlock(std::shared_ptr<const Gpu> gpu, KernelLibrary& library,
                   std::shared_ptr<const DeviceMemory> memory, Prologue& prologue, bool everywhere)
    : gpu_(std::move(gpu)),
      library_(library),
      memory_(std::move(memory)),
      prologue_(prologue),
      everywhere_(everywhere) {}

// A cooperative launch, after everything in front of it: two such grids that begin early might each get a
// part of the SMs and wait for the rest.
CUresult FewBlock::launch(size_t number, const FewParams& params, CUstream stream) const {
  const FewKernel& k = kKernels[number];
  CUlaunchAttribute attribute{};
  attribute.id = CU_LAUNCH_ATTRIBUTE_COOPERATIVE;
  attribute.value.cooperative = 1;
  CUlaunchConfig config{};
  config.gridDimX = std::min(static_cast<unsigned>(gpu_->facts().sm_count), kFewMaxBlocks);
  config.gridDimY = config.gridDimZ = 1;
  config.blockDimX = few_threads(k.direct, static_cast<unsigned>(k.stages));
  config.blockDimY = config.blockDimZ = 1;
  config.sharedMemBytes = shared_bytes(k);
  config.hStream = stream;
  config.attrs = &attribute;
  config.numAttrs = 1;
  void* arguments[] = {const_cast<FewParams*>(&params)};
  return driver().cuLaunchKernelEx(&config, kernels_[number], static_cast<void**>(arguments),
                                   static_cast<void**>(nullptr));
}

size_t FewBlock::programs_used() const noexcept {
  static_assert(kKernels.size() == kPrograms);
  return everywhere_ ? kPrograms : 0;  // the stream block is as fast or faster (docs/kernel-log.md)
}

std::vector<KernelProgram> FewBlock::programs() const {
  std::vector<KernelProgram> list;
  for (size_t i = 0; i < programs_used(); ++i) list.push_back(few_program(kKernels[i]));
  return list;
}

void FewBlock::prepare() {
  if (!everywhere_) return;
  if (ready_.load(std::memory_order_acquire)) return;
  const std::lock_guard lock(mutex_);
  if (ready_.load(std::memory_order_relaxed)) return;
  for (size_t i = 0; i < programs_used(); ++i) {
    kernels_[i] = library_.get(few_program(kKernels[i]), "few");
    RAMP_CU(cuFuncSetAttribute, kernels_[i], CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES,
            static_cast<int>(shared_bytes(kKernels[i])));
  }
  more_barriers();
  // Where a context has fewer SMs than the device the grid does not fit: found out here, by launches without
  // tokens, not in the middle of a call.
  usable_ = true;
  for (size_t i = 0; i < programs_used() && usable_; ++i) {
    FewParams nothing{};
    nothing.top_k = 1;
    nothing.barrier = static_cast<unsigned*>(barriers_.front().get());
    nothing.w13.slices = nothing.w13.steps = nothing.w2.slices = nothing.w2.steps = 1;
    const CUresult result = launch(i, nothing, nullptr);
    usable_ = result != CUDA_ERROR_COOPERATIVE_LAUNCH_TOO_LARGE;
    if (usable_) check_result(result, "cuLaunchKernelEx", "the few-token kernel without tokens");
  }
  memory_->synchronize(nullptr);
  ready_.store(true, std::memory_order_release);
}

void FewBlock::more_barriers() {
  constexpr uint64_t kBytes = kBarriers * kFewBarrierBytes;
  std::shared_ptr<void> chunk = memory_->allocate(kBytes);
  memory_->fill(chunk.get(), 0, kBytes, nullptr);
  memory_->synchronize(nullptr);
  barriers_.push_back(std::move(chunk));
}

unsigned* FewBlock::barrier_of(const void* workspace, CUstream stream) {
  const std::lock_guard lock(mutex_);
  const auto known = barrier_numbers_.find(workspace);
  uint64_t number = barrier_numbers_.size();
  if (known != barrier_numbers_.end()) {
    number = known->second;
  } else {
    if (number == barriers_.size() * kBarriers) {
      CUstreamCaptureStatus status = CU_STREAM_CAPTURE_STATUS_NONE;
      RAMP_CU(cuStreamIsCapturing, stream, &status);
      if (status != CU_STREAM_CAPTURE_STATUS_NONE) return nullptr;  // no memory can be had now
      more_barriers();
    }
    barrier_numbers_.emplace(workspace, number);
  }
  return reinterpret_cast<unsigned*>(static_cast<std::byte*>(barriers_[number / kBarriers].get()) +
                                     number % kBarriers * kFewBarrierBytes);
}

bool FewBlock::applies(const BlockCall& call) const noexcept {
  const ExpertWeights& w = *call.weights;
  return few(w, call.tokens, call.top_k) && call.config == nullptr &&
         call.determinism != RAMP_BATCH_INVARIANT && call.output == RAMP_OUTPUT_COMBINED &&
         !call.router_weight_on_input && present(call.topk_weights) && rows_aligned(call.x) &&
         rows_aligned(call.y) && (!present(call.shared_addend) || rows_aligned(call.shared_addend)) &&
         everywhere_;
}

uint64_t FewBlock::workspace(const ExpertWeights& weights, int64_t tokens, int64_t top_k) const noexcept {
  if (!everywhere_ || top_k < 1 || tokens < 1) return 0;
  const int64_t most = std::min({tokens, kMaxTokens, int64_t{kFewSlots} / top_k});
  Parts parts;
  return !few(weights, most, top_k) ? 0 : carve(weights, most, top_k, nullptr, parts);
}

bool FewBlock::block(const BlockCall& call, const RouteCall* routing) {
  const ExpertWeights& w = *call.weights;
  Parts parts;
  const uint64_t needed = carve(w, call.tokens, call.top_k, call.workspace, parts);
  check_workspace(call.workspace, call.workspace_bytes, needed);
  prepare();
  if (!usable_) return false;
  auto* const stream = static_cast<CUstream>(call.stream);
  unsigned* const barrier = barrier_of(call.workspace, stream);
  if (barrier == nullptr) return false;
  if (routing != nullptr) {
    RouteCall before = *routing;
    before.stream = call.stream;
    prologue_.route(before);
  }
  FewParams p = describe(call, parts);
  p.barrier = barrier;
  check_result(launch(program_of(call.tokens), p, stream), "cuLaunchKernelEx", "the few-token kernel");
  return true;
}

}  // namespace ramp::core::cuda
