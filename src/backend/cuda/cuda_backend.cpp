// From validated calls to launches. Kernels of a format are brought in when weights of it are first seen
// (created, packed or run), so that a captured call finds everything loaded.
#include "backend/cuda/cuda_backend.hpp"

#include <fmt/format.h>

#include <array>
#include <atomic>

#include "backend/cuda/driver.hpp"
#include "backend/cuda/gpu.hpp"
#include "backend/cuda/kernel_library.hpp"
#include "backend/cuda/nvtx.hpp"
#include "backend/cuda/plain_block.hpp"
#include "backend/cuda/prologue.hpp"
#include "backend/cuda/weights.hpp"
#include "base/error.hpp"

namespace ramp::core {
namespace {

using namespace cuda;  // NOLINT(google-build-using-namespace): this file is the CUDA room's front

PlainPrecision parse_family(const std::string& name) {
  if (name.empty() || name == "plain") return PlainPrecision::kF32;
  if (name == "plain_f64") return PlainPrecision::kF64;
  fail_argument("isa", fmt::format("'{}'", printable(name)),
                "a kernel family of the CUDA backend: 'plain' or 'plain_f64'", "leave it out for the best",
                RAMP_ERROR_UNSUPPORTED);
}

std::shared_ptr<const Gpu> open_gpu(int ordinal) {
  constexpr int kLeastMajor = 8;  // bf16 and cp.async
  const GpuFacts facts = gpu_facts(ordinal);
  if (facts.major < kLeastMajor) {
    fail(RAMP_ERROR_UNSUPPORTED,
         fmt::format(
             "backend: {} has compute capability {}.{}, the CUDA backend needs 8.0 or newer; use backend cpu",
             facts.name, facts.major, facts.minor));
  }
  return Gpu::open(ordinal);
}

class CudaBackend final : public Backend {
 public:
  explicit CudaBackend(const BackendOptions& options)
      : precision_(parse_family(options.isa)),
        gpu_(open_gpu(options.device.index)),
        memory_(make_device_memory(gpu_)),
        library_(gpu_, options.cache_dir, options.log),
        prologue_(gpu_, library_),
        combine_(gpu_, library_),
        plain_(gpu_, library_, prologue_, combine_, precision_) {
    const GpuFacts& facts = gpu_->facts();
    info_.kind = RAMP_BACKEND_CUDA;
    info_.name = "cuda";
    info_.isa = precision_ == PlainPrecision::kF64 ? "plain_f64" : "plain";
    info_.device_name = facts.name;
    info_.workers = facts.sm_count;
  }

  [[nodiscard]] const BackendInfo& info() const noexcept override { return info_; }
  [[nodiscard]] const DeviceMemory* memory() const noexcept override { return memory_.get(); }

  [[nodiscard]] ConfigList configs(const ModelShape& /*model*/, ramp_format /*format*/,
                                   ramp_activation activation, bool /*with_rejected*/) const override {
    return {{plain_config(activation)}, {}};
  }
  [[nodiscard]] bool runs(const KernelConfig& config, const ModelShape& /*model*/, ramp_format /*format*/,
                          ramp_activation activation) const override {
    return config == plain_config(activation);
  }
  [[nodiscard]] KernelConfig choose(const ExpertWeights& w, std::span<const int32_t> /*histogram*/,
                                    ramp_determinism /*determinism*/, int64_t /*top_k*/) const override {
    return plain_config(w.activation);
  }

  void pack(ExpertWeights& w, void* stream) override {
    if (w.packed != nullptr) return;
    const ScopedContext scope(*gpu_);
    prepare(w, RAMP_BF16);
    pack_weights(w, *memory_, stream);
  }
  void update(ExpertWeights& w, int64_t first_expert, const ramp_weights_desc& update,
              void* stream) override {
    const ScopedContext scope(*gpu_);
    cuda::update_weights(w, first_expert, update, *memory_, stream);
  }
  void unpack(const ExpertWeights& w, const ramp_tensor& w13, const ramp_tensor& w2, void* stream) override {
    const ScopedContext scope(*gpu_);
    unpack_weights(w, w13, w2, *memory_, stream);
  }

  [[nodiscard]] uint64_t block_workspace(const ExpertWeights& w, int64_t max_tokens,
                                         int64_t top_k) const override {
    return PlainBlock::workspace(w, max_tokens, top_k);
  }
  void expert_block(const BlockCall& call) override { run(call, nullptr); }
  void routed_block(const RouteCall& routing, const BlockCall& block) override { run(block, &routing); }

  [[nodiscard]] uint64_t batched_workspace(const ExpertWeights& w, int64_t max_tokens) const override {
    return PlainBlock::workspace(w, w.experts * max_tokens, 1);
  }
  void expert_block_batched(const BatchedCall& call) override {
    const ScopedContext scope(*gpu_);
    const ScopedRange range("ramp_expert_block_batched");
    prepare(*call.weights, static_cast<ramp_dtype>(call.x.dtype));
    plain_.batched(call);
  }

  [[nodiscard]] uint64_t route_workspace(const ramp_router_config& router, int64_t num_logits,
                                         int64_t max_tokens) const override {
    return prologue_.route_workspace(router, num_logits, max_tokens);
  }
  void route(const RouteCall& call) override {
    const ScopedContext scope(*gpu_);
    const ScopedRange range("ramp_route");
    prologue_.route(call);
  }

 private:
  void run(const BlockCall& call, const RouteCall* routing) {
    const ScopedContext scope(*gpu_);
    const ScopedRange range(routing != nullptr ? "ramp_moe_forward" : "ramp_expert_block");
    prepare(*call.weights, static_cast<ramp_dtype>(call.x.dtype));
    plain_.block(call, routing);
  }

  // Once per format and dtype of x; afterwards a read of one flag.
  void prepare(const ExpertWeights& w, ramp_dtype x_dtype) {
    std::atomic<bool>& done = prepared_[static_cast<size_t>(w.format)][static_cast<size_t>(x_dtype)];
    if (done.load(std::memory_order_acquire)) return;
    std::vector<KernelProgram> programs = plain_.programs(w.format);
    const std::vector<KernelProgram> before = prologue_programs(arch_number());
    programs.insert(programs.end(), before.begin(), before.end());
    const std::vector<KernelProgram> after = combine_programs(arch_number());
    programs.insert(programs.end(), after.begin(), after.end());
    library_.load(programs);
    combine_.prepare();
    plain_.prepare(w, x_dtype);
    done.store(true, std::memory_order_release);
  }
  [[nodiscard]] int arch_number() const { return 10 * gpu_->facts().major + gpu_->facts().minor; }

  PlainPrecision precision_;
  std::shared_ptr<const Gpu> gpu_;
  std::shared_ptr<const DeviceMemory> memory_;
  KernelLibrary library_;
  Prologue prologue_;
  Combine combine_;
  PlainBlock plain_;
  BackendInfo info_;
  std::array<std::array<std::atomic<bool>, 16>, 8> prepared_{};
};

}  // namespace

std::unique_ptr<Backend> make_cuda_backend(const BackendOptions& options) {
  return std::make_unique<CudaBackend>(options);
}

}  // namespace ramp::core
