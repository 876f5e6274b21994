// The process runner and the file makers.
#include "cli/harness.hpp"

#include <fcntl.h>
#include <gtest/gtest.h>
#include <spawn.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <sstream>
#include <stdexcept>

#include "base/rng.hpp"
#include "base/tensor.hpp"

extern char** environ;

namespace ramp::cli_test {
namespace {

Result spawn(const std::vector<std::string>& command) {
  // No fit that somebody's profile left in the user's cache directory may play a part.
  setenv("RAMP_CACHE_DIR", (std::filesystem::temp_directory_path() / "ramp-cli-test-no-cache").c_str(), 1);
  const Scratch scratch;
  const std::string out = scratch.path("out");
  const std::string err = scratch.path("err");
  posix_spawn_file_actions_t actions;
  posix_spawn_file_actions_init(&actions);
  posix_spawn_file_actions_addopen(&actions, STDIN_FILENO, "/dev/null", O_RDONLY, 0);
  posix_spawn_file_actions_addopen(&actions, STDOUT_FILENO, out.c_str(), O_WRONLY | O_CREAT, 0600);
  posix_spawn_file_actions_addopen(&actions, STDERR_FILENO, err.c_str(), O_WRONLY | O_CREAT, 0600);
  std::vector<char*> argv;
  for (const std::string& a : command) argv.push_back(const_cast<char*>(a.c_str()));
  argv.push_back(nullptr);
  pid_t pid = 0;
  const int failed = posix_spawn(&pid, argv[0], &actions, nullptr, argv.data(), environ);
  posix_spawn_file_actions_destroy(&actions);
  if (failed != 0) throw std::runtime_error("cannot start " + command[0]);
  int status = 0;
  if (waitpid(pid, &status, 0) != pid) throw std::runtime_error("waitpid");
  Result r;
  r.code = WIFEXITED(status) ? WEXITSTATUS(status) : 128 + WTERMSIG(status);
  r.out = read_file(out);
  r.err = read_file(err);
  return r;
}

ramp_tensor view(const void* data, ramp_dtype dtype, const std::vector<int64_t>& shape) {
  ramp_tensor t{};
  t.data = const_cast<void*>(data);
  t.dtype = dtype;
  t.ndim = static_cast<int32_t>(shape.size());
  std::copy(shape.begin(), shape.end(), t.shape);
  return t;
}

}  // namespace

Scratch::Scratch() {
  std::string pattern = std::filesystem::temp_directory_path().string() + "/ramp-cli-test-XXXXXX";
  if (mkdtemp(pattern.data()) == nullptr) throw std::runtime_error("mkdtemp " + pattern);
  directory_ = pattern;
}
Scratch::~Scratch() {
  std::error_code ignored;
  std::filesystem::remove_all(directory_, ignored);
}
std::vector<std::string> Scratch::files() const {
  std::vector<std::string> names;
  for (const auto& entry : std::filesystem::directory_iterator(directory_))
    names.push_back(entry.path().filename().string());
  std::sort(names.begin(), names.end());
  return names;
}

Result ramp(const std::vector<std::string>& args) {
  return spawn(std::vector<std::string>{RAMP_BINARY} + args);
}

Result shell(const std::string& script) {
  return spawn({"/bin/sh", "-c", "RAMP='" RAMP_BINARY "'; " + script});
}

std::vector<std::string> operator+(std::vector<std::string> a, const std::vector<std::string>& b) {
  a.insert(a.end(), b.begin(), b.end());
  return a;
}

std::string read_file(const std::string& path) {
  std::ifstream file(path, std::ios::binary);
  std::ostringstream text;
  text << file.rdbuf();
  return text.str();
}
void write_file(const std::string& path, const std::string& content) {
  std::ofstream(path, std::ios::binary) << content;
}

std::string make_checkpoint(const Scratch& scratch, ramp_format format, int64_t shards) {
  core::SyntheticOptions o;
  o.shape = {"test", kExperts, kTopK, kHidden, kIntermediate};
  o.format = format;
  o.layers = 2;
  o.shards = shards;
  o.seed = 5;
  const std::string directory = scratch.path("checkpoint");
  core::write_demo_checkpoint(directory, o);
  return directory;
}

void save_f32(const std::string& path, const std::vector<int64_t>& shape, const std::vector<float>& values) {
  core::write_npy(path, view(values.data(), RAMP_F32, shape));
}
void save_i32(const std::string& path, const std::vector<int64_t>& shape,
              const std::vector<int32_t>& values) {
  core::write_npy(path, view(values.data(), RAMP_I32, shape));
}
std::vector<float> load_f32(const std::string& path) {
  const core::NpyArray a = core::read_npy(path);
  std::vector<float> values;
  for (int64_t i = 0; i < core::numel(a.view()); ++i)
    values.push_back(core::load_f32(a.data.data(), a.dtype, i));
  return values;
}
std::vector<int64_t> load_ids(const std::string& path) {
  const core::NpyArray a = core::read_npy(path);
  std::vector<int64_t> values;
  for (int64_t i = 0; i < core::numel(a.view()); ++i)
    values.push_back(a.dtype == RAMP_I64 ? a.data.as<int64_t>()[i] : a.data.as<int32_t>()[i]);
  return values;
}
std::vector<int64_t> load_shape(const std::string& path) {
  return core::read_npy(path).shape;
}
std::vector<float> noise(int64_t n, uint64_t seed) {
  std::vector<float> values(static_cast<size_t>(n));
  for (int64_t i = 0; i < n; ++i)
    values[static_cast<size_t>(i)] =
        static_cast<float>(2 * core::random_unit(seed, static_cast<uint64_t>(i)) - 1);
  return values;
}

bool house_lines(const std::string& err) {
  std::istringstream lines(err);
  std::string line;
  while (std::getline(lines, line))
    if (!line.starts_with("ramp: ")) return false;
  return !err.empty();
}

}  // namespace ramp::cli_test
