// One call of the expert block, normalised: both entries (token list and batched slabs) become the same plain
// struct of shapes, pointers and workspace pieces, which the phases in expert_block.cpp then work on.
//
// Words: a *slot* is one (token, choice) pair, numbered t * k + j (batched: slab e, row i is slot e *
// max_tokens + i); a *row* is a position in the sorted order of valid slots, in which an expert's rows are
// adjacent.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>

#include "backend/backend.hpp"
#include "backend/cpu/executor.hpp"
#include "backend/cpu/kernel_table.hpp"
#include "backend/cpu/panels.hpp"
#include "backend/cpu/tiles.hpp"

namespace ramp::core {

// Hands out 64-byte aligned pieces of a workspace; with base == nullptr it only adds up what they take.
class Arena {
 public:
  explicit Arena(void* base) : base_(static_cast<std::byte*>(base)) {}
  template <typename T>
  std::span<T> take(int64_t count) noexcept {
    used_ = (used_ + 63) / 64 * 64;
    T* const data = base_ != nullptr ? reinterpret_cast<T*>(base_ + used_) : nullptr;
    used_ += static_cast<uint64_t>(count) * sizeof(T);
    return {data, static_cast<size_t>(count)};
  }
  [[nodiscard]] uint64_t used() const noexcept { return used_; }

 private:
  std::byte* base_;
  uint64_t used_ = 0;
};

// Rows addressed in two steps: row r lies at (r / inner) * outer_stride + (r % inner) * inner_stride.
struct RowMap {
  int64_t inner = 1, outer_stride = 0, inner_stride = 0;
  [[nodiscard]] int64_t at(int64_t r) const noexcept {
    return inner == 1 ? r * outer_stride : r / inner * outer_stride + r % inner * inner_stride;
  }
};

// Scratch of one worker.
struct TileScratch {
  float* a = nullptr;            // [kMaxTileM][kRowStride] rows of x of one depth step, fp32 or bf16
  float* w = nullptr;            // [kMaxTileK][32] one decoded panel of one depth step, fp32 or bf16
  float* c = nullptr;            // [kMaxTileM][kSumStride] accumulators
  float* v = nullptr;            // [kMaxTileN] one row on its way out
  float* lanes = nullptr;        // [kMaxTileN] weight scales of a tile's rows
  float* scales = nullptr;       // [kMaxTileK / 128][kMaxTileM] activation scales
  const float** rows = nullptr;  // [k] combine
  float* row_weights = nullptr;  // [k]
};

enum class Quantisation : int32_t { kNone, kGroup, kRow, kStatic };
Quantisation quantisation_of(ramp_format f) noexcept;

struct Job {
  const CpuKernels* kernels = nullptr;
  Executor* executor = nullptr;
  const ExpertWeights* weights = nullptr;
  WeightMatrix w13, w2;
  KernelConfig config;
  Quantisation quantisation = Quantisation::kNone;
  int64_t experts = 0, hidden = 0, intermediate = 0, rows13 = 0;
  int64_t groups13 = 0, groups2 = 0;  // activation scales per row of x and of the intermediate
  int64_t tokens = 0, top_k = 0;      // batched: experts, max_tokens
  int64_t slots = 0;                  // tokens * top_k
  int64_t x_rows = 0;                 // rows of x: tokens, or slots when batched
  bool batched = false, per_slot = false, weight_on_input = false;

  // Caller's tensors.
  const std::byte* x = nullptr;
  ramp_dtype x_dtype = RAMP_DTYPE_NONE;
  RowMap x_map;  // bytes
  const float* x_scale = nullptr;
  RowMap x_scale_map;                  // elements
  const float* slot_weight = nullptr;  // nullptr: 1
  int64_t weight_stride0 = 0, weight_stride1 = 1;
  ramp_tensor addend{}, y{};

  // Workspace.
  std::span<int32_t> offsets, sorted_slots, positions, counts, plan_experts, plan_tiles;
  std::span<std::byte> x_codes;   // [x_rows, H] e4m3, when this call quantises x
  std::span<float> x_code_scale;  // [x_rows, groups13]: scales, or amax with weight_on_input
  std::span<std::byte> h;         // [rows, I] intermediate in the format's type; see h_row_bytes
  std::span<float> h_scale;       // [rows, groups2]
  std::span<float> staged;  // fp32 sums: partial sums of a split GEMM1, or activations awaiting their scale
  std::span<float> out;     // fp32 results of GEMM2 awaiting the combine
  std::span<std::byte> scratch;  // [workers] TileScratch
  TilePlan plan;
  int64_t rows = 0;  // valid ones
  int64_t masked_slots = 0;

  [[nodiscard]] bool quantises_x() const noexcept {
    return quantisation != Quantisation::kNone && x_dtype != RAMP_E4M3;
  }
  // Row of x that a slot reads.
  [[nodiscard]] int64_t x_row(int64_t slot) const noexcept { return batched ? slot : slot / top_k; }
  [[nodiscard]] float weight(int64_t slot) const noexcept {
    return slot_weight == nullptr
               ? 1.0F
               : slot_weight[slot / top_k * weight_stride0 + slot % top_k * weight_stride1];
  }
  // Bytes of one row of h: fp8_channel keeps fp32 there first and its codes in the same place afterwards.
  [[nodiscard]] int64_t h_row_bytes() const noexcept {
    return intermediate * (quantisation == Quantisation::kRow ? 4 : w13.width);
  }
};

// Shapes and weights (the part that the workspace depends on). tokens, top_k as in Job.
Job make_job(const ExpertWeights& w, int64_t tokens, int64_t top_k, bool batched, const CpuKernels& kernels,
             Executor& executor);
// Carves the workspace; -> bytes used. base == nullptr: only counts. Grows with tokens.
uint64_t carve_workspace(Job& job, void* base) noexcept;
TileScratch worker_scratch(const Job& job, int32_t worker) noexcept;

// Runs a filled job: everything after the rows are sorted (offsets, sorted_slots, positions, plan set).
void run_job(Job& job);

}  // namespace ramp::core
