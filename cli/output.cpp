// Tables, numbers and the two output modes.
#include "cli/output.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <array>
#include <cerrno>
#include <cmath>
#include <cstdio>
#include <system_error>

#include "base/error.hpp"

namespace ramp::cli {
namespace {

size_t width_of(std::string_view text) {
  return static_cast<size_t>(std::count_if(
      text.begin(), text.end(), [](char c) { return (static_cast<unsigned char>(c) & 0xc0U) != 0x80U; }));
}

void write_stdout(std::string_view text) {
  errno = 0;
  const bool ok = std::fwrite(text.data(), 1, text.size(), stdout) == text.size() && std::fflush(stdout) == 0;
  if (!ok)
    core::fail(RAMP_ERROR_IO,
               fmt::format("standard output: got '{}', expected to write {} bytes; redirect it to a "
                           "place with room",
                           std::generic_category().message(errno), text.size()));
}

}  // namespace

std::string Table::text() const {
  std::vector<size_t> widths;
  widths.reserve(columns_.size());
  for (const Column& c : columns_) widths.push_back(width_of(c.title));
  for (const auto& row : rows_)
    for (size_t i = 0; i < row.size(); ++i) widths.at(i) = std::max(widths[i], width_of(row[i]));

  std::string out;
  const auto line = [&](const auto& cell) {
    std::string text;
    for (size_t i = 0; i < columns_.size(); ++i) {
      const std::string& value = cell(i);
      const std::string pad(widths[i] - width_of(value), ' ');
      text += i == 0 ? "" : "  ";
      text += columns_[i].align == Align::kRight ? pad + value : value + pad;
    }
    text.erase(text.find_last_not_of(' ') + 1);
    out += text + "\n";
  };
  line([&](size_t i) -> const std::string& { return columns_[i].title; });
  for (const auto& row : rows_) line([&](size_t i) -> const std::string& { return row[i]; });
  return out;
}

void Io::print(std::string_view text) {
  if (!json) text_ += text;
}

void Io::emit(Json document) {
  if (json) document_ = std::move(document);
}

void Io::note(std::string_view text) const {
  if (!quiet) say(fmt::format("note: {}", text));
}

void Io::finish() {
  // Text from files may hold invalid UTF-8; replacing it keeps the document valid.
  if (json)
    write_stdout(document_.dump(2, ' ', false, Json::error_handler_t::replace) + "\n");
  else if (!text_.empty())
    write_stdout(text_);
}

void say(std::string_view text) {
  fmt::print(stderr, "ramp: {}\n", text);
}

std::string number(double value) {
  if (!std::isfinite(value)) return std::isnan(value) ? "nan" : value > 0 ? "inf" : "-inf";
  const double size = std::fabs(value);
  if (size == 0) return "0";
  if (size < 1e-3 || size >= 1e9) return fmt::format("{:.2e}", value);
  if (size < 0.1) return fmt::format("{:.4f}", value);
  if (size < 1) return fmt::format("{:.3f}", value);
  if (size < 100) return fmt::format("{:.2f}", value);
  if (size < 1000) return fmt::format("{:.1f}", value);
  return fmt::format("{:.0f}", value);
}

std::string count_text(double mean) {
  return mean == std::floor(mean) ? fmt::format("{:.0f}", mean) : fmt::format("{:.1f}", mean);
}

std::string bytes_text(double bytes) {
  constexpr std::array<const char*, 5> kUnits = {"B", "kB", "MB", "GB", "TB"};
  size_t unit = 0;
  for (; bytes >= 1000 && unit + 1 < kUnits.size(); ++unit) bytes /= 1000;
  return unit == 0 ? fmt::format("{:.0f} B", bytes) : fmt::format("{:.2f} {}", bytes, kUnits[unit]);
}

std::string cache_text(int64_t bytes) {
  if (bytes >= 1 << 20 && bytes % (1 << 20) == 0) return fmt::format("{} MiB", bytes >> 20);
  if (bytes >= 1 << 20) return fmt::format("{:.1f} MiB", static_cast<double>(bytes) / (1 << 20));
  return fmt::format("{} KiB", bytes >> 10);
}

}  // namespace ramp::cli
