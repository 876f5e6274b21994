// Files: read-only memory maps, whole-file reads, and writes that are all or nothing (temporary file, fsync,
// rename).
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <string>
#include <string_view>

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

// The whole file, pipes included. Throws Error(IO), or Error(BAD_FILE) for content longer than max_bytes.
std::string read_text(const std::string& path, size_t max_bytes = SIZE_MAX);

// A file that appears whole or not at all: bytes go to a temporary file beside `path`, commit() syncs it and
// renames it over `path`. Destroyed without commit(), it leaves nothing behind. Each call throws Error(IO)
// naming the path, the system's reason and what to do. A path that is a symbolic link is written through; one
// that is a device or a pipe (/dev/stdout) is written directly, since there is nothing to replace.
class AtomicFile {
 public:
  explicit AtomicFile(const std::string& path);
  ~AtomicFile();
  AtomicFile(const AtomicFile&) = delete;
  AtomicFile& operator=(const AtomicFile&) = delete;
  void write(std::span<const std::byte> bytes);
  void write(std::string_view text) { write(std::as_bytes(std::span(text))); }
  void commit();
  // Puts the file at `path` only where nothing is: false where something was there first; that stays as it
  // is, and commit() may still replace it. A file system without hard links cannot tell: there it is
  // commit().
  [[nodiscard]] bool commit_new();

 private:
  void sync();
  [[noreturn]] void fail_errno(int error, const char* what);
  void discard() noexcept;
  std::string path_, target_, temporary_;  // as given, links resolved, "" when written directly
  int fd_ = -1;
};

// Writes path atomically: on any failure (full disk included) Error(IO) is thrown, path keeps its old content
// or absence, and no temporary file stays behind.
void write_file(const std::string& path, std::span<const std::byte> content);
void write_text(const std::string& path, const std::string& content);

}  // namespace ramp::core
