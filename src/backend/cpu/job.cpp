// Shapes of a job and the carving of its workspace.
//
// No buffer is as large as T*k x H, except by need of a small step: GEMM2's fp32 results wait for the combine
// in blocks of columns that together stay below kBlockBytes, and so do activations that wait for their scale.
#include "backend/cpu/job.hpp"

#include <algorithm>

#include "weights/quantize.hpp"

namespace ramp::core {
namespace {

// Budget of `staged` and `out`: they are written and read back once, so they should stay in the last-level
// cache's reach, and more columns at a time than this gives gain nothing.
constexpr int64_t kBlockBytes = int64_t{32} << 20;
constexpr int64_t kFewestColumns = 256;  // a slice that still reads weights in long runs
constexpr int64_t kMostSplits = 8;       // configs.cpp's limit

constexpr int64_t groups_of(int64_t n) noexcept {
  return (n + kGroup - 1) / kGroup;
}

// Floats of a buffer [rows, columns] that is processed in column blocks: all columns if they fit the budget,
// else what fits, but at least kFewestColumns. Grows with rows.
int64_t block_floats(int64_t rows, int64_t columns) noexcept {
  const int64_t fits = std::min(rows * columns, kBlockBytes / 4);
  return std::max(fits, rows * std::min(columns, kFewestColumns));
}

constexpr int64_t kScaleRows = kMaxTileK / kScaleGroup;

// Carves one worker's scratch; base == nullptr counts.
uint64_t carve_scratch(int64_t top_k, void* base, TileScratch* out) noexcept {
  Arena arena(base);
  TileScratch s;
  s.a = arena.take<float>(int64_t{kMaxTileM} * kRowStride).data();
  s.w = arena.take<float>(int64_t{kMaxTileK} * kPanelRows).data();
  s.c = arena.take<float>(int64_t{kMaxTileM} * kSumStride).data();
  s.v = arena.take<float>(kMaxTileN).data();
  s.lanes = arena.take<float>(kMaxTileN).data();
  s.scales = arena.take<float>(kScaleRows * kMaxTileM).data();
  s.rows = arena.take<const float*>(top_k).data();
  s.row_weights = arena.take<float>(top_k).data();
  if (out != nullptr) *out = s;
  return (arena.used() + 255) / 256 * 256;
}

}  // namespace

Quantisation quantisation_of(ramp_format f) noexcept {
  switch (f) {
    case RAMP_FORMAT_FP8_BLOCK:
      return Quantisation::kGroup;
    case RAMP_FORMAT_FP8_CHANNEL:
      return Quantisation::kRow;
    case RAMP_FORMAT_FP8_TENSOR:
      return Quantisation::kStatic;
    default:
      return Quantisation::kNone;
  }
}

Job make_job(const ExpertWeights& w, int64_t tokens, int64_t top_k, bool batched, const CpuKernels& kernels,
             Executor& executor) {
  Job j;
  j.kernels = &kernels;
  j.executor = &executor;
  j.weights = &w;
  j.w13 = w13_matrix(w);
  j.w2 = w2_matrix(w);
  j.quantisation = quantisation_of(w.format);
  j.experts = w.experts;
  j.hidden = w.hidden;
  j.intermediate = w.intermediate;
  j.rows13 = w.rows13();
  switch (j.quantisation) {
    case Quantisation::kGroup:
      j.groups13 = groups_of(w.hidden);
      j.groups2 = groups_of(w.intermediate);
      break;
    case Quantisation::kRow:
      j.groups13 = j.groups2 = 1;
      break;
    default:
      break;
  }
  j.tokens = tokens;
  j.top_k = top_k;
  j.slots = tokens * top_k;
  j.x_rows = batched ? j.slots : tokens;
  j.batched = batched;
  return j;
}

uint64_t carve_workspace(Job& j, void* base) noexcept {
  Arena arena(base);
  j.offsets = arena.take<int32_t>(j.experts + 1);
  j.counts = arena.take<int32_t>(j.experts);
  j.plan_experts = arena.take<int32_t>(j.experts);
  j.plan_tiles = arena.take<int32_t>(j.experts + 1);
  j.sorted_slots = arena.take<int32_t>(j.slots);
  j.positions = arena.take<int32_t>(j.batched ? 0 : j.slots);
  // Sized for any dtype of x: the query does not know it.
  const bool quantised = j.quantisation != Quantisation::kNone;
  j.x_codes = arena.take<std::byte>(quantised ? j.x_rows * j.hidden : 0);
  j.x_code_scale = arena.take<float>(j.x_rows * j.groups13);
  j.h = arena.take<std::byte>(j.slots * j.h_row_bytes());
  j.h_scale = arena.take<float>(j.slots * j.groups2);
  // Partial sums of a split GEMM1, for as many parts as the budget allows; or staged activations.
  const int64_t partial = std::min(j.slots * j.rows13 * kMostSplits, kBlockBytes / 4);
  const int64_t staged =
      j.quantisation == Quantisation::kGroup ? block_floats(j.slots, j.intermediate) : int64_t{0};
  j.staged = arena.take<float>(std::max(partial, staged));
  // Per-slot results go straight to y, but the query does not know the output mode either.
  j.out = arena.take<float>(j.batched ? 0 : block_floats(j.slots, j.hidden));
  j.scratch = arena.take<std::byte>(static_cast<int64_t>(carve_scratch(j.top_k, nullptr, nullptr)) *
                                    j.executor->workers());
  return (arena.used() + 255) / 256 * 256;
}

TileScratch worker_scratch(const Job& j, int32_t worker) noexcept {
  TileScratch s;
  const size_t bytes = j.scratch.size() / static_cast<size_t>(j.executor->workers());
  carve_scratch(j.top_k, j.scratch.data() + static_cast<size_t>(worker) * bytes, &s);
  return s;
}

}  // namespace ramp::core
