// The cubin cache: keys follow what the cubin follows from, and no entry is trusted that is not whole and
// ours.
#include <gtest/gtest.h>

#include <thread>

#include "backend/cuda/cubin_cache.hpp"
#include "backend/cuda/nvrtc.hpp"
#include "base/error.hpp"
#include "cuda/compiled.hpp"
#include "cuda/support.hpp"

namespace ramp::cuda_test {
namespace {
namespace cuda = core::cuda;

cuda::KernelProgram copy_program() {
  return cuda::copy_programs(80).front();
}

// A cache with the copy program in it.
struct Warm {
  Scratch scratch;
  Log log;
  cuda::CubinCache cache{scratch.directory(), log.sink()};
  cuda::CubinKey key = cuda::cubin_key(copy_program(), "sm_80", cuda::nvrtc().version());
  std::string file = cache.path("copy", "sm_80", key);
  std::string bytes;
  Warm() {
    const cuda::Cubin cubin = cuda::find_or_compile(cache, copy_program(), "sm_80");
    EXPECT_GT(cubin.seconds, 0);
    EXPECT_TRUE(log.warnings.empty());
    bytes = cubin.bytes;
  }
};

TEST(CubinCache, KeyFollowsEverything) {
  const cuda::KernelProgram base = copy_program();
  const cuda::CubinKey key = cuda::cubin_key(base, "sm_80", "13.0");
  EXPECT_EQ(key, cuda::cubin_key(base, "sm_80", "13.0"));
  EXPECT_EQ(key.hex().size(), 32U);
  EXPECT_NE(key, cuda::cubin_key(base, "sm_89", "13.0"));
  EXPECT_NE(key, cuda::cubin_key(base, "sm_80", "12.8"));
  cuda::KernelProgram other = base;
  other.options = {"-DA=1"};
  EXPECT_NE(key, cuda::cubin_key(other, "sm_80", "13.0"));
  other.options = {"-DA", "=1"};
  cuda::KernelProgram split = base;
  split.options = {"-D", "A=1"};
  EXPECT_NE(cuda::cubin_key(other, "sm_80", "13.0"), cuda::cubin_key(split, "sm_80", "13.0"));
  other = base;
  other.source = "common/types.cuh";  // another text
  EXPECT_NE(key, cuda::cubin_key(other, "sm_80", "13.0"));
  other = base;
  other.name = "other";  // the name is in the file's name, not in the code
  EXPECT_EQ(key, cuda::cubin_key(other, "sm_80", "13.0"));
}

TEST(CubinCache, SecondTimeComesFromTheFile) {
  Warm w;
  const cuda::Cubin again = cuda::find_or_compile(w.cache, copy_program(), "sm_80");
  EXPECT_EQ(again.seconds, 0);
  EXPECT_EQ(again.bytes, w.bytes);
  EXPECT_EQ(files_in(w.scratch.path("cubin")),
            std::vector<std::string>{"copy-sm_80-" + w.key.hex() + ".cubin"});
  EXPECT_TRUE(w.log.warnings.empty());
}

TEST(CubinCache, EmptyDirectoryNameIsNoCache) {
  Log log;
  cuda::CubinCache cache("", log.sink());
  EXPECT_EQ(cache.directory(), "");
  for (int i = 0; i < 2; ++i) EXPECT_GT(cuda::find_or_compile(cache, copy_program(), "sm_80").seconds, 0);
  EXPECT_TRUE(log.warnings.empty());
  EXPECT_TRUE(cuda::list_cache("").empty());
  EXPECT_EQ(cuda::clear_cache("").files, 0);
}

struct Damage {
  std::string name;
  std::string (*make)(const std::string& good);
  std::string complaint;
};
class DamagedEntry : public testing::TestWithParam<Damage> {};

TEST_P(DamagedEntry, IsCompiledAgainAndReplaced) {
  Warm w;
  const std::string good = read_file(w.file);
  write_file(w.file, GetParam().make(good));
  std::vector<cuda::CacheEntry> list = cuda::list_cache(w.scratch.directory());
  ASSERT_EQ(list.size(), 1U);
  EXPECT_NE(list[0].damage.find(GetParam().complaint), std::string::npos) << list[0].damage;
  const cuda::Cubin cubin = cuda::find_or_compile(w.cache, copy_program(), "sm_80");
  EXPECT_GT(cubin.seconds, 0);
  EXPECT_EQ(cubin.bytes, w.bytes);
  ASSERT_EQ(w.log.warnings.size(), 1U);
  EXPECT_NE(w.log.warnings[0].find(w.file + ": " + GetParam().complaint), std::string::npos)
      << w.log.warnings[0];
  EXPECT_EQ(read_file(w.file), good);
  list = cuda::list_cache(w.scratch.directory());
  EXPECT_EQ(list[0].damage, "");
}
INSTANTIATE_TEST_SUITE_P(
    All, DamagedEntry,
    testing::Values(
        Damage{"empty", [](const std::string&) { return std::string(); }, "it is shorter than its header"},
        Damage{"half_a_header", [](const std::string& s) { return s.substr(0, 20); }, "it is shorter"},
        Damage{"header_alone", [](const std::string& s) { return s.substr(0, 48); },
               "it has 0 bytes of a cubin of"},
        Damage{"truncated", [](const std::string& s) { return s.substr(0, s.size() / 2); }, "it has "},
        Damage{"one_byte_short", [](const std::string& s) { return s.substr(0, s.size() - 1); }, "it has "},
        Damage{"longer", [](const std::string& s) { return s + "x"; }, "it has "},
        Damage{"bit_flipped",
               [](std::string const& s) {
                 std::string t = s;
                 t[s.size() / 2] = static_cast<char>(t[s.size() / 2] ^ 1);
                 return t;
               },
               "its checksum does not match"},
        Damage{"raw_cubin", [](const std::string& s) { return s.substr(48); },
               "it is no cubin entry of ramp"},
        Damage{"foreign_text", [](const std::string&) { return std::string(1000, 'x'); },
               "it is no cubin entry"},
        Damage{"other_version",
               [](const std::string& s) {
                 std::string t = s;
                 t[8] = 99;
                 return t;
               },
               "it is of another version"},
        Damage{"other_key",
               [](const std::string& s) {
                 std::string t = s;
                 t[16] = static_cast<char>(t[16] ^ 1);
                 return t;
               },
               "it was made for another key"}),
    [](const auto& info) { return info.param.name; });

// An entry under a name that is not its own: renamed by somebody, or a collision.
TEST(CubinCache, RenamedEntryIsNotTrusted) {
  Warm w;
  const cuda::CubinKey other = cuda::cubin_key(copy_program(), "sm_89", cuda::nvrtc().version());
  std::filesystem::rename(w.file, w.cache.path("copy", "sm_89", other));
  EXPECT_GT(cuda::find_or_compile(w.cache, copy_program(), "sm_89").seconds, 0);
  ASSERT_EQ(w.log.warnings.size(), 1U);
  EXPECT_NE(w.log.warnings[0].find("another key"), std::string::npos);
}

TEST(CubinCache, EntryThatIsADirectory) {
  Scratch scratch;
  Log log;
  cuda::CubinCache cache(scratch.directory(), log.sink());
  const cuda::CubinKey key = cuda::cubin_key(copy_program(), "sm_80", cuda::nvrtc().version());
  std::filesystem::create_directories(cache.path("copy", "sm_80", key));
  EXPECT_FALSE(cuda::find_or_compile(cache, copy_program(), "sm_80").bytes.empty());
  EXPECT_EQ(log.warnings.size(), 2U) << "one for reading, one for writing";
}

// A file stands where the directory should be: not even root can write there.
TEST(CubinCache, UnwritableDirectoryIsOneWarning) {
  Scratch scratch;
  write_file(scratch.path("taken"), "a file");
  Log log;
  cuda::CubinCache cache(scratch.path("taken"), log.sink());
  for (int i = 0; i < 3; ++i)
    EXPECT_FALSE(cuda::find_or_compile(cache, copy_program(), "sm_80").bytes.empty());
  ASSERT_EQ(log.warnings.size(), 1U);
  EXPECT_NE(log.warnings[0].find("compiled kernels stay in memory"), std::string::npos) << log.warnings[0];
  EXPECT_EQ(read_file(scratch.path("taken")), "a file");
  EXPECT_THROW(cuda::list_cache(scratch.path("taken")), core::Error);
}

TEST(CubinCache, ListAndClearKnowTheirOwn) {
  Warm w;
  const std::string directory = w.scratch.path("cubin/");
  write_file(directory + "notes.txt", "mine");
  write_file(directory + "copy-sm_80-1234.cubin", "no key");
  write_file(directory + "copy-sm_80-" + std::string(32, 'g') + ".cubin", "no hexadecimal key");
  write_file(directory + "Copy-sm_80-" + std::string(32, 'a') + ".cubin", "no program's name");
  write_file(directory + "old-sm_70-" + std::string(32, 'a') + ".cubin", "damaged, but the name is ours");
  const std::string temporary = ".copy-sm_80-" + w.key.hex() + ".cubin.123.0.tmp";
  write_file(directory + temporary, "being written");
  write_file(directory + "." + temporary.substr(1, 12) + "x.tmp", "not ours");
  std::filesystem::create_directory(directory + "folder-sm_80-" + std::string(32, 'a') + ".cubin");

  const std::vector<cuda::CacheEntry> list = cuda::list_cache(w.scratch.directory());
  ASSERT_EQ(list.size(), 2U);
  EXPECT_EQ(list[0].program, "copy");
  EXPECT_EQ(list[0].arch, "sm_80");
  EXPECT_EQ(list[0].key, w.key);
  EXPECT_EQ(list[0].damage, "");
  EXPECT_EQ(list[0].bytes, w.bytes.size() + 48);
  EXPECT_LT(list[0].age_seconds, 3600);
  EXPECT_EQ(list[1].program, "old");
  EXPECT_NE(list[1].damage, "");

  const cuda::ClearedCache cleared = cuda::clear_cache(w.scratch.directory());
  EXPECT_EQ(cleared.files, 2);
  EXPECT_EQ(cleared.others, 5);
  EXPECT_EQ(files_in(directory).size(), 7U) << "a young temporary file belongs to a writer";
  std::filesystem::last_write_time(directory + temporary,
                                   std::filesystem::file_time_type::clock::now() - std::chrono::hours(2));
  EXPECT_EQ(cuda::clear_cache(w.scratch.directory()).files, 1);
  EXPECT_EQ(files_in(directory).size(), 6U);
  EXPECT_FALSE(cuda::find_or_compile(w.cache, copy_program(), "sm_80").bytes.empty());
}

TEST(CubinCache, MissingDirectoryIsEmpty) {
  const Scratch scratch;
  EXPECT_TRUE(cuda::list_cache(scratch.path("nowhere")).empty());
  EXPECT_EQ(cuda::clear_cache(scratch.path("nowhere")).files, 0);
}

TEST(CubinCache, ThreadsShareACache) {
  Scratch scratch;
  Log log;
  cuda::CubinCache cache(scratch.directory(), log.sink());
  std::vector<std::string> bytes(8);
  std::vector<std::thread> threads;
  for (std::string& b : bytes)
    threads.emplace_back([&] { b = cuda::find_or_compile(cache, copy_program(), "sm_80").bytes; });
  for (std::thread& t : threads) t.join();
  for (const std::string& b : bytes) EXPECT_EQ(b, bytes[0]);
  EXPECT_TRUE(log.warnings.empty()) << log.warnings[0];
  EXPECT_EQ(files_in(scratch.path("cubin")).size(), 1U) << "no temporary file stays";
}

// The compiler may give two processes different machine code; what they run is the same.
TEST(CubinCache, FirstPublisherIsWhatAllRun) {
  Scratch scratch;
  Log log;
  cuda::CubinCache cache(scratch.directory(), log.sink());
  const cuda::CubinKey key = cuda::cubin_key(copy_program(), "sm_80", "13.0");
  EXPECT_EQ(cache.publish("copy", "sm_80", key, "mine"), "mine");
  EXPECT_EQ(cache.publish("copy", "sm_80", key, "theirs"), "mine");
  EXPECT_EQ(cache.find("copy", "sm_80", key), "mine");
  cache.store("copy", "sm_80", key, "refused by the driver, made anew");
  EXPECT_EQ(cache.publish("copy", "sm_80", key, "theirs"), "refused by the driver, made anew");
  write_file(cache.path("copy", "sm_80", key), "damaged");
  EXPECT_EQ(cache.publish("copy", "sm_80", key, "theirs"), "theirs");
  EXPECT_EQ(cache.find("copy", "sm_80", key), "theirs");
  EXPECT_TRUE(log.warnings.empty()) << log.warnings[0];
  EXPECT_EQ(files_in(scratch.path("cubin")).size(), 1U);
}

// Two processes fill one empty cache at once and end up with the same code; a third finds everything there,
// whole.
TEST(CubinCache, ProcessesShareACache) {
  const Scratch scratch;
  const std::string warm = "'" RAMP_CUDA_HELPER "' warm '" + scratch.directory() + "' sm_80";
  int code = 0;
  const std::string both = output_of(warm + " > '" + scratch.path("a") + "' & A=$!\n" + warm + " > '" +
                                         scratch.path("b") + "' & B=$!\nwait $A && wait $B",
                                     &code);
  EXPECT_EQ(code, 0) << both << read_file(scratch.path("a")) << read_file(scratch.path("b"));
  EXPECT_EQ(read_file(scratch.path("a")), read_file(scratch.path("b")));
  for (const cuda::CacheEntry& e : cuda::list_cache(scratch.directory())) EXPECT_EQ(e.damage, "") << e.file;
  EXPECT_EQ(files_in(scratch.path("cubin")).size(), cuda::shipped_programs(80).size());
  EXPECT_EQ(output_of(warm, &code), read_file(scratch.path("a")));
  EXPECT_EQ(code, 0);
}

}  // namespace
}  // namespace ramp::cuda_test
