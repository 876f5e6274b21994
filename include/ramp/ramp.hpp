// ramp for C++20: RAII handles, exceptions and structs with defaults over the C ABI of ramp.h. Header only;
// it calls nothing but that ABI, so a program built with it runs with every libramp of the same SOVERSION.
//
// Shapes, dtypes, ownership, aliasing and concurrency are those of ramp.h, function by function. Every
// failing call throws ramp::Error. Nothing here allocates on the way to the expert block.
//
//   ramp::Context context;
//   ramp::Weights weights(context, {.format = RAMP_FORMAT_BF16, .w13 = ..., .w2 = ...});
//   weights.pack(context);
//   context.expert_block(weights, {.x = ramp::tensor(x, {T, H}), .topk_ids = ramp::tensor(ids, {T, k}),
//                                  .topk_weights = ramp::tensor(w, {T, k}), .y = ramp::tensor(y, {T, H})});
#ifndef RAMP_RAMP_HPP_
#define RAMP_RAMP_HPP_

#include <cstddef>
#include <cstdint>
#include <initializer_list>
#include <memory>
#include <new>
#include <ranges>
#include <stdexcept>
#include <string>
#include <type_traits>
#include <utility>

#include "ramp/ramp.h"

namespace ramp {

// ---------------------------------------------------------------- errors

// What a failing call threw: its status, and its message as what().
class Error : public std::runtime_error {
 public:
  Error(ramp_status status, const std::string& message) : std::runtime_error(message), status_(status) {}
  [[nodiscard]] ramp_status status() const noexcept { return status_; }

 private:
  ramp_status status_;
};

// Throws unless status is RAMP_OK. For calls of the C ABI that have no wrapper.
inline void check(ramp_status status) {
  if (status != RAMP_OK) throw Error(status, ramp_last_error());
}

// ---------------------------------------------------------------- tensors

using Tensor = ramp_tensor;  // a view; never owns; Tensor{} is "absent"

// The ramp_dtype of an element type. Specialise it for 16- and 8-bit floating types of your own:
//   template <> inline constexpr ramp_dtype ramp::dtype_of<my_bfloat16> = RAMP_BF16;
template <typename T>
inline constexpr ramp_dtype dtype_of = RAMP_DTYPE_NONE;
template <>
inline constexpr ramp_dtype dtype_of<float> = RAMP_F32;
template <>
inline constexpr ramp_dtype dtype_of<double> = RAMP_F64;
template <>
inline constexpr ramp_dtype dtype_of<int32_t> = RAMP_I32;
template <>
inline constexpr ramp_dtype dtype_of<int64_t> = RAMP_I64;
template <>
inline constexpr ramp_dtype dtype_of<uint8_t> = RAMP_U8;

// A contiguous row-major view of raw memory, for element types that C++ has no name for:
//   ramp::tensor(RAMP_BF16, pointer, {T, H})
// At most RAMP_MAX_DIMS extents. `const` is dropped: only outputs are written.
inline Tensor tensor(ramp_dtype dtype, const void* data, std::initializer_list<int64_t> shape,
                     ramp_device device = {}) {
  if (shape.size() > RAMP_MAX_DIMS)
    throw Error(RAMP_ERROR_INVALID_ARGUMENT, "shape: got " + std::to_string(shape.size()) +
                                                 " extents, expected at most " +
                                                 std::to_string(RAMP_MAX_DIMS));
  Tensor t{};
  t.data = const_cast<void*>(data);
  t.dtype = dtype;
  for (const int64_t extent : shape) t.shape[t.ndim++] = extent;
  t.device = device;
  return t;
}

// The same with the dtype of the pointer.
template <typename T>
requires(dtype_of<std::remove_cv_t<T>> != RAMP_DTYPE_NONE) Tensor
    tensor(T* data, std::initializer_list<int64_t> shape, ramp_device device = {}) {
  return tensor(dtype_of<std::remove_cv_t<T>>, data, shape, device);
}

// The same over a std::span, std::vector, std::array, ...; throws unless it has as many elements as the
// shape. Temporaries that own their elements are refused at compile time.
template <std::ranges::contiguous_range R>
requires(std::ranges::borrowed_range<R>&& std::ranges::sized_range<R>&&
             dtype_of<std::remove_cv_t<std::ranges::range_value_t<R>>> != RAMP_DTYPE_NONE) Tensor
    tensor(R&& values, std::initializer_list<int64_t> shape, ramp_device device = {}) {
  int64_t count = 1;
  for (const int64_t extent : shape) count *= extent;
  if (count != static_cast<int64_t>(std::ranges::size(values)))
    throw Error(RAMP_ERROR_INVALID_ARGUMENT, "tensor: got " + std::to_string(std::ranges::size(values)) +
                                                 " elements, expected " + std::to_string(count) +
                                                 ", the product of the shape");
  return tensor(std::ranges::data(values), shape, device);
}

// The same view with strides (in elements), one per dimension.
inline Tensor strided(Tensor t, std::initializer_list<int64_t> strides) {
  if (strides.size() != static_cast<size_t>(t.ndim))
    throw Error(RAMP_ERROR_INVALID_ARGUMENT, "strides: got " + std::to_string(strides.size()) +
                                                 ", expected one per dimension: " + std::to_string(t.ndim));
  int32_t d = 0;
  for (const int64_t stride : strides) t.stride[d++] = stride;
  return t;
}

// ---------------------------------------------------------------- workspaces

// Scratch memory for one call at a time. Workspace{} is the context's own.
struct Workspace {
  void* data = nullptr;  // 256-byte aligned device memory
  uint64_t bytes = 0;
};

// Owned host memory as a workspace: one per thread lets calls on one context run concurrently.
class HostWorkspace {
 public:
  explicit HostWorkspace(uint64_t bytes)
      : data_(bytes != 0 ? ::operator new(bytes, kAlignment) : nullptr), bytes_(bytes) {}
  operator Workspace() const noexcept {
    return {data_.get(), bytes_};
  }  // NOLINT(google-explicit-constructor)

 private:
  static constexpr std::align_val_t kAlignment{256};
  struct Free {
    void operator()(void* p) const noexcept { ::operator delete(p, kAlignment); }
  };
  std::unique_ptr<void, Free> data_;
  uint64_t bytes_;
};

// ---------------------------------------------------------------- options, with their defaults

struct ContextOptions {
  ramp_device device{};
  ramp_backend backend = RAMP_BACKEND_AUTO;
  int32_t num_threads = 0;                  // 0: one per available core
  const ramp_executor* executor = nullptr;  // nullptr: own thread pool
  ramp_log_fn log = nullptr;
  void* log_user = nullptr;
  const char* cache_dir = nullptr;
  const char* isa = nullptr;
};

// See ramp_weights_desc.
struct WeightsDesc {
  ramp_format format = RAMP_FORMAT_NONE;
  ramp_activation activation = RAMP_ACTIVATION_SILU_AND_MUL;
  ramp_ownership ownership = RAMP_COPY;
  // E, H and I; where 0 they are taken from w2, which is [E,H,I].
  int64_t num_experts = 0, hidden = 0, intermediate = 0;
  Tensor w13{}, w2{};
  Tensor w13_scale{}, w2_scale{};
  Tensor w13_input_scale{}, w2_input_scale{};

  [[nodiscard]] ramp_weights_desc c_struct() const noexcept {
    ramp_weights_desc d = ramp_weights_desc_init();
    d.format = format;
    d.activation = activation;
    d.ownership = ownership;
    d.num_experts = num_experts != 0 ? num_experts : w2.shape[0];
    d.hidden = hidden != 0 ? hidden : w2.shape[1];
    d.intermediate = intermediate != 0 ? intermediate : w2.shape[2];
    d.w13 = w13;
    d.w2 = w2;
    d.w13_scale = w13_scale;
    d.w2_scale = w2_scale;
    d.w13_input_scale = w13_input_scale;
    d.w2_input_scale = w2_input_scale;
    return d;
  }
};

// See ramp_expert_block_args.
struct BlockArgs {
  Tensor x{}, x_scale{};
  Tensor topk_ids{}, topk_weights{};
  Tensor expert_map{}, shared_addend{};
  Tensor y{};
  Tensor counters{};
  ramp_determinism determinism = RAMP_REPEATABLE;
  ramp_output output = RAMP_OUTPUT_COMBINED;
  bool router_weight_on_input = false;
  int32_t config = 0;  // 0: the dispatcher chooses
};

// See ramp_batched_args.
struct BatchedArgs {
  Tensor x{}, x_scale{};
  Tensor counts{}, row_weights{};
  Tensor y{};
  ramp_determinism determinism = RAMP_REPEATABLE;
  bool router_weight_on_input = false;
  int32_t config = 0;
};

// See ramp_router_config.
struct Router {
  ramp_scoring scoring = RAMP_SCORING_SOFTMAX;
  int32_t top_k = 1;
  bool renormalize = false;
  int32_t num_groups = 1, topk_groups = 1;
  ramp_group_score group_score = RAMP_GROUP_SCORE_MAX;
  float routed_scaling_factor = 1.0F;
  int32_t num_shared_experts = 0;
  int64_t capacity = 0;  // 0: none
  Tensor selection_bias{};

  [[nodiscard]] ramp_router_config c_struct() const noexcept {
    ramp_router_config r = ramp_router_config_init();
    r.scoring = scoring;
    r.top_k = top_k;
    r.renormalize = renormalize ? 1 : 0;
    r.num_groups = num_groups;
    r.topk_groups = topk_groups;
    r.group_score = group_score;
    r.routed_scaling_factor = routed_scaling_factor;
    r.num_shared_experts = num_shared_experts;
    r.capacity = capacity;
    r.selection_bias = selection_bias;
    return r;
  }
};

// See ramp_moe_forward_args. Give router_logits or router_weight.
struct ForwardArgs {
  ramp_router_config router = Router{}.c_struct();
  Tensor x{};
  Tensor router_logits{}, router_weight{};
  Tensor expert_map{}, shared_addend{};
  Tensor y{};
  Tensor counters{};
  Tensor topk_ids_out{}, topk_weights_out{};
  ramp_determinism determinism = RAMP_REPEATABLE;
  bool router_weight_on_input = false;
  int32_t config = 0;
};

// ---------------------------------------------------------------- handles

namespace detail {
template <auto Destroy>
struct Deleter {
  template <typename T>
  void operator()(T* handle) const noexcept {
    Destroy(handle);
  }
};
}  // namespace detail

class Context;

// The experts of one layer (move-only). May outlive the context that it was made with.
class Weights {
 public:
  Weights(Context& context, const WeightsDesc& desc, void* stream = nullptr);
  explicit Weights(ramp_weights* adopted) noexcept : handle_(adopted) {}  // takes ownership

  void pack(Context& context, void* stream = nullptr);
  // Overwrites experts from first_expert on; see ramp_weights_update.
  void update(Context& context, int64_t first_expert, const WeightsDesc& desc, void* stream = nullptr);
  // Writes the checkpoint layout of either or both.
  void unpack(Context& context, const Tensor& w13, const Tensor& w2, void* stream = nullptr) const;
  [[nodiscard]] ramp_weights_info info() const {
    ramp_weights_info value = ramp_weights_info_init();
    check(ramp_weights_get_info(get(), &value));
    return value;
  }
  [[nodiscard]] ramp_weights* get() const noexcept { return handle_.get(); }

 private:
  std::unique_ptr<ramp_weights, detail::Deleter<ramp_weights_destroy>> handle_;
};

// A device and its backend (move-only): the place where everything runs.
class Context {
 public:
  explicit Context(const ContextOptions& options = {}) {
    ramp_context_options o = ramp_context_options_init();
    o.device = options.device;
    o.backend = options.backend;
    o.num_threads = options.num_threads;
    o.executor = options.executor;
    o.log = options.log;
    o.log_user = options.log_user;
    o.cache_dir = options.cache_dir;
    o.isa = options.isa;
    ramp_context* handle = nullptr;
    check(ramp_context_create(&o, &handle));
    handle_.reset(handle);
  }

  // Strings in it live as long as the context.
  [[nodiscard]] ramp_context_info info() const {
    ramp_context_info value = ramp_context_info_init();
    check(ramp_context_get_info(get(), &value));
    return value;
  }
  // Chooses by a fit file, a directory of them, or (nullptr) the fits that `ramp profile` wrote; returns the
  // number of layer shapes taken over. See ramp_context_load_fit.
  int32_t load_fit(const char* path = nullptr) {
    int32_t used = 0;
    check(ramp_context_load_fit(get(), path, &used));
    return used;
  }
  // Traces and their counters: see ramp_context_trace and what follows it. take(const ramp_trace_record&)
  // must not throw.
  void trace(uint64_t records) { check(ramp_context_trace(get(), records)); }
  void time_trace(bool on) { check(ramp_context_time_trace(get(), on ? 1 : 0)); }
  template <typename Take>
  void read_trace(Take&& take) {
    using Function = std::remove_reference_t<Take>;
    check(ramp_context_read_trace(
        get(), [](const ramp_trace_record* r, void* user) { (*static_cast<Function*>(user))(*r); },
        const_cast<void*>(static_cast<const void*>(std::addressof(take)))));
  }
  [[nodiscard]] ramp_context_counters counters() {
    ramp_context_counters value = ramp_context_counters_init();
    check(ramp_context_get_counters(get(), &value));
    return value;
  }
  // Name of config number `index` (from 0) for these weights; nullptr past the last.
  [[nodiscard]] const char* config_name(const Weights& weights, int32_t index) const noexcept {
    return ramp_config_name(get(), weights.get(), index);
  }

  [[nodiscard]] uint64_t expert_block_workspace(const Weights& weights, int64_t max_tokens,
                                                int64_t top_k) const {
    uint64_t bytes = 0;
    check(ramp_expert_block_workspace(get(), weights.get(), max_tokens, top_k, &bytes));
    return bytes;
  }
  void expert_block(const Weights& weights, const BlockArgs& args, Workspace workspace = {},
                    void* stream = nullptr) const {
    ramp_expert_block_args a = ramp_expert_block_args_init();
    a.weights = weights.get();
    a.determinism = args.determinism;
    a.output = args.output;
    a.router_weight_on_input = args.router_weight_on_input ? 1 : 0;
    a.config = args.config;
    a.x = args.x;
    a.x_scale = args.x_scale;
    a.topk_ids = args.topk_ids;
    a.topk_weights = args.topk_weights;
    a.expert_map = args.expert_map;
    a.shared_addend = args.shared_addend;
    a.y = args.y;
    a.counters = args.counters;
    check(ramp_expert_block(get(), &a, workspace.data, workspace.bytes, stream));
  }

  [[nodiscard]] uint64_t expert_block_batched_workspace(const Weights& weights, int64_t max_tokens) const {
    uint64_t bytes = 0;
    check(ramp_expert_block_batched_workspace(get(), weights.get(), max_tokens, &bytes));
    return bytes;
  }
  void expert_block_batched(const Weights& weights, const BatchedArgs& args, Workspace workspace = {},
                            void* stream = nullptr) const {
    ramp_batched_args a = ramp_batched_args_init();
    a.weights = weights.get();
    a.determinism = args.determinism;
    a.config = args.config;
    a.router_weight_on_input = args.router_weight_on_input ? 1 : 0;
    a.x = args.x;
    a.x_scale = args.x_scale;
    a.counts = args.counts;
    a.row_weights = args.row_weights;
    a.y = args.y;
    check(ramp_expert_block_batched(get(), &a, workspace.data, workspace.bytes, stream));
  }

  void route(const Router& router, const Tensor& logits, const Tensor& topk_ids, const Tensor& topk_weights,
             void* stream = nullptr) const {
    const ramp_router_config r = router.c_struct();
    check(ramp_route(get(), &r, &logits, &topk_ids, &topk_weights, stream));
  }

  [[nodiscard]] uint64_t moe_forward_workspace(const Weights& weights, int64_t max_tokens, int64_t slots,
                                               int64_t num_logits) const {
    uint64_t bytes = 0;
    check(ramp_moe_forward_workspace(get(), weights.get(), max_tokens, slots, num_logits, &bytes));
    return bytes;
  }
  void moe_forward(const Weights& weights, const ForwardArgs& args, Workspace workspace = {},
                   void* stream = nullptr) const {
    ramp_moe_forward_args a = ramp_moe_forward_args_init();
    a.weights = weights.get();
    a.determinism = args.determinism;
    a.router_weight_on_input = args.router_weight_on_input ? 1 : 0;
    a.config = args.config;
    a.router = args.router;
    a.x = args.x;
    a.router_logits = args.router_logits;
    a.router_weight = args.router_weight;
    a.expert_map = args.expert_map;
    a.shared_addend = args.shared_addend;
    a.y = args.y;
    a.counters = args.counters;
    a.topk_ids_out = args.topk_ids_out;
    a.topk_weights_out = args.topk_weights_out;
    check(ramp_moe_forward(get(), &a, workspace.data, workspace.bytes, stream));
  }

  [[nodiscard]] ramp_context* get() const noexcept { return handle_.get(); }

 private:
  std::unique_ptr<ramp_context, detail::Deleter<ramp_context_destroy>> handle_;
};

// A Hugging Face checkpoint directory or one .safetensors file, memory-mapped (move-only).
class Checkpoint {
 public:
  explicit Checkpoint(const std::string& path) {
    ramp_checkpoint* handle = nullptr;
    check(ramp_checkpoint_open(path.c_str(), &handle));
    handle_.reset(handle);
  }
  // Views and strings in it live as long as the checkpoint.
  [[nodiscard]] ramp_layer_info layer_info(int64_t layer) const {
    ramp_layer_info value = ramp_layer_info_init();
    check(ramp_checkpoint_layer_info(get(), layer, &value));
    return value;
  }
  // Experts [first_expert, first_expert + num_experts) of a layer; num_experts 0: all from first_expert on.
  [[nodiscard]] Weights load_weights(Context& context, int64_t layer, int64_t first_expert = 0,
                                     int64_t num_experts = 0, void* stream = nullptr) const {
    ramp_weights* handle = nullptr;
    check(ramp_checkpoint_load_weights(context.get(), get(), layer, first_expert, num_experts, stream,
                                       &handle));
    return Weights(handle);
  }
  [[nodiscard]] ramp_checkpoint* get() const noexcept { return handle_.get(); }

 private:
  std::unique_ptr<ramp_checkpoint, detail::Deleter<ramp_checkpoint_close>> handle_;
};

// ---------------------------------------------------------------- definitions that need both handles

inline Weights::Weights(Context& context, const WeightsDesc& desc, void* stream) {
  const ramp_weights_desc d = desc.c_struct();
  ramp_weights* handle = nullptr;
  check(ramp_weights_create(context.get(), &d, stream, &handle));
  handle_.reset(handle);
}
inline void Weights::pack(Context& context, void* stream) {
  check(ramp_weights_pack(context.get(), get(), stream));
}
inline void Weights::update(Context& context, int64_t first_expert, const WeightsDesc& desc, void* stream) {
  const ramp_weights_desc d = desc.c_struct();
  check(ramp_weights_update(context.get(), get(), first_expert, &d, stream));
}
inline void Weights::unpack(Context& context, const Tensor& w13, const Tensor& w2, void* stream) const {
  check(ramp_weights_unpack(context.get(), get(), &w13, &w2, stream));
}

}  // namespace ramp
#endif  // RAMP_RAMP_HPP_
