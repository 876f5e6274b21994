// Runs the ramp binary and gives back exit code, stdout and stderr; makes the small files that tests feed it.
#pragma once

#include <cstdint>
#include <nlohmann/json.hpp>
#include <string>
#include <vector>

#include "base/npy.hpp"
#include "loader/synthetic_checkpoint.hpp"

namespace ramp::cli_test {

using nlohmann::json;

struct Result {
  int code = -1;  // 128 + signal where a signal ended it
  std::string out, err;
  // stdout as JSON; throws (fails the test) if it is anything else.
  [[nodiscard]] json parsed() const { return json::parse(out); }
};

// A directory of its own for one test, removed with it.
class Scratch {
 public:
  Scratch();
  ~Scratch();
  Scratch(const Scratch&) = delete;
  Scratch& operator=(const Scratch&) = delete;
  [[nodiscard]] std::string path(const std::string& name) const { return directory_ + "/" + name; }
  [[nodiscard]] const std::string& directory() const { return directory_; }
  [[nodiscard]] std::vector<std::string> files() const;  // names, sorted

 private:
  std::string directory_;
};

// ramp ARGS..., stdin empty. Throws if the binary cannot be started.
Result ramp(const std::vector<std::string>& args);
// sh -c SCRIPT, with "$RAMP" being the binary.
Result shell(const std::string& script);

// Without progress, measurement and waiting: what most tests of `bench` and `info` want.
std::vector<std::string> operator+(std::vector<std::string> a, const std::vector<std::string>& b);

std::string read_file(const std::string& path);
void write_file(const std::string& path, const std::string& content);

// A small OLMoE-like checkpoint, fp8_block unless said otherwise: E = 8, k = 2, H = 256, I = 128, 2 layers.
std::string make_checkpoint(const Scratch& scratch, ramp_format format = RAMP_FORMAT_FP8_BLOCK,
                            int64_t shards = 1);
inline constexpr int64_t kExperts = 8, kTopK = 2, kHidden = 256, kIntermediate = 128;

// .npy files.
void save_f32(const std::string& path, const std::vector<int64_t>& shape, const std::vector<float>& values);
void save_i32(const std::string& path, const std::vector<int64_t>& shape, const std::vector<int32_t>& values);
std::vector<float> load_f32(const std::string& path);    // any floating dtype, as f32
std::vector<int64_t> load_ids(const std::string& path);  // i32 or i64
std::vector<int64_t> load_shape(const std::string& path);
// n values in [-1, 1) from a fixed sequence.
std::vector<float> noise(int64_t n, uint64_t seed);

// Every line on stderr begins with "ramp: ".
bool house_lines(const std::string& err);

}  // namespace ramp::cli_test
