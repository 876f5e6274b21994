// From validated calls to launches. Kernels of a format are brought in when weights of it are first seen
// (created, packed or run), so that a captured call finds everything loaded.
#include "backend/cuda/cuda_backend.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <array>
#include <atomic>
#include <optional>

#include "backend/cuda/config_space.hpp"
#include "backend/cuda/driver.hpp"
#include "backend/cuda/expected_rows.hpp"
#include "backend/cuda/few_block.hpp"
#include "backend/cuda/flat_block.hpp"
#include "backend/cuda/flat_prefill_block.hpp"
#include "backend/cuda/gpu.hpp"
#include "backend/cuda/kernel_library.hpp"
#include "backend/cuda/nvtx.hpp"
#include "backend/cuda/plain_block.hpp"
#include "backend/cuda/prefill_block.hpp"
#include "backend/cuda/prefill_sums.hpp"
#include "backend/cuda/prologue.hpp"
#include "backend/cuda/step_block.hpp"
#include "backend/cuda/step_choice.hpp"
#include "backend/cuda/step_trace.hpp"
#include "backend/cuda/stream_block.hpp"
#include "backend/cuda/weights.hpp"
#include "base/error.hpp"

namespace ramp::core {
namespace {

using namespace cuda;  // NOLINT(google-build-using-namespace): this file is the CUDA room's front

enum class Family { kPlain, kPlainF64, kSm90, kSm90Few, kSm90Split, kPortable };
constexpr std::array<const char*, 6> kFamilyNames = {"plain",    "plain_f64",  "sm90",
                                                     "sm90_few", "sm90_split", "portable"};
bool streams(Family f) {
  return f == Family::kSm90 || f == Family::kSm90Few || f == Family::kSm90Split;
}

Family parse_family(const std::string& name, const GpuFacts& facts) {
  const bool hopper = facts.major == 9 && facts.minor == 0;
  if (name.empty()) return hopper ? Family::kSm90 : Family::kPortable;
  for (size_t i = 0; i < kFamilyNames.size(); ++i) {
    if (name != kFamilyNames[i]) continue;
    const auto family = static_cast<Family>(i);
    if (!streams(family) || hopper) return family;
    fail(RAMP_ERROR_UNSUPPORTED,
         fmt::format("isa: got '{}' on {} (compute capability {}.{}), expected a Hopper GPU "
                     "(9.0); leave it out for the best",
                     name, facts.name, facts.major, facts.minor));
  }
  fail_argument(
      "isa", fmt::format("'{}'", printable(name)),
      "a kernel family of the CUDA backend: 'sm90', 'sm90_few', 'sm90_split', 'portable', 'plain' or "
      "'plain_f64'",
      "leave it out for the best", RAMP_ERROR_UNSUPPORTED);
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
      : gpu_(open_gpu(options.device.index)),
        family_(parse_family(options.isa, gpu_->facts())),
        library_(std::make_shared<KernelLibrary>(gpu_, options.cache_dir, options.log)),
        memory_(make_device_memory(gpu_, library_)),
        prologue_(gpu_, *library_),
        combine_(gpu_, *library_),
        plain_(gpu_, *library_, prologue_, combine_,
               family_ == Family::kPlainF64 ? PlainPrecision::kF64 : PlainPrecision::kF32),
        stream_(gpu_, *library_, prologue_, combine_),
        flat_(gpu_, *library_, prologue_, combine_),
        flat_prefill_(gpu_, *library_, prologue_, combine_),
        prefill_(gpu_, *library_, prologue_, combine_),
        step_(prologue_, combine_, stream_, prefill_),
        trace_(gpu_, memory_),
        few_(gpu_, *library_, memory_, prologue_, family_ == Family::kSm90Few) {
    const GpuFacts& facts = gpu_->facts();
    info_.kind = RAMP_BACKEND_CUDA;
    info_.name = "cuda";
    info_.isa = kFamilyNames[static_cast<size_t>(family_)];
    info_.device_name = facts.name;
    info_.workers = facts.sm_count;
    if (family_ == Family::kSm90 || family_ == Family::kPortable) plain_.add_portable();
  }

  [[nodiscard]] const BackendInfo& info() const noexcept override { return info_; }
  [[nodiscard]] const DeviceMemory* memory() const noexcept override { return memory_.get(); }

  // Of packed weights where the stream kernels apply: unpacked weights have others, of which the backend
  // chooses.
  [[nodiscard]] ConfigList configs(const ModelShape& model, ramp_format format, ramp_activation activation,
                                   bool with_rejected) const override {
    ConfigList list;
    std::string reason = "the plain kernels were asked for";
    const bool stream =
        streams(family_) && tiles_apply(format, activation, model.hidden, model.intermediate, &reason);
    if (!stream) list.legal = plain_.configs(format, activation);
    const auto add = [&](const KernelConfig& config) {
      if (stream)
        list.legal.push_back(config);
      else if (with_rejected)
        list.rejected.push_back({config, reason});
    };
    if (flat_format(format)) {
      for (const FlatVariant& v : flat_variants(format, model.hidden, model.intermediate))
        add(v.config(format));
      add(flat_prefill_config(format));
    } else {
      for (const StreamVariant& v : stream_variants()) add(v.config());
      add(prefill_config());
    }
    return list;
  }
  [[nodiscard]] ConfigList space(const ModelShape& model, ramp_format format, ramp_activation activation,
                                 bool with_rejected) const override {
    if (!streams(family_) || !tiles_apply(format, activation, model.hidden, model.intermediate, nullptr)) {
      ConfigList list = configs(model, format, activation, with_rejected);
      list.legal = plain_.space(format, activation);
      return list;
    }
    return config_space(model, format, activation, with_rejected);
  }
  [[nodiscard]] bool runs(const KernelConfig& config, const ModelShape& model, ramp_format format,
                          ramp_activation activation) const override {
    const std::vector<KernelConfig> legal = space(model, format, activation, false).legal;
    return std::find(legal.begin(), legal.end(), config) != legal.end();
  }
  [[nodiscard]] KernelConfig choose(const ExpertWeights& w, std::span<const int32_t> histogram,
                                    ramp_determinism determinism, int64_t top_k) const override {
    if (!tiled(w)) return plain_.choose(w, histogram, determinism, top_k);
    int64_t slots = 0;
    for (const int32_t c : histogram) slots += c;
    const int64_t k = std::max<int64_t>(1, top_k);
    const int64_t tokens = (slots + k - 1) / k;
    if (flat_format(w.format)) {
      if (const std::optional<KernelConfig> fitted =
              flat_choice(w, tokens, k, false, determinism == RAMP_FAST))
        return *fitted;
      return FlatPrefillBlock::takes(nullptr, w, tokens, k)
                 ? flat_prefill_config(w.format)
                 : FlatBlock::choose(w, tokens, k).config(w.format);
    }
    if (family_ == Family::kSm90Split) return fixed_split().candidates.back().config();
    const StepSet* const set = step_choice_.find(fits_, w, tokens, k, false, determinism == RAMP_FAST);
    if (set != nullptr) return set->candidates[decided(*set, histogram)].config();
    if (PrefillBlock::takes(nullptr, w, tokens, k)) return prefill_config();
    return StreamBlock::choose(w, tokens, k).config();
  }

  [[nodiscard]] FitList* fits() noexcept override { return &fits_; }
  void begin_trace(uint64_t records) override {
    const ScopedContext scope(*gpu_);
    trace_.begin(records);
  }
  void time_trace(bool on) override { trace_.time(on); }
  [[nodiscard]] TraceCounters counters() override {
    const ScopedContext scope(*gpu_);
    return trace_.counters();
  }
  void read_trace(const std::function<void(const TraceRecord&)>& take) override {
    const ScopedContext scope(*gpu_);
    trace_.read(take);
  }
  [[nodiscard]] BlockArithmetic arithmetic(const ExpertWeights& w) const noexcept override {
    if (!tiled(w)) return plain_.arithmetic(w);
    const bool half = w.format == RAMP_FORMAT_BF16 || w.format == RAMP_FORMAT_F16;
    return {flat_rows(w.format), half ? kHalfTensorUnit : kFp8TensorUnit};
  }

  void pack(ExpertWeights& w, void* stream) override {
    if (w.packed != nullptr) return;
    const ScopedContext scope(*gpu_);
    const bool tiles =
        streams(family_) && tiles_apply(w.format, w.activation, w.hidden, w.intermediate, nullptr);
    prepare(w, RAMP_BF16, tiles);
    const TilePacker packer = make_packer();
    pack_weights(w, *memory_, tiles ? &packer : nullptr, stream);
  }
  void update(ExpertWeights& w, int64_t first_expert, const ramp_weights_desc& update,
              void* stream) override {
    const ScopedContext scope(*gpu_);
    const TilePacker packer = make_packer();
    cuda::update_weights(w, first_expert, update, *memory_, &packer, stream);
  }
  void unpack(const ExpertWeights& w, const ramp_tensor& w13, const ramp_tensor& w2, void* stream) override {
    const ScopedContext scope(*gpu_);
    const TilePacker packer = make_packer();
    cuda::unpack_weights(w, w13, w2, *memory_, &packer, stream);
  }

  [[nodiscard]] uint64_t block_workspace(const ExpertWeights& w, int64_t max_tokens,
                                         int64_t top_k) const override {
    return tiled(w) ? tiled_workspace(w, max_tokens, top_k) : PlainBlock::workspace(w, max_tokens, top_k);
  }
  void expert_block(const BlockCall& call) override { run(call, nullptr); }
  void routed_block(const RouteCall& routing, const BlockCall& block) override { run(block, &routing); }

  [[nodiscard]] uint64_t batched_workspace(const ExpertWeights& w, int64_t max_tokens) const override {
    return block_workspace(w, w.experts * max_tokens, 1);
  }
  void expert_block_batched(const BatchedCall& call) override {
    const ScopedContext scope(*gpu_);
    const ScopedRange range("ramp_expert_block_batched");
    const bool tiles = tiled(*call.weights);
    prepare(*call.weights, static_cast<ramp_dtype>(call.x.dtype), tiles);
    if (tiles && flat_format(call.weights->format))
      run_flat(call);
    else if (const StepSet* set = tiles ? step_set(call) : nullptr; set != nullptr)
      run_set(call, *set);
    else if (tiles && PrefillBlock::takes_batched(call.config, call.max_tokens))
      prefill_.batched(call);
    else if (tiles)
      stream_.batched(call);
    else
      plain_.batched(call);
  }

  [[nodiscard]] uint64_t route_workspace(const ramp_router_config& router, int64_t num_logits,
                                         int64_t max_tokens) const override {
    return prologue_.route_workspace(router, num_logits, max_tokens);
  }
  [[nodiscard]] uint64_t select_workspace(const ramp_router_config& router, int64_t num_logits,
                                          int64_t max_tokens) const override {
    return prologue_.route_workspace(router, num_logits, max_tokens, true);
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
    const bool tiles = tiled(*call.weights);
    prepare(*call.weights, static_cast<ramp_dtype>(call.x.dtype), tiles);
    if (tiles && flat_format(call.weights->format))
      run_flat(call, routing);
    else if (const StepSet* set = tiles ? step_set(call) : nullptr; set != nullptr)
      run_set(call, routing, *set);
    else if (tiles &&
             PrefillBlock::takes(call.config, *call.weights, expected_tokens(call), expected_top_k(call)))
      prefill_.block(call, routing);
    else if (tiles && few_.applies(call) && few_.block(call, routing))
      return;
    else if (tiles)
      stream_.block(call, routing);
    else
      plain_.block(call, routing);
  }
  // Flat formats are captured with one kernel: their prologue decides nothing (docs/dispatch.md). A fit of
  // any cost model says which; nullopt: there is none, and the blocks' own rules hold.
  [[nodiscard]] std::optional<KernelConfig> flat_choice(const ExpertWeights& w, int64_t tokens, int64_t top_k,
                                                        bool batched, bool sums) const {
    const StepSet* const set = step_choice_.find(fits_, w, tokens, top_k, batched, sums);
    return set != nullptr ? std::optional(set->candidates.front().config()) : std::nullopt;
  }
  void run_flat(BlockCall call, const RouteCall* routing) {
    std::optional<KernelConfig> fitted;
    if (call.config == nullptr) {
      fitted = flat_choice(*call.weights, expected_tokens(call), call.top_k, false, adds_up(call));
      if (fitted) call.config = &*fitted;
    }
    if (FlatPrefillBlock::takes(call))
      flat_prefill_.block(call, routing);
    else
      flat_.block(call, routing);
  }
  void run_flat(BatchedCall call) {
    std::optional<KernelConfig> fitted;
    if (call.config == nullptr) {
      fitted = flat_choice(*call.weights, call.max_tokens, 1, true, false);
      if (fitted) call.config = &*fitted;
    }
    if (FlatPrefillBlock::takes_batched(call.config, *call.weights, call.max_tokens))
      flat_prefill_.batched(call);
    else
      flat_.batched(call);
  }
  // For any number of tokens up to this one, whichever block runs it.
  [[nodiscard]] uint64_t tiled_workspace(const ExpertWeights& w, int64_t tokens, int64_t top_k) const {
    if (flat_format(w.format))
      return std::max(FlatBlock::workspace(w, tokens, top_k), FlatPrefillBlock::workspace(w, tokens, top_k));
    return std::max({StreamBlock::workspace(w, tokens, top_k), PrefillBlock::workspace(w, tokens, top_k),
                     StepBlock::workspace(w, tokens, top_k, family_ != Family::kSm90Split),
                     few_.workspace(w, tokens, top_k)});
  }
  // The kernels of this call, where not the blocks' own rules choose.
  [[nodiscard]] const StepSet* step_set(const BlockCall& call) {
    const ExpertWeights& w = *call.weights;
    if (call.config == nullptr) {
      if (family_ == Family::kSm90Split) return &fixed_split();
      if (const StepSet* set = step_choice_.find(fits_, w, expected_tokens(call), call.top_k, false,
                                                 adds_up(call), call.tokens * call.top_k))
        return set;
    }
    if (!trace_.active()) return nullptr;
    return traced(w, call.config, default_candidate(call), call.top_k);
  }
  [[nodiscard]] const StepSet* step_set(const BatchedCall& call) {
    const ExpertWeights& w = *call.weights;
    if (call.config == nullptr) {
      if (family_ == Family::kSm90Split) return &fixed_split();
      if (const StepSet* set = step_choice_.find(fits_, w, call.max_tokens, 1, true)) return set;
    }
    if (!trace_.active()) return nullptr;
    return traced(w, call.config, default_candidate(call), 1);
  }
  // What runs without a set, as a set of one. Of what ships: other configs of the space run untraced.
  [[nodiscard]] const StepSet* traced(const ExpertWeights& w, const KernelConfig* forced,
                                      const StepCandidate& otherwise, int64_t top_k) {
    StepCandidate candidate = otherwise;
    if (forced != nullptr) {
      candidate = {*forced == prefill_config(), 0};
      if (!candidate.prefill) {
        if (prefill_variant(*forced)) return nullptr;
        const std::optional<size_t> variant = StreamBlock::number(forced, w, 1, 1);
        if (!variant) return nullptr;
        candidate.variant = *variant;
      }
    }
    return &step_choice_.one(fits_, w, top_k, candidate);
  }
  [[nodiscard]] bool traces(const StepSet& set) const noexcept {
    return trace_.active() && !set.candidates.front().other;
  }
  // One candidate needs no decision. The few-token kernel, which has no plan, is left out of traces.
  void run_set(const BlockCall& call, const RouteCall* routing, const StepSet& set) {
    if (set.candidates.size() > 1 || traces(set)) {
      step_.block(call, routing, set, trace_.active() ? &trace_ : nullptr);
      return;
    }
    BlockCall one = call;
    const KernelConfig config = set.candidates.front().config();
    one.config = &config;
    if (set.candidates.front().prefill)
      prefill_.block(one, routing);
    else if (!few_.applies(call) || !few_.block(call, routing))
      stream_.block(one, routing);
  }
  void run_set(const BatchedCall& call, const StepSet& set) {
    if (set.candidates.size() > 1 || traces(set)) {
      step_.batched(call, set, trace_.active() ? &trace_ : nullptr);
      return;
    }
    BatchedCall one = call;
    const KernelConfig config = set.candidates.front().config();
    one.config = &config;
    if (set.candidates.front().prefill)
      prefill_.batched(one);
    else
      stream_.batched(one);
  }
  [[nodiscard]] static bool tiled(const ExpertWeights& w) noexcept { return cuda::is_tiled(w); }
  [[nodiscard]] static bool tiles_apply(ramp_format format, ramp_activation activation, int64_t hidden,
                                        int64_t intermediate, std::string* reason) {
    return flat_format(format) ? flat_applies(format, activation, hidden, intermediate, reason)
                               : stream_applies(format, activation, hidden, intermediate, reason);
  }
  TilePacker make_packer() {
    return {*memory_, library_->get(pack_programs(arch_number()).front(), "pack_tiles")};
  }

  // Once per format, dtype of x and layout; afterwards a read of one flag.
  void prepare(const ExpertWeights& w, ramp_dtype x_dtype, bool tiles) {
    std::atomic<bool>& done = prepared_[static_cast<size_t>(w.format)][static_cast<size_t>(x_dtype)]
                                       [tiles ? 1 + static_cast<size_t>(w.activation) : 0];
    if (done.load(std::memory_order_acquire)) return;
    const bool flat = tiles && flat_format(w.format);
    std::vector<KernelProgram> programs = flat    ? FlatBlock::programs(w.format, w.activation)
                                          : tiles ? stream_.programs(w.activation)
                                                  : plain_.programs(w.format);
    if (flat) {
      for (KernelProgram& p : FlatPrefillBlock::programs(w.format, w.activation))
        programs.push_back(std::move(p));
    } else if (tiles) {
      for (KernelProgram& p : PrefillBlock::programs(w.activation)) programs.push_back(std::move(p));
      for (KernelProgram& p : few_.programs()) programs.push_back(std::move(p));
    }
    programs.push_back(combine_program(RAMP_BF16));
    library_->load(programs);
    combine_.prepare(RAMP_BF16);  // another dtype of y: on its first call
    if (flat) {
      flat_.prepare(w, x_dtype);
      flat_prefill_.prepare(w, x_dtype);
    } else if (tiles) {
      stream_.prepare(w, x_dtype);
      prefill_.prepare(w, x_dtype);
      few_.prepare();
    } else {
      plain_.prepare(w, x_dtype);
    }
    done.store(true, std::memory_order_release);
  }
  [[nodiscard]] int arch_number() const { return 10 * gpu_->facts().major + gpu_->facts().minor; }

  std::shared_ptr<const Gpu> gpu_;
  Family family_;
  std::shared_ptr<KernelLibrary> library_;
  std::shared_ptr<const DeviceMemory> memory_;
  Prologue prologue_;
  Combine combine_;
  PlainBlock plain_;
  StreamBlock stream_;
  FlatBlock flat_;
  FlatPrefillBlock flat_prefill_;
  PrefillBlock prefill_;
  StepBlock step_;
  StepTrace trace_;
  FitList fits_;
  mutable StepChoice step_choice_;
  FewBlock few_;
  BackendInfo info_;
  std::array<std::array<std::array<std::atomic<bool>, 5>, 16>, 8> prepared_{};
};

}  // namespace

std::unique_ptr<Backend> make_cuda_backend(const BackendOptions& options) {
  return std::make_unique<CudaBackend>(options);
}

}  // namespace ramp::core
