// Checks that several entry points share; see validate.hpp.
#include "abi/validate.hpp"

#include <fmt/format.h>

#include <algorithm>

#include "base/error.hpp"

namespace ramp::core {
namespace {

// The dimensions with more than one element, by falling stride.
struct Nest {
  std::array<int64_t, RAMP_MAX_DIMS> extent{}, stride{};
  int32_t depth = 0;
};

Nest nest_of(const ramp_tensor& t) noexcept {
  Nest n;
  for (int32_t d = 0; d < t.ndim; ++d) {
    if (t.shape[d] <= 1) continue;
    int32_t at = n.depth++;
    for (; at > 0 && n.stride[at - 1] < t.stride[d]; --at) {
      n.stride[at] = n.stride[at - 1];
      n.extent[at] = n.extent[at - 1];
    }
    n.stride[at] = t.stride[d];
    n.extent[at] = t.shape[d];
  }
  return n;
}

// Sufficient and, for views made by slicing and transposing a dense array, necessary: each stride steps over
// everything that the smaller ones span.
bool self_overlapping(const ramp_tensor& t) noexcept {
  const Nest n = nest_of(t);
  int64_t span = 1;
  for (int32_t d = n.depth - 1; d >= 0; --d) {
    if (n.stride[d] < span) return true;
    span += (n.extent[d] - 1) * n.stride[d];
  }
  return false;
}

// A view as rows of `width` bytes at multiples of `pitch` bytes from its start.
struct Rows {
  uint64_t pitch = 0, width = 0;
};

// False when the view is no such set of rows with this pitch (0: its own smallest row stride).
bool rows_of(const ramp_tensor& t, uint64_t pitch, Rows& rows) noexcept {
  const auto element = static_cast<uint64_t>(dtype_bytes(static_cast<ramp_dtype>(t.dtype)));
  const Nest n = nest_of(t);
  int32_t inner = n.depth;  // dimensions from here on lie inside a row
  rows.width = element;
  while (inner > 0 && static_cast<uint64_t>(n.stride[inner - 1]) * element == rows.width) {
    rows.width *= static_cast<uint64_t>(n.extent[inner - 1]);
    --inner;
    if (pitch != 0 && rows.width > pitch) return false;
  }
  rows.pitch = pitch != 0 ? pitch : (inner > 0 ? static_cast<uint64_t>(n.stride[inner - 1]) * element : 0);
  if (rows.pitch == 0) return false;
  for (int32_t d = 0; d < inner; ++d) {
    if (static_cast<uint64_t>(n.stride[d]) * element % rows.pitch != 0) return false;
  }
  return rows.width <= rows.pitch;
}

// True when both views are rows of one common pitch whose columns do not meet.
bool interleaved(const ramp_tensor& a, const ramp_tensor& b) noexcept {
  if (a.ndim == 0 || b.ndim == 0) return false;
  Rows ra;
  Rows rb;
  // Either may be a single row and so have no pitch of its own.
  if (rows_of(a, 0, ra)) {
    if (!rows_of(b, ra.pitch, rb)) return false;
  } else if (!rows_of(b, 0, rb) || !rows_of(a, rb.pitch, ra)) {
    return false;
  }
  const uint64_t pitch = ra.pitch;
  const auto pa = reinterpret_cast<uintptr_t>(a.data);
  const auto pb = reinterpret_cast<uintptr_t>(b.data);
  // Column of b's rows relative to a's, in [0, pitch).
  const uint64_t column = pb >= pa ? (pb - pa) % pitch : (pitch - (pa - pb) % pitch) % pitch;
  return column >= ra.width && column + rb.width <= pitch;
}

}  // namespace

void check_rows(int64_t a, std::string_view a_name, int64_t b, std::string_view b_name) {
  if (a < 0) fail_argument(a_name, std::to_string(a), "a number >= 0");
  if (b < 1) fail_argument(b_name, std::to_string(b), "a number >= 1");
  if (a > kMaxRows / b) {
    fail_argument(fmt::format("{} * {}", a_name, b_name), fmt::format("{} * {}", a, b),
                  fmt::format("at most {}", kMaxRows), "split the batch");
  }
}

void check_stream(const ramp_context& context, const void* stream) {
  if (context.device.type == RAMP_DEVICE_CPU && stream != nullptr)
    fail_argument("stream", fmt::format("{}", stream), "NULL on the CPU",
                  "calls there complete when they return");
}

void check_flag(int32_t value, std::string_view name) {
  if (value != 0 && value != 1) fail_argument(name, std::to_string(value), "0 or 1");
}

void check_reserved(int64_t value, std::string_view name) {
  if (value != 0) {
    fail_argument(name, std::to_string(value), "0", "initialise the struct with its _init() function",
                  RAMP_ERROR_UNSUPPORTED);
  }
}

ramp_determinism check_determinism(int32_t value) {
  if (value < RAMP_REPEATABLE || value > RAMP_FAST) {
    fail_argument("determinism", std::to_string(value),
                  "RAMP_REPEATABLE (0), RAMP_BATCH_INVARIANT (1) or RAMP_FAST (2)");
  }
  return static_cast<ramp_determinism>(value);
}

ramp_output check_output_mode(int32_t value) {
  if (value != RAMP_OUTPUT_COMBINED && value != RAMP_OUTPUT_PER_SLOT) {
    fail_argument("output", std::to_string(value), "RAMP_OUTPUT_COMBINED (0) or RAMP_OUTPUT_PER_SLOT (1)");
  }
  return static_cast<ramp_output>(value);
}

ramp_tensor check_output(const ramp_tensor& t, std::string_view name,
                         std::initializer_list<ramp_dtype> dtypes, std::initializer_list<int64_t> shape,
                         ramp_device device) {
  const ramp_tensor s = check_tensor(t, name, dtypes, shape, device);
  if (numel(s) > 0 && self_overlapping(s)) {
    std::string strides;
    for (int32_t d = 0; d < s.ndim; ++d) strides += (d == 0 ? "" : ", ") + std::to_string(s.stride[d]);
    fail_argument(name, fmt::format("{} with strides [{}]", shape_text(s), strides),
                  "strides that give every element its own memory", "it is written: no broadcast views");
  }
  return s;
}

ramp_tensor check_optional(const ramp_tensor& t, std::string_view name,
                           std::initializer_list<ramp_dtype> dtypes, std::initializer_list<int64_t> shape,
                           ramp_device device) {
  return present(t) ? check_tensor(t, name, dtypes, shape, device) : ramp_tensor{};
}

void MemoryMap::add(std::string_view name, const ramp_tensor& t, ByteRange range, bool written) noexcept {
  if (t.ndim > 0) range = byte_range(t);
  if (range.begin == range.end || count_ == regions_.size()) return;
  regions_[count_++] = {name, with_strides(t), range, written};
}

void MemoryMap::writes(std::string_view name, const void* data, uint64_t bytes) noexcept {
  const auto begin = reinterpret_cast<uintptr_t>(data);
  if (data == nullptr) return;
  add(name, {}, {begin, bytes > UINTPTR_MAX - begin ? UINTPTR_MAX : begin + bytes}, true);
}

void MemoryMap::reads(const ramp_weights& weights) noexcept {
  constexpr std::array<std::string_view, 4> kNames = {"weights.w13", "weights.w2", "weights.w13_scale",
                                                      "weights.w2_scale"};
  for (size_t i = 0; i < kNames.size(); ++i) reads(kNames[i], weights.buffers[i]);
}

void MemoryMap::check() const {
  for (size_t i = 0; i < count_; ++i) {
    for (size_t j = 0; j < i; ++j) {
      const Region& a = regions_[i];
      const Region& b = regions_[j];
      if ((!a.written && !b.written) || !overlaps(a.range, b.range) || interleaved(a.tensor, b.tensor))
        continue;
      const Region& written = a.written ? a : b;
      const Region& other = a.written ? b : a;
      fail_argument(written.name,
                    fmt::format("bytes {:#x}..{:#x}, which overlap {} ({:#x}..{:#x})", written.range.begin,
                                written.range.end, other.name, other.range.begin, other.range.end),
                    "memory of its own", "outputs and workspaces must not overlap anything else");
    }
  }
}

void check_workspace(const void* workspace, uint64_t bytes, uint64_t needed, std::string_view query) {
  if (workspace == nullptr) {
    if (bytes != 0) {
      fail_argument("workspace", fmt::format("NULL with workspace_bytes {}", bytes),
                    "a pointer, or NULL with workspace_bytes 0", "0 bytes means the context's own workspace");
    }
    return;
  }
  if (reinterpret_cast<uintptr_t>(workspace) % kWorkspaceAlignment != 0) {
    fail_argument("workspace", fmt::format("address {}", workspace),
                  fmt::format("a multiple of {} bytes", kWorkspaceAlignment),
                  "allocate it with aligned_alloc or round the pointer up");
  }
  if (bytes < needed) {
    fail_argument("workspace_bytes", std::to_string(bytes), fmt::format("at least {}", needed),
                  fmt::format("ask {} for the size", query), RAMP_ERROR_WORKSPACE_TOO_SMALL);
  }
}

// On a GPU calls are only enqueued when they return: one stream at a time may use the context's workspace, so
// a change of stream, and growing, wait for what the last one still has to do. A capture cannot wait: a
// captured call must find its workspace big enough and its stream in use already, or bring its own; else it
// is refused, which leaves context and capture as they were.
void own_device_workspace(ramp_context& context, const DeviceMemory& memory, uint64_t needed, void* stream,
                          OwnWorkspace& own) {
  const bool grow = context.device_workspace_bytes < needed;
  const bool wait = context.workspace_used && (grow || context.workspace_stream != stream);
  if ((grow || wait) && memory.capturing(stream)) {
    fail_argument(
        "workspace",
        fmt::format("NULL on a stream that is being captured, with {} bytes in the context{}",
                    context.device_workspace_bytes, wait ? " that another stream may be using" : ""),
        fmt::format("{} bytes of the caller's own", needed),
        "ask the call's workspace query for the size and pass a workspace, or run the call once on this "
        "stream before the capture");
  }
  if (wait) memory.synchronize_all();  // (the stream itself may be gone)
  if (grow) {
    if (context.log.fn != nullptr) {
      context.log(RAMP_LOG_DEBUG, fmt::format("context workspace on the device: {} -> {} bytes",
                                              context.device_workspace_bytes, needed));
    }
    context.device_workspace.reset();
    context.device_workspace_bytes = 0;
    context.device_workspace = memory.allocate(needed);
    context.device_workspace_bytes = needed;
  }
  context.workspace_stream = stream;
  context.workspace_used = true;
  own.data = context.device_workspace.get();
}

OwnWorkspace own_workspace(ramp_context& context, uint64_t needed, void* stream) {
  OwnWorkspace own{std::unique_lock(context.workspace_mutex), nullptr};
  if (const DeviceMemory* const memory = context.backend->memory()) {
    own_device_workspace(context, *memory, needed, stream, own);
    return own;
  }
  // AlignedBuffer aligns to 64 bytes: a little more, so that the start can be rounded up.
  const uint64_t bytes = needed + kWorkspaceAlignment;
  if (bytes < needed) fail(RAMP_ERROR_OUT_OF_MEMORY, "workspace: size overflows; split the batch");
  if (context.workspace.size() < bytes) {
    if (context.log.fn != nullptr) {
      context.log(RAMP_LOG_DEBUG,
                  fmt::format("context workspace: {} -> {} bytes", context.workspace.size(), bytes));
    }
    context.workspace = AlignedBuffer();  // first: the old one's content is scratch
    context.workspace = AlignedBuffer(bytes);
  }
  const auto start = reinterpret_cast<uintptr_t>(context.workspace.data());
  own.data = static_cast<std::byte*>(context.workspace.data()) + (align_up(start) - start);
  return own;
}

}  // namespace ramp::core
