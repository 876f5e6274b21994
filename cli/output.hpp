// Where a command's results go. Human mode: text on stdout. --json: one JSON document on stdout and nothing
// else there. Notes, progress and errors are on stderr in both. Nothing reaches stdout before finish(), so a
// command that fails half-way leaves stdout empty.
#pragma once

#include <nlohmann/json.hpp>
#include <string>
#include <string_view>
#include <vector>

namespace ramp::cli {

using Json = nlohmann::ordered_json;

// A text table with aligned columns: numbers to the right, text to the left.
class Table {
 public:
  enum class Align { kLeft, kRight };
  struct Column {
    std::string title;
    Align align = Align::kRight;
  };
  explicit Table(std::vector<Column> columns) : columns_(std::move(columns)) {}
  // As many cells as columns. UTF-8 counts by code points.
  void add(std::vector<std::string> cells) { rows_.push_back(std::move(cells)); }
  [[nodiscard]] bool empty() const noexcept { return rows_.empty(); }
  [[nodiscard]] std::string text() const;

 private:
  std::vector<Column> columns_;
  std::vector<std::vector<std::string>> rows_;
};

class Io {
 public:
  bool json = false;
  bool quiet = false;  // no progress, no notes

  // Text for people; dropped with --json.
  void print(std::string_view text);
  // The result; dropped without --json. At most once per command.
  void emit(Json document);
  // A remark on stderr ("ramp: note: ..."), in both modes.
  void note(std::string_view text) const;
  // Writes what was collected to stdout. Throws Error(IO) if stdout refuses it.
  void finish();

 private:
  std::string text_;
  Json document_;
};

// Writes one line to stderr, prefixed "ramp: ".
void say(std::string_view text);

// Numbers for people: three or four significant digits, never exponents for usual sizes.
std::string number(double value);
std::string count_text(double mean);    // of counts: "8", "38.5"
std::string bytes_text(double bytes);   // "1.50 GB" (powers of ten), "480 MiB" is cache_text
std::string cache_text(int64_t bytes);  // powers of two: "32 KiB"

}  // namespace ramp::cli
