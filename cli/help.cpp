// From CLI11's declarations to help text and Markdown.
#include "cli/help.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <utility>

#include "cli/command.hpp"
#include "cli/options.hpp"

namespace ramp::cli {
namespace {

constexpr size_t kWidth = 100;
constexpr size_t kColumn = 30;  // where descriptions begin

struct Entry {
  std::string flags, description;
};
struct Group {
  std::string title;
  std::vector<Entry> entries;
};

Entry entry_of(const CLI::Option& option) {
  const bool takes_value = option.get_items_expected_max() > 0;
  const std::string metavar = takes_value ? option.get_type_name() : std::string();
  if (option.get_positional()) return {metavar, option.get_description()};
  std::vector<std::string> names;
  for (const std::string& s : option.get_snames()) names.push_back("-" + s);
  for (const std::string& l : option.get_lnames()) names.push_back("--" + l);
  return {join(names, ", ") + (metavar.empty() ? "" : " " + metavar), option.get_description()};
}

// In order of declaration; --help, --json and --quiet, which every command has, come last.
std::vector<Group> groups_of(const CLI::App& app) {
  std::vector<Group> groups;
  const auto put = [&](const std::string& title, Entry entry) {
    auto at = std::find_if(groups.begin(), groups.end(), [&](const Group& g) { return g.title == title; });
    if (at == groups.end()) at = groups.insert(groups.end(), Group{title, {}});
    at->entries.push_back(std::move(entry));
  };
  for (const CLI::Option* o : app.get_options())
    if (o->get_positional()) put("Arguments", entry_of(*o));
  for (const CLI::Option* o : app.get_options())
    if (!o->get_positional() && !o->get_group().empty() && o->get_group() != "Common")
      put(o->get_group(), entry_of(*o));
  for (const CLI::Option* o : app.get_options())
    if (!o->get_positional() && o->get_group() == "Common") put("Common", entry_of(*o));
  return groups;
}

std::string usage(const CLI::App& app) {
  if (app.get_parent() == nullptr) return "ramp COMMAND [OPTIONS]";
  std::string text = "ramp " + app.get_name();
  for (const CLI::Option* o : app.get_options())
    if (o->get_positional())
      text += o->get_required() ? " " + o->get_type_name() : fmt::format(" [{}]", o->get_type_name());
  return text + " [OPTIONS]";
}

// Words of `text` in lines of kWidth, the first beginning at column `at`, the others at `indent`.
std::string wrapped(const std::string& text, size_t at, size_t indent) {
  std::string out;
  for (const std::string& paragraph : split(text, '\n')) {
    if (!out.empty()) {
      out += "\n" + std::string(indent, ' ');
      at = indent;
    }
    bool first = true;
    for (const std::string& word : split(paragraph, ' ')) {
      if (!first && at + 1 + word.size() > kWidth) {
        out += "\n" + std::string(indent, ' ');
        at = indent;
        first = true;
      }
      out += (first ? "" : " ") + word;
      at += word.size() + (first ? 0 : 1);
      first = false;
    }
  }
  return out;
}

std::string entries_text(const std::vector<Entry>& entries) {
  std::string out;
  for (const Entry& e : entries) {
    std::string line = "  " + e.flags;
    if (line.size() + 2 > kColumn)
      line += "\n" + std::string(kColumn, ' ');
    else
      line += std::string(kColumn - line.size(), ' ');
    out += line + wrapped(e.description, kColumn, kColumn) + "\n";
  }
  return out;
}

std::vector<Example> examples_of(const CLI::App& app) {
  const std::vector<std::string> lines = split(app.get_footer(), '\n');
  std::vector<Example> list;
  for (size_t i = 0; i + 1 < lines.size(); i += 2) list.push_back({lines[i], lines[i + 1]});
  return list;
}

std::vector<const CLI::App*> visible_commands(const CLI::App& program) {
  std::vector<const CLI::App*> list;
  for (const CLI::App* sub : program.get_subcommands([](const CLI::App*) { return true; }))
    if (!sub->get_group().empty()) list.push_back(sub);
  return list;
}

// The first line of a description is the command's summary.
std::pair<std::string, std::string> summary_and_rest(const std::string& description) {
  const size_t end = description.find('\n');
  if (end == std::string::npos) return {description, ""};
  return {description.substr(0, end), description.substr(end + 1)};
}

// Text that Markdown would read as markup.
std::string escaped(const std::string& text) {
  std::string out;
  for (const char c : text) {
    if (c == '|' || c == '<' || c == '*' || c == '_') out += '\\';
    out += c == '\n' ? ' ' : c;
  }
  return out;
}

}  // namespace

std::string help_text(const CLI::App& app) {
  const auto [summary, rest] = summary_and_rest(app.get_description());
  std::string out = fmt::format("{}\n\nUsage: {}\n", wrapped(summary, 0, 0), usage(app));
  if (!rest.empty()) out += "\n" + wrapped(rest, 0, 0) + "\n";
  if (app.get_parent() == nullptr) {
    out += "\nCommands:\n";
    for (const CLI::App* sub : visible_commands(app))
      out += entries_text({{sub->get_name(), summary_and_rest(sub->get_description()).first}});
  }
  for (const Group& g : groups_of(app)) out += fmt::format("\n{}:\n{}", g.title, entries_text(g.entries));
  const std::vector<Example> list = examples_of(app);
  if (!list.empty()) out += "\nExamples:\n";
  for (const Example& e : list) out += fmt::format("  {}\n      {}\n", e.command, wrapped(e.meaning, 6, 6));
  out += fmt::format("\nExit codes: {}\n", wrapped(exit_code_help(), 12, 2));
  return out;
}

std::string help_markdown(const CLI::App& program) {
  std::string out =
      "# The `ramp` command\n\n"
      "<!-- Generated by `ramp help-markdown`; a test compares. Do not edit: change the help in "
      "cli/commands/. -->\n\n";
  out += fmt::format("{}\n\nUsage: `{}`\n\n", escaped(program.get_description()), usage(program));
  out += "| command | what it does |\n|---|---|\n";
  for (const CLI::App* sub : visible_commands(program))
    out += fmt::format("| [`{0}`](#ramp-{0}) | {1} |\n", sub->get_name(),
                       escaped(summary_and_rest(sub->get_description()).first));
  out += fmt::format("\nExit codes: {}.\n", exit_code_help());
  for (const CLI::App* sub : visible_commands(program)) {
    const auto [summary, rest] = summary_and_rest(sub->get_description());
    out +=
        fmt::format("\n## ramp {}\n\n{}\n\n```\n{}\n```\n", sub->get_name(), escaped(summary), usage(*sub));
    if (!rest.empty()) out += "\n" + escaped(rest) + "\n";
    for (const Group& g : groups_of(*sub)) {
      out += fmt::format("\n| {} | |\n|---|---|\n", g.title);
      for (const Entry& e : g.entries) {
        std::string flags = e.flags;
        for (size_t at = 0; (at = flags.find('|', at)) != std::string::npos; at += 2)
          flags.insert(at, 1, '\\');
        out += fmt::format("| `{}` | {} |\n", flags, escaped(e.description));
      }
    }
    const std::vector<Example> list = examples_of(*sub);
    if (!list.empty()) out += "\nExamples:\n\n```sh\n";
    for (const Example& e : list) out += fmt::format("# {}\n{}\n", e.meaning, e.command);
    if (!list.empty()) out += "```\n";
  }
  return out;
}

std::vector<std::string> option_names(const CLI::App& app) {
  std::vector<std::string> names;
  for (const CLI::Option* o : app.get_options()) {
    if (o->get_group().empty()) continue;
    for (const std::string& l : o->get_lnames()) names.push_back("--" + l);
    for (const std::string& s : o->get_snames()) names.push_back("-" + s);
  }
  return names;
}

}  // namespace ramp::cli
