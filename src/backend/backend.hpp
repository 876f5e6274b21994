// The one virtual seam of the library. The C ABI validates and normalises arguments into the plain structs
// below; a backend only computes. All tensors here have explicit strides and have passed check_tensor.
#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include "base/device_memory.hpp"
#include "base/error.hpp"
#include "base/log.hpp"
#include "geometry/config.hpp"
#include "geometry/model.hpp"
#include "weights/expert_weights.hpp"

namespace ramp::core {

struct BackendInfo {
  ramp_backend kind = RAMP_BACKEND_AUTO;
  std::string name;         // "reference", "cpu", "cuda"
  std::string isa;          // CPU: ISA level in use; CUDA: kernel family in use
  std::string device_name;  // CPU or GPU model
  int32_t workers = 1;      // CPU workers or SMs
};

// A config that a backend does not offer for a shape, and why.
struct RejectedConfig {
  KernelConfig config;
  std::string reason;
};
struct ConfigList {
  std::vector<KernelConfig> legal;
  std::vector<RejectedConfig> rejected;
};

// Unit of the sums of sm_90's FP8 wgmma relative to the largest term: terms are aligned to it and 13 bits are
// kept behind its point (docs/numerics.md).
inline constexpr double kFp8TensorUnit = 0x1p-13;
// The same of its bf16 and f16 wgmma: 25 bits; a sum is then cut to fp32. The instructions of the whole depth
// form one chain.
inline constexpr double kHalfTensorUnit = 0x1p-25;

// How a backend computes the block of some weights, as far as a checker has to know (CheckOptions has the
// same fields).
struct BlockArithmetic {
  ramp_dtype slot_rows = RAMP_F32;  // what expert rows are stored as before they are combined
  double tensor_unit = 0;           // 0: sums in fp32 or better
};

struct BlockCall {
  const ExpertWeights* weights = nullptr;
  ramp_determinism determinism = RAMP_REPEATABLE;
  ramp_output output = RAMP_OUTPUT_COMBINED;
  bool router_weight_on_input = false;
  const KernelConfig* config = nullptr;  // nullptr: the backend chooses from the histogram
  int64_t tokens = 0, top_k = 0;
  ramp_tensor x{}, x_scale{}, ids{}, topk_weights{}, shared_addend{}, y{};
  std::span<const int32_t> expert_map;
  int64_t* counters = nullptr;  // [2] or nullptr
  void* workspace = nullptr;    // at least block_workspace() bytes, 256-byte aligned
  uint64_t workspace_bytes = 0;
  void* stream = nullptr;
};

struct BatchedCall {
  const ExpertWeights* weights = nullptr;
  ramp_determinism determinism = RAMP_REPEATABLE;
  bool router_weight_on_input = false;
  const KernelConfig* config = nullptr;
  int64_t max_tokens = 0;
  ramp_tensor x{}, x_scale{}, counts{}, row_weights{}, y{};
  void* workspace = nullptr;
  uint64_t workspace_bytes = 0;
  void* stream = nullptr;
};

struct RouteCall {
  ramp_router_config router{};
  ramp_tensor x{}, router_weight{};  // logits are computed from these when `logits` is absent
  ramp_tensor logits{};              // [T,E]
  ramp_tensor ids{}, weights{};
  void* workspace = nullptr;
  uint64_t workspace_bytes = 0;
  void* stream = nullptr;
};

class FitList;  // dispatch/block_fit.hpp

// One layer call as the device decided it. Valid while it is handed out.
struct TraceRecord {
  uint64_t number = 0;                // since tracing began
  uint64_t call = 0;                  // of the calls made or captured; replays of a graph repeat it
  const ModelShape* shape = nullptr;  // without a name
  ramp_format format = RAMP_FORMAT_NONE;
  int64_t tokens = 0;
  bool batched = false;
  std::span<const KernelConfig> configs;   // the candidates
  size_t chosen = 0;                       // one of them
  double predicted_us = 0;                 // 0: no cost is known
  double measured_us = 0;                  // 0: not timed
  std::span<const double> configs_us;      // predicted for each candidate; 0: no cost is known
  const KernelConfig* fallback = nullptr;  // what runs without a fit; nullptr: none that traces know
  double fallback_us = 0;                  // predicted; 0: its cost is not known
  std::span<const int32_t> histogram;
};
// Sums over records: fields as ramp_context_counters (ramp.h) defines them.
struct TraceCounters {
  uint64_t records = 0, lost = 0, active = 0;
  double imbalance_sum = 0, imbalance_max = 0;
  uint64_t changed = 0, compared = 0;
  double chosen_us = 0, default_us = 0, default_regret_sum = 0, default_regret_max = 0;
  uint64_t measured = 0;
  double measured_us = 0;
  uint64_t judged = 0;
  double error_sum = 0;
  void add(const TraceRecord& r) noexcept;
};

class Backend {
 public:
  virtual ~Backend() = default;
  [[nodiscard]] virtual const BackendInfo& info() const noexcept = 0;
  // Configs for a shape. `rejected` is filled only when asked for.
  [[nodiscard]] virtual ConfigList configs(const ModelShape& model, ramp_format format,
                                           ramp_activation activation, bool with_rejected) const = 0;
  // Everything that could be compiled and run for a shape, configs() first: what `ramp profile` searches. The
  // rest is brought in when it is first asked for.
  [[nodiscard]] virtual ConfigList space(const ModelShape& model, ramp_format format,
                                         ramp_activation activation, bool with_rejected) const {
    return configs(model, format, activation, with_rejected);
  }
  // Whether it runs this config for a shape: also configs that configs() does not list.
  [[nodiscard]] virtual bool runs(const KernelConfig& /*config*/, const ModelShape& /*model*/,
                                  ramp_format /*format*/, ramp_activation /*activation*/) const {
    return false;
  }
  // The config that the backend would use for this histogram (what `config == nullptr` means). top_k: of the
  // calls; 0 = not known (it only matters where fits differ in nothing else).
  [[nodiscard]] virtual KernelConfig choose(const ExpertWeights& weights, std::span<const int32_t> histogram,
                                            ramp_determinism determinism, int64_t top_k = 0) const = 0;
  [[nodiscard]] virtual BlockArithmetic arithmetic(const ExpertWeights& /*weights*/) const noexcept {
    return {};
  }
  // The fits by which it chooses; add to them at any time. nullptr: there are no configs to choose from.
  [[nodiscard]] virtual FitList* fits() noexcept { return nullptr; }

  // Tracing of calls whose histogram the host does not see. begin_trace(0): calls from now on write nothing.
  virtual void begin_trace(uint64_t /*records*/) { fail_trace(); }
  virtual void time_trace(bool /*on*/) { fail_trace(); }
  virtual void read_trace(const std::function<void(const TraceRecord&)>& /*take*/) {}
  [[nodiscard]] virtual TraceCounters counters() { return {}; }

  // The device's memory; nullptr: it is the host's.
  [[nodiscard]] virtual const DeviceMemory* memory() const noexcept { return nullptr; }

  // Packing. pack() fills weights.packed and (COPY, IN_PLACE) gives up the checkpoint-layout views.
  virtual void pack(ExpertWeights& weights, void* stream) = 0;
  // `update` has passed check_update. Writes into whatever layout the handle has.
  virtual void update(ExpertWeights& weights, int64_t first_expert, const ramp_weights_desc& update,
                      void* stream) = 0;
  virtual void unpack(const ExpertWeights& weights, const ramp_tensor& w13, const ramp_tensor& w2,
                      void* stream) = 0;

  [[nodiscard]] virtual uint64_t block_workspace(const ExpertWeights& weights, int64_t max_tokens,
                                                 int64_t top_k) const = 0;
  virtual void expert_block(const BlockCall& call) = 0;
  [[nodiscard]] virtual uint64_t batched_workspace(const ExpertWeights& weights,
                                                   int64_t max_tokens) const = 0;
  virtual void expert_block_batched(const BatchedCall& call) = 0;
  [[nodiscard]] virtual uint64_t route_workspace(const ramp_router_config& router, int64_t num_logits,
                                                 int64_t max_tokens) const = 0;
  // The same for calls that bring logits: no more than that, and 0 keeps such calls off shared memory.
  [[nodiscard]] virtual uint64_t select_workspace(const ramp_router_config& router, int64_t num_logits,
                                                  int64_t max_tokens) const {
    return route_workspace(router, num_logits, max_tokens);
  }
  virtual void route(const RouteCall& call) = 0;
  // Both in one go, block.ids and block.topk_weights being route's outputs: what ramp_moe_forward runs. The
  // two calls' workspaces may be the same memory.
  virtual void routed_block(const RouteCall& routing, const BlockCall& block) {
    route(routing);
    expert_block(block);
  }

 private:
  [[noreturn]] void fail_trace() const {
    fail(RAMP_ERROR_UNSUPPORTED, "trace: the " + info().name +
                                     " backend sees every histogram on the host and keeps no trace; trace "
                                     "calls on backend cuda");
  }
};

struct BackendOptions {
  ramp_device device{};
  int32_t num_threads = 0;  // 0: one per available core
  const ramp_executor* executor = nullptr;
  std::string isa;  // CPU: ISA level, CUDA: kernel family; "" = best
  std::string cache_dir;
  LogSink log;
};
// AUTO -> the device's fastest. Throws UNSUPPORTED with one clear line when the build or machine lacks it.
std::unique_ptr<Backend> make_backend(ramp_backend kind, const BackendOptions& options);

}  // namespace ramp::core
