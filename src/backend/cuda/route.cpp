// Routing on the GPU: the router GEMM where logits are not given, a warp per token, and capacity, which is
// the sort with another ending.
#include <fmt/format.h>

#include <algorithm>

#include "backend/cuda/prologue_state.hpp"
#include "base/error.hpp"
#include "base/tensor.hpp"
#include "routing/router.hpp"

namespace ramp::core::cuda {
namespace {

constexpr int64_t kMaxLogits = 1024;  // 32 per lane
constexpr int64_t kMaxTopK = 32;      // a lane per slot
constexpr int64_t kFewTokens = 4096;  // up to here smaller blocks, which spread over more SMs
constexpr unsigned kGemmThreads = 256;

// Scratch: logits unless they are given, then the counts of a capacity that takes three launches.
struct RouteScratch {
  float* logits = nullptr;
  int32_t* counts = nullptr;
  uint64_t bytes = 0;
};
RouteScratch carve(const ramp_router_config& router, int64_t num_logits, int64_t tokens, bool logits_given,
                   void* base) noexcept {
  const auto round_up = [](int64_t bytes) { return (static_cast<uint64_t>(bytes) + 255) / 256 * 256; };
  auto* const at = static_cast<std::byte*>(base);
  RouteScratch s;
  const uint64_t logits = logits_given ? 0 : round_up(tokens * num_logits * 4);
  s.logits = reinterpret_cast<float*>(at);
  s.counts = at == nullptr ? nullptr : reinterpret_cast<int32_t*>(at + logits);
  s.bytes = logits;
  if (router.capacity > 0) s.bytes += round_up(4 * sort_counts(tokens * router_slots(router), num_logits));
  return s;
}

void check_limits(const ramp_router_config& router, int64_t num_logits) {
  if (num_logits > kMaxLogits) {
    fail_argument("logits", fmt::format("{} experts", num_logits), fmt::format("at most {}", kMaxLogits),
                  "the CUDA backend routes no more; route on the host", RAMP_ERROR_UNSUPPORTED);
  }
  if (router.top_k > kMaxTopK) {
    fail_argument("router.top_k", fmt::format("{}", router.top_k), fmt::format("at most {}", kMaxTopK),
                  "the CUDA backend chooses no more; route on the host", RAMP_ERROR_UNSUPPORTED);
  }
}

ramp_dtype type_of(const ramp_tensor& t) noexcept {
  return static_cast<ramp_dtype>(t.dtype);
}

RouteKind route_kind(const ramp_router_config& r, int64_t num_logits) noexcept {
  const bool grouped = r.num_groups > 1;
  if (r.scoring == RAMP_SCORING_SIGMOID) {
    if (!grouped) return kRouteSigmoid;
    const bool whole = num_logits == int64_t{32} * r.num_groups && r.num_groups <= kMostGroups;
    return whole ? kRouteGrouped : kRouteAny;
  }
  if (grouped || present(r.selection_bias)) return kRouteAny;
  const bool over_chosen = r.scoring == RAMP_SCORING_TOPK_SOFTMAX || r.renormalize != 0;
  return over_chosen ? kRouteChosen : kRouteSoftmax;
}

void router_gemm(PrologueKernels& kernels, const RouteCall& call, float* logits, bool dependent,
                 CUstream stream) {
  RouterGemmParams p{};
  p.x = call.x.data;
  p.w = call.router_weight.data;
  p.x_stride = call.x.stride[0];
  p.w_stride = call.router_weight.stride[0];
  p.x_dtype = call.x.dtype;
  p.w_dtype = call.router_weight.dtype;
  p.tokens = static_cast<unsigned>(call.x.shape[0]);
  p.experts = static_cast<unsigned>(call.router_weight.shape[0]);
  p.hidden = static_cast<unsigned>(call.x.shape[1]);
  p.x_aligned = rows_aligned(call.x) ? 1 : 0;
  p.w_aligned = rows_aligned(call.router_weight) ? 1 : 0;
  p.logits = logits;
  const bool many = call.x.shape[0] >= kManyTokens;
  const GemmTile tile = router_gemm_tile(type_of(call.x), type_of(call.router_weight), many);
  launch_kernel(kernels.router_gemm(type_of(call.x), type_of(call.router_weight), many),
                {.grid_x = (p.tokens + tile.tokens - 1) / tile.tokens,
                 .grid_y = (p.experts + tile.experts - 1) / tile.experts,
                 .threads = kGemmThreads,
                 .dependent = dependent},
                stream, &p);
}

// `router` has gone through check_router. Throws UNSUPPORTED beyond what the kernels do.
void describe_route(const RouteCall& call, const ramp_tensor& logits, RouteParams& p) {
  const ramp_router_config& r = call.router;
  check_limits(r, logits.shape[1]);
  p.logits = logits.data;
  p.logits_stride = logits.stride[0];
  p.logits_dtype = logits.dtype;
  p.tokens = static_cast<unsigned>(logits.shape[0]);
  p.experts = static_cast<unsigned>(logits.shape[1]);
  p.top_k = static_cast<unsigned>(r.top_k);
  p.shared_experts = static_cast<unsigned>(r.num_shared_experts);
  p.scoring = r.scoring;
  p.renormalize = r.renormalize;
  p.group_score = r.group_score;
  p.num_groups = static_cast<unsigned>(r.num_groups);
  p.topk_groups = static_cast<unsigned>(r.topk_groups);
  p.scaling = r.routed_scaling_factor;
  p.bias = static_cast<const float*>(r.selection_bias.data);
  p.ids = call.ids.data;
  p.ids_stride = call.ids.stride[0];
  p.ids_wide = call.ids.dtype == RAMP_I64 ? 1 : 0;
  p.weights = static_cast<float*>(call.weights.data);
  p.weights_stride = call.weights.stride[0];
}

}  // namespace

void Prologue::prepare_route(const ramp_router_config& router, int64_t num_logits, ramp_dtype logits_dtype) {
  check_limits(router, num_logits);
  const ScopedContext scope(*state_->gpu);
  PrologueKernels& kernels = state_->kernels;
  std::vector<KernelProgram> programs{route_program(num_logits)};
  if (router.capacity > 0) programs.push_back(index_program());
  struct Operands {
    ramp_dtype type;
    bool many;
  };
  const Operands gemms[] = {
      {RAMP_F32, false}, {RAMP_BF16, false}, {RAMP_BF16, true}, {RAMP_F16, false}, {RAMP_F16, true}};
  if (logits_dtype == RAMP_DTYPE_NONE) {
    for (const auto& [type, many] : gemms) programs.push_back(router_gemm_program(type, type, many));
  }
  kernels.library().load(programs);
  kernels.route(num_logits, route_kind(router, num_logits));
  if (router.capacity > 0) {
    kernels.count_chunks();
    kernels.scan_chunks();
    kernels.drop();
  }
  if (logits_dtype == RAMP_DTYPE_NONE) {
    for (const auto& [type, many] : gemms) kernels.router_gemm(type, type, many);
  }
}

uint64_t Prologue::route_workspace(const ramp_router_config& router, int64_t num_logits, int64_t max_tokens,
                                   bool logits_given) const {
  return carve(router, num_logits, max_tokens, logits_given, nullptr).bytes;
}

void Prologue::route(const RouteCall& call) {
  const bool given = present(call.logits);
  const int64_t tokens = given ? call.logits.shape[0] : call.x.shape[0];
  const int64_t num_logits = given ? call.logits.shape[1] : call.router_weight.shape[0];
  check_limits(call.router, num_logits);
  if (tokens == 0) return;
  const RouteScratch scratch = carve(call.router, num_logits, tokens, given, call.workspace);
  if (scratch.bytes > 0 && (call.workspace == nullptr || call.workspace_bytes < scratch.bytes)) {
    fail_argument("workspace_bytes", fmt::format("{}", call.workspace_bytes),
                  fmt::format("at least {}", scratch.bytes), "ask for the size first",
                  RAMP_ERROR_WORKSPACE_TOO_SMALL);
  }
  const ScopedContext scope(*state_->gpu);
  auto* const stream = static_cast<CUstream>(call.stream);
  PrologueKernels& kernels = state_->kernels;
  ramp_tensor logits = call.logits;
  if (!given) {
    logits = with_strides(make_tensor(scratch.logits, RAMP_F32, {tokens, num_logits}));
    router_gemm(kernels, call, scratch.logits, state_->dependent(), stream);
  }
  RouteParams p{};
  describe_route(call, logits, p);
  const RouteKind kind = route_kind(call.router, num_logits);
  Launch launch{.dependent = state_->dependent()};
  if (kind == kRouteGrouped) {
    const unsigned most = route_groups_most(p.num_groups);
    launch.grid_x = p.tokens;
    launch.threads = 32 * most / kRouteGroupsPerWarp;
    launch.shared = 4 * route_groups_words(most);
  } else {
    const unsigned warp_bytes = 4 * route_shared_words(p.experts, p.num_groups);
    unsigned warps = tokens <= kFewTokens ? 4 : 8;
    while (warps > 1 && warps * warp_bytes > kMaxShared) warps /= 2;
    launch.grid_x = (p.tokens + warps - 1) / warps;
    launch.threads = 32 * warps;
    launch.shared = warps * warp_bytes;
  }
  launch_kernel(kernels.route(num_logits, kind), launch, stream, &p);
  if (call.router.capacity == 0) return;

  const SortGrid grid = sort_grid(tokens * router_slots(call.router), state_->clusters());
  PrologueParams d{};
  d.mode = grid.mode;
  describe_sort(call.ids, grid, d.sort);
  d.sort.experts = p.experts;
  d.sort.tile_m = 1;
  d.sort.counts = scratch.counts;
  d.sort.capacity =
      static_cast<unsigned>(std::min<int64_t>(call.router.capacity, int64_t{1} << 31));  // beyond any rank
  d.sort.drop_weights = p.weights;
  d.sort.drop_stride = p.weights_stride;
  if (grid.mode == kSortCounted) state_->count(d.sort, stream);
  launch_kernel(kernels.drop(),
                {.grid_x = grid.blocks,
                 .threads = kPrologueThreads,
                 .shared = 4 * sort_shared_words(p.experts, grid.entries),
                 .cluster = grid.mode == kSortHere ? grid.blocks : 1,
                 .dependent = state_->dependent()},
                stream, &d);
}

}  // namespace ramp::core::cuda
