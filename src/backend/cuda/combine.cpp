// Host side of the combine kernels: programs, parameters, launches. Grids depend on shapes alone.
#include "backend/cuda/combine.hpp"

#include <fmt/format.h>

#include <array>
#include <atomic>
#include <mutex>

#include "backend/cuda/driver.hpp"
#include "backend/cuda/launch.hpp"
#include "base/tensor.hpp"
#include "params/block.hpp"

namespace ramp::core::cuda {
namespace {

constexpr unsigned kCombineThreads = 128;  // kernels/combine/combine.cu

}  // namespace

KernelProgram combine_program(ramp_dtype y_dtype) {
  return {
      fmt::format("combine_{}", dtype_name(y_dtype)),
      "combine/combine.cu",
      {fmt::format("-DY={}", static_cast<int>(y_dtype))},
      {"combine_f32", "combine_f32_k2", "per_slot_f32", "combine_bf16", "combine_bf16_k2", "per_slot_bf16"},
      80};
}

std::vector<KernelProgram> combine_programs(int /*arch*/) {
  return {combine_program(RAMP_F32), combine_program(RAMP_F16), combine_program(RAMP_BF16)};
}

struct Combine::State {
  static constexpr size_t kY = 4;  // by ramp_dtype: f32 1, f16 2, bf16 3
  std::mutex mutex;
  std::array<std::atomic<bool>, kY> ready{};
  std::array<std::array<std::array<CUfunction, 3>, 2>, kY> functions{};  // [y][rows][combine, k2, per slot]
};

Combine::Combine(std::shared_ptr<const Gpu> gpu, KernelLibrary& library)
    : gpu_(std::move(gpu)), library_(library), state_(std::make_shared<State>()) {}

void Combine::prepare(ramp_dtype y_dtype) {
  const auto y = static_cast<size_t>(y_dtype);
  if (state_->ready[y].load(std::memory_order_acquire)) return;
  const std::lock_guard lock(state_->mutex);
  if (state_->ready[y].load(std::memory_order_relaxed)) return;
  const KernelProgram program = combine_program(y_dtype);
  constexpr std::array<const char*, 2> kRows = {"f32", "bf16"};
  for (size_t r = 0; r < kRows.size(); ++r) {
    state_->functions[y][r] = {library_.get(program, fmt::format("combine_{}", kRows[r])),
                               library_.get(program, fmt::format("combine_{}_k2", kRows[r])),
                               library_.get(program, fmt::format("per_slot_{}", kRows[r]))};
  }
  state_->ready[y].store(true, std::memory_order_release);
}

CUfunction Combine::function(bool per_slot, ramp_dtype rows, int32_t y, int64_t top_k) {
  prepare(static_cast<ramp_dtype>(y));
  const auto& entries = state_->functions[static_cast<size_t>(y)][rows == RAMP_F32 ? 0 : 1];
  return per_slot ? entries[2] : entries[top_k <= 4 ? 1 : 0];
}

void Combine::block(const BlockCall& call, const void* rows, ramp_dtype rows_dtype, const RowIndex& index,
                    CUstream stream) {
  const bool per_slot = call.output == RAMP_OUTPUT_PER_SLOT;
  CombineParams p{};
  p.rows = rows;
  p.positions = index.positions;
  p.tokens = static_cast<int>(call.tokens);
  p.top_k = static_cast<int>(call.top_k);
  p.hidden = static_cast<int>(call.weights->hidden);
  p.y = call.y.data;
  p.y_token = call.y.stride[0];
  p.y_slot = per_slot ? call.y.stride[1] : 0;
  const int64_t width = dtype_bytes(static_cast<ramp_dtype>(call.y.dtype));
  p.y_aligned = rows_aligned(call.y.data, width, {p.y_token, p.y_slot}) ? 1 : 0;
  if (present(call.shared_addend)) {
    p.addend = call.shared_addend.data;
    p.addend_dtype = call.shared_addend.dtype;
    p.addend_token = call.shared_addend.stride[0];
    p.addend_aligned =
        rows_aligned(p.addend, dtype_bytes(static_cast<ramp_dtype>(p.addend_dtype)), {p.addend_token}) ? 1
                                                                                                       : 0;
  }
  const uint64_t outputs =
      static_cast<uint64_t>(call.tokens) * (per_slot ? static_cast<uint64_t>(call.top_k) : 1);
  const uint64_t vectors = outputs * static_cast<uint64_t>(call.weights->hidden) / 8;
  launch_dependent(gpu_->facts().major >= 9, function(per_slot, rows_dtype, call.y.dtype, call.top_k),
                   {ceil_div(vectors, kCombineThreads), 1, kCombineThreads, 0}, stream, p);
}

void Combine::convert(const BlockCall& call, const float* sums, CUstream stream) {
  RowIndex none;  // no positions: row t is token t
  block(call, sums, RAMP_F32, none, stream);
}

void Combine::batched(const BatchedCall& call, const void* rows, ramp_dtype rows_dtype, const RowIndex& index,
                      CUstream stream) {
  CombineParams p{};
  p.rows = rows;
  p.positions = index.positions;
  p.tokens = static_cast<int>(call.weights->experts);
  p.top_k = static_cast<int>(call.max_tokens);
  p.hidden = static_cast<int>(call.weights->hidden);
  p.y = call.y.data;
  p.y_token = call.y.stride[0];
  p.y_slot = call.y.stride[1];
  p.y_aligned =
      rows_aligned(call.y.data, dtype_bytes(static_cast<ramp_dtype>(call.y.dtype)), {p.y_token, p.y_slot})
          ? 1
          : 0;
  p.keep_masked = 1;
  const uint64_t vectors = static_cast<uint64_t>(call.weights->experts) *
                           static_cast<uint64_t>(call.max_tokens) *
                           static_cast<uint64_t>(call.weights->hidden) / 8;
  launch_dependent(gpu_->facts().major >= 9, function(true, rows_dtype, call.y.dtype, 1),
                   {ceil_div(vectors, kCombineThreads), 1, kCombineThreads, 0}, stream, p);
}

}  // namespace ramp::core::cuda
