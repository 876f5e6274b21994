// What the GPU tests share: contexts, the numerics cases (numerics/cases.hpp) carried to device memory and
// run there through the C ABI, guards around everything that is written.
//
//   BlockCase c({.tokens = 5});
//   const GpuWeights w = make_gpu_weights(gpu(), c.synthetic, RAMP_COPY, true);
//   GpuBlock block(c, gpu());
//   block.run(w.handle.get());                       // EXPECTs guards, gaps and counters
//   EXPECT_TRUE(c.check(check_options()).ok());
#pragma once

#include <gtest/gtest.h>

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "base/device_memory.hpp"
#include "base/log.hpp"
#include "numerics/cases.hpp"

namespace ramp::core::test {

struct Destroy {
  void operator()(ramp_context* c) const noexcept { ramp_context_destroy(c); }
  void operator()(ramp_weights* w) const noexcept { ramp_weights_destroy(w); }
};
using ContextPtr = std::unique_ptr<ramp_context, Destroy>;
using WeightsPtr = std::unique_ptr<ramp_weights, Destroy>;

// Throws std::runtime_error with the library's message unless status is RAMP_OK.
void require(ramp_status status);

// isa "": the best kernels; "plain"; "plain_f64". cache_dir "": the default one.
ContextPtr make_gpu_context(const std::string& isa = "", const std::string& cache_dir = "", LogSink log = {});
// Made on first use and kept.
ramp_context* gpu(const std::string& isa = "");
ramp_context* cpu();
const DeviceMemory& memory(ramp_context* context);
ramp_device gpu_device();

// Under compute-sanitizer's initcheck (RAMP_GPU_NO_POISON=1) device memory is left uninitialised, so that a
// read of what was never written shows; else it is filled with 0xff.
bool poisoning();

// Device memory with a guard behind it.
class DeviceBuffer {
 public:
  DeviceBuffer() = default;
  DeviceBuffer(ramp_context* context, uint64_t bytes);
  [[nodiscard]] void* data() const noexcept { return bytes_ == 0 ? nullptr : own_.get(); }
  [[nodiscard]] uint64_t bytes() const noexcept { return bytes_; }
  void poison() const;
  void upload(const void* host) const;
  void download(void* host) const;
  [[nodiscard]] bool guard_intact() const;

 private:
  static constexpr uint64_t kGuard = 512;
  const DeviceMemory* memory_ = nullptr;
  std::shared_ptr<void> own_;
  uint64_t bytes_ = 0;
};

// A host tensor's memory, gaps included, on the device.
class OnDevice {
 public:
  OnDevice() = default;
  OnDevice(ramp_context* context, OwnedTensor& host);
  OnDevice(ramp_context* context, void* host, uint64_t bytes, const ramp_tensor& view);  // view: of `host`
  [[nodiscard]] const ramp_tensor& view() const noexcept { return view_; }
  void upload() const;
  void download() const;
  void poison() const;
  [[nodiscard]] bool guard_intact() const { return buffer_.guard_intact(); }

 private:
  DeviceBuffer buffer_;
  void* host_ = nullptr;
  ramp_tensor view_{};
};

// Weights in device memory and a handle on them.
struct GpuWeights {
  std::vector<std::shared_ptr<void>> memory;  // the caller's buffers: BORROW and IN_PLACE
  ramp_weights_desc desc = ramp_weights_desc_init();
  WeightsPtr handle;
};
// Without a handle yet: the tensors alone.
GpuWeights upload_weights_of(ramp_context* context, const SyntheticWeights& host);
GpuWeights make_gpu_weights(ramp_context* context, const SyntheticWeights& host, ramp_ownership ownership,
                            bool pack);

class GpuBlock {
 public:
  GpuBlock(BlockCase& c, ramp_context* context);
  [[nodiscard]] ramp_expert_block_args args(const ramp_weights* w) const;
  // A workspace of exactly the size that the library asks for.
  [[nodiscard]] DeviceBuffer workspace(const ramp_weights* w) const;
  // Poisons y and the workspace, runs, brings y and the counters back into the case. own: the context's own
  // workspace instead.
  void run(const ramp_weights* w, void* stream = nullptr, bool own = false);
  // Inputs to the device; y poisoned there, counters 1000 and 2000. For tests that launch by themselves:
  void upload() const;
  void begin() const;
  // ... and back, with all EXPECTs.
  void finish();

  OnDevice x, x_scale, ids, topk_weights, shared_addend, y, counters, map;

 private:
  BlockCase& case_;
  ramp_context* context_;
};

class GpuBatched {
 public:
  GpuBatched(BatchedCase& c, ramp_context* context);
  void run(const ramp_weights* w, int32_t config = 0);
  OnDevice x, x_scale, counts, row_weights, y;

 private:
  BatchedCase& case_;
  ramp_context* context_;
};

// Up to `count` tokens of T, spread evenly, first and last among them.
std::vector<int64_t> spread_tokens(int64_t tokens, int64_t count);
// The checker on all cores, told how the block that ran last computes (Backend::arithmetic):
// make_gpu_weights() and GpuBlock's calls note it; who makes handles or calls without them notes it first.
CheckOptions check_options();
void note_arithmetic(ramp_context* context, const ramp_weights* w);
ParallelFor all_cores();

inline constexpr ramp_format kAllFormats[] = {RAMP_FORMAT_FP8_BLOCK,  RAMP_FORMAT_BF16,
                                              RAMP_FORMAT_F16,        RAMP_FORMAT_F32,
                                              RAMP_FORMAT_FP8_TENSOR, RAMP_FORMAT_FP8_CHANNEL};
bool is_fp8(ramp_format format);

}  // namespace ramp::core::test
