// Fuzzes the .npy reader: what it accepts has exactly the bytes of its shape; everything else ends in
// BAD_FILE.
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <string>

#include "base/error.hpp"
#include "base/npy.hpp"
#include "base/tensor.hpp"

namespace {

void check(bool ok) {
  if (!ok) std::abort();
}

void run(const std::string& file) {
  try {
    const ramp::core::NpyArray array = ramp::core::parse_npy(std::as_bytes(std::span(file)), "fuzz");
    check(array.data.size() <= file.size());
    if (array.shape.size() > RAMP_MAX_DIMS) return;
    const ramp_tensor t = array.view();
    check(static_cast<uint64_t>(ramp::core::numel(t)) *
              static_cast<uint64_t>(ramp::core::dtype_bytes(array.dtype)) ==
          array.data.size());
    // Read every byte: the sanitizers see to the bounds.
    std::string copy(array.data.size(), '\0');
    if (!copy.empty()) std::memcpy(copy.data(), array.data.data(), copy.size());
    volatile char sink = copy.empty() ? '\0' : copy.back();
    static_cast<void>(sink);
  } catch (const ramp::core::Error& e) {
    check(e.status() == RAMP_ERROR_BAD_FILE);
    for (const char* c = e.what(); *c != '\0'; ++c) check(*c >= 0x20 && *c < 0x7f);
  }
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  const std::string input(reinterpret_cast<const char*>(data), size);
  run(input);
  if (size < 1 || size > 5000) return 0;
  // As a header behind a right magic and length, with the first byte many bytes of data.
  std::string framed = "\x93NUMPY";
  framed += {'\x01', '\0', static_cast<char>((size - 1) & 0xffU), static_cast<char>((size - 1) >> 8U)};
  run(framed + input.substr(1) + std::string(data[0], 'x'));
  return 0;
}
