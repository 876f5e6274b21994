// The router GEMM in blocks of 4 tokens x 4 experts, and the parallel loop over route_tokens.
#include "backend/cpu/route.hpp"

#include <fmt/format.h>

#include <algorithm>

#include "backend/cpu/job.hpp"
#include "base/error.hpp"
#include "base/float_types.hpp"
#include "base/tensor.hpp"
#include "routing/router.hpp"

namespace ramp::core {
namespace {

constexpr int64_t kBlock = 4;            // of tokens and experts in one dot kernel
constexpr int64_t kExpertsPerTask = 32;  // few tokens: the router's rows are what is divided

struct RoutePieces {
  std::span<float> logits;  // [T, E]
  std::span<int64_t> counts;
  std::span<std::byte> scratch;  // [workers] of scratch_bytes
  int64_t scratch_bytes = 0;
};

uint64_t carve(const ramp_router_config& router, int64_t num_logits, int64_t tokens, int32_t workers,
               void* base, RoutePieces& out) noexcept {
  Arena arena(base);
  out.logits = arena.take<float>(tokens * num_logits);
  out.counts = arena.take<int64_t>(num_logits);
  out.scratch_bytes = (route_scratch_bytes(router, num_logits) + 63) / 64 * 64;
  out.scratch = arena.take<std::byte>(out.scratch_bytes * workers);
  return (arena.used() + 255) / 256 * 256;
}

const std::byte* row_of(const ramp_tensor& t, int64_t r) noexcept {
  return static_cast<const std::byte*>(t.data) +
         r * t.stride[0] * dtype_bytes(static_cast<ramp_dtype>(t.dtype));
}

// logits[t0.., e0..] for up to kBlock tokens and all experts of [e0, e1).
void dot_block(const RouteCall& call, const CpuKernels& kernels, float* logits, int64_t num_logits,
               int64_t t0, int64_t t1, int64_t e0, int64_t e1) noexcept {
  DotArgs d{};
  d.n = call.x.shape[1];
  d.out_stride = num_logits;
  d.x_rows = static_cast<int32_t>(t1 - t0);
  d.x_dtype = call.x.dtype;
  d.w_dtype = call.router_weight.dtype;
  for (int64_t i = 0; i < kBlock; ++i) d.x[i] = row_of(call.x, std::min(t0 + i, t1 - 1));
  for (int64_t e = e0; e < e1; e += kBlock) {
    d.w_rows = static_cast<int32_t>(std::min(kBlock, e1 - e));
    for (int64_t i = 0; i < kBlock; ++i) d.w[i] = row_of(call.router_weight, std::min(e + i, e1 - 1));
    d.out = logits + t0 * num_logits + e;
    kernels.dot(&d);
  }
}

}  // namespace

uint64_t cpu_route_workspace(const ramp_router_config& router, int64_t num_logits, int64_t max_tokens,
                             int32_t workers) noexcept {
  RoutePieces pieces;
  return carve(router, num_logits, max_tokens, workers, nullptr, pieces);
}

void cpu_route(const RouteCall& call, const CpuKernels& kernels, Executor& executor) {
  const bool given = present(call.logits);
  const int64_t tokens = given ? call.logits.shape[0] : call.x.shape[0];
  const int64_t num_logits = given ? call.logits.shape[1] : call.router_weight.shape[0];
  if (tokens == 0) return;
  RoutePieces pieces;
  const uint64_t needed = carve(call.router, num_logits, tokens, executor.workers(), call.workspace, pieces);
  if (call.workspace == nullptr || call.workspace_bytes < needed) {
    fail_argument("workspace_bytes", fmt::format("{}", call.workspace_bytes),
                  fmt::format("at least {}", needed), "ask for the size first",
                  RAMP_ERROR_WORKSPACE_TOO_SMALL);
  }
  ramp_tensor logits = call.logits;
  if (!given) {
    logits = make_tensor(pieces.logits.data(), RAMP_F32, {tokens, num_logits});
    const int64_t parts = (num_logits + kExpertsPerTask - 1) / kExpertsPerTask;
    executor.run((tokens + kBlock - 1) / kBlock * parts, [&](int64_t task, int32_t) {
      const int64_t t0 = task / parts * kBlock;
      const int64_t e0 = task % parts * kExpertsPerTask;
      dot_block(call, kernels, pieces.logits.data(), num_logits, t0, std::min(tokens, t0 + kBlock), e0,
                std::min(num_logits, e0 + kExpertsPerTask));
    });
  }
  const int64_t step = std::max<int64_t>(1, tokens / (4 * int64_t{executor.workers()}));
  executor.run((tokens + step - 1) / step, [&](int64_t task, int32_t worker) {
    route_tokens(call.router, logits, call.ids, call.weights, task * step,
                 std::min(tokens, (task + 1) * step), pieces.scratch.data() + worker * pieces.scratch_bytes);
  });
  if (call.router.capacity > 0) {
    apply_capacity(call.router.capacity, num_logits, call.ids, call.weights, pieces.counts);
  }
}

}  // namespace ramp::core
