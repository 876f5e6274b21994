// See weights.hpp. Copies run on the caller's stream; what must be readable by the host, or be in place
// before memory is given up, is waited for.
#include "backend/cuda/weights.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <utility>

#include "backend/cuda/driver.hpp"
#include "backend/cuda/launch.hpp"
#include "backend/cuda/stream_block.hpp"
#include "base/error.hpp"
#include "base/tensor.hpp"
#include "params/stream.hpp"

namespace ramp::core::cuda {
namespace {

uint64_t bytes_of(const ramp_tensor& t) noexcept {
  return static_cast<uint64_t>(numel(t)) *
         static_cast<uint64_t>(dtype_bytes(static_cast<ramp_dtype>(t.dtype)));
}

ramp_tensor contiguous_at(ramp_tensor t, void* data) noexcept {
  t.data = data;
  for (int64_t& s : t.stride) s = 0;
  return with_strides(t);
}

// A contiguous copy of `t` on the device; t becomes the view of it.
std::shared_ptr<void> own_copy(ramp_tensor& t, const DeviceMemory& memory, void* stream) {
  std::shared_ptr<void> own = memory.allocate(bytes_of(t));
  const ramp_tensor to = contiguous_at(t, own.get());
  memory.copy(t, to, stream);
  t = to;
  return own;
}

}  // namespace

int64_t CudaPacked::bytes() const noexcept {
  return static_cast<int64_t>(bytes_of(w13) + bytes_of(w2));
}

WeightViews weight_views(const ExpertWeights& w) noexcept {
  if (const auto* const packed = static_cast<const CudaPacked*>(w.packed.get()))
    return {packed->w13, packed->w2};
  return {w.w13, w.w2};
}

std::vector<KernelProgram> pack_programs(int /*arch*/) {
  return {{"pack_tiles", "sm90/pack.cu", {}, {"pack_tiles"}, 80}};
}

namespace {

int64_t element_bytes(const ramp_tensor& t) noexcept {
  return dtype_bytes(static_cast<ramp_dtype>(t.dtype));
}
// One expert of [E, rows, columns].
ramp_tensor expert_of(const ramp_tensor& t, int64_t e) noexcept {
  return expert_range(t, e, 1);
}

// plain_stride: elements from row to row of the checkpoint layout.
void launch_pack(CUfunction f, const ramp_tensor& shape, const void* from, void* to, int64_t plain_stride,
                 bool gated, bool unpack, CUstream stream) {
  const int64_t row_bytes = shape.shape[2] * element_bytes(shape);
  PackParams p{};
  p.from = static_cast<const unsigned char*>(from);
  p.to = static_cast<unsigned char*>(to);
  p.from_stride = plain_stride * element_bytes(shape);
  p.rows = static_cast<int>(shape.shape[1]);
  p.row_bytes = static_cast<int>(row_bytes);
  p.gated = gated ? 1 : 0;
  p.unpack = unpack ? 1 : 0;
  const uint64_t chunks = static_cast<uint64_t>(shape.shape[1]) * static_cast<uint64_t>(row_bytes) / 16;
  launch(f, {ceil_div(chunks, 256), 1, 256, 0}, stream, p);
}

}  // namespace

namespace {

// The kernel moves 16 bytes at a time.
bool direct(const ramp_tensor& t) noexcept {
  return rows_aligned(t.data, element_bytes(t), {t.stride[0], t.stride[1]});
}

}  // namespace

std::shared_ptr<void> TilePacker::room(const ramp_tensor& a, const ramp_tensor& b) const {
  return memory_.allocate(std::max(bytes_of(expert_of(a, 0)), bytes_of(expert_of(b, 0))));
}

std::shared_ptr<void> TilePacker::update_room(const ramp_tensor& from13, const ramp_tensor& from2) const {
  return direct(from13) && direct(from2) ? nullptr : room(from13, from2);
}

void TilePacker::pack(const ramp_tensor& w, bool gated, void* room, CUstream stream) const {
  for (int64_t e = 0; e < w.shape[0]; ++e) {
    const ramp_tensor expert = expert_of(w, e);
    memory_.copy(expert, contiguous_at(expert, room), stream);
    launch_pack(pack_, w, room, expert.data, w.shape[2], gated, false, stream);
  }
}

void TilePacker::update(const ramp_tensor& from, const ramp_tensor& to, int64_t first, bool gated, void* room,
                        CUstream stream) const {
  for (int64_t e = 0; e < from.shape[0]; ++e) {
    const ramp_tensor source = expert_of(from, e);
    const ramp_tensor target = expert_of(to, first + e);
    if (direct(from)) {
      launch_pack(pack_, to, source.data, target.data, source.stride[1], gated, false, stream);
      continue;
    }
    memory_.copy(source, contiguous_at(source, room), stream);
    launch_pack(pack_, to, room, target.data, to.shape[2], gated, false, stream);
  }
}

void TilePacker::unpack(const ramp_tensor& from, const ramp_tensor& to, bool gated, CUstream stream) const {
  const bool in_place = direct(to);
  const std::shared_ptr<void> scratch = in_place ? nullptr : memory_.allocate(bytes_of(expert_of(from, 0)));
  for (int64_t e = 0; e < from.shape[0]; ++e) {
    const ramp_tensor source = expert_of(from, e);
    const ramp_tensor target = expert_of(to, e);
    if (in_place) {
      launch_pack(pack_, from, source.data, target.data, target.stride[1], gated, true, stream);
      continue;
    }
    launch_pack(pack_, from, source.data, scratch.get(), from.shape[2], gated, true, stream);
    memory_.copy(contiguous_at(source, scratch.get()), target, stream);
  }
  if (!in_place) memory_.synchronize(stream);
}

namespace {

// Tiles are written and read by instructions for aligned memory; a caller's own buffer (IN_PLACE) may begin
// anywhere.
void check_tile_memory(const ramp_tensor& t, const char* name) {
  constexpr uintptr_t kTileAlignment = 16;  // of bulk copies
  if (reinterpret_cast<uintptr_t>(t.data) % kTileAlignment == 0) return;
  fail_argument(name, fmt::format("address {}", t.data),
                fmt::format("a multiple of {} bytes, to hold packed tiles", kTileAlignment),
                "align the buffer, or create the weights with RAMP_COPY");
}

}  // namespace

bool is_tiled(const ExpertWeights& w) noexcept {
  const auto* const packed = static_cast<const CudaPacked*>(w.packed.get());
  return packed != nullptr && packed->tiles;
}

void pack_weights(ExpertWeights& w, const DeviceMemory& memory, const TilePacker* packer, void* stream) {
  auto packed = std::make_unique<CudaPacked>();
  auto* const s = static_cast<CUstream>(stream);
  std::shared_ptr<void> room;
  packed->w13 = w.w13;
  packed->w2 = w.w2;
  packed->tiles = packer != nullptr;
  if (w.ownership == RAMP_BORROW) {
    if (packer == nullptr) {
      packed->own_w13 = own_copy(packed->w13, memory, stream);
      packed->own_w2 = own_copy(packed->w2, memory, stream);
    } else {
      packed->own_w13 = memory.allocate(bytes_of(w.w13));
      packed->own_w2 = memory.allocate(bytes_of(w.w2));
      packed->w13 = contiguous_at(w.w13, packed->own_w13.get());
      packed->w2 = contiguous_at(w.w2, packed->own_w2.get());
      room = packer->update_room(w.w13, w.w2);
      packer->update(w.w13, packed->w13, 0, w.gated(), room.get(), s);
      packer->update(w.w2, packed->w2, 0, false, room.get(), s);
    }
    memory.synchronize(stream);  // other streams may use the handle from here on
  } else {
    if (packer != nullptr) {
      check_tile_memory(w.w13, "weights.w13");
      check_tile_memory(w.w2, "weights.w2");
      // One scratch for both GEMMs, before the first value moves: nothing may fail from then on, or a handle
      // that counts as unpacked would hold tiles.
      room = packer->room(w.w13, w.w2);
      packer->pack(w.w13, w.gated(), room.get(), s);
      packer->pack(w.w2, false, room.get(), s);
      memory.synchronize(stream);
    }
    packed->own_w13 = std::move(w.device_w13);
    packed->own_w2 = std::move(w.device_w2);
    w.w13.data = w.w2.data = nullptr;
  }
  w.packed = std::move(packed);
}

void update_weights(ExpertWeights& w, int64_t first_expert, const ramp_weights_desc& update,
                    const DeviceMemory& memory, const TilePacker* packer, void* stream) {
  const std::shared_ptr<void> room = is_tiled(w) ? packer->update_room(update.w13, update.w2) : nullptr;
  if (present(w.w13_scale)) {
    // A BORROW handle's scales are the caller's, who is never written to.
    if (w.ownership == RAMP_BORROW && w.device_w13_scale == nullptr) {
      ramp_tensor s13 = w.w13_scale;
      ramp_tensor s2 = w.w2_scale;
      std::shared_ptr<void> own13 = own_copy(s13, memory, stream);
      std::shared_ptr<void> own2 = own_copy(s2, memory, stream);
      w.device_w13_scale = std::move(own13);
      w.device_w2_scale = std::move(own2);
      w.w13_scale = s13;
      w.w2_scale = s2;
    }
    memory.copy(update.w13_scale, expert_range(w.w13_scale, first_expert, update.num_experts), stream);
    memory.copy(update.w2_scale, expert_range(w.w2_scale, first_expert, update.num_experts), stream);
  }
  const WeightViews to = weight_views(w);
  if (is_tiled(w)) {
    packer->update(update.w13, to.w13, first_expert, w.gated(), room.get(), static_cast<CUstream>(stream));
    packer->update(update.w2, to.w2, first_expert, false, room.get(), static_cast<CUstream>(stream));
  } else {
    memory.copy(update.w13, expert_range(to.w13, first_expert, update.num_experts), stream);
    memory.copy(update.w2, expert_range(to.w2, first_expert, update.num_experts), stream);
  }
  take_input_scales(w, update, {&memory, stream});
  memory.synchronize(stream);  // "values are copied in": the caller may change its buffers when this returns
}

void unpack_weights(const ExpertWeights& w, const ramp_tensor& w13, const ramp_tensor& w2,
                    const DeviceMemory& memory, const TilePacker* packer, void* stream) {
  const WeightViews from = weight_views(w);
  if (is_tiled(w)) {
    if (present(w13)) packer->unpack(from.w13, w13, w.gated(), static_cast<CUstream>(stream));
    if (present(w2)) packer->unpack(from.w2, w2, false, static_cast<CUstream>(stream));
    return;
  }
  if (present(w13)) memory.copy(from.w13, w13, stream);
  if (present(w2)) memory.copy(from.w2, w2, stream);
}

}  // namespace ramp::core::cuda
