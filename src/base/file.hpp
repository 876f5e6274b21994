// Files: read-only memory maps, whole-file reads, and writes that are all or nothing (temporary file, fsync,
// rename).
#pragma once

#include <cstddef>
#include <cstdint>
#include <functional>
#include <span>
#include <string>

namespace ramp::core {

class MappedFile {
 public:
  MappedFile() = default;
  explicit MappedFile(const std::string& path);  // throws Error(IO) naming the path and the system's reason
  ~MappedFile();
  MappedFile(MappedFile&&) noexcept;
  MappedFile& operator=(MappedFile&&) noexcept;
  [[nodiscard]] std::span<const std::byte> bytes() const noexcept { return {data_, size_}; }
  [[nodiscard]] const std::string& path() const noexcept { return path_; }

 private:
  const std::byte* data_ = nullptr;
  size_t size_ = 0;
  std::string path_;
};

std::string read_text(const std::string& path);
// Writes path atomically: on any failure (full disk included) Error(IO) is thrown, path keeps its old content
// or absence, and no temporary file stays behind.
void write_file(const std::string& path, std::span<const std::byte> content);
void write_text(const std::string& path, const std::string& content);

}  // namespace ramp::core
