// The prologue's launches: what x needs before GEMM1 reads it, how the sort is divided, and the grids, all
// from shapes and dtypes alone.
#include "backend/cuda/prologue.hpp"

#include <fmt/format.h>

#include <algorithm>

#include "backend/cuda/driver.hpp"
#include "backend/cuda/prologue_state.hpp"
#include "base/error.hpp"
#include "base/tensor.hpp"
#include "routing/router.hpp"
#include "weights/quantize.hpp"

namespace ramp::core::cuda {
namespace {

// Blocks per SM that convert rows: in a grid of their own all resident (the kernels are bounded to 64
// registers), beside other blocks smaller shares, which even out who starts late.
constexpr unsigned kBlocksPerSm = 2;
constexpr unsigned kBlocksPerSmBeside = 8;
// Few segments of rows are spread so that a block has no more than one per scheduler of the SM.
constexpr int64_t kSegmentsPerBlock = 4;
// Whether GEMM 1 may start beside the prologue. It gains 0.5 us of 23 at T = 1 (H200, OLMoE and Qwen3-30B),
// loses 1 to 1.5% of the block at T = 8 to 128, where its blocks crowd out the prologue's, and makes no
// difference to the block at 512, where the prologue itself is 0.6 us shorter with it (back to back,
// DeepSeek-V3).
constexpr bool triggers_early(int64_t tokens) noexcept {
  return tokens <= 4 || tokens >= 256;
}

ramp_dtype activation_dtype(ramp_format format) noexcept {
  switch (format) {
    case RAMP_FORMAT_F32:
      return RAMP_F32;
    case RAMP_FORMAT_BF16:
      return RAMP_BF16;
    case RAMP_FORMAT_F16:
      return RAMP_F16;
    default:
      return RAMP_E4M3;
  }
}
ramp_dtype type_of(const ramp_tensor& t) noexcept {
  return static_cast<ramp_dtype>(t.dtype);
}
// Scales per row that the format's activations have: 0 where there is one for all, or none.
int64_t scale_groups(ramp_format format, int64_t columns) noexcept {
  if (format == RAMP_FORMAT_FP8_BLOCK) return (columns + kGroup - 1) / kGroup;
  return format == RAMP_FORMAT_FP8_CHANNEL ? 1 : 0;
}

// What has to be done to x.
struct Conversion {
  ramp_dtype program = RAMP_DTYPE_NONE;  // x's type; NONE: nothing
  RowsParams rows{};
  GemmInput input;
};

// The side of a call that concerns x, the same for both entries.
struct InputCall {
  const ExpertWeights& weights;
  const ramp_tensor &x, &x_scale;
  const ramp_tensor* router_weights;  // when they multiply x
  InputRows source;
  int64_t rows, top_k;
  int64_t row_dimension;              // of x: 0, batched 1
  bool one_stride, one_scale_stride;  // row e*max_tokens + r lies at that times the stride
};

Conversion plan_conversion(const InputCall& c, const PrologueWorkspace& workspace) {
  const ExpertWeights& w = c.weights;
  const ramp_dtype x = type_of(c.x);
  const ramp_dtype target = activation_dtype(w.format);
  const bool on_input = c.router_weights != nullptr;
  const bool given = x == RAMP_E4M3;  // codes and scales are the caller's
  const bool in_place = x == target && rows_aligned(c.x) && c.one_stride && (given || !on_input);
  const bool per_slot = c.source != kRowsAreTokens;
  const int64_t groups = scale_groups(w.format, w.hidden);

  Conversion out;
  GemmInput& in = out.input;
  in.dtype = target;
  in.per_slot = per_slot && !(in_place && c.source == kRowsAreSlots);
  in.data = in_place ? c.x.data : workspace.codes;
  in.stride = in_place ? c.x.stride[c.row_dimension] : w.hidden;
  in.static_scale = w.w13_input_scale;
  // Pre-quantised: the caller's scales in place, unless they change or have to move.
  const bool scales_move = given && (on_input || (groups != 0 && !c.one_scale_stride) ||
                                     (groups != 0 && !in_place && c.source == kRowsAreSlots));
  if (given && !scales_move) {
    in.groups = groups;
    in.scales = groups == 0 ? nullptr : static_cast<const float*>(c.x_scale.data);
    in.scale_stride = groups == 0 ? 0 : c.x_scale.stride[c.row_dimension];
    in.scales_per_slot = c.source == kRowsAreBatched;
  } else if (target == RAMP_E4M3 && (groups != 0 || scales_move)) {
    in.groups = std::max<int64_t>(groups, 1);
    in.scales = workspace.scales;
    in.scale_stride = in.groups;
    in.scales_per_slot = per_slot;
  }
  if (in_place && !scales_move) return out;

  out.program = x;
  RowsParams& r = out.rows;
  r.x = c.x.data;
  r.stride = c.x.stride[c.row_dimension];
  r.source = c.source;
  r.rows = static_cast<unsigned>(c.rows);
  r.top_k = static_cast<unsigned>(c.top_k);
  r.columns = static_cast<unsigned>(w.hidden);
  r.groups = static_cast<unsigned>(in.groups);
  r.aligned = rows_aligned(c.x) ? 1 : 0;
  r.static_scale = w.w13_input_scale;
  r.out = in_place ? nullptr : workspace.codes;
  r.scales = in.scales == workspace.scales ? workspace.scales : nullptr;
  if (given && groups != 0) {
    r.x_scale = static_cast<const float*>(c.x_scale.data);
    r.scale_stride = c.x_scale.stride[c.row_dimension];
  }
  if (c.source == kRowsAreBatched) {
    r.slab = c.x.stride[0];
    r.scale_slab = c.x_scale.stride[0];
  }
  if (on_input) {
    r.weights = static_cast<const float*>(c.router_weights->data);
    r.weights_stride = c.router_weights->stride[0];
  }
  return out;
}

// Blocks that convert `rows` rows: a warp's segment each, or for fp8_channel the block's teams, at most.
unsigned row_blocks(const RowsParams& r, ramp_format format, int64_t rows, unsigned limit) noexcept {
  const int64_t segments = (int64_t{r.columns} + kSegment - 1) / kSegment;
  int64_t warps = segments;
  if (format == RAMP_FORMAT_FP8_CHANNEL) {
    int64_t team = 1;
    while (team < segments && team < kPrologueWarps) team *= 2;
    warps = team;
  }
  const int64_t each = format == RAMP_FORMAT_FP8_CHANNEL ? kPrologueWarps : kSegmentsPerBlock;
  const int64_t blocks = (rows * warps + each - 1) / each;
  return static_cast<unsigned>(std::clamp<int64_t>(blocks, 0, limit));
}

void check_experts(int64_t experts) {
  if (experts <= int64_t{kPrologueMaxExperts}) return;
  fail_argument("weights", fmt::format("{} local experts", experts),
                fmt::format("at most {}", kPrologueMaxExperts), "spread the experts over several devices",
                RAMP_ERROR_UNSUPPORTED);
}

void describe_index(const RowIndex& index, SortParams& s) noexcept {
  s.offsets = index.offsets;
  s.rows = index.slots;
  s.positions = index.positions;
  s.tiles = &index.tiles->expert;
  s.num_tiles = index.num_tiles;
  s.tile_m = static_cast<unsigned>(index.tile_m);
}

Conversion block_conversion(const BlockCall& call, const PrologueWorkspace& workspace) {
  const bool on_input = call.router_weight_on_input;
  return plan_conversion({.weights = *call.weights,
                          .x = call.x,
                          .x_scale = call.x_scale,
                          .router_weights = on_input ? &call.topk_weights : nullptr,
                          .source = on_input ? kRowsAreSlots : kRowsAreTokens,
                          .rows = on_input ? call.tokens * call.top_k : call.tokens,
                          .top_k = call.top_k,
                          .row_dimension = 0,
                          .one_stride = true,
                          .one_scale_stride = true},
                         workspace);
}

PrologueParams block_params(const BlockCall& call, const PrologueWorkspace& workspace,
                            const Conversion& conversion, const SortGrid& grid) {
  check_experts(call.weights->experts);
  PrologueParams p{};
  p.mode = grid.mode;
  describe_sort(call.ids, grid, p.sort);
  describe_index(workspace.index, p.sort);
  p.sort.map = call.expert_map.data();
  p.sort.map_size = call.expert_map.size();
  p.sort.experts = static_cast<unsigned>(call.weights->experts);
  p.sort.counters = reinterpret_cast<long long*>(call.counters);
  p.sort.counts = workspace.counts;
  p.rows = conversion.rows;
  p.weights = workspace.weights;
  return p;
}

// The main kernel; with several candidates the one that decides among them.
void launch_main(PrologueKernels& kernels, ramp_format format, ramp_dtype program, Launch launch,
                 CUstream stream, const PrologueParams& p, const DecideParams* decide) {
  if (decide == nullptr) {
    launch_kernel(kernels.main(format, program), launch, stream, &p);
    return;
  }
  DecidedPrologueParams both{p, {}};
  unsigned choices = 0;
  both.table = table_of(*decide, choices);
  both.prologue.choices = static_cast<unsigned short>(choices);
  both.prologue.traced = decide->trace != nullptr ? 1 : 0;
  launch.shared += 4 * kDecideWords;
  launch_kernel(kernels.decide(program), launch, stream, &both);
}

}  // namespace

bool rows_aligned(const ramp_tensor& t) noexcept {
  const int64_t bytes = dtype_bytes(type_of(t));
  if (reinterpret_cast<uintptr_t>(t.data) % 16 != 0) return false;
  for (int32_t d = 0; d + 1 < t.ndim; ++d) {
    if (t.shape[d] > 1 && t.stride[d] * bytes % 16 != 0) return false;
  }
  return true;
}

void describe_sort(const ramp_tensor& ids, const SortGrid& grid, SortParams& out) noexcept {
  out.ids = ids.data;
  out.ids_stride = ids.stride[0];
  out.ids_wide = ids.dtype == RAMP_I64 ? 1 : 0;
  out.top_k = static_cast<unsigned>(ids.shape[1]);
  out.slots = static_cast<unsigned>(ids.shape[0] * ids.shape[1]);
  out.chunk = grid.chunk;
  out.chunks = grid.blocks;
}

void Prologue::State::count(const SortParams& sort, CUstream stream) {
  const unsigned count_bytes = (sort.experts + 2) * 4;
  launch_kernel(
      kernels.count_chunks(),
      {.grid_x = sort.chunks, .threads = kPrologueThreads, .shared = count_bytes, .dependent = dependent()},
      stream, &sort);
  launch_kernel(kernels.scan_chunks(),
                {.grid_x = (sort.experts + 31) / 32, .threads = kPrologueThreads, .dependent = dependent()},
                stream, &sort);
}

Prologue::Prologue(std::shared_ptr<const Gpu> gpu, KernelLibrary& library, DecisionReads reads)
    : state_(std::make_unique<State>(std::move(gpu), library, reads)) {}
Prologue::~Prologue() = default;

void Prologue::prepare(const ExpertWeights& weights, ramp_dtype x_dtype) {
  const ramp_format format = weights.format;
  const ramp_dtype target = activation_dtype(format);
  const ScopedContext scope(*state_->gpu);
  // x of the target type is mostly read in place, but not when it is misaligned or multiplied.
  std::vector<ramp_dtype> types{x_dtype};
  if (x_dtype == target) types.push_back(RAMP_DTYPE_NONE);
  std::vector<KernelProgram> programs{index_program()};
  for (const ramp_dtype x : types) programs.push_back(main_program(format, x));
  if (format != RAMP_FORMAT_F32) programs.push_back(requantize_program(format));
  state_->kernels.library().load(programs);
  state_->kernels.count_chunks();
  state_->kernels.scan_chunks();
  for (const ramp_dtype x : types) {
    state_->kernels.main(format, x);
    if (format == RAMP_FORMAT_FP8_BLOCK && state_->dependent()) state_->kernels.decide(x);
  }
  if (format != RAMP_FORMAT_F32) state_->kernels.requantize(format);
}

GemmInput Prologue::block(const BlockCall& call, const PrologueWorkspace& workspace, CUstream stream) {
  return state_->block(call, workspace, false, stream);
}

GemmInput Prologue::State::block(const BlockCall& call, const PrologueWorkspace& workspace, bool behind_route,
                                 CUstream stream) {
  const ScopedContext scope(*gpu);
  const ExpertWeights& w = *call.weights;
  const SortGrid grid = sort_grid(call.tokens * call.top_k, clusters());
  const Conversion conversion = block_conversion(call, workspace);
  PrologueParams p = block_params(call, workspace, conversion, grid);
  // With a launch of this library's own in front, whatever wrote x and used the workspace before is complete
  // when the blocks begin: that launch lets them begin only after it has waited for it. (Router weights are
  // routing's.)
  const bool counted = grid.mode == kSortCounted;
  p.early = dependent() && (counted || (behind_route && p.rows.weights == nullptr)) ? 1 : 0;
  p.trigger = workspace.overlap || triggers_early(call.tokens) ? 1 : 0;
  Launch launch{.threads = kPrologueThreads,
                .shared = 4 * sort_shared_words(p.sort.experts, grid.entries),
                .dependent = dependent()};
  launch.grid_x = grid.blocks;
  // All blocks are in clusters where the sorting blocks are, and what a GPC has beyond 16 SMs (18 of H200's
  // SMs in some) holds no whole cluster of 8.
  const unsigned resident = grid.blocks > 1 ? std::max(1U, sms() / 16) * 16 : sms();
  if (conversion.program != RAMP_DTYPE_NONE) {
    // One wave with the sorting blocks.
    const unsigned limit = counted ? sms() * kBlocksPerSmBeside : resident * kBlocksPerSm - grid.blocks;
    launch.grid_x += std::max(1U, row_blocks(p.rows, w.format, p.rows.rows, limit));
  }
  // A block asks for no more weights than its SM's copy engine passes on while the prologue runs.
  const bool by_ids = p.weights.blocks != 0;
  const bool asks = workspace.decide == nullptr && p.weights.count != 0 &&
                    (!by_ids || (grid.blocks == 1 && !counted && p.sort.slots <= kPrologueThreads));
  if (!asks) {
    p.weights = {};
  } else if (by_ids) {
    launch.grid_x += p.weights.blocks;
    launch.shared = std::max(launch.shared, 4 * (kEarlySetWords + p.sort.experts));
  } else {
    launch.grid_x = std::max(launch.grid_x, resident);
  }
  if (!counted) {
    launch.cluster = grid.blocks;
    launch.grid_x = (launch.grid_x + grid.blocks - 1) / grid.blocks * grid.blocks;
  } else {
    count(p.sort, stream);
  }
  launch_main(kernels, w.format, conversion.program, launch, stream, p, workspace.decide);
  return conversion.input;
}

GemmInput Prologue::routed_block(const RouteCall& route, const BlockCall& block,
                                 const PrologueWorkspace& workspace, CUstream stream) {
  RouteCall before = route;
  before.stream = stream;
  this->route(before);
  // Its scratch may be the same memory as this workspace.
  const bool scratch = !present(route.logits) || route.router.capacity != 0;
  return state_->block(block, workspace, !scratch, stream);
}

GemmInput Prologue::block(const BlockCall& call, const RouteCall* routing, const PrologueWorkspace& workspace,
                          CUstream stream) {
  return routing != nullptr ? routed_block(*routing, call, workspace, stream)
                            : block(call, workspace, stream);
}

GemmInput Prologue::batched(const BatchedCall& call, const PrologueWorkspace& workspace, CUstream stream) {
  const ScopedContext scope(*state_->gpu);
  const ExpertWeights& w = *call.weights;
  check_experts(w.experts);
  const int64_t slots = w.experts * call.max_tokens;
  const bool one = w.experts == 1;
  const Conversion conversion = plan_conversion(
      {.weights = w,
       .x = call.x,
       .x_scale = call.x_scale,
       .router_weights =
           call.router_weight_on_input && present(call.row_weights) ? &call.row_weights : nullptr,
       .source = kRowsAreBatched,
       .rows = slots,
       .top_k = 1,
       .row_dimension = 1,
       .one_stride = one || call.x.stride[0] == call.max_tokens * call.x.stride[1],
       .one_scale_stride = one || call.x_scale.stride[0] == call.max_tokens * call.x_scale.stride[1]},
      workspace);
  PrologueParams p{};
  p.mode = kBatched;
  describe_index(workspace.index, p.sort);
  p.sort.experts = static_cast<unsigned>(w.experts);
  p.sort.slots = static_cast<unsigned>(slots);
  p.batch.counts = call.counts.data;
  p.batch.counts_wide = call.counts.dtype == RAMP_I64 ? 1 : 0;
  p.batch.max_tokens = static_cast<unsigned>(call.max_tokens);
  p.rows = conversion.rows;
  const unsigned limit = state_->sms() * kBlocksPerSm;
  const int64_t index_blocks = (slots + kPrologueThreads - 1) / kPrologueThreads;
  unsigned blocks = static_cast<unsigned>(std::clamp<int64_t>(index_blocks, 1, limit));
  if (conversion.program != RAMP_DTYPE_NONE)
    blocks = std::max(blocks, row_blocks(p.rows, w.format, slots, limit));
  launch_main(state_->kernels, w.format, conversion.program,
              {.grid_x = blocks,
               .threads = kPrologueThreads,
               .shared = 4 * sort_shared_words(p.sort.experts, 0),
               .dependent = state_->dependent()},
              stream, p, workspace.decide);
  GemmInput input = conversion.input;
  input.per_slot = input.scales_per_slot = true;  // a slot is a row of x
  return input;
}

GemmInput Prologue::requantize(const ExpertWeights& weights, const float* h, int64_t max_rows,
                               const RowIndex& index, void* codes, float* scales, CUstream stream) {
  const int64_t columns = weights.intermediate;
  GemmInput in;
  in.dtype = activation_dtype(weights.format);
  in.stride = columns;
  in.static_scale = weights.w2_input_scale;
  in.data = in.dtype == RAMP_F32 ? static_cast<const void*>(h) : codes;
  if (in.dtype == RAMP_F32) return in;
  in.groups = scale_groups(weights.format, columns);
  in.scale_stride = in.groups;
  in.scales = in.groups == 0 ? nullptr : scales;
  if (max_rows == 0) return in;
  const ScopedContext scope(*state_->gpu);
  RowsParams r{};
  r.x = h;
  r.stride = columns;
  r.source = kRowsAreTokens;
  r.rows = static_cast<unsigned>(max_rows);
  r.rows_at = index.offsets + weights.experts;
  r.columns = static_cast<unsigned>(columns);
  r.groups = static_cast<unsigned>(in.groups);
  r.aligned = reinterpret_cast<uintptr_t>(h) % 16 == 0 ? 1 : 0;  // I is a multiple of 32
  r.static_scale = weights.w2_input_scale;
  r.out = codes;
  r.scales = scales;
  const unsigned blocks = row_blocks(r, weights.format, max_rows, state_->sms() * kBlocksPerSm);
  launch_kernel(state_->kernels.requantize(weights.format),
                {.grid_x = blocks, .threads = kPrologueThreads, .dependent = state_->dependent()}, stream,
                &r);
  return in;
}

}  // namespace ramp::core::cuda
