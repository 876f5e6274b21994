// A strict, streaming CSV reader over a memory-mapped file: RFC 4180 quoting, a header line, the same number
// of fields in every row. Fields are views into the map (or into a scratch buffer where quotes had to be
// undone), so a million rows cost no allocation. Why not a library: the columns are not known at compile time
// and every complaint must name file, line and column.
#pragma once

#include <cstdint>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "base/file.hpp"

namespace ramp::core {

class CsvReader {
 public:
  explicit CsvReader(const std::string& path);
  // Over text in memory (tests, fuzzing). `name` stands for the path in messages; the text must outlive the
  // reader.
  CsvReader(std::string_view text, std::string name);

  [[nodiscard]] const std::vector<std::string>& columns() const noexcept { return columns_; }
  // Index of a column, -1 if absent.
  [[nodiscard]] int find(std::string_view column) const noexcept;
  // Index of a column; throws Error(BAD_FILE) naming the file and the columns that it has.
  [[nodiscard]] int require(std::string_view column) const;
  // The next row, or an empty span at the end. Views live until the next call.
  std::span<const std::string_view> next();
  [[nodiscard]] int64_t line() const noexcept { return line_; }  // of the row last returned, 1-based

  // The text as a finite number, if it is one.
  [[nodiscard]] static std::optional<double> as_number(std::string_view text) noexcept;
  // Numbers. Throw Error(BAD_FILE) "<file>:<line>: <column>: got '<text>', expected <what>".
  [[nodiscard]] double number(std::span<const std::string_view> row, int column) const;
  [[nodiscard]] int64_t integer(std::span<const std::string_view> row, int column, int64_t low,
                                int64_t high) const;
  [[noreturn]] void fail_at(int column, std::string_view got, std::string_view expected) const;

 private:
  bool split();
  void read_header();
  MappedFile file_;
  std::string name_;
  std::string_view rest_;
  std::vector<std::string> columns_;
  std::vector<std::string_view> row_;
  std::vector<std::string> scratch_;
  int64_t line_ = 0;
  int64_t next_line_ = 1;
};

}  // namespace ramp::core
