// Typed options, shared vocabularies, and near names for typing slips.
#include "cli/options.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <array>
#include <cctype>
#include <charconv>
#include <cmath>
#include <utility>

#include "base/error.hpp"

namespace ramp::cli {
namespace {

constexpr std::array<std::pair<ramp_backend, const char*>, 4> kBackends = {
    {{RAMP_BACKEND_AUTO, "auto"},
     {RAMP_BACKEND_REFERENCE, "reference"},
     {RAMP_BACKEND_CPU, "cpu"},
     {RAMP_BACKEND_CUDA, "cuda"}}};
constexpr std::array<std::pair<ramp_determinism, const char*>, 3> kDeterminism = {
    {{RAMP_REPEATABLE, "repeatable"}, {RAMP_BATCH_INVARIANT, "batch-invariant"}, {RAMP_FAST, "fast"}}};

template <typename Table>
std::vector<std::string> names_of(const Table& table) {
  std::vector<std::string> names;
  names.reserve(table.size());
  for (const auto& [value, name] : table) names.emplace_back(name);
  return names;
}

// In the house format without the argument's name, which CLI11 puts in front of a validator's complaint.
std::string complaint(std::string_view got, std::string_view expected, std::string_view fix = {}) {
  return fmt::format("got '{}', expected {}{}", core::printable(got), expected, fix);
}

std::string range_text(IntegerRange range) {
  constexpr IntegerRange kAll;
  if (range.low == kAll.low && range.high == kAll.high) return "a whole number";
  if (range.high == kAll.high) return fmt::format("a whole number >= {}", range.low);
  return fmt::format("a whole number from {} to {}", range.low, range.high);
}

bool parse_integer(std::string_view text, IntegerRange range, int64_t& value) {
  const char* const end = text.data() + text.size();
  const auto [at, error] = std::from_chars(text.data(), end, value);
  return error == std::errc() && at == end && value >= range.low && value <= range.high;
}

// Damerau-Levenshtein distance (adjacent transpositions count one).
size_t edits(std::string_view a, std::string_view b) {
  std::vector<std::vector<size_t>> d(a.size() + 1, std::vector<size_t>(b.size() + 1));
  for (size_t i = 0; i <= a.size(); ++i) d[i][0] = i;
  for (size_t j = 0; j <= b.size(); ++j) d[0][j] = j;
  for (size_t i = 1; i <= a.size(); ++i) {
    for (size_t j = 1; j <= b.size(); ++j) {
      const size_t cost = a[i - 1] == b[j - 1] ? 0 : 1;
      d[i][j] = std::min({d[i - 1][j] + 1, d[i][j - 1] + 1, d[i - 1][j - 1] + cost});
      if (i > 1 && j > 1 && a[i - 1] == b[j - 2] && a[i - 2] == b[j - 1])
        d[i][j] = std::min(d[i][j], d[i - 2][j - 2] + 1);
    }
  }
  return d[a.size()][b.size()];
}

std::string with_default(std::string description, const std::string& value) {
  return value.empty() ? description : fmt::format("{} (default: {})", description, value);
}

}  // namespace

CLI::Option* add_text(CLI::App& app, const std::string& name, std::string& value, const std::string& metavar,
                      std::string description) {
  return app.add_option(name, value, with_default(std::move(description), value))->type_name(metavar);
}

CLI::Option* add_integer(CLI::App& app, const std::string& name, int64_t& value, IntegerRange range,
                         const std::string& metavar, std::string description) {
  const bool absent = value < range.low || value > range.high;
  return app
      .add_option(name, value, with_default(std::move(description), absent ? "" : std::to_string(value)))
      ->type_name(metavar)
      ->check(CLI::Validator(
          [range](std::string& text) {
            int64_t parsed = 0;
            return parse_integer(text, range, parsed) ? std::string() : complaint(text, range_text(range));
          },
          ""));
}

CLI::Option* add_real(CLI::App& app, const std::string& name, double& value, double low, double high,
                      const std::string& metavar, std::string description) {
  const std::string shown = value >= low && value <= high ? fmt::format("{}", value) : std::string();
  return app.add_option(name, value, with_default(std::move(description), shown))
      ->type_name(metavar)
      ->check(CLI::Validator(
          [low, high](std::string& text) {
            double parsed = 0;
            const char* const end = text.data() + text.size();
            const auto [at, error] = std::from_chars(text.data(), end, parsed);
            const bool ok = error == std::errc() && at == end && parsed >= low && parsed <= high;
            return ok ? std::string() : complaint(text, fmt::format("a number from {} to {}", low, high));
          },
          ""));
}

CLI::Option* add_choice(CLI::App& app, const std::string& name, std::string& value,
                        std::vector<std::string> choices, std::string description) {
  const std::string list = join(choices, ", ");
  return app.add_option(name, value, with_default(fmt::format("{}: {}", description, list), value))
      ->type_name("NAME")
      ->check(CLI::Validator(
          [choices = std::move(choices), list](std::string& text) {
            if (std::find(choices.begin(), choices.end(), text) != choices.end()) return std::string();
            return complaint(text, "one of " + list, did_you_mean(text, choices));
          },
          ""));
}

CLI::Option* add_switch(CLI::App& app, const std::string& name, bool& value, std::string description) {
  return app.add_flag(name, value, std::move(description));
}

CLI::Option* add_list(CLI::App& app, const std::string& name, std::vector<std::string>& values,
                      const std::string& metavar, std::string description) {
  return app.add_option(name, values, with_default(std::move(description), join(values, ",")))
      ->type_name(metavar)
      ->expected(1)
      ->multi_option_policy(CLI::MultiOptionPolicy::TakeAll);
}

void examples(CLI::App& app, const std::vector<Example>& list) {
  // help.cpp turns this into the help's last part; one example is two lines.
  std::string text;
  for (const Example& e : list) text += fmt::format("{}\n{}\n", e.command, e.meaning);
  app.footer(text);
}

std::vector<std::string> format_names() {
  std::vector<std::string> names;
  for (int32_t f = RAMP_FORMAT_FP8_BLOCK; f <= RAMP_FORMAT_FP8_CHANNEL; ++f)
    names.emplace_back(core::format_name(f));
  return names;
}
std::vector<std::string> activation_names() {
  std::vector<std::string> names;
  for (int32_t a = RAMP_ACTIVATION_SILU_AND_MUL; a <= RAMP_ACTIVATION_RELU2; ++a)
    names.emplace_back(core::activation_name(a));
  return names;
}
std::vector<std::string> backend_names() {
  return names_of(kBackends);
}
ramp_backend parse_backend(std::string_view name) {
  for (const auto& [value, text] : kBackends)
    if (name == text) return value;
  core::fail_argument("--backend", fmt::format("'{}'", name), "one of " + join(backend_names(), ", "));
}
std::vector<std::string> determinism_names() {
  return names_of(kDeterminism);
}
ramp_determinism parse_determinism(std::string_view name) {
  for (const auto& [value, text] : kDeterminism)
    if (name == text) return value;
  core::fail_argument("--determinism", fmt::format("'{}'", name),
                      "one of " + join(determinism_names(), ", "));
}
const char* determinism_name(int32_t value) {
  for (const auto& [known, text] : kDeterminism)
    if (known == value) return text;
  return "unknown";
}

core::ModelShape model_from(std::string_view argument, std::string_view text) {
  std::vector<std::string> names;
  for (const core::ModelShape& m : core::known_models()) names.push_back(m.name);
  try {
    return core::parse_model(text);
  } catch (const core::Error& e) {
    // Numbers were meant: the parser's own complaint is the better one.
    if (text.find(',') != std::string_view::npos) {
      std::string message = e.what();
      if (message.starts_with("model:")) message.replace(0, 5, argument);
      throw core::Error(e.status(), message);
    }
  }
  core::fail_argument(argument, fmt::format("'{}'", core::printable(text)), "a known model or E,k,H,I",
                      fmt::format(
                          "{}known models: {}",
                          [&] {
                            const std::string hint = did_you_mean(text, names);
                            return hint.empty() ? hint : hint.substr(2) + " ";
                          }(),
                          join(names, ", ")));
}

std::vector<core::ModelShape> models_from(std::string_view argument, const std::vector<std::string>& texts) {
  std::vector<core::ModelShape> models;
  for (const std::string& text : texts) {
    const std::vector<std::string> parts = split(text, ',');
    for (size_t i = 0; i < parts.size();) {
      const bool numeric = !parts[i].empty() && std::isdigit(static_cast<unsigned char>(parts[i][0])) != 0;
      const size_t take = numeric ? std::min<size_t>(4, parts.size() - i) : 1;
      std::string one = parts[i];
      for (size_t j = 1; j < take; ++j) one += "," + parts[i + j];
      // "5,6": the parser must see the comma to complain about the count.
      models.push_back(model_from(argument, numeric && take == 1 ? one + "," : one));
      i += take;
    }
  }
  return models;
}

int64_t integer_from(std::string_view argument, std::string_view text, IntegerRange range) {
  int64_t value = 0;
  if (!parse_integer(text, range, value))
    core::fail_argument(argument, fmt::format("'{}'", core::printable(text)), range_text(range));
  return value;
}

std::vector<int64_t> integers_from(std::string_view argument, std::string_view text, IntegerRange range) {
  std::vector<int64_t> values;
  for (const std::string& part : split(text, ',')) {
    int64_t value = 0;
    if (!parse_integer(part, range, value))
      core::fail_argument(argument, fmt::format("'{}' in '{}'", core::printable(part), core::printable(text)),
                          range_text(range), "separate several with commas, as in 1,8,64");
    values.push_back(value);
  }
  return values;
}

core::WorkloadSpec workload_from(std::string_view argument, std::string_view text) {
  try {
    return core::parse_workload(text);
  } catch (const core::Error& e) {
    const std::string message = e.what();
    const size_t colon = message.find(": got ");
    throw core::Error(e.status(), colon == std::string::npos
                                      ? fmt::format("{}: {}", argument, message)
                                      : fmt::format("{}{}", argument, message.substr(colon)));
  }
}

std::vector<core::WorkloadSpec> workloads_from(const std::vector<std::string>& texts) {
  std::vector<core::WorkloadSpec> specs;
  for (const std::string& text : texts)
    for (const std::string& part : split(text, ';')) specs.push_back(workload_from("--routing", part));
  return specs;
}

std::vector<std::string> split(std::string_view text, char separator) {
  std::vector<std::string> parts;
  size_t begin = 0;
  for (;;) {
    const size_t end = text.find(separator, begin);
    parts.emplace_back(text.substr(begin, end - begin));
    if (end == std::string_view::npos) return parts;
    begin = end + 1;
  }
}

std::vector<std::string> near_names(std::string_view text, const std::vector<std::string>& candidates) {
  std::vector<std::pair<size_t, std::string>> ranked;
  for (const std::string& c : candidates) {
    const bool begins = text.size() >= 2 && c.starts_with(text);
    const size_t distance = begins ? 0 : edits(text, c);
    if (distance <= std::max<size_t>(1, std::min(text.size(), c.size()) / 3))
      ranked.emplace_back(distance, c);
  }
  std::stable_sort(ranked.begin(), ranked.end(),
                   [](const auto& a, const auto& b) { return a.first < b.first; });
  std::vector<std::string> names;
  for (size_t i = 0; i < std::min<size_t>(3, ranked.size()); ++i) names.push_back(ranked[i].second);
  return names;
}

std::string did_you_mean(std::string_view text, const std::vector<std::string>& candidates) {
  const std::vector<std::string> near = near_names(text, candidates);
  return near.empty() ? std::string() : fmt::format("; did you mean '{}'?", join(near, "' or '"));
}

std::string join(const std::vector<std::string>& parts, std::string_view separator) {
  std::string text;
  for (size_t i = 0; i < parts.size(); ++i) {
    if (i > 0) text += separator;
    text += parts[i];
  }
  return text;
}

}  // namespace ramp::cli
