// From validated calls to jobs, and the rest of the Backend interface.
#include "backend/cpu/cpu_backend.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <atomic>

#include "backend/cpu/configs.hpp"
#include "backend/cpu/isa.hpp"
#include "backend/cpu/job.hpp"
#include "backend/cpu/panels.hpp"
#include "backend/cpu/route.hpp"
#include "backend/cpu/thread_pool.hpp"
#include "base/env.hpp"
#include "base/error.hpp"
#include "base/tensor.hpp"
#include "dispatch/block_fit.hpp"
#include "routing/sorted_rows.hpp"

namespace ramp::core {
namespace {

std::unique_ptr<Executor> make_executor(const BackendOptions& options) {
  if (options.executor != nullptr) return make_caller_executor(*options.executor);
  if (options.num_threads < 0) {
    fail_argument("num_threads", fmt::format("{}", options.num_threads),
                  "0 (one per available core) or more");
  }
  return std::make_unique<ThreadPool>(options.num_threads > 0 ? options.num_threads : available_cores());
}

void add_counter(int64_t& counter, int64_t n) noexcept {
  if (n != 0) std::atomic_ref<int64_t>(counter).fetch_add(n, std::memory_order_relaxed);
}

// x as bytes, its scales as elements. Rows: the first dimension, or the first two of batched slabs.
void set_x(Job& j, const ramp_tensor& x, const ramp_tensor& scale) noexcept {
  j.x = static_cast<const std::byte*>(x.data);
  j.x_dtype = static_cast<ramp_dtype>(x.dtype);
  const int64_t width = dtype_bytes(j.x_dtype);
  j.x_scale = static_cast<const float*>(scale.data);
  if (j.batched) {
    j.x_map = {j.top_k, x.stride[0] * width, x.stride[1] * width};
    j.x_scale_map = {j.top_k, scale.stride[0], scale.stride[1]};
  } else {
    j.x_map = {1, x.stride[0] * width, 0};
    j.x_scale_map = {1, scale.stride[0], 0};
  }
}

void carve(Job& j, void* workspace, uint64_t bytes) {
  const uint64_t needed = carve_workspace(j, workspace);
  if (workspace == nullptr || bytes < needed) {
    fail_argument("workspace_bytes", fmt::format("{}", bytes), fmt::format("at least {}", needed),
                  "ask for the size first", RAMP_ERROR_WORKSPACE_TOO_SMALL);
  }
}

// What runs when the caller names no config: the fit's choice for this histogram where there is a fit for
// such weights, else the analytic default.
KernelConfig choose_config(const FitList& fits, const ExpertWeights& w, std::span<const int32_t> histogram,
                           int64_t top_k, ramp_determinism determinism, int32_t workers) noexcept {
  const FitList::Entry* const fit =
      fits.find({w.experts, w.hidden, w.intermediate, w.format, w.activation}, top_k);
  if (fit == nullptr) {
    return cpu_default_config(histogram, w.hidden, w.intermediate, w.format, w.activation, determinism,
                              workers);
  }
  KernelConfig c = fit->choose(histogram);
  // A split costs bits that depend on the config, hence never in batch-invariant mode.
  if (determinism == RAMP_BATCH_INVARIANT) c.split_k = 1;
  return c;
}

// Config and plan, once offsets and sorted_slots are filled.
void plan(Job& j, const KernelConfig* config, ramp_determinism determinism, const FitList& fits) {
  const ExpertWeights& w = *j.weights;
  j.rows = j.offsets[static_cast<size_t>(j.experts)];
  if (config != nullptr) {
    if (!cpu_config_legal(*config, j.hidden, j.intermediate, w.format, w.activation)) {
      const ModelShape shape{"", j.experts, j.top_k, j.hidden, j.intermediate};
      fail_argument("config", config_name(*config), "a config of this backend for these weights",
                    cpu_config_rejection(*config, shape, w.format, w.activation));
    }
    j.config = *config;
  } else {
    for (int64_t e = 0; e < j.experts; ++e) {
      const auto at = static_cast<size_t>(e);
      j.counts[at] = j.offsets[at + 1] - j.offsets[at];
    }
    j.config = choose_config(fits, w, j.counts, j.batched ? 0 : j.top_k, determinism, j.executor->workers());
  }
  if (determinism == RAMP_BATCH_INVARIANT) j.config.split_k = 1;
  j.plan = plan_tiles(j.offsets, j.config.tile_m, j.plan_experts, j.plan_tiles);
}

class CpuBackend final : public Backend {
 public:
  explicit CpuBackend(const BackendOptions& options)
      : kernels_(select_isa(options.isa, options.log)), executor_(make_executor(options)) {
    info_.kind = RAMP_BACKEND_CPU;
    info_.name = "cpu";
    info_.isa = kernels_.isa;
    info_.device_name = cpu_model_name();
    info_.workers = executor_->workers();
  }

  [[nodiscard]] const BackendInfo& info() const noexcept override { return info_; }

  [[nodiscard]] ConfigList configs(const ModelShape& model, ramp_format format, ramp_activation activation,
                                   bool with_rejected) const override {
    return cpu_configs(model, format, activation, with_rejected);
  }
  [[nodiscard]] bool runs(const KernelConfig& config, const ModelShape& model, ramp_format format,
                          ramp_activation activation) const override {
    return cpu_config_legal(config, model.hidden, model.intermediate, format, activation);
  }
  [[nodiscard]] KernelConfig choose(const ExpertWeights& w, std::span<const int32_t> histogram,
                                    ramp_determinism determinism, int64_t top_k) const override {
    return choose_config(fits_, w, histogram, top_k, determinism, executor_->workers());
  }
  [[nodiscard]] FitList* fits() noexcept override { return &fits_; }

  void pack(ExpertWeights& weights, void* /*stream*/) override { pack_panels(weights, *executor_); }
  void update(ExpertWeights& weights, int64_t first_expert, const ramp_weights_desc& update,
              void* /*stream*/) override {
    update_panels(weights, first_expert, update, *executor_);
  }
  void unpack(const ExpertWeights& weights, const ramp_tensor& w13, const ramp_tensor& w2,
              void* /*stream*/) override {
    unpack_panels(weights, w13, w2, *executor_);
  }

  [[nodiscard]] uint64_t block_workspace(const ExpertWeights& weights, int64_t max_tokens,
                                         int64_t top_k) const override {
    Job job = make_job(weights, max_tokens, top_k, false, kernels_, *executor_);
    return carve_workspace(job, nullptr);
  }
  [[nodiscard]] uint64_t batched_workspace(const ExpertWeights& weights, int64_t max_tokens) const override {
    Job job = make_job(weights, weights.experts, max_tokens, true, kernels_, *executor_);
    return carve_workspace(job, nullptr);
  }
  void expert_block(const BlockCall& call) override;
  void expert_block_batched(const BatchedCall& call) override;

  [[nodiscard]] uint64_t route_workspace(const ramp_router_config& router, int64_t num_logits,
                                         int64_t max_tokens) const override {
    return cpu_route_workspace(router, num_logits, max_tokens, executor_->workers());
  }
  void route(const RouteCall& call) override { cpu_route(call, kernels_, *executor_); }

 private:
  const CpuKernels& kernels_;
  std::unique_ptr<Executor> executor_;
  BackendInfo info_;
  FitList fits_;
};

void CpuBackend::expert_block(const BlockCall& call) {
  if (call.tokens == 0) return;
  Job j = make_job(*call.weights, call.tokens, call.top_k, false, kernels_, *executor_);
  carve(j, call.workspace, call.workspace_bytes);
  set_x(j, call.x, call.x_scale);
  j.per_slot = call.output == RAMP_OUTPUT_PER_SLOT;
  j.weight_on_input = call.router_weight_on_input;
  j.slot_weight = static_cast<const float*>(call.topk_weights.data);
  j.weight_stride0 = call.topk_weights.stride[0];
  j.weight_stride1 = call.topk_weights.stride[1];
  j.addend = call.shared_addend;
  j.y = call.y;
  SortedRows sorted;
  sorted.offsets = j.offsets;
  sorted.slots = j.sorted_slots;
  sorted.positions = j.positions;
  sort_rows(call.ids, call.expert_map, j.experts, sorted);
  plan(j, call.config, call.determinism, fits_);
  run_job(j);
  if (call.counters != nullptr) {
    add_counter(call.counters[0], sorted.masked);
    add_counter(call.counters[1], sorted.out_of_range);
  }
}

void CpuBackend::expert_block_batched(const BatchedCall& call) {
  if (call.max_tokens == 0) return;
  Job j = make_job(*call.weights, call.weights->experts, call.max_tokens, true, kernels_, *executor_);
  carve(j, call.workspace, call.workspace_bytes);
  set_x(j, call.x, call.x_scale);
  j.per_slot = true;
  if (present(call.row_weights)) {
    j.weight_on_input = call.router_weight_on_input;
    j.slot_weight = static_cast<const float*>(call.row_weights.data);
    j.weight_stride0 = call.row_weights.stride[0];
    j.weight_stride1 = call.row_weights.stride[1];
  }
  j.y = call.y;
  // Slab e's first counts[e] rows are expert e's: already in order.
  int32_t rows = 0;
  j.offsets[0] = 0;
  for (int64_t e = 0; e < j.experts; ++e) {
    const int64_t at = e * call.counts.stride[0];
    const int64_t count = call.counts.dtype == RAMP_I64 ? static_cast<const int64_t*>(call.counts.data)[at]
                                                        : static_cast<const int32_t*>(call.counts.data)[at];
    const auto valid = static_cast<int32_t>(std::clamp<int64_t>(count, 0, call.max_tokens));
    for (int32_t i = 0; i < valid; ++i) {
      j.sorted_slots[static_cast<size_t>(rows) + static_cast<size_t>(i)] =
          static_cast<int32_t>(e * call.max_tokens + i);
    }
    rows += valid;
    j.offsets[static_cast<size_t>(e) + 1] = rows;
  }
  plan(j, call.config, call.determinism, fits_);
  run_job(j);
}

}  // namespace

std::unique_ptr<Backend> make_cpu_backend(const BackendOptions& options) {
  if (options.device.type != RAMP_DEVICE_CPU) {
    fail_argument("backend", "the cpu backend for a device that is not the CPU", "a CPU device",
                  "set device.type to RAMP_DEVICE_CPU", RAMP_ERROR_UNSUPPORTED);
  }
  return std::make_unique<CpuBackend>(options);
}

}  // namespace ramp::core
