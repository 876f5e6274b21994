// Shared by the tests of the base and loader rooms: expected errors with their texts, and temporary
// directories.
#pragma once

#include <gtest/gtest.h>

#include <cstdlib>
#include <filesystem>
#include <initializer_list>
#include <string>
#include <string_view>
#include <vector>

#include "base/error.hpp"

namespace ramp::test {

// Runs fn, which must throw core::Error of this status whose text holds every one of the parts.
template <typename Fn>
void expect_error(ramp_status status, std::initializer_list<std::string_view> parts, Fn&& fn) {
  try {
    fn();
    ADD_FAILURE() << "no error; expected " << core::status_name(status);
  } catch (const core::Error& e) {
    EXPECT_EQ(e.status(), status) << e.what();
    for (const std::string_view part : parts)
      EXPECT_NE(std::string_view(e.what()).find(part), std::string_view::npos)
          << "'" << part << "' not in: " << e.what();
  }
}

// A fresh directory, removed with everything in it.
class TempDir {
 public:
  TempDir() {
    std::string pattern = (std::filesystem::temp_directory_path() / "ramp_test_XXXXXX").string();
    if (mkdtemp(pattern.data()) == nullptr) throw std::runtime_error("mkdtemp failed");
    path_ = pattern;
  }
  ~TempDir() {
    std::error_code error;
    std::filesystem::remove_all(path_, error);
  }
  TempDir(const TempDir&) = delete;
  TempDir& operator=(const TempDir&) = delete;
  [[nodiscard]] std::string operator/(std::string_view name) const { return path_ + "/" + std::string(name); }
  [[nodiscard]] const std::string& path() const { return path_; }
  // Names of everything in it, hidden files included.
  [[nodiscard]] std::vector<std::string> list() const {
    std::vector<std::string> names;
    for (const auto& entry : std::filesystem::directory_iterator(path_))
      names.push_back(entry.path().filename().string());
    return names;
  }

 private:
  std::string path_;
};

}  // namespace ramp::test
