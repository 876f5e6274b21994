// Compiled kernels on disk: <cache_dir>/cubin/<program>-<arch>-<key>.cubin. The key hashes everything that
// the cubin follows from: source and the files it includes, options, compiler version, architecture. A file
// is a small header (whose key it is, how long, which checksum) and the cubin; it appears whole or not at
// all, so that processes may share a directory. What does not match is compiled again, never trusted.
#pragma once

#include <array>
#include <cstdint>
#include <memory>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "backend/cuda/kernel_library.hpp"
#include "base/log.hpp"

namespace ramp::core::cuda {

// 128 bits of XXH3: its canonical bytes.
struct CubinKey {
  std::array<uint8_t, 16> bytes{};
  [[nodiscard]] std::string hex() const;
  friend bool operator==(const CubinKey&, const CubinKey&) = default;
};
// compiler: NVRTC's version, "13.0".
CubinKey cubin_key(const KernelProgram& program, const std::string& arch, const std::string& compiler);

class CubinCache {
 public:
  // cache_dir: ramp's cache directory; "" = none, nothing is read or written.
  CubinCache(const std::string& cache_dir, LogSink log);
  // "" where there is none.
  [[nodiscard]] const std::string& directory() const noexcept { return directory_; }
  [[nodiscard]] std::string path(const std::string& program, const std::string& arch,
                                 const CubinKey& key) const;
  // The cubin; nothing where there is none, or none that can be trusted (one WARNING each).
  [[nodiscard]] std::optional<std::string> find(const std::string& program, const std::string& arch,
                                                const CubinKey& key) const;
  // The cubin that all processes of this cache run from now on: `cubin`, now stored, or the sound one that
  // another process stored first. NVRTC 13.0 does not give every source the same machine code twice
  // (route_e256 for sm_80: 3 of 10 runs differ), so that two processes would otherwise run different code.
  // (Two that replace one damaged entry at the same time keep their own.) Best effort: a directory that
  // cannot be written is one WARNING for this object, not a failure.
  [[nodiscard]] std::string publish(const std::string& program, const std::string& arch, const CubinKey& key,
                                    std::string cubin);
  // Stores the cubin over what may be there. Best effort, as above.
  void store(const std::string& program, const std::string& arch, const CubinKey& key,
             std::string_view cubin);

 private:
  struct Found;
  [[nodiscard]] Found read(const std::string& name, const CubinKey& key) const;
  template <typename Commit>
  void write(const std::string& name, const CubinKey& key, std::string_view cubin, const Commit& commit);
  std::string directory_;
  LogSink log_;
  struct Once;
  std::shared_ptr<Once> unwritable_;
};

// From the cache, else compiled and stored. What a WARNING says of the cache goes to its log.
Cubin find_or_compile(CubinCache& cache, const KernelProgram& program, const std::string& arch);

struct CacheEntry {
  std::string file;           // name below the directory
  std::string program, arch;  // from the name
  CubinKey key;               // from the name
  uint64_t bytes = 0;         // of the file
  double age_seconds = 0;     // since it was written
  std::string damage;         // why it would be compiled again; "" = sound
};
// Files below <cache_dir>/cubin that bear the name of an entry, by name; other files are not ours. A
// directory that is not there is empty. Throws Error(IO) where it cannot be read.
std::vector<CacheEntry> list_cache(const std::string& cache_dir);
struct ClearedCache {
  int64_t files = 0;
  uint64_t bytes = 0;
  int64_t others = 0;  // files that are not ours, left alone
};
// Removes the entries, and what interrupted writers of them left behind over an hour ago. Throws Error(IO).
ClearedCache clear_cache(const std::string& cache_dir);

}  // namespace ramp::core::cuda
