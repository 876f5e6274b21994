// See device_tensor.hpp.
#include "cli/device_tensor.hpp"

#include <cstring>

#include "abi/handles.hpp"
#include "base/tensor.hpp"

namespace ramp::cli {
namespace {

uint64_t bytes_of(const ramp_tensor& t) noexcept {
  return static_cast<uint64_t>(core::numel(t) * core::dtype_bytes(static_cast<ramp_dtype>(t.dtype)));
}

}  // namespace

const core::DeviceMemory* device_memory_of(ramp_context* context) {
  return core::context_of(context).backend->memory();
}

Mirror::Mirror(ramp_context* context, const ramp_tensor& host)
    : memory_(device_memory_of(context)), host_(host), view_(host) {
  if (memory_ == nullptr || host.ndim == 0) return;
  own_ = memory_->allocate(bytes_of(host));
  view_.data = own_.get();
  view_.device = core::context_of(context).device;
}

Mirror Mirror::uploaded(ramp_context* context, const ramp_tensor& host) {
  Mirror m(context, host);
  m.upload();
  return m;
}

void Mirror::upload() const {
  if (own_ == nullptr) return;
  memory_->upload(own_.get(), host_.data, bytes_of(host_), nullptr);
  memory_->synchronize(nullptr);  // the host's copy may change from here on
}

void Mirror::download() const {
  if (own_ != nullptr) memory_->download(host_.data, own_.get(), bytes_of(host_), nullptr);
}

void Mirror::download_row(int64_t row) const {
  if (own_ == nullptr || host_.shape[0] == 0) return;
  const uint64_t bytes = bytes_of(host_) / static_cast<uint64_t>(host_.shape[0]);
  const uint64_t at = static_cast<uint64_t>(row) * bytes;
  memory_->download(static_cast<std::byte*>(host_.data) + at, static_cast<std::byte*>(own_.get()) + at, bytes,
                    nullptr);
}

void Mirror::fill(uint8_t byte) const {
  if (own_ != nullptr) {
    memory_->fill(own_.get(), byte, bytes_of(host_), nullptr);
    memory_->synchronize(nullptr);
  } else if (host_.data != nullptr) {
    std::memset(host_.data, byte, bytes_of(host_));
  }
}

}  // namespace ramp::cli
