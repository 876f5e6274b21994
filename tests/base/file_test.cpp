// Files: maps, whole reads, and writes that leave either the new content or the old, never a part, never a
// temporary file, whatever fails: a full disk, a file size limit, missing permissions.
#include "base/file.hpp"

#include <gtest/gtest.h>
#include <sys/fsuid.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <csignal>
#include <thread>

#include "base/npy.hpp"
#include "base/tensor.hpp"
#include "base/test_support.hpp"

namespace ramp::core {
namespace {

using test::expect_error;
using test::TempDir;

// While alive, no file of this process can grow past `bytes`: write() fails with EFBIG as it would with
// ENOSPC.
class FileSizeLimit {
 public:
  explicit FileSizeLimit(rlim_t bytes) {
    old_handler_ = std::signal(SIGXFSZ, SIG_IGN);
    getrlimit(RLIMIT_FSIZE, &old_);
    rlimit limit = old_;
    limit.rlim_cur = bytes;
    setrlimit(RLIMIT_FSIZE, &limit);
  }
  ~FileSizeLimit() {
    setrlimit(RLIMIT_FSIZE, &old_);
    std::signal(SIGXFSZ, old_handler_);
  }
  FileSizeLimit(const FileSizeLimit&) = delete;
  FileSizeLimit& operator=(const FileSizeLimit&) = delete;

 private:
  rlimit old_{};
  void (*old_handler_)(int) = nullptr;
};

TEST(MappedFile, MapsMovesAndReportsErrors) {
  const TempDir dir;
  write_text(dir / "a", "hello");
  MappedFile a(dir / "a");
  ASSERT_EQ(a.bytes().size(), 5U);
  EXPECT_EQ(static_cast<char>(a.bytes()[4]), 'o');
  MappedFile b(std::move(a));
  EXPECT_EQ(b.bytes().size(), 5U);
  MappedFile c;
  c = std::move(b);
  EXPECT_EQ(c.bytes().size(), 5U);
  EXPECT_EQ(c.path(), dir / "a");
  write_text(dir / "empty", "");
  EXPECT_TRUE(MappedFile(dir / "empty").bytes().empty());
  expect_error(RAMP_ERROR_IO, {dir / "none", "No such file", "check the path"},
               [&] { MappedFile(dir / "none"); });
  expect_error(RAMP_ERROR_IO, {"directory"}, [&] { MappedFile(dir.path()); });
  expect_error(RAMP_ERROR_IO, {"not a regular file"}, [&] { MappedFile("/dev/null"); });
}

TEST(ReadText, WholeFilesOfAnySize) {
  const TempDir dir;
  for (const size_t size : {0UL, 1UL, 4096UL, 65536UL, 65537UL, 300000UL}) {
    const std::string text(size, 'x');
    write_text(dir / "f", text);
    EXPECT_EQ(read_text(dir / "f"), text);
  }
  EXPECT_FALSE(read_text("/proc/self/stat").empty());  // reports size 0, has content
  EXPECT_EQ(read_text(dir / "f", 300000).size(), 300000U);
  expect_error(RAMP_ERROR_BAD_FILE, {dir / "f", "more than 299999 bytes"},
               [&] { read_text(dir / "f", 299999); });
  expect_error(RAMP_ERROR_BAD_FILE, {"/dev/zero"}, [&] { read_text("/dev/zero", 1U << 20U); });  // never ends
  expect_error(RAMP_ERROR_IO, {"cannot open"}, [&] { read_text(dir / "none"); });
  expect_error(RAMP_ERROR_IO, {"cannot read"}, [&] { read_text(dir.path()); });
}

TEST(WriteFile, CreatesAndReplaces) {
  const TempDir dir;
  write_text(dir / "f", "one");
  write_text(dir / "f", "two");
  EXPECT_EQ(read_text(dir / "f"), "two");
  EXPECT_EQ(dir.list(), std::vector<std::string>{"f"});
  expect_error(RAMP_ERROR_IO, {"directory"}, [&] { write_text(dir.path(), "x"); });
  expect_error(RAMP_ERROR_IO, {"No such file"}, [&] { write_text(dir / "no/such/f", "x"); });
  expect_error(RAMP_ERROR_INVALID_ARGUMENT, {"empty path"}, [] { write_text("", "x"); });
}

TEST(WriteFile, KeepsPermissionsAndFollowsLinks) {
  const TempDir dir;
  write_text(dir / "real", "old");
  ASSERT_EQ(::chmod((dir / "real").c_str(), 0640), 0);
  ASSERT_EQ(::symlink("real", (dir / "link").c_str()), 0);
  write_text(dir / "link", "new");
  EXPECT_EQ(read_text(dir / "real"), "new");
  struct stat st {};
  ASSERT_EQ(::lstat((dir / "link").c_str(), &st), 0);
  EXPECT_TRUE(S_ISLNK(st.st_mode));
  ASSERT_EQ(::stat((dir / "real").c_str(), &st), 0);
  EXPECT_EQ(st.st_mode & 07777U, 0640U);
}

TEST(WriteFile, NothingIsLeftWhenTheDiskIsFull) {
  const TempDir dir;
  const std::string big(1 << 20, 'x');
  {
    const FileSizeLimit limit(64 << 10);
    expect_error(RAMP_ERROR_IO, {dir / "f", "cannot write", "File too large"},
                 [&] { write_text(dir / "f", big); });
  }
  EXPECT_TRUE(dir.list().empty());
  write_text(dir / "f", "old");
  {
    const FileSizeLimit limit(64 << 10);
    expect_error(RAMP_ERROR_IO, {"cannot write"}, [&] { write_text(dir / "f", big); });
  }
  EXPECT_EQ(read_text(dir / "f"), "old");
  EXPECT_EQ(dir.list(), std::vector<std::string>{"f"});
}

TEST(WriteFile, NpyToAFullDiskLeavesNothing) {
  const TempDir dir;
  std::vector<float> data(100000);
  ramp_tensor t = make_tensor(data.data(), RAMP_F32, {100, 1000});
  const FileSizeLimit limit(64 << 10);
  expect_error(RAMP_ERROR_IO, {"cannot write"}, [&] { write_npy(dir / "y.npy", t); });
  t.shape[1] = 500;  // the gathering path
  expect_error(RAMP_ERROR_IO, {"cannot write"}, [&] { write_npy(dir / "y.npy", t); });
  EXPECT_TRUE(dir.list().empty());
}

TEST(WriteFile, DevicesAreWrittenNotReplaced) {
  expect_error(RAMP_ERROR_IO, {"/dev/full", "No space left", "free some space"},
               [] { write_text("/dev/full", "x"); });
  write_text("/dev/null", "x");
  struct stat st {};
  ASSERT_EQ(::stat("/dev/null", &st), 0);
  EXPECT_TRUE(S_ISCHR(st.st_mode));
}

TEST(WriteFile, ReadOnlyDirectory) {
  const TempDir dir;
  ASSERT_EQ(::chmod(dir.path().c_str(), 0555), 0);
  // Root ignores permissions: use another identity for file access in this thread.
  if (::geteuid() == 0) ::setfsuid(65534);
  expect_error(RAMP_ERROR_IO, {dir / "f", "Permission denied", "check the permissions"},
               [&] { write_text(dir / "f", "x"); });
  if (::geteuid() == 0) ::setfsuid(0);
  ASSERT_EQ(::chmod(dir.path().c_str(), 0755), 0);
  EXPECT_TRUE(dir.list().empty());
}

TEST(AtomicFile, AbandonedWithoutCommitLeavesNothing) {
  const TempDir dir;
  {
    AtomicFile file(dir / "f");
    file.write("part");
  }
  EXPECT_TRUE(dir.list().empty());
  AtomicFile file(dir / "f");
  file.write("a");
  file.write("b");
  file.commit();
  EXPECT_EQ(read_text(dir / "f"), "ab");
  expect_error(RAMP_ERROR_INTERNAL, {"after commit"}, [&] { file.write("c"); });
  expect_error(RAMP_ERROR_INTERNAL, {"after commit"}, [&] { file.commit(); });
}

TEST(AtomicFile, CommitNewLeavesWhatIsThere) {
  const TempDir dir;
  AtomicFile first(dir / "f");
  AtomicFile second(dir / "f");
  first.write("first");
  second.write("second");
  EXPECT_TRUE(first.commit_new());
  EXPECT_FALSE(second.commit_new());
  EXPECT_EQ(read_text(dir / "f"), "first");
  expect_error(RAMP_ERROR_INTERNAL, {"after commit"}, [&] { static_cast<void>(first.commit_new()); });
  second.commit();  // still may
  EXPECT_EQ(read_text(dir / "f"), "second");
  EXPECT_EQ(dir.list(), std::vector<std::string>{"f"});
  AtomicFile device("/dev/null");
  device.write("x");
  EXPECT_TRUE(device.commit_new());
}

// Of many that publish at once exactly one is told so, and its text is what stays.
TEST(AtomicFile, OneOfManyPublishes) {
  const TempDir dir;
  std::vector<int> told(8);
  std::vector<std::thread> threads;
  for (int t = 0; t < 8; ++t)
    threads.emplace_back([&, t] {
      AtomicFile file(dir / "f");
      file.write(std::string(5000, static_cast<char>('a' + t)));
      told[static_cast<size_t>(t)] = file.commit_new() ? 1 : 0;
    });
  for (std::thread& t : threads) t.join();
  ASSERT_EQ(std::count(told.begin(), told.end(), 1), 1);
  const auto winner = std::find(told.begin(), told.end(), 1) - told.begin();
  EXPECT_EQ(read_text(dir / "f"), std::string(5000, static_cast<char>('a' + winner)));
  EXPECT_EQ(dir.list(), std::vector<std::string>{"f"});
}

TEST(AtomicFile, ConcurrentWritersEachLeaveAWholeFile) {
  const TempDir dir;
  std::vector<std::thread> threads;
  for (int t = 0; t < 4; ++t) {
    threads.emplace_back([&, t] {
      const std::string text(20000, static_cast<char>('a' + t));
      for (int i = 0; i < 10; ++i) write_text(dir / "f", text);
    });
  }
  for (std::thread& t : threads) t.join();
  const std::string text = read_text(dir / "f");
  EXPECT_EQ(text, std::string(20000, text.at(0)));
  EXPECT_EQ(dir.list(), std::vector<std::string>{"f"});
}

}  // namespace
}  // namespace ramp::core
