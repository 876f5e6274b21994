// What the opaque handles of the C ABI are, and how the ABI gets from a pointer to the object behind it.
#pragma once

#include <array>
#include <cstdint>
#include <deque>
#include <memory>
#include <mutex>
#include <string>
#include <vector>

#include "abi/border.hpp"
#include "backend/backend.hpp"
#include "base/aligned_buffer.hpp"
#include "base/tensor.hpp"
#include "loader/checkpoint.hpp"

namespace ramp::core {

// Set while a handle lives; cleared before it dies.
inline constexpr uint64_t kContextMagic = 0x52614d50'00c0ffeeULL;
inline constexpr uint64_t kWeightsMagic = 0x52614d50'00e19a27ULL;
inline constexpr uint64_t kCheckpointMagic = 0x52614d50'00c4ec4bULL;

// The configs of one shape and format as a backend lists them, with their names. Built once per context and
// then only read, so that a forced config costs a lookup and its name stays where it is.
struct ShapeConfigs {
  int64_t experts = 0, hidden = 0, intermediate = 0;
  ramp_format format = RAMP_FORMAT_NONE;
  ramp_activation activation = RAMP_ACTIVATION_SILU_AND_MUL;
  bool whole = false;  // Backend::space() instead of Backend::configs()
  std::vector<KernelConfig> configs;
  std::vector<std::string> names;
};

}  // namespace ramp::core

struct ramp_context {
  uint64_t magic = ramp::core::kContextMagic;
  ramp_device device{};
  ramp_executor executor{};  // copy of the caller's; the backend points at it
  ramp::core::LogSink log;
  std::string cache_dir;  // "" when there is none
  std::unique_ptr<ramp::core::Backend> backend;
  std::mutex workspace_mutex;  // held during a call that uses the context's own workspace
  ramp::core::AlignedBuffer workspace;
  // The same on a GPU. The last call that used it may still run: its stream, and whether one is known.
  std::shared_ptr<void> device_workspace;
  uint64_t device_workspace_bytes = 0;
  void* workspace_stream = nullptr;
  bool workspace_used = false;
  // Numbers configs of the whole space instead of those that ship; both begin with the same ones. Off for
  // callers of the ABI; the command sets it before it profiles.
  bool whole_space = false;
  std::mutex configs_mutex;  // guards the list; its entries never change or move
  std::deque<ramp::core::ShapeConfigs> configs;
};

struct ramp_weights {
  uint64_t magic = ramp::core::kWeightsMagic;
  std::unique_ptr<ramp::core::ExpertWeights> weights;
  // The caller's own buffers behind a BORROW or IN_PLACE handle (w13, w2 and their scales): outputs must not
  // touch them. Empty ranges for COPY.
  std::array<ramp::core::ByteRange, 4> buffers{};
  // Who packed: packed weights run on the same backend and ISA level alone.
  ramp_backend packed_by = RAMP_BACKEND_AUTO;
  std::string packed_isa;
};

struct ramp_checkpoint {
  explicit ramp_checkpoint(const std::string& path) : checkpoint(path) {}
  uint64_t magic = ramp::core::kCheckpointMagic;
  ramp::core::Checkpoint checkpoint;
};

namespace ramp::core {

inline ramp_context& context_of(ramp_context* c) {
  check_handle(c, kContextMagic, "context", "ramp_context_create");
  return *c;
}
inline const ramp_context& context_of(const ramp_context* c) {
  check_handle(c, kContextMagic, "context", "ramp_context_create");
  return *c;
}
inline ramp_weights& weights_of(ramp_weights* w) {
  check_handle(w, kWeightsMagic, "weights", "ramp_weights_create");
  return *w;
}
inline const ramp_weights& weights_of(const ramp_weights* w) {
  check_handle(w, kWeightsMagic, "weights", "ramp_weights_create");
  return *w;
}
inline const ramp_checkpoint& checkpoint_of(const ramp_checkpoint* c) {
  check_handle(c, kCheckpointMagic, "checkpoint", "ramp_checkpoint_open");
  return *c;
}

// Clears the magic so that later use of the pointer is recognised (as long as the memory is not reused) and
// frees the handle. The volatile store survives dead-store elimination.
template <typename Handle>
void destroy_handle(Handle* handle) noexcept {
  *static_cast<volatile uint64_t*>(&handle->magic) = 0;
  delete handle;
}

// Throws unless these weights can run on this context: same device and, once packed, same backend and ISA.
void check_runs_on(const ramp_context& context, const ramp_weights& weights);

// The table for these weights' shape, built on first use.
const ShapeConfigs& shape_configs(ramp_context& context, const ExpertWeights& weights);
// config as in ramp_expert_block_args: 0 -> nullptr (the backend chooses), n -> config n-1.
const KernelConfig* find_config(ramp_context& context, const ExpertWeights& weights, int32_t config);

}  // namespace ramp::core
