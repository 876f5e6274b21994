// Memory of a device that the host cannot dereference: what the rooms above a backend need of it (weights,
// workspaces, the CLI's tensors). A backend whose device is the host has none (Backend::memory() is nullptr).
#pragma once

#include <cstdint>
#include <memory>

#include "ramp/ramp.h"

namespace ramp::core {

class DeviceMemory {
 public:
  virtual ~DeviceMemory() = default;
  // Uninitialised, aligned to 256 bytes; freed with the last owner, which may outlive the backend. Throws
  // OUT_OF_MEMORY with the bytes asked for and the bytes free.
  [[nodiscard]] virtual std::shared_ptr<void> allocate(uint64_t bytes) const = 0;
  // Ordered behind what `stream` already holds. upload may return before the copy has run when `host` is
  // pinned; download returns when the bytes are there.
  virtual void upload(void* device, const void* host, uint64_t bytes, void* stream) const = 0;
  virtual void download(void* host, const void* device, uint64_t bytes, void* stream) const = 0;
  // Every element of `from` to `to`, both on the device: same dtype and shape, any strides with a unit last
  // one, no overlap. Asynchronous on `stream`.
  virtual void copy(const ramp_tensor& from, const ramp_tensor& to, void* stream) const = 0;
  virtual void fill(void* device, uint8_t value, uint64_t bytes, void* stream) const = 0;  // asynchronous
  virtual void synchronize(void* stream) const = 0;
  virtual void synchronize_all() const = 0;  // every stream of the device's context
  [[nodiscard]] virtual uint64_t free_bytes() const = 0;
  // Whether what is enqueued on `stream` goes to a graph instead of the device.
  [[nodiscard]] virtual bool capturing(void* /*stream*/) const { return false; }
};

// How to reach memory of a context's device: nothing for the host.
struct DeviceAccess {
  const DeviceMemory* memory = nullptr;  // nullptr: the host's own memory
  void* stream = nullptr;
};

}  // namespace ramp::core
