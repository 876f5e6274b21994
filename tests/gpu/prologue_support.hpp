// Shared by the tests of the device prologue: the device, and device buffers that begin as all-ones bits
// (NaN, -1) and end in guard bytes.
#pragma once

#include <gtest/gtest.h>

#include <cstring>
#include <filesystem>
#include <memory>
#include <string>
#include <vector>

#include "backend/cuda/gpu.hpp"
#include "backend/cuda/kernel_library.hpp"
#include "backend/cuda/prologue.hpp"
#include "base/rng.hpp"
#include "base/tensor.hpp"
#include "params/prologue.hpp"

namespace ramp::gpu_test {

using namespace ramp::core;        // NOLINT(google-build-using-namespace)
using namespace ramp::core::cuda;  // NOLINT(google-build-using-namespace)

struct Device {
  std::shared_ptr<const Gpu> gpu = Gpu::open(0);
  std::shared_ptr<const DeviceMemory> memory = make_device_memory(gpu);
  KernelLibrary library{gpu, (std::filesystem::temp_directory_path() / "ramp_gpu_test").string(), {}};
  Prologue prologue{gpu, library};
  Prologue constants{gpu, library, DecisionReads::kConstants};
  static Device& get() {
    static Device device;
    return device;
  }
};

inline constexpr uint64_t kGuard = 256;

// Device memory of exactly so many bytes, 0xff all over, with guard bytes behind it.
class Buffer {
 public:
  explicit Buffer(uint64_t bytes, uint64_t offset = 0) : bytes_(bytes), offset_(offset) {
    Device& d = Device::get();
    memory_ = d.memory->allocate(offset + bytes + kGuard);
    d.memory->fill(memory_.get(), 0xff, offset + bytes + kGuard, nullptr);
  }
  template <typename T>
  static Buffer of(const std::vector<T>& values, uint64_t offset = 0) {
    Buffer b(values.size() * sizeof(T), offset);
    if (!values.empty())
      Device::get().memory->upload(b.data(), values.data(), values.size() * sizeof(T), nullptr);
    Device::get().memory->synchronize(nullptr);
    return b;
  }
  [[nodiscard]] void* data() const { return static_cast<std::byte*>(memory_.get()) + offset_; }
  template <typename T>
  [[nodiscard]] T* as() const {
    return static_cast<T*>(data());
  }
  template <typename T>
  [[nodiscard]] std::vector<T> get() const {
    std::vector<T> values(bytes_ / sizeof(T));
    Device::get().memory->download(values.data(), data(), values.size() * sizeof(T), nullptr);
    return values;
  }
  void poison() const { Device::get().memory->fill(memory_.get(), 0xff, offset_ + bytes_ + kGuard, nullptr); }
  [[nodiscard]] bool guard_intact() const {
    std::vector<uint8_t> g(kGuard);
    Device::get().memory->download(g.data(), static_cast<std::byte*>(data()) + bytes_, kGuard, nullptr);
    for (const uint8_t b : g) {
      if (b != 0xff) return false;
    }
    return true;
  }

 private:
  uint64_t bytes_, offset_;
  std::shared_ptr<void> memory_;
};

// A view of device memory with these shape and strides (0 strides: contiguous).
inline ramp_tensor device_tensor(const void* data, ramp_dtype dtype, std::initializer_list<int64_t> shape,
                                 std::initializer_list<int64_t> strides = {}) {
  ramp_tensor t = with_strides(make_tensor(data, dtype, shape));
  t.device = {RAMP_DEVICE_CUDA, 0};
  size_t i = 0;
  for (const int64_t s : strides) t.stride[i++] = s;
  return t;
}

// A prologue's workspace whose parts are buffers of their own.
struct Workspace {
  Workspace(const ExpertWeights& w, int64_t slots, int32_t tile_m) {
    PrologueWorkspace sizes;
    carve_prologue(w, slots, 1, tile_m, reinterpret_cast<void*>(256), sizes);
    const int64_t groups = (w.hidden + 127) / 128;
    auto part = [this](uint64_t bytes) {
      parts.emplace_back(bytes);
      return parts.back().data();
    };
    tiles_max = max_tiles(slots, w.experts, tile_m);
    parts.reserve(8);
    view.index.tile_m = tile_m;
    view.index.offsets = static_cast<int32_t*>(part(4 * static_cast<uint64_t>(w.experts + 1)));
    view.index.slots = static_cast<int32_t*>(part(4 * static_cast<uint64_t>(slots)));
    view.index.positions = static_cast<int32_t*>(part(4 * static_cast<uint64_t>(slots)));
    view.index.tiles = static_cast<Tile*>(part(sizeof(Tile) * static_cast<uint64_t>(tiles_max)));
    view.index.num_tiles = static_cast<int32_t*>(part(4 * kTileCounters));
    // The sort's scratch as large as carve_prologue makes it.
    const auto counts_bytes = static_cast<uint64_t>(static_cast<std::byte*>(sizes.codes) -
                                                    reinterpret_cast<std::byte*>(sizes.counts));
    view.counts = static_cast<int32_t*>(part(counts_bytes));
    view.codes = part(static_cast<uint64_t>(slots * w.hidden * 4));
    view.scales = static_cast<float*>(part(static_cast<uint64_t>(4 * slots * groups)));
  }
  void expect_guards() const {
    for (size_t i = 0; i < parts.size(); ++i) EXPECT_TRUE(parts[i].guard_intact()) << "part " << i;
  }
  PrologueWorkspace view;
  std::vector<Buffer> parts;
  int64_t tiles_max = 0;
};

inline ExpertWeights make_weights(ramp_format format, int64_t experts, int64_t hidden,
                                  int64_t intermediate = 64) {
  ExpertWeights w;
  w.format = format;
  w.experts = experts;
  w.hidden = hidden;
  w.intermediate = intermediate;
  w.device = {RAMP_DEVICE_CUDA, 0};
  w.w13_input_scale = 0.013F;
  w.w2_input_scale = 0.0071F;
  return w;
}

}  // namespace ramp::gpu_test
