// Memory maps, whole-file reads and all-or-nothing writes over POSIX calls.
#include "base/file.hpp"

#include <fcntl.h>
#include <fmt/format.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include <atomic>
#include <cerrno>
#include <climits>
#include <cstdlib>
#include <system_error>
#include <utility>

#include "base/error.hpp"

namespace ramp::core {
namespace {

// std::strerror without its shared buffer.
std::string reason(int error) {
  return std::generic_category().message(error);
}

std::string advice(int error) {
  switch (error) {
    case ENOENT:
      return "; check the path";
    case EACCES:
    case EPERM:
    case EROFS:
      return "; check the permissions";
    case ENOSPC:
    case EDQUOT:
      return "; free some space or choose another place";
    case EFBIG:
      return "; raise the file size limit (ulimit -f) or choose another place";
    default:
      return {};
  }
}

[[noreturn]] void fail_io(const std::string& path, const char* what, int error) {
  fail(RAMP_ERROR_IO, fmt::format("{}: {}: {}{}", path, what, reason(error), advice(error)));
}

class Descriptor {
 public:
  explicit Descriptor(int fd) : fd_(fd) {}
  ~Descriptor() {
    if (fd_ >= 0) ::close(fd_);
  }
  Descriptor(const Descriptor&) = delete;
  Descriptor& operator=(const Descriptor&) = delete;
  [[nodiscard]] int get() const noexcept { return fd_; }

 private:
  int fd_;
};

int open_for_reading(const std::string& path) {
  int fd = -1;
  do {
    fd = ::open(path.c_str(), O_RDONLY | O_CLOEXEC);
  } while (fd < 0 && errno == EINTR);
  if (fd < 0) fail_io(path, "cannot open for reading", errno);
  return fd;
}

std::string directory_of(const std::string& path) {
  const size_t slash = path.rfind('/');
  if (slash == std::string::npos) return ".";
  return slash == 0 ? "/" : path.substr(0, slash);
}

// Makes a new name in the directory durable; some file systems cannot, and the data is safe either way.
void sync_directory_of(const std::string& path) {
  const Descriptor dir(::open(directory_of(path).c_str(), O_RDONLY | O_DIRECTORY | O_CLOEXEC));
  if (dir.get() >= 0) static_cast<void>(::fsync(dir.get()));
}

}  // namespace

MappedFile::MappedFile(const std::string& path) : path_(path) {
  const Descriptor fd(open_for_reading(path));
  struct stat st {};
  if (::fstat(fd.get(), &st) != 0) fail_io(path, "cannot read the file's size", errno);
  if (S_ISDIR(st.st_mode)) fail_io(path, "cannot map", EISDIR);
  if (!S_ISREG(st.st_mode))
    fail(RAMP_ERROR_IO, path + ": cannot map: not a regular file; copy the data into a file first");
  if (st.st_size == 0) return;
  size_ = static_cast<size_t>(st.st_size);
  void* const map = ::mmap(nullptr, size_, PROT_READ, MAP_PRIVATE, fd.get(), 0);
  if (map == MAP_FAILED) {
    size_ = 0;
    fail_io(path, "cannot map", errno);
  }
  data_ = static_cast<const std::byte*>(map);
}

MappedFile::~MappedFile() {
  if (data_ != nullptr) ::munmap(const_cast<std::byte*>(data_), size_);
}

MappedFile::MappedFile(MappedFile&& other) noexcept
    : data_(std::exchange(other.data_, nullptr)),
      size_(std::exchange(other.size_, 0)),
      path_(std::move(other.path_)) {}

MappedFile& MappedFile::operator=(MappedFile&& other) noexcept {
  std::swap(data_, other.data_);
  std::swap(size_, other.size_);
  std::swap(path_, other.path_);
  return *this;
}

std::string read_text(const std::string& path, size_t max_bytes) {
  const Descriptor fd(open_for_reading(path));
  std::string text;
  size_t used = 0;
  for (;;) {
    if (text.size() - used < 4096) text.resize(text.size() + (text.size() < 65536 ? 65536 : text.size()));
    const ssize_t n = ::read(fd.get(), text.data() + used, text.size() - used);
    if (n < 0 && errno == EINTR) continue;
    if (n < 0) fail_io(path, "cannot read", errno);
    if (n == 0) break;
    used += static_cast<size_t>(n);
    if (used > max_bytes) {
      fail_argument(path, fmt::format("more than {} bytes", max_bytes), "a file no longer than that", {},
                    RAMP_ERROR_BAD_FILE);
    }
  }
  text.resize(used);
  return text;
}

AtomicFile::AtomicFile(const std::string& path) : path_(path), target_(path) {
  if (path.empty()) fail_argument("path", "an empty path", "the name of a file to write");
  struct stat st {};
  mode_t mode = 0;
  if (::stat(path.c_str(), &st) == 0) {
    if (S_ISDIR(st.st_mode)) fail_io(path, "cannot write", EISDIR);
    if (!S_ISREG(st.st_mode)) {  // a device or a pipe
      fd_ = ::open(path.c_str(), O_WRONLY | O_CLOEXEC);
      if (fd_ < 0) fail_io(path, "cannot open for writing", errno);
      return;
    }
    mode = st.st_mode & 07777;
    char* const resolved = ::realpath(path.c_str(), nullptr);
    if (resolved == nullptr) fail_io(path, "cannot resolve", errno);
    try {
      target_ = resolved;
    } catch (...) {
      std::free(resolved);
      throw;
    }
    std::free(resolved);
  }
  static std::atomic<uint32_t> counter{0};  // only makes names of concurrent writers differ
  for (int attempt = 0; attempt < 100; ++attempt) {
    // A dot file, so that a crash leaves nothing that a glob for *.safetensors or *.npy would find.
    const size_t slash = target_.rfind('/');
    const std::string name = target_.substr(slash == std::string::npos ? 0 : slash + 1, 200);
    temporary_ = fmt::format("{}/.{}.{}.{}.tmp", directory_of(target_), name, ::getpid(),
                             counter.fetch_add(1, std::memory_order_relaxed));
    fd_ = ::open(temporary_.c_str(), O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, 0666);
    if (fd_ >= 0) break;
    if (errno != EEXIST && errno != EINTR) {
      const int error = errno;
      temporary_.clear();
      fail_io(path_, "cannot write (creating a temporary file beside it)", error);
    }
  }
  if (fd_ < 0) {
    temporary_.clear();
    fail_io(path_, "cannot write (creating a temporary file beside it)", EEXIST);
  }
  // An overwritten file keeps its permissions; where the system refuses that, the default is no failure.
  if (mode != 0) static_cast<void>(::fchmod(fd_, mode));
}

AtomicFile::~AtomicFile() {
  discard();
}

void AtomicFile::discard() noexcept {
  if (fd_ >= 0) ::close(std::exchange(fd_, -1));
  if (!temporary_.empty()) ::unlink(temporary_.c_str());
  temporary_.clear();
}

void AtomicFile::fail_errno(int error, const char* what) {
  discard();
  fail_io(path_, what, error);
}

void AtomicFile::write(std::span<const std::byte> bytes) {
  if (fd_ < 0) fail(RAMP_ERROR_INTERNAL, path_ + ": write after commit or failure");
  while (!bytes.empty()) {
    constexpr size_t kChunk = size_t{1} << 30;  // Linux writes at most 2 GiB - 4 KiB per call
    const ssize_t n = ::write(fd_, bytes.data(), bytes.size() < kChunk ? bytes.size() : kChunk);
    if (n < 0 && errno == EINTR) continue;
    if (n < 0) fail_errno(errno, "cannot write");
    bytes = bytes.subspan(static_cast<size_t>(n));
  }
}

void AtomicFile::sync() {
  if (fd_ < 0) fail(RAMP_ERROR_INTERNAL, path_ + ": commit after commit or failure");
  // EINVAL, EROFS: pipes and devices have nothing to sync.
  if (::fsync(fd_) != 0 && !(temporary_.empty() && (errno == EINVAL || errno == EROFS)))
    fail_errno(errno, "cannot sync");
}

void AtomicFile::commit() {
  sync();
  if (::close(std::exchange(fd_, -1)) != 0) fail_errno(errno, "cannot close");
  if (temporary_.empty()) return;  // a device or a pipe
  if (::rename(temporary_.c_str(), target_.c_str()) != 0) fail_errno(errno, "cannot rename into place");
  temporary_.clear();
  sync_directory_of(target_);
}

bool AtomicFile::commit_new() {
  sync();
  // rename() would replace what another process published meanwhile, link() does not.
  if (temporary_.empty() || ::link(temporary_.c_str(), target_.c_str()) != 0) {
    if (errno == EEXIST && !temporary_.empty()) return false;
    commit();
    return true;
  }
  discard();  // the temporary name; the file has its own now
  sync_directory_of(target_);
  return true;
}

void write_file(const std::string& path, std::span<const std::byte> content) {
  AtomicFile file(path);
  file.write(content);
  file.commit();
}

void write_text(const std::string& path, const std::string& content) {
  write_file(path, std::as_bytes(std::span(content)));
}

}  // namespace ramp::core
