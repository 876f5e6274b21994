// The safetensors format: 8 bytes of header length (little-endian), a JSON header
// {"name": {"dtype": "BF16", "shape": [..], "data_offsets": [begin, end]}, ..., "__metadata__": {..}}, then
// the data that those offsets divide without gap or overlap. Reading trusts nothing in the file; every
// violation is an Error(BAD_FILE) that names the file, the tensor, what was found and what is accepted.
#pragma once

#include <cstddef>
#include <cstdint>
#include <map>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "base/file.hpp"
#include "ramp/ramp.h"

namespace ramp::core {

// The reference implementation's limit on the header, in bytes.
inline constexpr uint64_t kSafetensorsMaxHeader = 100'000'000;

struct SafetensorsEntry {
  std::string dtype_text;  // as in the file: "BF16", "F8_E4M3", "U16", ...
  ramp_dtype dtype =
      RAMP_DTYPE_NONE;  // NONE: a type of the format that ramp has no use for (U16, F8_E5M2, ...)
  std::vector<int64_t> shape;
  uint64_t begin = 0, end = 0;  // bytes, relative to the start of the data section

  [[nodiscard]] std::string text() const;  // "BF16 [4, 128]"
};

struct SafetensorsHeader {
  uint64_t data_offset = 0;  // of the data section in the file
  std::map<std::string, SafetensorsEntry, std::less<>> tensors;
  std::map<std::string, std::string> metadata;
};

// Parses and validates the header of a whole file's bytes. `name` is only for messages.
SafetensorsHeader parse_safetensors(std::span<const std::byte> file, const std::string& name);

// One memory-mapped file. The views it gives live as long as it does; the file must not be truncated
// meanwhile.
class SafetensorsFile {
 public:
  explicit SafetensorsFile(const std::string& path);
  [[nodiscard]] const std::string& path() const noexcept { return file_.path(); }
  [[nodiscard]] const SafetensorsHeader& header() const noexcept { return header_; }
  [[nodiscard]] const SafetensorsEntry* find(std::string_view name) const;  // nullptr if absent
  [[nodiscard]] std::span<const std::byte> bytes(const SafetensorsEntry& entry) const;

 private:
  MappedFile file_;
  SafetensorsHeader header_;
};

// One tensor to be written. Its elements are appended later, in the writer's order.
struct SafetensorsSpec {
  std::string name;
  ramp_dtype dtype = RAMP_DTYPE_NONE;
  std::vector<int64_t> shape;
};

// Writes a file that appears whole or not at all, without holding its data in memory. Tensors are laid out by
// falling element size (so that every one is aligned), in the given order within a size; specs() is that
// order.
class SafetensorsWriter {
 public:
  SafetensorsWriter(const std::string& path, std::vector<SafetensorsSpec> specs,
                    const std::map<std::string, std::string>& metadata = {});
  [[nodiscard]] const std::vector<SafetensorsSpec>& specs() const noexcept { return specs_; }
  // The next bytes of the data section: any piece size, the tensors of specs() one after the other.
  void append(std::span<const std::byte> bytes);
  // Throws Error(INVALID_ARGUMENT) if the appended bytes are not exactly those of all tensors.
  void commit();

 private:
  AtomicFile file_;
  std::string path_;
  std::vector<SafetensorsSpec> specs_;
  uint64_t expected_ = 0, written_ = 0;
};

struct NamedTensor {
  std::string name;
  ramp_tensor tensor{};  // host, contiguous
};
void write_safetensors(const std::string& path, std::span<const NamedTensor> tensors,
                       const std::map<std::string, std::string>& metadata = {});

}  // namespace ramp::core
