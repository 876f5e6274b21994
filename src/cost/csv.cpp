// The CSV reader: splitting, and numbers with complaints that can be acted on.
#include "cost/csv.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <charconv>
#include <cmath>

#include "base/error.hpp"

namespace ramp::core {

CsvReader::CsvReader(const std::string& path) : file_(path), name_(path) {
  const auto bytes = file_.bytes();
  rest_ = {reinterpret_cast<const char*>(bytes.data()), bytes.size()};
  read_header();
}

CsvReader::CsvReader(std::string_view text, std::string name) : name_(std::move(name)), rest_(text) {
  read_header();
}

void CsvReader::read_header() {
  if (!split()) fail_argument(name_, "an empty file", "a header line", {}, RAMP_ERROR_BAD_FILE);
  columns_.assign(row_.begin(), row_.end());
  std::vector<std::string> sorted = columns_;
  std::sort(sorted.begin(), sorted.end());
  const auto twice = std::adjacent_find(sorted.begin(), sorted.end());
  if (twice != sorted.end()) fail_at(-1, *twice + " twice", "columns of different names");
}

int CsvReader::find(std::string_view column) const noexcept {
  const auto at = std::find(columns_.begin(), columns_.end(), column);
  return at == columns_.end() ? -1 : static_cast<int>(at - columns_.begin());
}

int CsvReader::require(std::string_view column) const {
  const int at = find(column);
  if (at < 0) {
    std::string have;
    for (const std::string& c : columns_) have += (have.empty() ? "" : ", ") + printable(c);
    fail_argument(name_, fmt::format("columns {}", have), fmt::format("a column '{}'", column), {},
                  RAMP_ERROR_BAD_FILE);
  }
  return at;
}

// Splits one record off rest_. Returns false at the end of the text.
bool CsvReader::split() {
  row_.clear();
  scratch_.clear();
  while (!rest_.empty() && (rest_.front() == '\n' || rest_.front() == '\r')) {  // blank lines
    if (rest_.front() == '\n') ++next_line_;
    rest_.remove_prefix(1);
  }
  if (rest_.empty()) return false;
  line_ = next_line_;
  // scratch_ must not move once a view points into it.
  scratch_.reserve(columns_.empty() ? 64 : columns_.size());
  bool more = true;
  while (more) {
    std::string_view field;
    if (!rest_.empty() && rest_.front() == '"') {
      if (scratch_.size() == scratch_.capacity())
        fail_at(-1, "too many quoted fields", "at most 64 in a header");
      std::string& text = scratch_.emplace_back();
      size_t i = 1;
      for (;; ++i) {
        if (i >= rest_.size()) fail_at(-1, "a quote that never closes", "a closing '\"'");
        if (rest_[i] == '"') {
          if (i + 1 < rest_.size() && rest_[i + 1] == '"') {
            text += '"';
            ++i;
            continue;
          }
          break;
        }
        if (rest_[i] == '\n') ++next_line_;
        text += rest_[i];
      }
      rest_.remove_prefix(i + 1);
      if (!rest_.empty() && rest_.front() != ',' && rest_.front() != '\n' && rest_.front() != '\r') {
        fail_at(-1, "text after a closing quote", "',' or the end of the line");
      }
      field = text;
      more = !rest_.empty() && rest_.front() == ',';
    } else {
      const size_t end = rest_.find_first_of(",\n");
      field = rest_.substr(0, end);
      rest_.remove_prefix(field.size());
      more = !rest_.empty() && rest_.front() == ',';
      if (!more && !field.empty() && field.back() == '\r') field.remove_suffix(1);
    }
    row_.push_back(field);
    if (more) rest_.remove_prefix(1);
  }
  if (!rest_.empty() && rest_.front() == '\r') rest_.remove_prefix(1);
  if (!rest_.empty()) {
    rest_.remove_prefix(1);
    ++next_line_;
  }
  return true;
}

std::span<const std::string_view> CsvReader::next() {
  if (!split()) return {};
  if (row_.size() != columns_.size()) {
    fail_at(-1, fmt::format("{} fields", row_.size()), fmt::format("{} as in the header", columns_.size()));
  }
  return row_;
}

std::optional<double> CsvReader::as_number(std::string_view text) noexcept {
  double value = 0;
  const auto [end, ec] = std::from_chars(text.data(), text.data() + text.size(), value);
  if (ec != std::errc() || end != text.data() + text.size() || !std::isfinite(value)) return std::nullopt;
  return value;
}

double CsvReader::number(std::span<const std::string_view> row, int column) const {
  const std::string_view text = row[static_cast<size_t>(column)];
  const std::optional<double> value = as_number(text);
  if (!value) fail_at(column, text, "a finite number");
  return *value;
}

int64_t CsvReader::integer(std::span<const std::string_view> row, int column, int64_t low,
                           int64_t high) const {
  const std::string_view text = row[static_cast<size_t>(column)];
  int64_t value = 0;
  const auto [end, ec] = std::from_chars(text.data(), text.data() + text.size(), value);
  if (ec != std::errc() || end != text.data() + text.size() || value < low || value > high) {
    fail_at(column, text, fmt::format("an integer in [{}, {}]", low, high));
  }
  return value;
}

void CsvReader::fail_at(int column, std::string_view got, std::string_view expected) const {
  const std::string where =
      column < 0 ? std::string{} : ": " + printable(columns_[static_cast<size_t>(column)]);
  fail_argument(fmt::format("{}:{}{}", name_, line_, where), fmt::format("'{}'", printable(got)), expected,
                {}, RAMP_ERROR_BAD_FILE);
}

}  // namespace ramp::core
