// Checks that several entry points share: streams, enumerations, outputs, overlap and workspaces. None of
// them allocates unless it fails.
#pragma once

#include <array>
#include <cstdint>
#include <initializer_list>
#include <limits>
#include <mutex>
#include <string_view>

#include "abi/handles.hpp"
#include "base/tensor.hpp"

namespace ramp::core {

// The alignment that callers give workspaces, and that the pieces inside have.
inline constexpr uint64_t kWorkspaceAlignment = 256;
constexpr uint64_t align_up(uint64_t bytes) noexcept {
  return (bytes + kWorkspaceAlignment - 1) / kWorkspaceAlignment * kWorkspaceAlignment;
}

// Rows (token slots) are counted in int32: T*k and E*max_tokens stay below 2^31.
inline constexpr int64_t kMaxRows = std::numeric_limits<int32_t>::max();
// Throws unless a >= 0, b >= 1 and a*b <= kMaxRows. Names are for the message.
void check_rows(int64_t a, std::string_view a_name, int64_t b, std::string_view b_name);

// On the CPU the stream must be NULL.
void check_stream(const ramp_context& context, const void* stream);
void check_flag(int32_t value, std::string_view name);
void check_reserved(int64_t value, std::string_view name);
ramp_determinism check_determinism(int32_t value);
ramp_output check_output_mode(int32_t value);

// check_tensor for something the library writes: also no two elements of the view may share memory.
ramp_tensor check_output(const ramp_tensor& t, std::string_view name,
                         std::initializer_list<ramp_dtype> dtypes, std::initializer_list<int64_t> shape,
                         ramp_device device);
// check_tensor where present, else an all-zero tensor.
ramp_tensor check_optional(const ramp_tensor& t, std::string_view name,
                           std::initializer_list<ramp_dtype> dtypes, std::initializer_list<int64_t> shape,
                           ramp_device device);

// The memory that one call reads and writes. check() throws if anything written overlaps anything else.
// Interleaved views (equal row pitch, disjoint columns) do not count as overlap.
class MemoryMap {
 public:
  void reads(std::string_view name, const ramp_tensor& t) noexcept { add(name, t, {}, false); }
  void writes(std::string_view name, const ramp_tensor& t) noexcept { add(name, t, {}, true); }
  void reads(std::string_view name, ByteRange range) noexcept { add(name, {}, range, false); }
  void writes(std::string_view name, const void* data, uint64_t bytes) noexcept;
  void reads(const ramp_weights& weights) noexcept;
  void check() const;

 private:
  struct Region {
    std::string_view name;
    ramp_tensor tensor{};  // ndim 0: only the range is known
    ByteRange range{};
    bool written = false;
  };
  void add(std::string_view name, const ramp_tensor& t, ByteRange range, bool written) noexcept;
  std::array<Region, 24> regions_{};
  size_t count_ = 0;
};

// Checks a workspace of the caller's: NULL with 0 bytes (the context's own is meant), or aligned and at least
// `needed` bytes. query: the function that tells the size.
void check_workspace(const void* workspace, uint64_t bytes, uint64_t needed, std::string_view query);

// The context's own workspace, grown to `needed` bytes. Hold the lock while it is in use.
struct OwnWorkspace {
  std::unique_lock<std::mutex> lock;
  void* data = nullptr;
};
OwnWorkspace own_workspace(ramp_context& context, uint64_t needed, void* stream);

// Runs body(data, bytes) with the caller's (already checked) workspace or, if that is NULL, with the
// context's.
template <typename Body>
void with_workspace(ramp_context& context, void* workspace, uint64_t bytes, uint64_t needed, void* stream,
                    Body&& body) {
  if (workspace != nullptr || needed == 0) {
    body(workspace, bytes);
    return;
  }
  const OwnWorkspace own = own_workspace(context, needed, stream);
  body(own.data, needed);
}

}  // namespace ramp::core
