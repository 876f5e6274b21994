// Keys, files and their checks.
#include "backend/cuda/cubin_cache.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <atomic>
#include <chrono>
#include <cstring>
#include <filesystem>
#include <system_error>

#include "backend/cuda/nvrtc.hpp"
#include "backend/cuda/programs.hpp"
#include "base/error.hpp"
#include "base/file.hpp"

#define XXH_INLINE_ALL  // the header holds the whole hash: nothing to link
#include <xxhash.h>
static_assert(XXH_VERSION_NUMBER >= 800, "XXH3 has its final form from xxHash 0.8.0 on");

namespace ramp::core::cuda {
namespace {

namespace fs = std::filesystem;

constexpr char kMagic[8] = {'R', 'A', 'M', 'P', 'C', 'U', 'B', 'N'};
constexpr uint32_t kVersion = 1;
constexpr const char* kSuffix = ".cubin";
constexpr size_t kHexDigits = 32;
// Far above any kernel (the largest are a few hundred KB): a foreign file must not fill the memory.
constexpr size_t kMaxFile = size_t{256} << 20;
constexpr auto kAbandoned = std::chrono::hours(1);

// In the byte order of the machine: a cache does not travel between byte orders, and if it did the version
// would not match.
struct Header {
  char magic[8];
  uint32_t version;
  uint32_t header_bytes;
  uint8_t key[16];
  uint64_t payload_bytes;
  uint64_t checksum;  // XXH3 (64 bits) of the payload
};
static_assert(sizeof(Header) == 48);

std::string directory_of(const std::string& cache_dir) {
  return cache_dir.empty() ? std::string() : cache_dir + "/cubin";
}

// Why a file is not the entry that its name promises; "" and the payload's place where it is.
std::string damage_of(std::string_view file, const CubinKey& key) {
  Header h{};
  if (file.size() < sizeof h) return "it is shorter than its header";
  std::memcpy(&h, file.data(), sizeof h);
  if (std::memcmp(h.magic, kMagic, sizeof kMagic) != 0) return "it is no cubin entry of ramp";
  if (h.version != kVersion || h.header_bytes != sizeof h) return "it is of another version of the cache";
  if (std::memcmp(h.key, key.bytes.data(), sizeof h.key) != 0) return "it was made for another key";
  if (h.payload_bytes != file.size() - sizeof h)
    return fmt::format("it has {} bytes of a cubin of {}", file.size() - sizeof h, h.payload_bytes);
  const std::string_view payload = file.substr(sizeof h);
  if (XXH3_64bits(payload.data(), payload.size()) != h.checksum) return "its checksum does not match";
  return {};
}

// Splits "<program>-<arch>-<32 hex digits>.cubin"; false for any other name.
bool parse_name(std::string_view name, CacheEntry& entry) {
  if (!name.ends_with(kSuffix)) return false;
  name.remove_suffix(std::strlen(kSuffix));
  const size_t second = name.rfind('-');
  if (second == std::string_view::npos || name.size() - second - 1 != kHexDigits) return false;
  const std::string_view hex = name.substr(second + 1);
  const size_t first = name.substr(0, second).rfind('-');
  if (first == std::string_view::npos || first == 0) return false;
  const auto digit = [](char c) {
    return c >= '0' && c <= '9' ? c - '0' : c >= 'a' && c <= 'f' ? c - 'a' + 10 : -1;
  };
  for (size_t i = 0; i < kHexDigits; i += 2) {
    const int high = digit(hex[i]);
    const int low = digit(hex[i + 1]);
    if (high < 0 || low < 0) return false;
    entry.key.bytes[i / 2] = static_cast<uint8_t>(high * 16 + low);
  }
  entry.program = name.substr(0, first);
  entry.arch = name.substr(first + 1, second - first - 1);
  const auto program_char = [](char c) {
    return (c >= 'a' && c <= 'z') || (c >= '0' && c <= '9') || c == '_';
  };
  return entry.arch.starts_with("sm_") &&
         std::all_of(entry.program.begin(), entry.program.end(), program_char) &&
         std::all_of(entry.arch.begin(), entry.arch.end(), program_char);
}

// ".<entry>.<pid>.<n>.tmp", as AtomicFile names what it has not committed yet.
bool temporary_of_ours(std::string_view name) {
  CacheEntry ignored;
  const size_t end = name.find(kSuffix);
  return name.starts_with(".") && name.ends_with(".tmp") && end != std::string_view::npos &&
         parse_name(name.substr(1, end - 1 + std::strlen(kSuffix)), ignored);
}

[[noreturn]] void fail_io(const std::string& path, const char* what, const std::error_code& error) {
  fail(RAMP_ERROR_IO, fmt::format("{}: {}: {}", path, what, error.message()));
}

// Every regular file of the directory with its age; nothing where the directory is not there.
template <typename Visit>
void for_each_file(const std::string& directory, const Visit& visit) {
  std::error_code error;
  fs::directory_iterator at(directory, error);
  if (error == std::errc::no_such_file_or_directory) return;
  if (error) fail_io(directory, "cannot list", error);
  for (; at != fs::directory_iterator(); at.increment(error)) {
    if (error) fail_io(directory, "cannot list", error);
    std::error_code gone;  // another process may remove or replace files meanwhile
    if (!at->is_regular_file(gone) || gone) continue;
    const auto written = at->last_write_time(gone);
    if (gone) continue;
    const uint64_t bytes = at->file_size(gone);
    if (gone) continue;
    visit(at->path().filename().string(), bytes, fs::file_time_type::clock::now() - written);
  }
}

// Length and bytes, so that no two lists of texts run together into one.
void feed(XXH3_state_t& state, std::string_view text) {
  const uint64_t size = text.size();
  XXH3_128bits_update(&state, &size, sizeof size);
  XXH3_128bits_update(&state, text.data(), text.size());
}

}  // namespace

struct CubinCache::Once {
  std::atomic<bool> said{false};
};

std::string CubinKey::hex() const {
  std::string text;
  for (const uint8_t b : bytes) text += fmt::format("{:02x}", b);
  return text;
}

CubinKey cubin_key(const KernelProgram& program, const std::string& arch, const std::string& compiler) {
  XXH3_state_t state;
  XXH3_128bits_reset(&state);
  feed(state, arch);
  feed(state, "nvrtc " + compiler);
  const std::vector<std::string> options = compile_options(program, arch);
  const std::vector<EmbeddedFile> files = files_of(program);
  feed(state, fmt::format("{} options, {} files", options.size(), files.size()));
  for (const std::string& o : options) feed(state, o);
  for (const EmbeddedFile& f : files) {
    feed(state, f.name);
    feed(state, f.text);
  }
  XXH128_canonical_t canonical;
  XXH128_canonicalFromHash(&canonical, XXH3_128bits_digest(&state));
  CubinKey key;
  static_assert(sizeof canonical.digest == sizeof key.bytes);
  std::memcpy(key.bytes.data(), canonical.digest, sizeof canonical.digest);
  return key;
}

CubinCache::CubinCache(const std::string& cache_dir, LogSink log)
    : directory_(directory_of(cache_dir)), log_(log), unwritable_(std::make_shared<Once>()) {}

std::string CubinCache::path(const std::string& program, const std::string& arch, const CubinKey& key) const {
  return fmt::format("{}/{}-{}-{}{}", directory_, program, arch, key.hex(), kSuffix);
}

// Either a cubin, or why there is none: "" where there is no file.
struct CubinCache::Found {
  std::optional<std::string> cubin;
  std::string why;
};

CubinCache::Found CubinCache::read(const std::string& name, const CubinKey& key) const {
  std::error_code error;
  if (!fs::exists(name, error)) return {};  // an unreadable directory shows when the cubin is stored
  try {
    std::string file = read_text(name, kMaxFile);
    std::string why = damage_of(file, key);
    if (!why.empty()) return {std::nullopt, std::move(why)};
    file.erase(0, sizeof(Header));
    return {std::move(file), {}};
  } catch (const Error& e) {
    // Removed since the look above: no entry, and nothing to remark.
    if (!fs::exists(name, error)) return {};
    return {std::nullopt, e.what()};
  }
}

std::optional<std::string> CubinCache::find(const std::string& program, const std::string& arch,
                                            const CubinKey& key) const {
  if (directory_.empty()) return std::nullopt;
  const std::string name = path(program, arch, key);
  Found found = read(name, key);
  if (!found.why.empty())
    log_(RAMP_LOG_WARNING, fmt::format("kernel cache: {}: {}; compiling it again", name, found.why));
  return std::move(found.cubin);
}

template <typename Commit>
void CubinCache::write(const std::string& name, const CubinKey& key, std::string_view cubin,
                       const Commit& commit) {
  Header h{};
  std::memcpy(h.magic, kMagic, sizeof kMagic);
  h.version = kVersion;
  h.header_bytes = sizeof h;
  std::memcpy(h.key, key.bytes.data(), sizeof h.key);
  h.payload_bytes = cubin.size();
  h.checksum = XXH3_64bits(cubin.data(), cubin.size());
  try {
    std::error_code error;
    fs::create_directories(directory_, error);
    if (error) fail_io(directory_, "cannot create", error);
    AtomicFile file(name);
    file.write(std::string_view(reinterpret_cast<const char*>(&h), sizeof h));
    file.write(cubin);
    commit(file);
  } catch (const Error& e) {
    if (unwritable_->said.exchange(true)) return;
    log_(RAMP_LOG_WARNING,
         fmt::format("kernel cache: {}; compiled kernels stay in memory and are compiled again by "
                     "the next process",
                     e.what()));
  }
}

std::string CubinCache::publish(const std::string& program, const std::string& arch, const CubinKey& key,
                                std::string cubin) {
  if (directory_.empty()) return cubin;
  const std::string name = path(program, arch, key);
  Found first;
  write(name, key, cubin, [&](AtomicFile& file) {
    if (file.commit_new()) return;
    first = read(name, key);
    if (!first.cubin) file.commit();  // what is there is damaged
  });
  return first.cubin ? std::move(*first.cubin) : std::move(cubin);
}

void CubinCache::store(const std::string& program, const std::string& arch, const CubinKey& key,
                       std::string_view cubin) {
  if (directory_.empty()) return;
  write(path(program, arch, key), key, cubin, [](AtomicFile& file) { file.commit(); });
}

Cubin find_or_compile(CubinCache& cache, const KernelProgram& program, const std::string& arch) {
  const CubinKey key = cubin_key(program, arch, nvrtc().version());
  if (std::optional<std::string> found = cache.find(program.name, arch, key))
    return {std::move(*found), {}, 0};
  Cubin cubin = compile_program(program, arch);
  cubin.bytes = cache.publish(program.name, arch, key, std::move(cubin.bytes));
  return cubin;
}

std::vector<CacheEntry> list_cache(const std::string& cache_dir) {
  std::vector<CacheEntry> list;
  const std::string directory = directory_of(cache_dir);
  if (directory.empty()) return list;
  for_each_file(directory, [&](const std::string& name, uint64_t bytes, fs::file_time_type::duration age) {
    CacheEntry entry;
    if (!parse_name(name, entry)) return;
    entry.file = name;
    entry.bytes = bytes;
    entry.age_seconds = std::max(0.0, std::chrono::duration<double>(age).count());
    try {
      entry.damage = damage_of(read_text(directory + "/" + name, kMaxFile), entry.key);
    } catch (const Error& e) {
      entry.damage = e.what();
    }
    list.push_back(std::move(entry));
  });
  std::sort(list.begin(), list.end(),
            [](const CacheEntry& a, const CacheEntry& b) { return a.file < b.file; });
  return list;
}

ClearedCache clear_cache(const std::string& cache_dir) {
  ClearedCache cleared;
  const std::string directory = directory_of(cache_dir);
  if (directory.empty()) return cleared;
  std::vector<std::pair<std::string, uint64_t>> ours;
  for_each_file(directory, [&](const std::string& name, uint64_t bytes, fs::file_time_type::duration age) {
    CacheEntry ignored;
    if (parse_name(name, ignored) || (temporary_of_ours(name) && age > kAbandoned))
      ours.emplace_back(directory + "/" + name, bytes);
    else if (!temporary_of_ours(name))
      ++cleared.others;
  });
  for (const auto& [path, bytes] : ours) {
    std::error_code error;
    if (!fs::remove(path, error)) {
      if (error) fail_io(path, "cannot remove", error);
      continue;  // another process was faster
    }
    ++cleared.files;
    cleared.bytes += bytes;
  }
  return cleared;
}

}  // namespace ramp::core::cuda
